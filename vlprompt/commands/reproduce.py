"""`vlprompt reproduce`: run what a paper ran, with its settings, and compare the results with its numbers."""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.arguments import add_config_dir, refuse, searched, whole_numbers, words
from vlprompt.commands.output import show_rows, write
from vlprompt.errors import UserError
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    from vlprompt.config.spec import RunSpec
    from vlprompt.reports.grid import Grid
    from vlprompt.reports.verdict import Published, RunRequest, Scores, Verdict

UNKNOWN = "setting unknown"
KEYS = ("dataset", "source", "protocol", "backbone", "shots", "recipe")
SHARED = ("source", "protocol", "backbone")
VERDICTS = ("inside", "outside", "not run", "not judged")


def register(commands: Any) -> None:
    text = "run a paper's cells with its settings and tell whether the results are inside the noise of its numbers"
    parser = commands.add_parser("reproduce", help=text, description=text)
    parser.add_argument("method", metavar="METHOD", help="and settings as for run: key=value")
    parser.add_argument("--protocol", help="only this one (default: all that numbers are published for)")
    parser.add_argument("--datasets", type=words, help="only these: caltech101,dtd")
    parser.add_argument("--backbone", help="only this one")
    parser.add_argument("--shots", type=whole_numbers, help="only these: 1,16")
    parser.add_argument("--seeds", type=whole_numbers, default=[1, 2, 3], help="default: 1,2,3")
    parser.add_argument("--source", help="only numbers whose source has this text in it")
    text = "a file of published numbers, may be repeated (default: results/published/*.csv)"
    parser.add_argument("--published", type=path_of, action="append", metavar="FILE", help=text)
    parser.add_argument("--dry-run", action="store_true", help="show the plan and run nothing")
    parser.add_argument("--output", type=path_of, metavar="FILE", help="write the verdicts into this file, too")
    parser.add_argument("--format", choices=("latex", "markdown"), help="of this file (default: latex)")
    add_config_dir(parser)
    parser.set_defaults(command=reproduce, overrides=[])


def reproduce(options: argparse.Namespace) -> int:
    """-> exit code: 0 where all that ran is inside, and something is."""
    from vlprompt.reports.render import render_grids
    from vlprompt.reports.verdict import judge, read_published, unprinted_averages

    why = "the published rows say it; --protocol, --datasets, --backbone, --shots and --seeds choose among them"
    if options.format and not options.output:
        raise UserError(f"--format {options.format} is that of a file: name it with --output FILE")
    refuse(options.overrides, ("method", "protocol", "dataset", "backbone", "shots", "seed", "recipe"), why)
    rows = select(read_published(options.published or ()), options)
    overrides = [*searched(options.config_dir), *options.overrides]
    cells = plan(rows, options.seeds, overrides)
    if not options.dry_run:
        check_weights(cells)
    show_plan(options.method, cells)
    if options.dry_run:
        return 0
    runs = {cell.key: cell.run() for cell in cells}
    verdicts = [judge(row, runs) for row in rows if row.recipe]
    verdicts += [judge(row, runs) for row in unprinted_averages(verdicts)]
    grid = show_verdicts(verdicts, cells, unjudged=[row for row in rows if not row.recipe])
    if options.output:
        write(render_grids([grid], [], options.format or "latex"), options.output)
    reached = {verdict.verdict for verdict in verdicts}
    return int("inside" not in reached or "outside" in reached or any(cell.failed for cell in cells))


def select(rows: Sequence["Published"], options: argparse.Namespace) -> list["Published"]:
    """The rows that are asked for. Raises: UserError where there are none."""
    chosen = [
        row
        for row in rows
        if row.method == options.method
        and options.protocol in (None, row.protocol)
        and options.backbone in (None, row.backbone)
        and (options.datasets is None or row.dataset in options.datasets)
        and (options.shots is None or row.shots in options.shots)
        and (options.source or "").lower() in row.source.lower()
    ]
    if not chosen:
        known = ", ".join(sorted({row.method for row in rows}))
        raise UserError(f"no published number of {options.method} fits: numbers are known for {known}")
    return chosen


@dataclass
class Request:
    """All seeds of what published numbers ask for."""

    key: "RunRequest"
    specs: list["RunSpec"] = field(default_factory=list)
    missing: str = ""  # why it cannot run
    failed: str = ""  # why it did not end

    def left(self) -> list["RunSpec"]:
        """The seeds without a finished run."""
        from vlprompt.run import existing_record

        return [spec for spec in self.specs if existing_record(spec) is None]

    def run(self) -> list["Scores"]:
        """Make or find the runs; -> their scores, none where one of them is missing."""
        from vlprompt.jobs.failures import run_or_record_failure
        from vlprompt.reports.verdict import scores_of

        records = [] if self.missing else [run_or_record_failure(spec) for spec in self.specs]
        self.failed = next((str(record.reason) for record in records if record.status != "finished"), "")
        return [] if self.failed else [scores_of(record) for record in records]


