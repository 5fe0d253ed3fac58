"""Faults on purpose: kill a run before each of its file operations, fill the disk there, flip bits in its files.

    python scripts/fault_campaign.py                                # all, about ten minutes on one core
    python scripts/fault_campaign.py --every 10 --flips 3           # a sample
    python scripts/fault_campaign.py --output results/benchmarks    # the table as fault_campaign.md and .json

After each fault a reader looks at all records, and the same command runs again. Survived: whoever was finished before
is seen, the old one or the new, with the right numbers, or is named as damaged where a bit of it was flipped; and the
command ends with the right numbers. Lost: a finished record cannot be seen. Wrong: other numbers are taken silently,
something half written stays, or it ends in a traceback. Exit code 1 unless nothing is lost and nothing wrong.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}  # forked processes have no threads

import argparse
import errno
import gc
import io
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlprompt.config import build
from vlprompt.config.compose import read_run
from vlprompt.config.spec import RunSpec, spec_of_record
from vlprompt.data.cache import budget, feature_files, image_keys
from vlprompt.data.disk import _clear_drafts
from vlprompt.errors import DamagedError, UserError
from vlprompt.results import learner_files
from vlprompt.results.predictions import PREDICTIONS, load_predictions
from vlprompt.results.record import FILE, Record
from vlprompt.results.store import find_runs
from vlprompt.run import run

FEATURES = ["dataset=digits", "method=coop"]
PIXELS = ["dataset=folder", "method=vpt_shallow"]
RUN = ["protocol=few_shot", "backbone=shapes_vit", "shots=2", "fit.epochs=1", "workers=0"]
WRITES = {"open", "os.mkdir", "os.rename", "os.fsync"}  # what a full disk refuses
OPERATIONS = WRITES | {"os.remove", "os.rmdir", "os.truncate"}
Strike = Callable[[int, str], None]  # hears the number of an operation and its name before it happens


@dataclass
class Row:
    """What came of one kind of fault."""

    fault: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)

    def count(self, name: str, problem: str) -> None:
        """`problem` is empty, or begins with lost or wrong."""
        self.tried += 1
        kind = problem.partition(":")[0] or "survived"
        setattr(self, kind, getattr(self, kind) + 1)
        if problem:
            self.problems.append(f"{name}: {problem}")


class World:
    """A folder with results and data, a run in it, and how both look when all is well."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.now, self.well = folder / "now", folder / "well"
        self.log = folder / "output.txt"
        self.now.mkdir(parents=True)
        os.environ |= {"VLPROMPT_RESULTS": str(self.now / "results"), "VLPROMPT_DATA": str(self.now / "datasets")}
        self.spec = read_run([*overrides, *RUN])
        with redirect_stdout(io.StringIO()):
            run(self.spec)  # here: the processes that are forked find the model and all modules loaded
        gc.collect()
        gc.freeze()
        (self.record,) = find_runs([self.now / "results"]).values()
        shutil.copytree(self.now, self.well)

    def reset(self, *parts: str) -> None:
        """Put everything, or these parts, as it was when all was well."""
        shutil.rmtree(self.now)
        self.now.mkdir()
        for part in parts:
            shutil.copytree(self.well / part, self.now / part)

    def run(self, *, force: bool = False, strike: Strike | None = None, limit: int | None = None) -> int:
        """The run in a process of its own; -> 0 done, 2 a sentence, 3 a traceback, -9 killed."""
        spec = replace(self.spec, settings=self.spec.settings.model_copy(update={"force": force}))

        def work() -> None:
            forget(spec)
            if strike is not None:
                watch(self.now, strike)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            run(spec)

        return self.in_child(work)

    def in_child(self, work: Callable[[], object]) -> int:
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        code, output = 3, io.StringIO()
        logging.disable()
        try:
            with redirect_stdout(output), redirect_stderr(output):
                try:
                    work()
                    code = 0
                except UserError as error:
                    code = 2
                    print(error)
                except Exception:
                    traceback.print_exc()
        finally:
            if code == 3:
                self.log.write_text(output.getvalue())
            os._exit(code)

    def seen(self) -> tuple[list[Record], list[str]]:
        """What a reader sees: the records, and what it is told of others."""
        said: list[str] = []
        return list(find_runs([self.now / "results"], said.append).values()), said

    def is_right(self, record: Record) -> bool:
        same = record.scores == self.record.scores and record.headline == self.record.headline
        return same and [line["loss"] for line in record.curve] == [line["loss"] for line in self.record.curve]

    def problem_of_readers(self, *, finished: bool, may_be_named: bool = False) -> str:
        records, said = self.seen()
        if any(not self.is_right(record) for record in records):
            return "wrong: another number is read"
        if finished and not records and not (may_be_named and said):
            return f"lost: no record is seen ({said})"
        return ""

    def problem_of_rerun(self, *, force: bool = False) -> str:
        if code := self.run(force=force):
            return f"wrong: the same command ends with {code} ({self.log.read_text()[-300:] if code == 3 else ''})"
        if problem := self.problem_of_readers(finished=True):
            return problem
        left = [path.name for path in self.now.rglob(".*") if path.name.endswith((".partial", ".old", ".holder"))]
        left += [path.name for path in self.now.rglob("*vlprompt-*")]
        return f"wrong: {', '.join(left)} stays" if left else ""


