"""How benchmark_speed.py shows its rows: lines, a Markdown page, and a chart."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from speed_cases import CASES
from speed_measures import GRADIENTS, LOGITS, N_THREADS, Row

from vlprompt.reports import plots as figures
from vlprompt.training.device import device_name

MB = 1e6


def line(row: Row) -> str:
    """A row in words."""
    verdict = "same numbers" if row.exact else "NOT THE SAME NUMBERS"
    return (
        f"{row.method} {row.case}, {row.classes} classes, {row.context} tokens, batch {row.batch}: "
        f"{row.cpu_ratio:.2f}x CPU, {row.wall_ratio:.2f}x wall ({row.plain_cpu_seconds:.2f} -> {row.cpu_seconds:.3f} "
        f"CPU s); kept for backward {row.plain_saved / MB:.0f} -> {row.saved / MB:.0f} MB, peak "
        f"{row.plain_peak / MB:.0f} -> {row.peak / MB:.0f} MB; {verdict} (logits {row.logits_difference:.0e}, "
        f"gradients {row.gradients_difference:.0e})"
    )


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    shown = [
        {
            "method": row.method if row.backbone.startswith("ViT") else f"{row.method} ({row.backbone})",
            "case": row.case,
            "classes": row.classes,
            "context": row.context,
            "batch": row.batch,
            "CPU ratio": f"{row.cpu_ratio:.2f}",
            "wall ratio": f"{row.wall_ratio:.2f}",
            "CPU s": f"{row.plain_cpu_seconds:.2f} → {row.cpu_seconds:.3f}",
            "kept MB": f"{row.plain_saved / MB:.0f} → {row.saved / MB:.0f}",
            "ratio": f"{row.plain_saved / row.saved:.1f}" if row.saved else "",
            "peak MB": f"{row.plain_peak / MB:.0f} → {row.peak / MB:.0f}",
            "logits": f"{row.logits_difference:.0e}",
            "gradients": f"{row.gradients_difference:.0e}" if row.gradients_difference else "",
        }
        for row in rows
    ]
    columns = ["left"] * 2 + ["right"] * (len(shown[0]) - 2)
    return str(pd.DataFrame(shown).to_markdown(index=False, disable_numparse=True, colalign=columns))


def page(rows: Sequence[Row], device: torch.device, repeats: int) -> str:
    """What was measured, where and how, and the table."""
    used = dict.fromkeys(row.case for row in rows)
    about = (
        f"vlprompt against the originals' algorithm: medians of {repeats} pairs in turn; {device_name(device)}, "
        f"{platform.machine()}, {N_THREADS} threads, Python {platform.python_version()}, torch {torch.__version__}. "
        "Random weights (ViT-B/16 where no other is named), fp32. Ratios above 1: vlprompt needs less. Memory: bytes "
        "kept for backward, and the step's peak. Last columns: the largest difference of logits at scale 100 (allowed "
        f"{LOGITS:.0e}) and of gradients over their maximum (allowed {GRADIENTS:.0e}).\\n\\nMade by "
        "`python scripts/benchmark_speed.py`."
    ).replace("\\n", "\n")
    cases = "\n".join(f"- `{name}`: {CASES[name]}" for name in used)
    counted = [
        f"Counted, not timed: tokens of {what}, padded over computed: {ratio:.1f}x."
        for row in rows
        for what, ratio in (row.counted or {}).items()
    ]
    return "\n\n".join([about, table(rows), cases, *counted]) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """CPU time of CoOp's text side against the number of classes, and against the context."""
    text = [row for row in rows if (row.case, row.method) == ("text", "coop")]
    if not text:
        return
    figure = figures.new_figure(8.0, 3.2)
    left, right = figure.subplots(1, 2, sharey=True)
    for n_context in sorted({row.context for row in text}):
        of_context = sorted((row for row in text if row.context == n_context), key=lambda row: row.classes)
        if len(of_context) > 1:
            curves(left, of_context, [row.classes for row in of_context], f"{n_context} context tokens")
    most = max({row.classes for row in text}, key=lambda n: len([row for row in text if row.classes == n]))
    of_classes = sorted((row for row in text if row.classes == most), key=lambda row: row.context)
    curves(right, of_classes, [row.context for row in of_classes], f"{most} classes")
    left.set(xlabel="classes", ylabel="CPU seconds a step", xscale="log", yscale="log")
    right.set(xlabel="context tokens", yscale="log", ylim=(0.5 * min(row.cpu_seconds for row in text), None))
    for panel in (left, right):
        panel.legend(fontsize="x-small")
        panel.grid(alpha=0.3)
    figure.suptitle("CoOp, text side, ViT-B/16: forward and backward", fontsize="medium")
    figures.save(figure, path)


def curves(panel: Any, rows: Sequence[Row], x: Sequence[int], label: str) -> None:
    (drawn,) = panel.plot(x, [row.plain_cpu_seconds for row in rows], marker="o", linestyle="--",
                          label=f"originals' algorithm, {label}")  # fmt: skip
    panel.plot(x, [row.cpu_seconds for row in rows], marker="o", color=drawn.get_color(), label=f"vlprompt, {label}")
