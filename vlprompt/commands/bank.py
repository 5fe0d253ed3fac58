"""`vlprompt bank`: features of images, computed once, as a file for machines without images or a GPU."""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.arguments import add_config_dir, refuse, searched, whole_numbers
from vlprompt.commands.output import show_rows
from vlprompt.errors import UserError, first_names, printable
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    from vlprompt.config.spec import RunSpec
    from vlprompt.data.cache.feature_files import Rows
    from vlprompt.data.cache.portable import Manifest
    from vlprompt.data.dataset import Dataset, Item, Split
    from vlprompt.data.loader import Loader
    from vlprompt.data.sources.banked import Contents
    from vlprompt.learners.base import Learner
    from vlprompt.protocols.base import Episode

    Parts = list[tuple[Split, list[int | None]]]

Keys = dict[tuple[str, str], str]  # of images, by the origin of their data set and their names
CHOICES = ("method", "dataset", "protocol", "backbone")  # settings that name a file of the package
SHOTS = re.compile("[1-9][0-9]{0,5}|all")


def register(commands: Any) -> None:
    text = "features of images, computed once: list, pack and unpack them"
    below = commands.add_parser("bank", help=text, description=text).add_subparsers(required=True, metavar="COMMAND")
    shown = below.add_parser("list", help="what is in the bank")
    shown.set_defaults(command=show)
    text = "all features that runs read, as one file; what is missing is computed first"
    packed = below.add_parser("pack", help=text, description=text)
    packed.add_argument("file", type=path_of, metavar="FILE")
    packed.add_argument("--seeds", type=whole_numbers, default=[1], help="of the runs: 1,2,3 (default: 1)")
    add_config_dir(packed)
    packed.set_defaults(command=pack, overrides=[])
    unpacked = below.add_parser("unpack", help="put such a file into the bank of this machine")
    unpacked.add_argument("file", type=path_of, metavar="FILE")
    unpacked.set_defaults(command=unpack)
    for parser in (shown, unpacked):
        parser.add_argument("--root", metavar="PATH", help="where data sets lie (default: VLPROMPT_DATA, or datasets)")


def folder(root: str | None) -> Path:
    from vlprompt.config.paths import bank_folder, data_root

    return bank_folder(data_root(root))


def show(options: argparse.Namespace) -> int:
    from rich.filesize import decimal

    from vlprompt.data.cache.portable import towers

    root = folder(options.root)
    known, refused = towers(root)
    rows = [
        {"model": one["model"], "precision": one["precision"], "image size": one["size"], "views": one["views"],
         "features": f"{one['rows']:,}", "on disk": decimal(one["bytes"])}
        for one in known
    ]  # fmt: skip
    show_rows(rows, f"feature bank: {root.absolute()}", order=["model", "features", "on disk", "precision"])
    if refused:
        names = first_names([str(path.relative_to(root)) for path in refused])
        sys.stderr.write(line(f"damaged, without a checksum or foreign, and read by no run: {names}") + "\n")
    return 0


def line(text: str) -> str:
    """A foreign text on one line of a terminal."""
    return printable(" ".join(text.split()))


def pack(options: argparse.Namespace) -> int:
    """Compute what is missing for the runs that settings as for `run` describe, and pack it."""
    from rich.filesize import decimal

    from vlprompt.config.compose import read_run
    from vlprompt.data.cache import portable
    from vlprompt.data.cache.features import view_name
    from vlprompt.data.cache.image_keys import image_key

    refuse(options.overrides, ("seed",), "give --seeds 1,2,3")
    overrides = [*searched(options.config_dir), *options.overrides]
    features: dict[str, Rows] = {}
    contents: dict[str, Contents] = {}
    known: Keys = {}
    for seed in options.seeds:
        spec = read_run([*overrides, f"seed={seed}"])
        loader, parts = read_features(spec)
        bank = loader.features
        assert bank is not None
        for split, views in parts:
            known |= {(split.origin, item.image): image_key(split, item.image) for item in split.items}
            for name in (view_name(view, loader.seed, loader.augment) for view in views):
                features.setdefault(name, {}).update(bank.rows(name, split))
        contents |= describe(spec, known)
    assert bank is not None
    assert bank.files is not None
    settings = dict(override.partition("=")[::2] for override in options.overrides)
    settings.pop("precision", None)  # the manifest has it
    chosen = {key: value for key, value in settings.items() if is_plain(key, value)}
    manifest = portable.Manifest(
        tower=bank.files.folder.name,
        about=portable.About.model_validate(bank.files.about),
        settings=chosen,
        n_others=len(settings) - len(chosen),
        seeds=options.seeds,
    )
    rows, size = portable.pack(options.file, manifest, contents, features)
    sys.stdout.write(f"{options.file}: {rows:,} features of {', '.join(c.name for c in contents.values())}, ")
    sys.stdout.write(f"{decimal(size)}\n")
    return 0


