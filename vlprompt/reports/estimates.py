"""How long cells will take, by what finished runs of their kind took."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlprompt.results.record import Record


def time_left(todo: Sequence[Mapping[str, Any]], records: "Sequence[Record]", jobs: int = 1) -> str:
    """How long cells will take, as finished runs of their kind took, `jobs` of them at once."""
    expected = Costs(records)
    seconds = [one for key in todo if (one := expected(key)) is not None]
    if not seconds:
        return "No estimate of the time left: there is no finished run to go by."
    total = sum(seconds) * len(todo) / len(seconds) / jobs
    at_once = f" with {jobs} at once" if jobs > 1 else ", one after another"
    return f"About {duration(total)} left{at_once}, as finished runs took."


class Costs:
    """Seconds that a cell takes: the mean over the finished runs that are most like it."""

    ALIKE = (
        ("protocol", "dataset", "backbone", "method", "shots"),
        ("backbone", "method", "shots"),
        ("backbone", "method"),
        ("backbone",),
        (),
    )

    def __init__(self, records: "Sequence[Record]") -> None:
        self.seconds: dict[tuple[str, ...], list[float]] = {}
        for record in records:
            if record.status == "finished" and (spent := spent_on(record)):
                for names in self.ALIKE:
                    self.seconds.setdefault(self._kind(names, record.key.model_dump()), []).append(spent)

    def __call__(self, key: Mapping[str, Any]) -> float | None:
        known = (self.seconds.get(self._kind(names, key)) for names in self.ALIKE)
        return next((sum(some) / len(some) for some in known if some), None)

    @staticmethod
    def _kind(names: Sequence[str], key: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(f"{name}={key.get(name)}" for name in names)


def spent_on(record: "Record") -> float:
    """Seconds of training and test that a record tells."""
    parts = (record.cost.get(name) for name in ("train_seconds", "test_seconds"))
    return sum(float(part) for part in parts if part)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min, 4 d 3 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
