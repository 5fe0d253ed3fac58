"""Results in Dassl's logs, read into records that are marked as imported."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlprompt.errors import UserError
from vlprompt.interop.dassl.facts import SHIFTED, Facts, facts_of_options, facts_of_path, read_options
from vlprompt.interop.dassl.loading import read_small
from vlprompt.results.record import FILE, Record, RunKey
from vlprompt.results.store import open_run

VARIANT = "imported"
OFF_BY = 1e-6  # percent points; a printed accuracy is rounded from counts that may be printed too


@dataclass(frozen=True)
class Result:
    """One test as a log has it: fractions, and the decimals of the printed accuracy in percent."""

    scores: dict[str, int | float]
    decimals: int
    selection: Literal["fixed", "val"]
    counts_differ: bool  # total and correct give another accuracy than the one printed


@dataclass(frozen=True)
class Log:
    """One log: its file, what it is of, and its result."""

    path: Path
    sha256: str
    facts: Facts
    result: Result


@dataclass(frozen=True)
class Asked:
    """What the user says of all the logs, which counts more than what they say."""

    dataset: str | None = None
    method: str | None = None
    shots: int | Literal["all"] | None = None
    seed: int | None = None
    split: str | None = None
    protocol: str | None = None
    backbone: str | None = None
    name: str | None = None


def read_log(path: Path) -> Log:
    """Read one log to its end.

    Raises:
        UserError: no log, a training that did not finish, or one without a test at its end.
    """
    content = read_small(path)
    text = content.decode("utf-8", errors="replace")
    facts = facts_of_options(read_options(text)).completed_by(facts_of_path(path.absolute()))
    return Log(path, hashlib.sha256(content).hexdigest(), facts, _find_result(text, facts, path))


def _find_result(text: str, facts: Facts, path: Path) -> Result:
    """The last result; of a training, one after its end."""
    lines = [line.strip() for line in text.splitlines()]
    ends = [i for i, line in enumerate(lines) if re.match(r"Finish(ed)? training\b", line)]
    trains = any(line.lower().startswith("epoch [") for line in lines)
    if trains and not ends and not facts.eval_only:
        raise UserError(f"the training in {path} did not finish: only results at its end count")
    start = ends[-1] if ends else 0
    starts = [i for i, line in enumerate(lines) if i >= start and line == "=> result"]
    if not starts:
        raise UserError(f"{path} has no result of a test ('=> result'): give a log of a finished training or test")
    short = (line for line in lines[start : starts[-1]] if len(line) < 100)
    sets = [match[1] for line in short if (match := re.search(r"(?i)evaluat.* \W?(\w+)\W? set", line))]
    if sets and sets[-1] == "val":
        raise UserError(f"the last result in {path} is on validation images: give the log of a test")
    values: dict[str, str] = {}
    for line in lines[starts[-1] + 1 :]:
        if not (match := re.fullmatch(r"\* (\w+): (\d[\d,]{0,14}(?:\.\d{1,15})?)%?", line)):
            break
        values[match[1]] = match[2].replace(",", "")
    best = any("best val" in line for line in lines[start:])
    return _score(values, "val" if best else "fixed", path)


def _score(values: dict[str, str], selection: Literal["fixed", "val"], path: Path) -> Result:
    printed = values.get("accuracy")
    if printed is None or max(float(printed), float(values.get("macro_f1", 0))) > 100:
        raise UserError(f"the last result in {path} has no accuracy in percent: give a log as Dassl writes it")
    decimals = len(printed.partition(".")[2])
    scores: dict[str, int | float] = {"accuracy": float(printed) / 100}
    counts = [int(values[name]) if values.get(name, "").isdigit() else None for name in ("total", "correct")]
    differ = False
    if counts[0] and counts[1] is not None:
        exact = counts[1] / counts[0]
        differ = abs(100 * exact - float(printed)) > 0.5 * 10**-decimals + OFF_BY
        scores = {"accuracy": scores["accuracy"] if differ else exact}
    for name, count in zip(("total", "correct"), counts, strict=True):
        if count is not None:
            scores[name] = count
    if "macro_f1" in values:
        scores["macro_f1"] = float(values["macro_f1"]) / 100
    return Result(scores, decimals, selection, differ)


def find_logs(path: Path) -> list[Path]:
    """A log, or all those named `log.txt` below a folder."""
    return [path] if path.is_file() else sorted(filter(Path.is_file, path.rglob("log.txt")))


def identify(log: Log, asked: Asked) -> tuple[RunKey, str]:
    """The run that a log is of, and the test split.

    Raises:
        UserError: naming what neither the log nor its path nor the user says.
    """
    facts = log.facts
    dataset, source = asked.dataset or facts.dataset, facts.trained_on
    method = asked.method or facts.method
    shifted = facts.eval_only and source is not None and source != dataset and facts.half in (None, "all")
    protocol, split = asked.protocol, asked.split
    if shifted and dataset is not None and not asked.dataset:
        protocol = protocol or ("domain_generalization" if dataset in SHIFTED else "cross_dataset")
        dataset, split = source, split or dataset
    elif facts.half is not None or split is not None:
        split = split or {"all": "test"}.get(str(facts.half), facts.half)
        protocol = protocol or ("base_to_novel" if split in ("base", "novel") else "few_shot")
    untrained = method == "zero_shot"
    known = {
        "dataset": dataset,
        "method": method,
        "backbone": asked.backbone or facts.backbone,
        "split": split,
        "protocol": protocol,
        "shots": 0 if untrained else asked.shots or facts.shots,
        "seed": 0 if untrained else facts.seed if asked.seed is None else asked.seed,
    }
    if missing := [name for name, value in known.items() if value is None]:
        flags = ", ".join(f"--{name}" for name in missing)
        raise UserError(f"neither {log.path} nor its folders say the {', '.join(missing)}: give {flags}")
    variant = f"{VARIANT}-{asked.name}" if asked.name else VARIANT
    return RunKey.model_validate({**known, "variant": variant}), str(split)


def make_records(logs: Iterable[Log], asked: Asked) -> list[Record]:
    """One record a run; its test splits may come from several logs.

    Raises:
        UserError: two logs of one test, or a log that does not say what it is of.
    """
    records: dict[RunKey, Record] = {}
    for log in logs:
        key, split = identify(log, asked)
        new = Record(**key.model_dump(), status="finished", weights="openai", precision=log.facts.precision,
                     selection=log.result.selection)  # fmt: skip
        record = records.setdefault(key, new)
        if split in record.scores:
            if key.shots == 0 and record.scores[split] == log.result.scores:
                continue  # what is not trained is the same with every seed
            raise UserError(
                f"{record.imported[split]['file']} and {log.path} are both the test '{split}' of {key.method} on "
                f"{key.dataset}, {key.shots} shots, seed {key.seed}: import them one by one, one of them with --name"
            )
        record.scores[split] = log.result.scores
        record.imported[split] = {"file": str(log.path), "sha256": log.sha256, "decimals": log.result.decimals}
    return list(records.values())


def write_record(record: Record, root: Path, *, force: bool) -> Path:
    """Publish a record, with the tests that were imported for its run before; -> its folder.

    Raises:
        UserError: another log of the same test was imported before, or the folder is that of a run.
    """
    folder = record.key.folder(root)
    with open_run(folder) as run:
        old = None if force else Record.read(folder)
        if old is not None and not old.imported:
            raise UserError(f"{folder} holds a run: give the import a --name, or replace the run with --force")
        if old is not None:
            for split, source in old.imported.items():
                if split in record.imported and source["sha256"] != record.imported[split]["sha256"]:
                    raise UserError(
                        f"{folder} has another result for '{split}', from {source['file']}: replace it with --force, "
                        "or import both with --name"
                    )
            both = {"scores": old.scores | record.scores, "imported": old.imported | record.imported}
            record = record.model_copy(update=both)
        ordered = sorted(record.scores, key=lambda split: split != "base")
        record = record.model_copy(update={"scores": {split: record.scores[split] for split in ordered}})
        run.write(lambda: run.publish(record))
    return folder


def is_of_a_run(path: Path) -> bool:
    """Whether a log lies next to a record: it is of a run of this package."""
    return (path.parent / FILE).exists()
