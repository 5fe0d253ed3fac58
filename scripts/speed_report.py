"""How benchmark_speed.py shows its rows: lines, and a Markdown page."""

import platform
from collections.abc import Sequence

import pandas as pd
import torch
from speed_cases import CASES
from speed_measures import GRADIENTS, LOGITS, N_THREADS, Row

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
