"""The walk-through docs/add_a_protocol.md: its two files are all that a protocol takes, outside the package."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from running import ROOT, ask
from tiny_world import CLASSES, PER_CLASS

from vlprompt import cli, sweep
from vlprompt.results.record import Record
from vlprompt.results.store import find_records

PAGE = (ROOT / "docs" / "add_a_protocol.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE, re.DOTALL)[0].splitlines()


@pytest.fixture
def written(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files in a folder of the user's own, which is importable; -> the results root."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield results
    for name in ("my_protocols.long_tail", "my_protocols"):
        sys.modules.pop(name, None)


def trained(root: Path) -> list[Record]:
    return sorted((r for r in find_records([root]) if r.shots), key=lambda r: r.config["protocol"]["imbalance"])


@pytest.mark.slow
def test_its_headline_is_a_column(written: Path) -> None:
    run, table = (command.split() for command in COMMANDS)
    assert run[:2] == ["python", "run.py"]
    small = [
        "dataset.source._target_=tiny_world.load",
        "backbone.weights=random",
        "method.ctx_init=''",
        "method.n_context=4",
    ]
    answer = ask(sweep.main, [*run[2:], *small, "shots=4", "seed=1,2", "bank.views=1", "fit.epochs=1"])
    assert answer.code == 0, answer.err
    records = trained(written)
    assert [r.config["protocol"]["imbalance"] for r in records] == [2, 2, 8, 8]
    for record in records:
        thirds = [record.scores[name] for name in ("many", "medium", "few")]
        assert sum(third["total"] for third in thirds) == PER_CLASS["test"] * len(CLASSES)
        assert record.headline["mean"] == pytest.approx(sum(third["accuracy"] for third in thirds) / 3)
    answer = ask(cli.main, table[1:])
    assert answer.code == 0, answer.err
    assert "medium" in answer.out
    csv = ask(cli.main, [*table[1:], "--format", "csv"]).out
    rows = pd.read_csv(StringIO(csv))
    rows = rows[rows["method"] == "coop"].set_index("protocol.imbalance")
    assert rows.loc[2, "n"] == 2
    expected = 100 * sum(r.headline["mean"] for r in records[:2]) / 2
    assert rows.loc[2, "mean"] == pytest.approx(expected)


@pytest.mark.parametrize(("imbalance", "last"), [(2, 4), (20, 1)])
def test_the_tail_is_as_long_as_asked(written: Path, imbalance: float, last: int) -> None:
    from vlprompt.config.build import make_episode
    from vlprompt.config.compose import read_run

    searched = f"hydra.searchpath=['file://{written.parent}/my_conf']"
    groups = [searched, "protocol=long_tail", "dataset=digits", "shots=8"]
    tail = make_episode(read_run([*groups, f"protocol.imbalance={imbalance}"]))
    even = make_episode(read_run(["protocol=few_shot", "dataset=digits", "shots=8"]))
    assert {*tail.train.items} <= {*even.train.items}
    counts = Counter(item.label for item in tail.train.items)
    sizes = [counts[label] for label in range(len(even.train.classes))]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (8, last)
    assert {split.classes for split in tail.tests.values()} == {even.train.classes}
    tested = [item for split in tail.tests.values() for item in split.items]
    assert Counter(tested) == Counter(even.tests["test"].items)
    assert max(i.label for i in tail.tests["many"].items) < min(i.label for i in tail.tests["few"].items)
