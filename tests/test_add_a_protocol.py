"""The walk-through docs/add_a_protocol.md: its two files are all that a protocol takes, outside the package."""

import re
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from running import ROOT, ask

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
    for name in ("my_protocols.noisy_labels", "my_protocols"):
        sys.modules.pop(name, None)


def trained(root: Path) -> list[Record]:
    return sorted((r for r in find_records([root]) if r.shots), key=lambda r: r.config["protocol"]["noise"])


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
    assert [r.config["protocol"]["noise"] for r in records] == [0.25, 0.25, 0.5, 0.5]
    for record in records:
        test, mislabelled = (record.scores[name]["accuracy"] for name in ("test", "mislabelled"))
        assert record.scores["mislabelled"]["total"] == round(record.config["protocol"]["noise"] * 4 * 5)
        assert record.headline["robust"] == pytest.approx(2 * test * mislabelled / (test + mislabelled))
    answer = ask(cli.main, table[1:])
    assert answer.code == 0, answer.err
    assert "robust" in answer.out
    csv = ask(cli.main, [*table[1:], "--format", "csv"]).out
    rows = pd.read_csv(StringIO(csv))
    rows = rows[rows["method"] == "coop"].set_index("protocol.noise")
    assert rows.loc[0.25, "n"] == 2
    expected = 100 * sum(r.headline["robust"] for r in records[:2]) / 2
    assert rows.loc[0.25, "robust"] == pytest.approx(expected)


def test_wrong_labels_are_the_training_s_alone(written: Path) -> None:
    from vlprompt.config.build import make_episode
    from vlprompt.config.compose import read_run

    searched = f"hydra.searchpath=['file://{written.parent}/my_conf']"
    groups = [searched, "protocol=noisy_labels", "dataset=digits", "shots=4"]
    noisy = make_episode(read_run([*groups, "protocol.noise=0.5"]))
    clean = make_episode(read_run(["protocol=few_shot", "dataset=digits", "shots=4"]))
    assert [item.image for item in noisy.train.items] == [item.image for item in clean.train.items]
    wrong = {a.image for a, b in zip(noisy.train.items, clean.train.items, strict=True) if a.label != b.label}
    assert wrong == {item.image for item in noisy.tests["mislabelled"].items}
    assert len(wrong) == 20
    truth = {item.image: item.label for item in clean.train.items}
    assert all(truth[item.image] == item.label for item in noisy.tests["mislabelled"].items)
