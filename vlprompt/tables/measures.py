"""What a table can show of a run: accuracy and its kin, from records or from the predictions beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlprompt.errors import unknown
from vlprompt.records import Record

PREDICTIONS = "predictions.npz"


@dataclass(frozen=True)
class Measure:
    """How a metric is shown."""

    label: str
    factor: float = 100.0  # records hold fractions, tables percent
    decimals: int = 2
    higher_is_better: bool = True
    harmonic: bool = True  # a harmonic mean of base and novel makes sense


MEASURES = {
    "accuracy": Measure("accuracy (%)"),
    "top5": Measure("top-5 accuracy (%)"),
    "per_class": Measure("mean accuracy per class (%)"),
    "macro_f1": Measure("macro-F1 (%)"),
    "ece": Measure("expected calibration error (%)", higher_is_better=False, harmonic=False),
    "nll": Measure("negative log-likelihood (nats)", 1.0, 3, higher_is_better=False, harmonic=False),
}


def measure(metric: str) -> Measure:
    """Raises: UserError for a metric that is not known."""
    if metric not in MEASURES:
        raise unknown("metric", metric, MEASURES)
    return MEASURES[metric]


def complete(runs: Mapping[Path, Record], metric: str) -> list[Record]:
    """The records of these folders, with the metric in the scores of every split that has predictions.

    What a record has is kept; what it lacks comes from `predictions.npz` beside it. Without that it stays absent.
    Raises: UserError where the predictions are damaged.
    """
    measure(metric)
    return [_completed(record, folder / PREDICTIONS, metric) for folder, record in runs.items()]


def _completed(record: Record, path: Path, metric: str) -> Record:
    if all(metric in kept for kept in record.scores.values()) or not path.exists():
        return record
    from vlprompt.metrics import load_predictions, score

    found = {split: score(predictions) for split, predictions in load_predictions(path).items()}
    return record.model_copy(
        update={"scores": {split: found.get(split, {}) | kept for split, kept in record.scores.items()}}
    )


def gaps(records: Sequence[Record], metric: str) -> list[str]:
    """A note on runs that have results but not this metric."""
    lacking = [r for r in records if r.scores and not all(metric in kept for kept in r.scores.values())]
    some = sorted({record.learner for record in lacking})
    note = f"{len(lacking)} runs have neither this metric nor predictions: their cells are empty ({', '.join(some)})."
    return [note] if lacking else []
