"""`vlprompt data`: what data sets there are, and getting, checking and sampling them."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from vlprompt.commands.arguments import is_override, searched
from vlprompt.config.paths import config_dir, data_root, unknown_dataset
from vlprompt.data.dataset import PARTS
from vlprompt.errors import UserError, printable, unknown
from vlprompt.textfiles import path_of

NAMES = "a data set, and settings as for a run: dataset=folder dataset.root=PATH"


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The commands below `vlprompt data`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shown = add(commands, "list", show_list, "all data sets, or these, and what of them is there")
    shown.add_argument("names", nargs="*", metavar="NAME", help=NAMES)
    get = add(commands, "get", get_data, "download what is missing, verified")
    get.add_argument("names", nargs="*", metavar="NAME")
    get.add_argument("--all", action="store_true", help="every data set that can be fetched")
    get.add_argument("--yes", "-y", action="store_true", help="do not ask")
    get.add_argument("--lists", action="store_true", help="only split files and lists, no images")
    check = add(commands, "check", check_data, "compare data sets with what is published")
    check.add_argument("names", nargs="*", metavar="NAME", help=NAMES)
    check.add_argument("--decode", action="store_true", help="read every image")
    path = add(commands, "path", show_path, "where a data set lies, or all do")
    path.add_argument("names", nargs="*", metavar="NAME", help=NAMES)
    subset = add(commands, "subset", show_subset, "the few-shot sample that a run trains on")
    subset.add_argument("names", nargs="*", metavar="NAME", help=NAMES)
    subset.add_argument("--shots", default="16", metavar="K", help="images a class, or all (default 16)")
    subset.add_argument("--seed", type=int, default=1, metavar="S", help="(default 1)")
    subset.add_argument("--half", choices=("base", "novel"), help="only the classes of one half")
    subset.add_argument("--sampler", default="coop", help="coop (default), clip_lora, tip_adapter or lp_plus_plus")
    subset.add_argument("--json", action="store_true", help="a JSON list instead of lines")


def add(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    """A command with what all of them take."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("--root", metavar="PATH", help="where data sets lie (default: VLPROMPT_DATA, or datasets)")
    command.add_argument("--config-dir", metavar="PATH", type=path_of, help="a folder with dataset/*.yaml of your own")
    command.set_defaults(command=function, overrides=[])
    return command


def catalogue(options: argparse.Namespace) -> Any:
    from vlprompt.data.download.catalogue import read_catalogue

    if options.config_dir and not (options.config_dir / "dataset").is_dir():
        raise UserError(f"--config-dir={options.config_dir} has no folder dataset: give the one above it.")
    return read_catalogue([config_dir(), *filter(None, [options.config_dir])])


def show_list(options: argparse.Namespace) -> int:
    """A table, uncut: it may go into a file."""
    from tabulate import tabulate

    if options.names or options.overrides:
        asked = asked_for(options)
        rows = [row_of(one.name, one.about, *state_of(one)) for one in asked]
        root = asked[0].root
    else:
        root, rows = data_root(options.root), []
        for name, entry in sorted(catalogue(options).items()):
            state = entry.state(root) if entry.about else "your own"
            if state == "present":
                state, _ = state_of(Asked(name, plain(entry), entry.about, root, entry.base(root)))
            rows.append(row_of(name, entry.about, state))
    sys.stdout.write(tabulate(rows, ["name", "classes", *PARTS, "download", "licence", "state"], intfmt=",") + "\n")
    sys.stdout.write(f"\ndata root: {root.absolute()}\n")
    return 0


def row_of(name: str, about: Any, state: str, dataset: Any = None) -> list[Any]:
    """Published counts, else those of the data set itself, where it was read."""
    counts = ["", "", "", ""] if about is None else list(about.counts.model_dump().values())
    if about is None and dataset is not None:
        counts = [len(dataset.classes), *(len(getattr(dataset, part)) for part in PARTS)]
    return [name, *counts, cost_of(about), about.licence if about else "your own", state]