def forget(spec: RunSpec) -> None:
    """Have files read again that this process has in memory."""
    build.features_at.cache_clear()
    feature_files._verified.clear()
    _clear_drafts.cache_clear()
    image_keys._key_of_file.cache_clear()
    budget.STARTED = time.time()  # as if this were a process of its own: its first write looks for drafts


def watch(root: Path, strike: Strike) -> None:
    """Call `strike` before each operation on files below a folder, in this process, for good."""
    number = 0

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        if event not in OPERATIONS or not writes_below(root, event, arguments):
            return
        number += 1
        strike(number, event)

    sys.addaudithook(hear)
    fsync = os.fsync

    def fsync_heard(descriptor: int) -> None:
        hear("os.fsync", (str(root),))
        fsync(descriptor)

    os.fsync = fsync_heard


def writes_below(root: Path, event: str, arguments: tuple[Any, ...]) -> bool:
    path = arguments[0]
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return False
    if not isinstance(path, str | bytes):
        return False
    text = os.fsdecode(path)
    return text.startswith(str(root)) or not Path(text).is_absolute()  # relative: within a folder that is being deleted


def operations(world: World, *, force: bool) -> list[str]:
    """The names of the operations of a run, from a process that only counts."""
    counts = world.now.parent / "operations.txt"

    def note(number: int, event: str) -> None:
        with counts.open("a") as file:
            file.write(f"{event}\n")

    counts.write_text("")
    if code := world.run(force=force, strike=note):
        raise SystemExit(f"the run that is counted ends with {code}")
    return counts.read_text().split()


def kill_at(n: int) -> Strike:
    def strike(number: int, event: str) -> None:
        if number == n:
            os.kill(os.getpid(), signal.SIGKILL)

    return strike


def full_from(n: int) -> Strike:
    def strike(number: int, event: str) -> None:
        if number >= n and event in WRITES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return strike


def before_each(world: World, *, older: bool, full: bool, every: int) -> Row:
    """A fault before each operation of a first run (`older` false) or of a forced one."""
    parts = ("results", "datasets") if older else ()
    kind = "a forced run" if older else "a run"
    row = Row(f"full disk from each write of {kind} on" if full else f"SIGKILL before each operation of {kind}")
    world.reset(*parts)
    names = operations(world, force=older)
    for n in range(1, len(names) + 1, every):
        if full and names[n - 1] not in WRITES:
            continue
        world.reset(*parts)
        code = world.run(force=older, strike=full_from(n) if full else kill_at(n))
        problem = "" if code in ((0, 2) if full else (0, -signal.SIGKILL)) else f"wrong: exit code {code}"
        # a draft with a record is a finished run, which the full disk kept from its name: the next one gives it
        half_done = [path for path in world.now.rglob(".*.partial") if not (path / FILE).exists()]
        if full and not problem and half_done:
            problem = f"wrong: {half_done[0].name} stays"
        problem = problem or world.problem_of_readers(finished=older) or world.problem_of_rerun()
        row.count(f"{names[n - 1]} ({n} of {len(names)})", problem)
    return row


def too_large(world: World) -> Row:
    """Files that cannot reach their size, whoever writes them: a real refusal by the system, in each file of a run."""
    row = Row("write refused within each file of a forced run")
    sizes = {path.name: path.stat().st_size for path in (world.well / "results").rglob("*") if path.is_file()}
    for name, size in sizes.items():
        if size:
            world.reset("results", "datasets")
            code = world.run(force=True, limit=size - 1)
            problem = "" if code in (0, 2) else f"wrong: exit code {code}: {world.log.read_text()[-300:]}"
            row.count(name, problem or world.problem_of_readers(finished=True) or world.problem_of_rerun(force=True))
    return row


