"""`vlprompt import PATH`: recognise what PATH is, and convert it to the format used here."""

import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlprompt.errors import UserError, first_names, printable
from vlprompt.textfiles import path_of

CHECKPOINTS = "model*.pth.tar*"
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
    parser = commands.add_parser(
        "import", help="read checkpoints, logs and few-shot lists of the CoOp family", description=DESCRIPTION
    )
    parser.add_argument("path", type=path_of, metavar="PATH")
    parser.add_argument("--kind", choices=tuple(FLAGS), help="what PATH is, where its name and content do not say it")
    parser.add_argument("--output", type=path_of, help="learner: a folder; results: a results root; list: a file")
    parser.add_argument("--force", action="store_true", help="replace what was imported before")
    for flag, text in (
        ("method", "learner, results: our name of the method"),
        ("dataset", "learner: take the class names from it; results: its name"),
        ("backbone", "learner, results: its name, such as vit_b16"),
        ("ctx-init", 'learner: the phrase that the context was started from ("": random values)'),
        ("protocol", "results: base_to_novel, few_shot, ..."),
        ("split", "results: the test that the logs are of: base, novel, test"),
        ("name", "results: a name for them, where there are others of the same run"),
        ("images", "list: the image folder, or its name, below which the paths count"),
    ):
        parser.add_argument(f"--{flag}", help=text)
    parser.add_argument(
        "--classes", type=path_of, metavar="FILE", help="learner: class names, one a line in label order"
    )
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
        raise UserError(f"{path} is read as {kind}, which has no {names}: drop it, or say what PATH is with --kind")
    {"learner": import_learner, "results": import_results, "list": import_list}[kind](options)
    return 0


def detect(path: Path) -> str:
    """The kind of a file or folder, from names first and content then.

    Raises:
        UserError: none of the kinds.
    """
    if path.is_dir():
        if next(path.rglob("log.txt"), None):
            return "results"
        if next(path.rglob(CHECKPOINTS), None):
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
        "few-shot pickle (.pkl); --kind says what a file with another name is"
    )


def import_learner(options: Namespace) -> None:
    """A checkpoint into a learner folder."""
    from vlprompt.interop.dassl.trained import write_trained

    path, files = options.path, sorted(options.path.rglob(CHECKPOINTS)) if options.path.is_dir() else [options.path]
    if len(files) != 1:
        names = first_names(list(map(str, files)), 5) or "none"
        raise UserError(f"{path} holds {len(files)} checkpoints ({names}): give the file of one")
    done, notes = write_trained(files[0], options)
    say(done)
    say(*(f"note: {note}" for note in notes), file=sys.stderr)


def import_results(options: Namespace) -> None:
    """Logs into records. In a folder, logs without a result are skipped and named."""
    from vlprompt.config.paths import results_root
    from vlprompt.interop.dassl import logs

    asked = logs.Asked(**{field.name: getattr(options, field.name) for field in fields(logs.Asked)})
    read, skipped = [], []
    for path in logs.find_logs(options.path):
        try:
            if logs.is_of_a_run(path):
                raise UserError(f"{path} is a run of vlprompt, and has its record already")
            read.append(logs.read_log(path))
        except UserError as error:
            skipped.append(str(error))
    if not read:
        raise UserError(skipped[0] if skipped else f"{options.path} holds no log.txt: give a log, or a folder of them")
    root = options.output or results_root()
    for record in logs.make_records(read, asked):
        folder = logs.write_record(record, root, force=options.force)
        scores = ", ".join(f"{split} {100 * scores['accuracy']:.2f}" for split, scores in record.scores.items())
        say(f"{folder}: {scores}")
    differ = [log.path for log in read if log.result.counts_differ]
    say(*(f"skipped: {reason}" for reason in skipped), file=sys.stderr)
    say(*(f"note: {path} prints an accuracy that its counts do not give: taken as printed" for path in differ),
        file=sys.stderr)  # fmt: skip


def import_list(options: Namespace) -> None:
    """A few-shot pickle into JSON lines."""
    from vlprompt.interop.dassl import lists

    shots = lists.read_pickle(options.path)
    paths, cut = lists.relative_paths(shots, options.images)
    output = options.output or Path(options.path.stem + ".jsonl")
    lists.write_list(shots, paths, output, force=options.force)
    counts = ", ".join(f"{sum(shot.split == part for shot in shots)} {part}" for part in lists.PARTS)
    say(f"{output}: {counts}; paths count from {cut or 'where they began'}, the first is {paths[0]}")
    if options.images is None:
        say("note: that is the longest folder that all share; --images names another", file=sys.stderr)


def say(*lines: str, file: Any = None) -> None:
    (file or sys.stdout).write("".join(f"{printable(line)}\n" for line in lines))