def read_features(spec: "RunSpec") -> tuple["Loader", "Parts"]:
    """Compute all features that a run reads; -> what they were computed with, and which they are.

    Raises: UserError for a method that reads pixels.
    """
    import torch

    from vlprompt.config import build
    from vlprompt.training.progress import Reporter

    reporter = Reporter()
    reporter.say(str(spec))
    if spec.settings.threads:
        torch.set_num_threads(spec.settings.threads)
    episode = build.make_episode(spec)
    learner = build.make_learner(spec, build.make_clip(spec), episode)
    if learner.edits_image:
        raise UserError(f"{spec.key.method} edits the image tower, so that it cannot use features of images")
    loader = build.make_loader(spec, learner)
    if loader.features is None or loader.features.files is None:
        raise UserError("there is no bank on disk with bank.use=false or bank.gb=0: leave them out")
    parts = parts_read(spec, learner, episode, loader)
    for split, views in parts:
        with reporter.track("reading images", len(split) * len(views)) as track:
            loader.features.fill(split, views, seed=loader.seed, augment=loader.augment, done=track.advance)
    return loader, parts


def parts_read(spec: "RunSpec", learner: "Learner", episode: "Episode", loader: "Loader") -> "Parts":
    """The images that training and tests read, each with its views (None: the centre crop)."""
    from itertools import count

    from vlprompt.config.build import ood_splits
    from vlprompt.training.optim import n_epochs, steps_per_epoch

    parts: Parts = [(split, [None]) for split in episode.tests.values()]
    parts += [(split, [None]) for split in ood_splits(spec).values()]
    if fit := spec.settings.fit:
        selection = episode.selection_split(fit.select_on)
        train = loader.ordered(episode.train, augmented=learner.augmented)
        learner.prepare(train, loader.ordered(selection) if selection else None)
        prepared = range(next(train.views or count()) or 0)  # the views that it went through
        views = range(loader.n_views or n_epochs(steps_per_epoch(len(episode.train), fit), fit))
        parts += [(episode.train, [None, *sorted({*prepared, *views})])]
        parts += [(selection, [None])] if selection else []
    return parts


def describe(spec: "RunSpec", known: Keys) -> dict[str, "Contents"]:
    """The data sets of a run by identity, with the keys that are known."""
    from vlprompt.config.datasets import stored_name

    settings = spec.settings
    pairs = [(settings.dataset, spec.dataset)]
    pairs += [(settings.targets[name].dataset, target) for name, target in spec.others.items()]
    return {stored_name(described): contents(dataset, known) for described, dataset in pairs}


def contents(dataset: "Dataset", known: Keys) -> "Contents":
    from vlprompt.data.sources.banked import Contents

    def rows(items: Iterable["Item"]) -> list[tuple[str, int, str]]:
        return [(item.image, item.label, known.get((dataset.origin, item.image), "")) for item in items]

    train, val, test = rows(dataset.train), rows(dataset.val), rows(dataset.test)
    return Contents(name=dataset.name, classes=dataset.classes, rows=dataset.rows, train=train, val=val, test=test)


def unpack(options: argparse.Namespace) -> int:
    from vlprompt.data.cache import portable

    root = folder(options.root)
    manifest, rows = portable.unpack(options.file, root, limit=sys.maxsize)
    about = manifest.about
    sys.stdout.write(line(f"{rows:,} features of {about.model} ({about.precision}) are in {root}") + "\n")
    sys.stdout.write(f"a run that reads them: {advice(manifest)}\n")
    return 0


def is_plain(key: str, value: str) -> bool:
    """Whether a setting chooses one of the package's own methods, data sets, ..., or a number of shots: no other is
    taken from a stranger's file."""
    from vlprompt.config.paths import config_dir

    if key in CHOICES:
        return re.fullmatch(r"\w+", value) is not None and (config_dir() / key / f"{value}.yaml").is_file()
    return key == "shots" and SHOTS.fullmatch(value) is not None


def advice(manifest: "Manifest") -> str:
    """A command of checked parts alone: what a foreign file says is never passed on as something to run."""
    chosen = [f"{key}={value}" for key, value in manifest.settings.items() if is_plain(key, value)]
    n_others = manifest.n_others + len(manifest.settings) - len(chosen)
    several = ["-m"] if len(manifest.seeds) > 1 else []
    seeds = [f"seed={','.join(map(str, manifest.seeds))}"] if manifest.seeds else []
    command = " ".join(["python", "run.py", *several, *chosen, *seeds, f"precision={manifest.about.precision}"])
    return command + (f" (and {n_others} settings more, which whoever packed it knows)" if n_others else "")