def state_of(asked: "Asked") -> tuple[str, Any]:
    """present, or which images are missing, by class, or why that cannot be told; and the data set, if it was read."""
    from vlprompt.data.presence import gaps, summary

    try:
        dataset = asked.load(need_images=False)
    except UserError as error:
        return printable(f"not complete: {error}"), None
    if missing := gaps(dataset):
        return printable(f"present, but {summary(missing, dataset, most=1)}"), dataset
    n_there, n_classes = len({i.label for part in PARTS for i in getattr(dataset, part)}), len(dataset.classes)
    some = "" if n_there == n_classes else f", but images of {n_there:,} of {n_classes:,} classes"
    return f"present{some}", dataset


def cost_of(about: Any) -> str:
    """What a download of everything takes."""
    if about is None or not about.parts:
        return "-"
    if not all(about.parts.values()):
        return "by hand"
    size = about.download_size(list(about.parts))
    return "?" if size is None else decimal(size)


def get_data(options: argparse.Namespace) -> int:
    from vlprompt.data.download.catalogue import find_entry
    from vlprompt.training.progress import Reporter

    known, reporter = catalogue(options), Reporter()
    names = [n for n, e in known.items() if e.about and any(e.about.parts.values())] if options.all else options.names
    if not names:
        raise UserError("which data set? Give names (`vlprompt data list` has them), or --all.")
    entries = [find_entry(known, name) for name in dict.fromkeys(names)]
    failed = []
    for entry in entries:
        try:
            if not get_entry(entry, options, reporter):
                failed.append(entry.name)
        except UserError as error:
            if len(entries) == 1:
                raise
            sys.stderr.write(printable(f"error: {error}\n"))
            failed.append(entry.name)
    return 1 if failed else 0


def get_entry(entry: Any, options: argparse.Namespace, reporter: Any) -> bool:
    """Fetch what is missing of one data set, if the user agrees; -> whether it is complete."""
    from vlprompt.data.download.get import get, size_of

    if entry.about is None or not entry.about.parts:
        reporter.say(f"{entry.name} needs no download")
        return True
    base = entry.base(data_root(options.root))
    only = {part for part in entry.about.parts if "." in part or not options.lists}
    if missing := only.intersection(entry.about.missing(base)):
        if agree(options, entry.name, size_of(entry.about, missing)):
            get(entry.name, entry.about, base, only=only, reporter=reporter)
        missing = only.intersection(entry.about.missing(base))
    reporter.say(f"{entry.name}: {'not complete' if missing else 'complete'} in {base}")
    return not missing


def agree(options: argparse.Namespace, name: str, size: str) -> bool:
    """Ask before a download, where there is somebody to ask; a command in a script means yes."""
    if options.yes or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    return input(f"Download {name} ({size})? [Y/n] ").strip().lower() in ("", "y", "yes")


def check_data(options: argparse.Namespace) -> int:
    from vlprompt.data.download.check import check
    from vlprompt.training.progress import Reporter

    wrong, reporter = 0, Reporter()
    for asked in asked_for(options):
        try:
            dataset = asked.load(need_images=False)
            total = sum(len(getattr(dataset, part)) for part in PARTS)
            with reporter.track(f"checking {asked.name}", total) as track:
                published = asked.about if asked.classes == "all" else None
                problems = list(check(dataset, published, asked.base, decode=options.decode, track=track))
        except UserError as error:
            problems = [str(error).removeprefix(f"{asked.name} ")]
        for problem in problems:
            sys.stderr.write(printable(f"{asked.name}: {problem}\n"))
        if not problems:
            reporter.say(f"{asked.title(dataset)}: {len(dataset.classes)} classes, {total} images, all there"
                         + (" and readable" if options.decode else ""))  # fmt: skip
        wrong += bool(problems)
    return 1 if wrong else 0


def show_path(options: argparse.Namespace) -> int:
    root = data_root(options.root).absolute()
    asked = asked_for(options) if options.names or options.overrides else []
    sys.stdout.write("".join(f"{one.base}\n" for one in asked) or f"{root}\n")
    return 0


