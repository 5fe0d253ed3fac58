"""`vlprompt import PATH`: recognise what PATH is, and write it in the form used here."""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.errors import UserError, unknown

if TYPE_CHECKING:
    from vlprompt.data.dataset import Dataset
    from vlprompt.imports.dassl import Facts
    from vlprompt.imports.loading import Checkpoint

FLAGS = {
    "learner": ("method", "classes", "dataset", "half", "backbone", "ctx_init", "position"),
    "results": ("method", "dataset", "backbone", "protocol", "shots", "seed", "split", "name"),
    "list": ("images",),
}
"""What PATH can be, and the flags that belong to each; --output and --force belong to all."""
DESCRIPTION = """\
PATH is one of: a checkpoint of trained prompts (model.pth.tar-50, or its folder), which becomes a learner folder;
a log.txt or a folder with some, whose results become records marked as imported; a few-shot pickle
(shot_16-seed_1.pkl), which becomes a list of JSON lines. Nothing in PATH is ever executed."""


def add_parser(commands: Any) -> None:
    """Register the sub-command; nothing heavy is imported for it."""
    parser = commands.add_parser("import", help="read checkpoints, logs and few-shot lists of the CoOp family",
                                 description=DESCRIPTION,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--kind", choices=tuple(FLAGS), help="what PATH is, where its name and content do not tell")
    parser.add_argument("--output", type=Path, help="learner: a folder; results: a results root; list: a file")
    parser.add_argument("--force", action="store_true", help="replace what was imported before")
    for flag, text in (
        ("method", "learner, results: our name of the method"),
        ("dataset", "learner: take the class names from it; results: its name"),
        ("backbone", "learner, results: its name, such as vit_b16"),
        ("ctx-init", 'learner: the phrase that the context was started from ("": random values)'),
        ("protocol", "results: base_to_novel, few_shot, ..."),
        ("split", "results: the test that the logs are of: base, novel, test"),
        ("name", "results: keep them apart from others of the same cell"),
        ("images", "list: the image folder, or its name, below which the paths count"),
    ):
        parser.add_argument(f"--{flag}", help=text)
    parser.add_argument("--classes", type=Path, metavar="FILE", help="learner: class names, one a line in label order")
    parser.add_argument("--half", choices=("base", "novel"), help="learner: the half of --dataset it was trained on")
    parser.add_argument(
        "--position", choices=("end", "middle", "front"), help="learner: where CoOp's class name stands"
    )
    parser.add_argument("--shots", type=_shots, help="results: training images a class, or all")
    parser.add_argument("--seed", type=int, help="results")
    parser.set_defaults(command=run)


def _shots(text: str) -> int | str:
    return text if text == "all" else int(text)


def run(options: Namespace) -> int:
    """Import what `options.path` is; -> exit code."""
    path: Path = options.path
    if not path.exists():
        raise UserError(f"{path} does not exist: give a checkpoint, a log, a folder with logs, or a few-shot pickle")
    kind = options.kind or detect(path)
    given = {flag for flags in FLAGS.values() for flag in flags if getattr(options, flag) is not None}
    if strange := sorted(given - set(FLAGS[kind])):
        names = ", ".join(f"--{flag.replace('_', '-')}" for flag in strange)
        raise UserError(f"{path} is read as {kind}, which has no {names}: drop it, or tell what PATH is with --kind")
    task: dict[str, Callable[[Namespace], None]] = {
        "learner": import_learner, "results": import_results, "list": import_list}  # fmt: skip
    task[kind](options)
    return 0


def detect(path: Path) -> str:
    """The kind of a file or folder, from names first and content then.

    Raises:
        UserError: none of the kinds.
    """
    if path.is_dir():
        if next(path.rglob("log.txt"), None):
            return "results"
        if find_checkpoints(path):
            return "learner"
    elif path.is_file():
        with path.open("rb") as file:
            start = file.read(2**16)
        if path.suffix in (".pkl", ".pickle"):
            return "list"
        if ".pth" in path.name or path.suffix in (".pt", ".tar") or start.startswith(b"PK\x03\x04"):
            return "learner"
        if path.name.startswith("log") or b"=> result" in start:
            return "results"
    raise UserError(
        f"{path} is not recognised: give a checkpoint (model.pth.tar-50), a log.txt or a folder with some, or a "
        "few-shot pickle (.pkl); --kind tells what a file with another name is"
    )


def find_checkpoints(folder: Path) -> list[Path]:
    return sorted(found for found in folder.rglob("model*.pth.tar*") if found.is_file())


def import_learner(options: Namespace) -> None:
    """A checkpoint into a learner folder."""
    from vlprompt.imports import checkpoints
    from vlprompt.imports.loading import read_checkpoint
    from vlprompt.records import results_root

    path = one_checkpoint(options.path)
    facts = learn_facts(path, options)
    checkpoint = read_checkpoint(path)
    trained = checkpoints.convert(checkpoint, path, method=options.method, facts=facts)
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
    say(f"{output}: {trained.method} for {backbone} from {trained.form}, epoch {checkpoint.epoch}, {named}")
    say(*(f"note: {note}" for note in trained.notes), file=sys.stderr)


def one_checkpoint(path: Path) -> Path:
    if path.is_file():
        return path
    found = find_checkpoints(path)
    if len(found) != 1:
        names = ", ".join(str(file) for file in found[:5]) or "none"
        raise UserError(f"{path} holds {len(found)} checkpoints ({names}): give the file of one")
    return found[0]


def learn_facts(path: Path, options: Namespace) -> "Facts":
    """What the user, the log beside the checkpoint's folder, and the path tell, in this order."""
    from vlprompt.imports.dassl import Facts, facts_of_options, facts_of_path, read_options
    from vlprompt.imports.logs import read_bytes

    told = Facts(dataset=options.dataset, backbone=options.backbone, half=options.half, ctx_init=options.ctx_init,
                 position=options.position)  # fmt: skip
    log = path.absolute().parent.parent / "log.txt"
    if log.is_file():
        text = read_bytes(log).decode("utf-8", errors="replace")
        told = told.beside(replace(facts_of_options(read_options(text)), eval_only=False))
    return told.beside(facts_of_path(path.absolute()))


def guess_backbone(checkpoint: "Checkpoint", path: Path) -> str:
    """The backbone by the patches of the model that the checkpoint holds. Raises: UserError where it holds none."""
    first = checkpoint.tensors.get("image_encoder.conv1.weight")
    shape = tuple(first.shape) if first is not None else ()
    known = {(768, 3, 32, 32): "vit_b32", (768, 3, 16, 16): "vit_b16", (1024, 3, 14, 14): "vit_l14"}
    if shape in known:
        return known[shape]
    raise UserError(f"nothing tells which backbone {path} was trained on: give it, as in --backbone vit_b16")


def read_backbone(name: str) -> tuple[dict[str, str], Any]:
    """The model and weights that a backbone's name stands for, and its shape."""
    import yaml

    from vlprompt import demo
    from vlprompt.locations import config_dir
    from vlprompt.run import names
    from vlprompt.towers.geometry import read_geometry

    if name not in (known := names("backbone", [config_dir()])):
        raise unknown("backbone", name, known)
    setting = yaml.safe_load((config_dir() / "backbone" / f"{name}.yaml").read_text(encoding="utf-8"))
    folder = demo.BACKBONES.get(setting["model"])
    return setting, read_geometry(str(folder or setting["model"]), setting["weights"])


def read_classes(options: Namespace, facts: "Facts") -> tuple[list[str], dict[str, Any]]:
    """The classes trained on, as far as the user tells, and what the learner's file says of its data."""
    half = options.half or (facts.half if facts.half != "all" else None)
    protocol = {None: None, "all": "few_shot"}.get(facts.half, "base_to_novel")
    about: dict[str, Any] = {"dataset": facts.dataset, "protocol": protocol, "split_hash": None}
    if options.half and not options.dataset:
        raise UserError("--half is a half of the classes of --dataset: give that too")
    if options.classes is not None:
        try:
            lines = options.classes.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{options.classes} cannot be read as text: {error}") from None
        return [line.strip() for line in lines if line.strip()], about
    if not options.dataset:
        return [], about
    dataset = read_dataset(options.dataset)
    labels: Any = range(len(dataset.classes))
    if half is not None:
        from vlprompt.protocols.base_to_novel import halves

        labels = halves(dataset)[half == "novel"]
    about |= {"dataset": dataset.name, "split_hash": dataset.fingerprint()}
    return [dataset.classes[label] for label in labels], about


def read_dataset(name: str) -> "Dataset":
    """A data set as it is configured here. Raises: UserError where it is not known, or not on this machine."""
    from vlprompt.locations import config_dir
    from vlprompt.plan import load_dataset
    from vlprompt.run import compose, names
    from vlprompt.settings import read_settings

    if name not in (known := names("dataset", [config_dir()])):
        raise unknown("data set", name, known, do="Give the class names of any other with --classes FILE.")
    return load_dataset(read_settings(compose([f"dataset={name}"])))


def import_results(options: Namespace) -> None:
    """Logs into records. In a folder, logs without a result are passed over and named."""
    from vlprompt.imports import logs
    from vlprompt.records import results_root

    asked = logs.Asked(**{field.name: getattr(options, field.name) for field in fields(logs.Asked)})
    found, passed = [], []
    for path in logs.find_logs(options.path):
        try:
            if logs.is_own(path):
                raise UserError(f"{path} is a run of vlprompt, and has its record already")
            found.append(logs.read_log(path))
        except UserError as error:
            passed.append(str(error))
    if not found:
        raise UserError(
            passed[0] if passed else f"{options.path} holds no log.txt: give the folder of results, or a log"
        )
    root = options.output or results_root()
    for record in logs.make_records(found, asked):
        folder = logs.write_record(record, root, force=options.force)
        scores = ", ".join(f"{split} {100 * scores['accuracy']:.2f}" for split, scores in record.scores.items())
        say(f"{folder}: {scores}")
    differ = [str(log.path) for log in found if log.result.counts_differ]
    say(*(f"passed over: {reason}" for reason in passed), file=sys.stderr)
    say(*(f"note: {path} prints an accuracy that its counts do not give: it is kept as printed" for path in differ),
        file=sys.stderr)  # fmt: skip


def import_list(options: Namespace) -> None:
    """A few-shot pickle into JSON lines."""
    from vlprompt.imports import pickles

    shots = pickles.read_pickle(options.path)
    paths, cut = pickles.relative_paths(shots, options.images)
    output = options.output or Path(options.path.stem + ".jsonl")
    pickles.write_list(shots, paths, output, force=options.force)
    counts = ", ".join(f"{sum(shot.split == part for shot in shots)} {part}" for part in pickles.PARTS)
    say(f"{output}: {counts}; paths count from {cut or 'where they began'}, the first is {paths[0]}")
    if options.images is None:
        say("note: that is the longest folder that all share; --images names another", file=sys.stderr)


def say(*lines: str, file: Any = None) -> None:
    (file or sys.stdout).write("".join(f"{line}\n" for line in lines))
