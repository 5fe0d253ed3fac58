"""`vlprompt data`: what data sets there are, and getting, checking and sampling them."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from vlprompt.config.paths import config_dir, data_root
from vlprompt.data.dataset import PARTS
from vlprompt.errors import UserError, printable


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The commands below `vlprompt data`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add(commands, "list", show_list, "all data sets, and which are there")
    get = add(commands, "get", get_data, "download what is missing, verified")
    get.add_argument("names", nargs="*", metavar="NAME")
    get.add_argument("--all", action="store_true", help="every data set that can be fetched")
    get.add_argument("--yes", "-y", action="store_true", help="do not ask")
    get.add_argument("--lists", action="store_true", help="only split files and lists, no images")
    check = add(commands, "check", check_data, "compare data sets with what is published")
    check.add_argument("names", nargs="+", metavar="NAME")
    check.add_argument("--decode", action="store_true", help="read every image")
    path = add(commands, "path", show_path, "where a data set lies, or all do")
    path.add_argument("name", nargs="?", metavar="NAME")
    subset = add(commands, "subset", show_subset, "the few-shot sample that a run trains on")
    subset.add_argument("name", metavar="NAME")
    subset.add_argument("--shots", default="16", metavar="K", help="images a class, or all (default 16)")
    subset.add_argument("--seed", type=int, default=1, metavar="S", help="(default 1)")
    subset.add_argument("--half", choices=("base", "novel"), help="only the classes of one half")
    subset.add_argument("--sampler", default="coop", help="coop (default), clip_lora, tip_adapter or lp_plus_plus")
    subset.add_argument("--json", action="store_true", help="a JSON list instead of lines")


def add(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    """A command with what all of them take."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("--root", metavar="PATH", help="where data sets lie (default: VLPROMPT_DATA, or datasets)")
    command.add_argument("--config-dir", metavar="PATH", type=Path, help="a folder with dataset/*.yaml of your own")
    command.set_defaults(command=function)
    return command


def catalogue(options: argparse.Namespace) -> Any:
    from vlprompt.data.download.catalogue import read_catalogue

    if options.config_dir and not (options.config_dir / "dataset").is_dir():
        raise UserError(f"--config-dir={options.config_dir} has no folder dataset: give the one above it.")
    return read_catalogue([config_dir(), *filter(None, [options.config_dir])])


def show_list(options: argparse.Namespace) -> int:
    """A table, uncut: it may go into a file."""
    from tabulate import tabulate

    root, rows = data_root(options.root), []
    for name, entry in sorted(catalogue(options).items()):
        about, state = entry.about, entry.state(root)
        counts = ["", "", "", ""] if about is None else list(about.counts.model_dump().values())
        rows.append(
            [name, *counts, cost_of(about), about.licence if about else "your own", state if about else "your own"]
        )
    sys.stdout.write(tabulate(rows, ["name", "classes", *PARTS, "download", "licence", "state"], intfmt=",") + "\n")
    sys.stdout.write(f"\ndata root: {root.absolute()}\n")
    return 0


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
    from vlprompt.config.datasets import load_source
    from vlprompt.data.download.catalogue import find_entry
    from vlprompt.data.download.check import check
    from vlprompt.training.progress import Reporter

    known, root, wrong, reporter = catalogue(options), data_root(options.root), 0, Reporter()
    for name in options.names:
        entry = find_entry(known, name)
        try:
            dataset = load_source(name, plain(entry), root)
            total = sum(len(getattr(dataset, part)) for part in PARTS)
            with reporter.track(f"checking {name}", total) as track:
                problems = list(check(dataset, entry.about, entry.base(root), decode=options.decode, track=track))
        except UserError as error:
            problems = [str(error).removeprefix(f"{name} ")]
        for problem in problems:
            sys.stderr.write(printable(f"{name}: {problem}\n"))
        if not problems:
            reporter.say(f"{name}: {len(dataset.classes)} classes, {total} images, all there"
                         + (" and readable" if options.decode else ""))  # fmt: skip
        wrong += bool(problems)
    return 1 if wrong else 0


def show_path(options: argparse.Namespace) -> int:
    from vlprompt.data.download.catalogue import find_entry

    root = data_root(options.root).absolute()
    sys.stdout.write(f"{find_entry(catalogue(options), options.name).base(root) if options.name else root}\n")
    return 0


def show_subset(options: argparse.Namespace) -> int:
    from vlprompt.config.datasets import load_source
    from vlprompt.data.download.catalogue import find_entry
    from vlprompt.data.lists import make_lines
    from vlprompt.data.sampling import SAMPLERS, Shots
    from vlprompt.errors import unknown
    from vlprompt.protocols.base_to_novel import halves

    if options.sampler not in SAMPLERS:
        raise unknown("sampler", options.sampler, SAMPLERS)
    if options.shots != "all" and not options.shots.isdecimal():
        raise UserError(f"--shots is '{options.shots}': allowed is a positive whole number or 'all'.")
    shots: Shots = "all" if options.shots == "all" else int(options.shots)
    entry = find_entry(catalogue(options), options.name)
    dataset = load_source(entry.name, plain(entry), data_root(options.root), need_images=False)
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


def plain(entry: Any) -> dict[str, Any]:
    """A source without what a run's own settings fill in."""
    if entry.name == "folder":
        raise UserError("folder is your own data set: its split is stored next to your images, see docs/own_data.md.")
    return {key: value for key, value in entry.source.items() if not str(value).startswith("${")}