def flipped(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    byte, bit = draw.randrange(len(content)), draw.randrange(8)
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    return f"byte {byte}, bit {bit} of {path.name}"


def flips_in_runs(world: World, name: str, read: Callable[[Path], Any], *, times: int, draw: random.Random) -> Row:
    """Bits of one of the files of a run. `read` gives what its readers make of it."""
    row = Row(f"flipped bit in {name}")
    (path,) = (world.well / "results").rglob(name)
    folder = world.now / path.parent.relative_to(world.well)
    good = read(path.parent)
    for _ in range(times):
        world.reset("results", "datasets")
        what, problem = flipped(folder / name, draw), ""
        try:
            if not same(read(folder), good):
                problem = "wrong: it is read as something else"
        except DamagedError as error:
            if name not in str(error):
                problem = f"wrong: not named in: {error}"
        except UserError as error:  # a schema of the future
            if name != FILE:
                problem = f"wrong: {error}"
        except Exception as error:
            problem = f"wrong: {type(error).__name__}: {error}"
        problem = problem or world.problem_of_readers(finished=True, may_be_named=name == FILE)
        row.count(what, problem or world.problem_of_rerun(force=name != FILE))
    return row


def flips_in_caches(world: World, pattern: str, name: str, *, times: int, draw: random.Random) -> Row:
    """Bits of files that runs share: a new run has the same numbers."""
    row = Row(f"flipped bit in {name}")
    paths = sorted(path for path in (world.well / "datasets").rglob(pattern) if path.is_file())
    for _ in range(times):
        world.reset("datasets")
        what = flipped(world.now / draw.choice(paths).relative_to(world.well), draw)
        row.count(what, world.problem_of_rerun())
    return row


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if hasattr(a, "tobytes"):
        return a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


def read_record(folder: Path) -> Any:
    record = Record.read(folder)
    assert record is not None
    return record.model_dump_json()


def read_predictions(folder: Path) -> Any:
    return {split: asdict(of_split) for split, of_split in load_predictions(folder / PREDICTIONS).items()}


def read_learner(folder: Path) -> Any:
    return dict(build.restore_learner(folder).state_dict())


def configuration(folder: Path) -> Any:
    record = Record.read(folder)
    assert record is not None
    return spec_of_record(folder, record).config


READERS: dict[str, Callable[[Path], Any]] = {
    FILE: read_record,
    PREDICTIONS: read_predictions,
    learner_files.TENSORS: read_learner,
    learner_files.CONFIG: learner_files.read_config,
    "config.yaml": configuration,
}


def draw_images(folder: Path) -> None:
    """Twelve images of each of two classes, of noise around two greys."""
    draw = random.Random(0)
    for label, grey in (("dark", 40), ("light", 160)):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            pixels = bytes(grey + draw.randrange(60) for _ in range(40 * 40))
            Image.frombytes("L", (40, 40), pixels).save(folder / label / f"{i}.png")


@contextmanager
def worlds(folder: Path) -> Iterator[tuple[World, Callable[[], World]]]:
    """The world of a method that reads features, and what makes that of one which reads pixels."""
    before = dict(os.environ)
    try:
        first = World(folder / "features", FEATURES)

        def of_pixels() -> World:
            draw_images(folder / "images")
            return World(folder / "pixels", [*PIXELS, f"dataset.root={folder / 'images'}"])

        yield first, of_pixels
    finally:
        os.environ.clear()
        os.environ.update(before)


def campaign(folder: Path, *, every: int = 1, flips: int = 40, caches: bool = True) -> Iterator[Row]:
    """All faults; `every` n-th operation, `flips` bits in each kind of file."""
    draw = random.Random(0)
    with worlds(folder) as (world, of_pixels):
        for full in (False, True):
            for older in (False, True):
                yield before_each(world, older=older, full=full, every=every)
        yield too_large(world)
        for name, read in READERS.items():
            yield flips_in_runs(world, name, read, times=flips, draw=draw)
        if caches:
            yield flips_in_caches(world, "*.safetensors", "features on disk", times=flips, draw=draw)
            yield flips_in_caches(of_pixels(), "images/*/*", "decoded images", times=flips, draw=draw)


def page(rows: list[Row]) -> str:
    total = Row("all", *(sum(getattr(row, name) for row in rows) for name in ("tried", "survived", "lost", "wrong")))
    lines = [
        "Faults on purpose, and what readers and the next run make of them (what survived, lost and wrong mean: "
        "`scripts/fault_campaign.py`, which made this).",
        "",
        "| fault | tried | survived | lost | wrong |",
        "|:------|------:|---------:|-----:|------:|",
        *(f"| {r.fault} | {r.tried} | {r.survived} | {r.lost} | {r.wrong} |" for r in [*rows, total]),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th operation")
    parser.add_argument("--flips", type=int, default=40, help="flipped bits in each kind of file")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for fault_campaign.md and fault_campaign.json")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in campaign(Path(folder), every=options.every, flips=options.flips):
            rows.append(row)
            print(
                f"{row.fault}: {row.tried} tried, {row.survived} survived, {row.lost} lost, {row.wrong} wrong",
                flush=True,
            )
            for problem in row.problems[:5]:
                print(f"  {problem}")
    text = page(rows)
    print(f"\n{text}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "fault_campaign.md").write_text(text, encoding="utf-8")
        (options.output / "fault_campaign.json").write_text(json.dumps(list(map(asdict, rows)), indent=2) + "\n")
    return int(any(row.lost or row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
