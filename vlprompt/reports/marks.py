"""The best and the second of what is compared."""

from collections.abc import Sequence

import pandas as pd

from vlprompt.reports.grid import BEST, SECOND
from vlprompt.results.metrics import Metric


def best_and_second(means: pd.DataFrame, blocks: Sequence[object], shown: Metric) -> dict[tuple[int, str], str]:
    """By row and column of `means`, compared within each block: BEST or SECOND.

    Equal means, as printed, share a mark; where all are equal, or there is one alone, none is marked. The metric says
    whether more is better, or that none is best.
    """
    if means.empty or not shown.has_best:
        return {}
    rounded = means.astype(float).round(shown.decimals).reset_index(drop=True)
    grouped = rounded.groupby(pd.Series([str(block) for block in blocks]))
    ranks = grouped.rank(method="dense", ascending=not shown.higher_is_better)[grouped.transform("nunique") > 1]
    marks = {1: BEST, 2: SECOND}
    return {(i, name): marks[rank] for name in ranks for i, rank in enumerate(ranks[name]) if rank in marks}
