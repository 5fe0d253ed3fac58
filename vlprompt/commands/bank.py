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
    from vlprompt.config.spec import RunSpec
    from vlprompt.data.cache.feature_files import Rows
    from vlprompt.data.dataset import Dataset, Item, Split
    from vlprompt.data.loader import Loader
    from vlprompt.data.sources.banked import Contents
    from vlprompt.learners.base import Learner
    from vlprompt.protocols.base import Episode

    Parts = list[tuple[Split, list[int | None]]]

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
    several = ["-m"] if len(options.seeds) > 1 else []
    seeds = ",".join(map(str, options.seeds))
    command = ["python", "run.py", *several, *options.overrides, f"seed={seeds}", f"precision={spec.precision}"]
    manifest = portable.Manifest(
        tower=bank.files.folder.name, about=dict(bank.files.about), command=shlex.join(command)
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

    from vlprompt.training.optim import n_epochs

    parts: Parts = [(split, [None]) for split in episode.tests.values()]
    if fit := spec.settings.fit:
        selection = episode.selection_split(fit.select_on)
        train = loader.ordered(episode.train, augmented=learner.augmented)
        learner.prepare(train, loader.ordered(selection) if selection else None)
        prepared = range(next(train.views or count()))  # the views that it went through
        views = range(loader.n_views or n_epochs(len(episode.train), fit))
        parts += [(episode.train, [None, *sorted({*prepared, *views})])]
        parts += [(selection, [None])] if selection else []
    return parts


def describe(spec: "RunSpec", known: Keys) -> dict[str, "Contents"]:
    """The data sets of a run by identity, with the keys that are known."""
    from vlprompt.config.datasets import stored_name

    settings = spec.settings
    pairs = [(settings.dataset, spec.dataset)]
    pairs += [(settings.targets[name].dataset, target) for name, target in spec.targets.items()]
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