def plan(rows: Sequence["Published"], seeds: Sequence[int], overrides: Sequence[str]) -> list[Request]:
    """What has to run, one backbone after the other; what cannot is planned with its reason."""
    keys = dict.fromkeys(row.key(member) for row in rows if row.recipe for member in row.members)
    cells = []
    for key in sorted(keys, key=lambda key: (key.protocol, key.backbone)):
        cell = Request(key)
        try:
            prepared = [prepare_seed(rows[0].method, key, seed, overrides) for seed in seeds]
            cell.specs = list({spec.folder: spec for spec in prepared}.values())
        except UserError as error:
            cell.missing = str(error)
        cells.append(cell)
    check_folders([spec for cell in cells for spec in cell.specs])
    return cells


def check_folders(specs: Sequence["RunSpec"]) -> None:
    """Refuse runs that would replace each other. Raises: UserError."""
    first: dict[Path, RunSpec] = {}
    for spec in specs:
        if first.setdefault(spec.folder, spec).hash != spec.hash:
            raise UserError(f"name={spec.settings.name} is one folder for runs of several recipes: leave name out")


def prepare_seed(method: str, key: "RunRequest", seed: int, overrides: Sequence[str]) -> "RunSpec":
    """A seed's run, in the words of `python run.py`. Raises: UserError for a name that is none of `conf/`."""
    from vlprompt.config.compose import read_run

    for name in (key.protocol, key.dataset, key.backbone, key.recipe):  # Hydra would read files outside its folders
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name):
            raise UserError(f"a published number is of '{name[:100]}', which cannot be a name in conf/")
    groups = [f"{name}={getattr(key, name)}" for name in ("protocol", "dataset", "backbone")]
    recipe = [] if key.recipe == f"{method}/{key.protocol}" else [f"recipe={key.recipe}"]  # else the default
    shots = [f"shots={key.shots}"] if key.shots else []  # 0: nothing is trained
    spec = read_run([f"method={method}", *groups, *recipe, *shots, f"seed={seed}", *overrides])
    if spec.key.dataset.startswith(f"{key.dataset}-"):
        raise UserError(f"{spec.key.dataset} is {key.dataset} in part, and published numbers are of all its classes")
    return spec


def check_weights(cells: Sequence[Request]) -> None:
    """Load each backbone that is needed once, so that missing weights are named before the first run."""
    from vlprompt.config.build import clip_at

    missing: dict[tuple[str, str], str] = {}
    for cell in cells:
        for spec in cell.left()[:1]:
            model, weights = spec.settings.backbone.model, spec.settings.backbone.weights
            if (model, weights) not in missing:
                missing[model, weights] = ""
                try:
                    clip_at(model, weights, spec.device)
                except UserError as error:
                    missing[model, weights] = str(error)
            cell.missing = missing[model, weights]


def show_plan(method: str, cells: Sequence[Request]) -> None:
    rows = []
    for cell in cells:
        n, left = len(cell.specs), len(cell.left())
        state = "cannot run" if cell.missing else "finished" if not left else "to run"
        rows.append({**cell.key._asdict(), "finished": f"{n - left} of {n}" if n else "", "state": state})
    say("")
    show_rows(rows, f"plan of {method}: {len(cells)} cells", KEYS, shared=SHARED)
    for reason in dict.fromkeys(cell.missing for cell in cells if cell.missing):
        names = dict.fromkeys(cell.key.dataset for cell in cells if cell.missing == reason)
        say(f"cannot run {', '.join(names)}: {reason}")


def show_verdicts(
    verdicts: Sequence["Verdict"], cells: Sequence[Request], *, unjudged: Sequence["Published"]
) -> "Grid":
    states = {cell.key: "failed" if cell.failed else "cannot run" for cell in cells if cell.failed or cell.missing}
    rows = []
    for one in verdicts:
        state = "" if one.n else next((states[key] for m in one.row.members if (key := one.row.key(m)) in states), "")
        rows.append(named(one.row, one.verdict) | numbers(one) | {"why": one.reason or state})
    rows += [named(row, "not judged") | {"why": UNKNOWN} for row in unjudged]
    title = "verdicts (%; allowed: the larger of a stated floor and what seeds explain)"
    order = ["dataset", "verdict", "metric", "published", "ours", "off by", "allowed", "shots", "why", "n"]
    say("")
    grid = show_rows(rows, title, KEYS, shared=SHARED, order=order)
    for cell in (cell for cell in cells if cell.failed):
        say(f"failed on {cell.key.dataset} ({cell.key.protocol}, {cell.key.shots} shots): {cell.failed}")
    counts = Counter(row["verdict"] for row in rows)
    say("\n" + ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name]))
    return grid


def numbers(verdict: "Verdict") -> dict[str, str]:
    if verdict.mean is None:
        return {}
    deviation = "" if verdict.deviation is None else f" ± {verdict.deviation:.2f}"
    return {
        "ours": f"{verdict.mean:.2f}{deviation}",
        "n": str(verdict.n),
        "off by": f"{verdict.mean - verdict.row.value:+.2f}",
        "allowed": f"{verdict.tolerance:.2f} ({verdict.decided_by})",
    }


def named(row: "Published", verdict: str) -> dict[str, str]:
    names = ("source", "protocol", "backbone", "dataset", "shots", "metric")
    return {name: str(getattr(row, name)) for name in names} | {"published": f"{row.value:.2f}", "verdict": verdict}


def say(line: str) -> None:
    from vlprompt.training.progress import Reporter

    Reporter().say(line)
