"""A checkpoint into a learner folder, with what the user, a log next to it and its path say."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vlprompt import demo
from vlprompt.config.compose import compose, names
from vlprompt.config.datasets import load_dataset
from vlprompt.config.paths import config_dir, results_root
from vlprompt.config.schema import read_settings
from vlprompt.data.dataset import Dataset
from vlprompt.errors import UserError, unknown
from vlprompt.interop.dassl import checkpoints
from vlprompt.interop.dassl.facts import Facts, facts_of_options, facts_of_path, read_options
from vlprompt.interop.dassl.loading import Checkpoint, read_checkpoint, read_small
from vlprompt.protocols.base_to_novel import halves
from vlprompt.textfiles import read_text
from vlprompt.towers.geometry import read_geometry


def write_trained(path: Path, options: Namespace) -> tuple[str, list[str]]:
    """Write a checkpoint as a learner folder; -> what was done, and what was assumed."""
    facts = gather_facts(path, options)
    checkpoint = read_checkpoint(path)
    trained = checkpoints.convert(
        checkpoint,
        path,
        method=options.method,
        facts=facts,
        template=template_of_prograd(facts.trained_on or facts.dataset),
    )
    backbone = facts.backbone or guess_backbone(checkpoint, path)
    setting, geometry = read_backbone(backbone)
    if geometry is not None:
        checkpoints.check_backbone(trained, geometry, backbone, path)
    classes, about = read_classes(options, facts)
    if classes and trained.n_classes not in (None, len(classes)):
        half = " (--half base?)" if options.half is None and options.dataset else ""
        raise UserError(f"{path} was trained on {trained.n_classes} classes, {len(classes)} are given{half}")
    if not classes and trained.arguments.get("class_specific"):
        raise UserError(f"{path} has a context for each of {trained.n_classes} classes: name them with --classes")
    output = options.output or results_root() / "imported" / f"{trained.method}-{checkpoint.sha256[:8]}"
    checkpoints.write_learner(
        trained,
        output,
        origin={"file": str(path), "sha256": checkpoint.sha256, "epoch": checkpoint.epoch, "form": trained.form},
        backbone=setting,
        geometry=geometry,
        classes=classes,
        about=about,
        force=options.force,
    )
    named = f"{len(classes)} classes" if classes else "no class names (--classes or --dataset give them)"
    done = f"{output}: {trained.method} for {backbone} from {trained.form}, epoch {checkpoint.epoch}, {named}"
    return done, trained.notes


def gather_facts(path: Path, options: Namespace) -> Facts:
    """What the user, the log next to the checkpoint's folder, and the path say, in this order."""
    facts = Facts(dataset=options.dataset, backbone=options.backbone, half=options.half, ctx_init=options.ctx_init,
                  position=options.position)  # fmt: skip
    log = path.absolute().parent.parent / "log.txt"
    if log.is_file():
        text = read_small(log).decode("utf-8", errors="replace")
        facts = facts.completed_by(replace(facts_of_options(read_options(text)), eval_only=False))
    return facts.completed_by(facts_of_path(path.absolute()))


def template_of_prograd(dataset: str | None) -> str | None:
    """Its authors' text of a data set; None of one that is not known here."""
    if dataset not in names("dataset", [config_dir()]):
        return None
    template: str = compose(["method=prograd", f"dataset={dataset}"])["method"]["template"]
    return template


def guess_backbone(checkpoint: Checkpoint, path: Path) -> str:
    """The backbone by the patches of the model that the checkpoint holds. Raises: UserError where it holds none."""
    first = checkpoint.tensors.get("image_encoder.conv1.weight")
    shape = tuple(first.shape) if first is not None else ()
    known = {(768, 3, 32, 32): "vit_b32", (768, 3, 16, 16): "vit_b16", (1024, 3, 14, 14): "vit_l14"}
    if shape in known:
        return known[shape]
    raise UserError(f"nothing says which backbone {path} was trained on: give it, as in --backbone vit_b16")


def read_backbone(name: str) -> tuple[dict[str, str], Any]:
    """The model and weights that a backbone's name stands for, and its shape."""
    if name not in (known := names("backbone", [config_dir()])):
        raise unknown("backbone", name, known)
    setting = yaml.safe_load((config_dir() / "backbone" / f"{name}.yaml").read_text(encoding="utf-8"))
    setting.pop("about", None)
    folder = demo.BACKBONES.get(setting["model"])
    return setting, read_geometry(str(folder or setting["model"]), setting["weights"])


def read_classes(options: Namespace, facts: Facts) -> tuple[list[str], dict[str, Any]]:
    """The classes trained on, as far as the user says, and what the learner's file says of its data."""
    half = options.half or (facts.half if facts.half != "all" else None)
    protocol = {None: None, "all": "few_shot"}.get(facts.half, "base_to_novel")
    about: dict[str, Any] = {"dataset": facts.dataset, "protocol": protocol, "split_hash": None}
    if options.half and not options.dataset:
        raise UserError("--half is a half of the classes of --dataset: give that too")
    if options.classes is not None:
        lines = read_text(options.classes).splitlines()
        return [line.strip() for line in lines if line.strip()], about
    if not options.dataset:
        return [], about
    dataset = read_dataset(options.dataset)
    labels: Any = range(len(dataset.classes))
    if half is not None:
        labels = halves(dataset)[half == "novel"]
    about |= {"dataset": dataset.name, "split_hash": dataset.fingerprint()}
    return [dataset.classes[label] for label in labels], about


def read_dataset(name: str) -> Dataset:
    """A data set as it is configured here. Raises: UserError where it is not known, or not on this machine."""
    if name not in (known := names("dataset", [config_dir()])):
        raise unknown("data set", name, known, do="Give the class names of any other with --classes FILE.")
    settings = read_settings(compose([f"dataset={name}"]))
    return load_dataset(settings, settings.dataset)