def show_subset(options: argparse.Namespace) -> int:
    from vlprompt.data.lists import make_lines
    from vlprompt.data.sampling import SAMPLERS, Shots
    from vlprompt.protocols.base_to_novel import halves

    if options.sampler not in SAMPLERS:
        raise unknown("sampler", options.sampler, SAMPLERS)
    if options.shots != "all" and not options.shots.isdecimal():
        raise UserError(f"--shots is '{options.shots}': allowed is a positive whole number or 'all'.")
    shots: Shots = "all" if options.shots == "all" else int(options.shots)
    asked, *more = asked_for(options)
    if more:
        raise UserError(f"{asked.name} and {more[0].name} are two data sets: give one.")
    dataset = asked.load(need_images=False)
    train, val = SAMPLERS[options.sampler](dataset, shots=shots, seed=options.seed)
    if options.half:
        labels = set(halves(dataset)[options.half == "novel"])
        train, val = ([item for item in items if item.label in labels] for items in (train, val))
    lines = make_lines(train, val, dataset.classes)
    if options.json:
        text = json.dumps(lines, indent=1, ensure_ascii=False) + "\n"
    else:
        text = "".join(printable("\t".join(map(str, line.values()))) + "\n" for line in lines)
    sys.stdout.write(text)
    return 0


@dataclass(frozen=True)
class Asked:
    """A data set that a command is about: by its name alone, or with settings as for a run."""

    name: str
    source: Mapping[str, Any]
    about: Any
    root: Path  # of all data
    base: Path
    classes: str = "all"

    def load(self, **more: Any) -> Any:
        """The data set, with `more` that no configuration says. Raises: UserError."""
        from vlprompt.config.datasets import load_source

        return load_source(self.name, self.source, self.root, **more, present=self.classes == "present")

    def title(self, dataset: Any) -> str:
        """Its name, and how many of its classes are read where that is not all."""
        return str(dataset.name) if self.classes == "present" else self.name


def asked_for(options: argparse.Namespace) -> list[Asked]:
    """The data sets that the arguments name, settings (dataset.root=PATH) applied to each. Raises: UserError."""
    given = [*options.names, *options.overrides]
    settings = [text for text in given if is_override(text)]
    names = [text for text in given if text not in settings]
    names += [text.partition("=")[2] for text in settings if text.startswith("dataset=")]
    settings = [text for text in settings if not text.startswith("dataset=")]
    for text in settings:
        if not text.startswith(("dataset.", "data.root=")):
            raise UserError(
                f"'{text}' cannot be set here: allowed are dataset=NAME, dataset.KEY=VALUE and data.root=PATH."
            )
    known, root = catalogue(options), data_root(options.root)
    if not names:
        raise UserError(
            "which data set? Give a name (`vlprompt data list` has them), or dataset=folder dataset.root=PATH."
        )
    for name in names:
        if name not in known:
            raise unknown_dataset(name, known)
    entries = [known[name] for name in dict.fromkeys(names)]
    if settings:
        return [with_settings(entry.name, settings, options) for entry in entries]
    return [Asked(entry.name, plain(entry), entry.about, root, entry.base(root)) for entry in entries]


def with_settings(name: str, settings: Sequence[str], options: argparse.Namespace) -> Asked:
    """A data set as `python run.py` with these settings reads it."""
    from vlprompt.config.compose import composed, modernized
    from vlprompt.config.datasets import folder_of
    from vlprompt.config.schema import read_settings

    with composed([*searched(options.config_dir), f"dataset={name}", *modernized(settings)]) as (config, _):
        asked = read_settings(config)
    root = data_root(asked.data.root or options.root)
    described = asked.dataset
    return Asked(name, described.source, described.about, root, folder_of(described, root), described.classes)


def plain(entry: Any) -> dict[str, Any]:
    """A source without what a run's own settings fill in."""
    if entry.name == "folder":
        raise UserError("dataset=folder needs to know where your images are: add dataset.root=PATH.")
    return {key: value for key, value in entry.source.items() if not str(value).startswith("${")}
