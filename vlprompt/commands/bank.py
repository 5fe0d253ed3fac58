"""`vlprompt bank`: features of images, computed once, as a file for machines without images or a GPU."""

import argparse
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.arguments import add_config_dir, refuse, searched, whole_numbers
from vlprompt.errors import UserError

if TYPE_CHECKING:
    from vlprompt.data.cache.feature_files import Rows
    from vlprompt.data.dataset import Dataset, Item
    from vlprompt.data.sources.banked import Contents
    from vlprompt.experiment import Experiment
    from vlprompt.session import Parts
    from vlprompt.trainer import Trainer

Keys = dict[tuple[str, str], str]  # of images, by the origin of their data set and their names


def register(commands: Any) -> None:
    text = "features of images, computed once: list, pack and unpack them"
    below = commands.add_parser("bank", help=text, description=text).add_subparsers(required=True, metavar="COMMAND")
    shown = below.add_parser("list", help="what is in the bank")
    shown.set_defaults(command=show)
    text = "all features that runs read, as one file; what is missing is computed first"
    packed = below.add_parser("pack", help=text, description=text)
    packed.add_argument("file", type=Path, metavar="FILE")
    packed.add_argument("--seeds", type=whole_numbers, default=[1], help="of the runs: 1,2,3 (default: 1)")
    add_config_dir(packed)
    packed.set_defaults(command=pack, overrides=[])
    unpacked = below.add_parser("unpack", help="put such a file into the bank of this machine")
    unpacked.add_argument("file", type=Path, metavar="FILE")
    unpacked.set_defaults(command=unpack)
    for parser in (shown, unpacked):
        parser.add_argument("--root", metavar="PATH", help="where data sets lie (default: VLPROMPT_DATA, or datasets)")


def folder(root: str | None) -> Path:
    from vlprompt.config.paths import bank_folder, data_root

    return bank_folder(data_root(root))


def show(options: argparse.Namespace) -> int:
    from rich.filesize import decimal
    from tabulate import tabulate

    from vlprompt.data.cache.portable import towers

    rows = [
        [one["model"], one["precision"], one["size"], one["views"], one["rows"], decimal(one["bytes"])]
        for one in towers(folder(options.root))
    ]
    headers = ["model", "precision", "image size", "views", "features", "on disk"]
    sys.stdout.write(tabulate(rows, headers, intfmt=",") + f"\n\n{folder(options.root).absolute()}\n")
    return 0


def pack(options: argparse.Namespace) -> int:
    """Compute what is missing for the runs that settings as for `run` describe, and pack it."""
    from rich.filesize import decimal

    from vlprompt.data.cache import portable
    from vlprompt.data.cache.features import view_name
    from vlprompt.data.cache.image_keys import image_key
    from vlprompt.sweep import prepare

    refuse(options.overrides, ("seed",), "give --seeds 1,2,3")
    overrides = [*searched(options.config_dir), *options.overrides]
    features: dict[str, Rows] = {}
    contents: dict[str, Contents] = {}
    known: Keys = {}
    for seed in options.seeds:
        experiment = prepare([*overrides, f"seed={seed}"])
        trainer, parts = fill(experiment)
        bank = trainer.bank
        assert bank is not None
        for split, views in parts:
            known |= {(split.origin, item.image): image_key(split, item.image) for item in split.items}
            for name in (view_name(view, trainer.seed, trainer.augment) for view in views):
                features.setdefault(name, {}).update(bank.rows(name, split))
        contents |= describe(experiment, known)
    assert bank is not None
    assert bank.files is not None
    seeds = options.seeds[0] if len(options.seeds) == 1 else str(options.seeds).replace(" ", "")
    command = ["python", "run.py", *options.overrides, f"seed={seeds}", f"precision={experiment.precision}"]
    manifest = portable.Manifest(
        tower=bank.files.folder.name, about=dict(bank.files.about), command=shlex.join(command)
    )
    rows, size = portable.pack(options.file, manifest, contents, features)
    sys.stdout.write(f"{options.file}: {rows:,} features of {', '.join(c.name for c in contents.values())}, ")
    sys.stdout.write(f"{decimal(size)}\n")
    return 0


def fill(experiment: "Experiment") -> tuple["Trainer", "Parts"]:
    """Compute all features that a run reads; -> what they were computed with, and which they are.

    Raises: UserError for a method that reads pixels.
    """
    from vlprompt.results.store import OpenRun
    from vlprompt.session import Session
    from vlprompt.training.progress import Reporter

    session = Session.open(experiment, OpenRun(experiment.folder), Reporter())
    trainer = session.trainer
    bank = trainer.bank
    if bank is None or bank.files is None:
        raise UserError("there is no bank on disk with bank.use=false or bank.gb=0: leave them out")
    if not trainer.reads_features(session.learner):
        raise UserError(f"{experiment.key.method} edits the image tower, so that it cannot use features of images")
    parts = session.banked_parts()
    for split, views in parts:
        with session.reporter.track("reading images", len(split) * len(views)) as track:
            bank.fill(split, views, seed=trainer.seed, augment=trainer.augment, done=track.advance)
    return trainer, parts


def describe(experiment: "Experiment", known: Keys) -> dict[str, "Contents"]:
    """The data sets of a run by identity, with the keys that are known."""
    from vlprompt.plan import stored_name

    settings = experiment.settings
    pairs = [(settings.dataset, experiment.dataset)]
    pairs += [(settings.targets[name].dataset, target) for name, target in experiment.targets.items()]
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
    sys.stdout.write(f"{rows:,} features of {about.get('model')} ({about.get('precision')}) are in {root}\n")
    sys.stdout.write(f"a run that reads them: {manifest.command}\n")
    return 0
