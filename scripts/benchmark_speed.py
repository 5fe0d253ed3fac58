"""How fast vlprompt is against the originals' algorithm, with the same weights, inputs and numbers.

    python scripts/benchmark_speed.py                                       # the whole table, on 2 cores in 40 minutes
    python scripts/benchmark_speed.py --method coop --classes 100 --context 16
    python scripts/benchmark_speed.py --method cocoop --case banked --json speed.json
    python scripts/benchmark_speed.py --output results/benchmarks           # the table and the chart as files
    python scripts/benchmark_speed.py --redraw results/benchmarks/speed.json   # the chart of what was measured
    python scripts/benchmark_speed.py --whole-run --against main            # the demo's sweep, from two checkouts

ViT-B/16 in fp32 with random weights (norms and biases too), ImageNet's class names. Both sides run in turn in one
process; a ratio is the median over pairs. Trust CPU time (of all threads, which wait without spinning); wall time
stands next to it. Logits and gradients of both are compared first: where they differ, the run fails.
"""

import os

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}  # read when torch is loaded

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import speed_chart
import speed_report
import torch
import whole_run
from speed_cases import CASES, DEFAULTS, SUITED, TABLE, Case
from speed_measures import Row, compare_speed

from vlprompt.training.device import resolve_device


def asked(options: argparse.Namespace) -> list[Case]:
    """The cases of the command line; without any, the whole table."""
    if not options.method and not options.case:
        return list(TABLE)
    method = options.method or "coop"
    case = Case(options.case or DEFAULTS[method].case, method, backbone=options.backbone)
    given = {name: getattr(options, name) for name in ("classes", "context", "batch") if getattr(options, name)}
    if case.case not in SUITED[method]:
        raise SystemExit(f"--method {method} has no case {case.case}: choose {', '.join(SUITED[method])}")
    if case.case == "memory" and given.pop("batch", 1) != 1:
        raise SystemExit("--case memory counts images in addition to one: leave --batch out")
    return [case.filled(**given)]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(DEFAULTS))
    parser.add_argument(
        "--case", choices=list(CASES), help="; ".join(f"{name}: {what}" for name, what in CASES.items())
    )
    parser.add_argument("--classes", type=int)
    parser.add_argument("--context", type=int, help="learned tokens a layer")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--backbone", default="ViT-B-16-quickgelu", help="an open_clip model, or shapes_vit")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of each case")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for speed.md and speed.svg")
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="measure nothing: the chart of such a JSON file")
    parser.add_argument("--whole-run", action="store_true", help="time the demo's sweep of ten methods, three seeds")
    parser.add_argument("--against", metavar="COMMIT", help="with --whole-run: a checkout to compare with")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if options.whole_run:
        print(whole_run.measure(options.against))
        return
    if options.redraw:
        measured = [Row(**row) for row in json.loads(options.redraw.read_text())]
        speed_chart.draw(measured, options.redraw.with_suffix(".svg"))
        return
    device = resolve_device(options.device)
    rows: list[Row] = []
    for case in asked(options):
        rows.append(compare_speed(case, device=device, repeats=options.repeats))
        print(speed_report.line(rows[-1]), flush=True)
        if options.json:  # after each, so that a run that is cut leaves what it has
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    text = speed_report.page(rows, device, options.repeats)
    print(f"\n{text}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "speed.md").write_text(text)
        speed_chart.draw(rows, options.output / "speed.svg")
    if wrong := [row for row in rows if not row.exact]:
        raise SystemExit("not the same numbers: " + "; ".join(speed_report.line(row) for row in wrong))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
