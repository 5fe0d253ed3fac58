"""Tables on a terminal of any width: no line is too long, no word and no number is broken, and what is left out is
named."""

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from made_records import few_shot, record, transfer
from rich.cells import cell_len
from rich.text import Text

from vlprompt.errors import Note, UserError, folded
from vlprompt.reports import published
from vlprompt.reports.averages import ELEVEN, across_datasets
from vlprompt.reports.grid import Grid, choose, choose_raw
from vlprompt.reports.layouts import distance_grid, grids, notes_of
from vlprompt.reports.render import render, render_grids, summary_grids
from vlprompt.reports.summary import summarise, without_result
from vlprompt.reports.terminal import DEVIATION, draw, wrapped
from vlprompt.reports.variants import distinguishing
from vlprompt.results.record import Record

WIDTHS = (60, 80, 123, 200)
COST: dict[str, Any] = {"trained_parameters": 6_035_488, "train_seconds": 332.3, "peak_memory_bytes": 2**30}
LONG = "a_very_long_name_of_a_variant_" * 3
FAILED: dict[str, Any] = {"status": "failed", "scores": {}, "reason": f"out of memory in /{'folder/' * 20}x.py"}


def one() -> list[Record]:
    return [record("coop", cost=COST)]


def halves() -> list[Record]:
    changes = {"method.templates": None, "method.descriptions": "descriptions.json"}
    made = [record(m, seed=seed, base=0.8 + seed / 100, cost=COST) for m in ("coop", "lora") for seed in (1, 2, 3)]
    made += [record("zero_shot", seed=0, shots=0), record("hard_prompts", changes=changes, variant="0123abcd")]
    return [*made, *(record("coop", "eurosat", seed, variant=LONG) for seed in (1, 2))]


def failed() -> list[Record]:
    return [record("coop", seed=seed, **FAILED) for seed in (1, 2)] + [record("lora", "digits", **FAILED)]


def mixed() -> list[Record]:
    targets = {name: 0.4 + i / 100 for i, name in enumerate(ELEVEN)}
    made = [transfer(method, seed, **targets) for method in ("coop", "intrinsic_dimension") for seed in (1, 2)]
    return [*made, *(few_shot("coop", name, shots=k) for name in ELEVEN for k in (1, 16)), *halves(), *failed()]


def settings() -> list[Record]:
    given = [{"fit.lr": lr, "fit.epochs": epochs, "method.n_context": n, "method.position_of_the_class": "end"}
             for lr, epochs, n in ((0.01, 5, 4), (0.002, 50, 16))]  # fmt: skip
    return [
        record("coop", seed=seed, changes=changes, variant=f"{i}123abcd", config=nested(changes))
        for i, changes in enumerate(given)
        for seed in (1, 2)
    ]


def nested(changes: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for key, value in changes.items():
        part, name = key.split(".")
        config.setdefault(part, {})[name] = value
    return config


def hostile() -> list[Record]:
    names = ("\x1b[31mred", "<b>bold</b>", "学習方法" * 12, "a " * 50, "12.5", ":smile:")
    return [record(name, dataset, variant=name[:90]) for name in names for dataset in ("dtd", "数据集" * 9)][1:]


def papers() -> list[Record]:
    rows = published.of_papers(published.load(), ["maple"])
    return [*halves(), *published.as_records(rows[rows["dataset"].isin(["dtd", "eurosat", "average_11"])])]


SETS = (one, halves, failed, settings, *(pytest.param(m, marks=pytest.mark.slow) for m in (hostile, mixed, papers)))


def tables(made: list[Record]) -> Iterator[Grid]:
    yield from summary_grids(summarise(made, columns=distinguishing(made)), costs=True, on_terminal=True)
    yield from grids(across_datasets(made, interval="t", columns=distinguishing(made, across=True))[0])


@pytest.mark.parametrize("made", SETS, ids=lambda make: make.__name__)
def test_lines_fit_and_numbers_are_whole(made: Any) -> None:
    for grid in tables(made()):
        whole = grid.gathered(grid.constants)
        for width in WIDTHS:
            text, lacking = draw(whole, width)
            text = Text.from_ansi(text).plain
            assert max(map(cell_len, text.splitlines())) <= width
            shown = [name for name in map(str, whole.rows) if name not in lacking]
            assert any(name in shown for name in grid.order), lacking
            words = set(text.split())
            for name in shown:
                for cell in whole.rows[name]:
                    cell = DEVIATION.sub("", cell) if "deviations" in lacking else cell
                    assert not re.fullmatch(r"[\d.,]+( .*)?", cell) or {*cell.split()} <= words, (name, cell, width)
            if width == WIDTHS[-1] and "long names in whole" not in lacking:
                assert {word for word in " ".join(map(str, whole.rows["method"])).split() if word.isalnum()} <= words


@pytest.mark.parametrize("made", SETS, ids=lambda make: make.__name__)
def test_notes_and_titles_fit(made: Any) -> None:
    records = made()
    results, gaps = across_datasets(records)
    for width in WIDTHS[:1]:
        text = render_grids(grids(results), [*notes_of(results, records), *gaps], "terminal", width=width)
        assert max(map(cell_len, Text.from_ansi(text).plain.splitlines())) <= width
        text = render(summarise(records), costs=True, width=width)
        assert max(map(cell_len, Text.from_ansi(text).plain.splitlines())) <= width


def test_a_narrow_terminal_says_what_is_left_out_and_a_wide_one_shows_it() -> None:
    made = halves()
    narrow, wide = (Text.from_ansi(render(summarise(made), width=width)).plain for width in (60, 200))
    note = " ".join(narrow.partition("No room for ")[2].split())
    assert note.startswith("mean of H, parameters, train s, peak MB, missing, deviations, long names in whole: widen")
    assert "82.00 ± 1.00" in wide
    assert "82.00 ±" not in narrow
    for word in ("6,035,488", "332.3", "1024"):
        assert (word in wide, word in narrow) == (True, False)
    assert LONG in wide
    assert "…" in narrow
    assert "No room" not in wide


def test_numbers_matter_more_than_a_column_of_variants() -> None:
    made = [record("coop", seed=s, base=0.5 + s / 10) for s in (1, 2)]
    made += [record("prefix_tuning_of_many_layers", changes={"fit.lr": 0.01, "fit.epochs": 5}, variant="0123abcd")]
    (grid,) = summary_grids(summarise(made), on_terminal=True)
    grid = grid.gathered(grid.constants)
    text, lacking = draw(grid, 60)
    header, *rows = text.partition("shots 16\n")[2].splitlines()
    assert header.split() == ["method", "n", "base", "novel", "H"]
    assert not {"base", "novel", "H", "deviations"} & {*lacking}
    assert "fit.lr=0.01" in "".join(rows)
    assert " variant " in draw(grid, 200)[0]


def rendered(made: list[Record], width: int) -> str:
    table = summarise(made)
    return Text.from_ansi(
        render_grids(summary_grids(table, on_terminal=True), without_result(made), "terminal", width=width)
    ).plain


def test_what_all_rows_share_stands_above_and_a_failed_run_elsewhere_adds_no_column() -> None:
    made = [record("coop"), record("lora"), record("maple", "digits", shots=4, **FAILED)]
    text = rendered(made, 120)
    title, header = text.splitlines()[:2]
    assert title == "protocol base_to_novel, dataset dtd, backbone vit_b16, weights openai, precision bf16, shots 16"
    assert header.split() == ["method", "n", "base", "novel", "H"]
    assert "Without a result: maple on digits, base_to_novel, 4 shots, seed 1: failed, out of memory" in text
    assert "digits" in render(summarise(made))  # a file has all rows
    alone = rendered(failed(), 80)
    rows = [line.split()[1] for line in alone.splitlines() if line.startswith(("digits ", "dtd "))]
    assert rows == ["lora", "coop"]


def test_a_name_is_shortened_and_a_path_is_not() -> None:
    path = "/" + "/".join(f"folder{i}" for i in range(30))
    lines = wrapped(f"cannot read {path}", 60).splitlines()
    assert "".join(line.removeprefix("cannot read ").strip() for line in lines) == path
    assert all(line.endswith("/") for line in lines[:-1])
    text, lacking = draw(Grid("", pd.DataFrame({"method": ["x" * 200], "H": ["1.00"]}), order=["method", "H"]), 60)
    assert "x" * 53 + "…" in text
    assert lacking == ["long names in whole"]


def test_decimal_points_are_below_one_another() -> None:
    grid = Grid("", pd.DataFrame({"method": ["a", "b", "c"], "s": ["5.0", "332.3", ""], "n": ["1,024", "7", "3 to 5"]}))
    rows = draw(grid, 60)[0].splitlines()[-3:]
    assert len({row.index(".") for row in rows[:2]}) == 1
    assert rows[0].index("1,024") + 4 == rows[1].index("7") == rows[2].index("3 to") + 0


def test_of_a_setting_that_is_too_long_the_value_stays() -> None:
    rows = pd.DataFrame({"method": ["coop"] * 2, "variant": ["method.templates=openai_7", f"method.x={'y' * 90}"]})
    text = draw(Grid("", rows, order=["method", "variant"]), 22)[0]
    assert "=openai_7" in text
    assert "method.templates" not in text
    assert "…" + "y" * 12 in text


def test_columns_are_chosen_by_name_and_in_order() -> None:
    made = [record("coop", seed=s) for s in (1, 2)] + [record("lora", cost=COST)]
    grids = summary_grids(summarise(made), costs=True)
    assert list(choose(grids, ["H", "method", "n"])[0].rows) == ["H", "method", "n"]
    assert list(choose(grids, ["train_s", "Mean of H"])[0].rows) == ["method", "train s", "mean of H"]
    assert "dataset" not in choose(grids, ["method", "dataset"])[0].gathered(["dataset"]).rows
    assert list(choose(grids, ["method", "dataset"])[0].rows) == ["method", "dataset"]
    assert choose(grids, []) == grids
    (raw,) = choose_raw([summarise(made)], ["method", "base", "peak MB"])
    assert list(raw) == ["method", "base", "base_sd", "peak_bytes"]
    with pytest.raises(UserError, match=r"'bas': known are base, .* and 6 more; did you mean 'base'"):
        choose(grids, ["n", "bas"])


def test_marks_stay_with_their_columns() -> None:
    made = [few_shot("coop", "dtd", 0.5), few_shot("lora", "dtd", 0.6), few_shot("lora", "eurosat", 0.9)]
    (grid,) = choose(grids(across_datasets(made)[0]), ["dtd", "method"])
    assert grid.marks == {(0, "dtd"): "second", (1, "dtd"): "best"}
    assert list(grid.rows) == ["dtd", "method"]


def test_repeated_notes_are_one() -> None:
    notes = [Note("Left out: {}: damaged.", f"run{i}") for i in range(27)]
    assert folded([*notes, notes[0], "x", "x"]) == [
        "27 times: Left out: run0, run1, run2 and 24 more: damaged.", "x"
    ]  # fmt: skip
    assert folded(notes[:1]) == ["Left out: run0: damaged."] == notes[:1]
    assert folded([Note("{} of {}", "{}"), Note("{} of {}", "b")]) == ["2 times: {}, b of {}"]


def test_distances_fit() -> None:
    config = {"fit": {"lr": 0.1, "epochs": 7}, "method": {"n_context": 3}}
    made = [record("coop", name, variant="v", config=config) for name in ("dtd", "eurosat")]
    rows = published.load()
    table = published.distances(across_datasets(made)[0], rows, lambda *_: {"fit": {"lr": 0.002}})
    for width in WIDTHS:
        text = render_grids([distance_grid(table)], [], "terminal", width=width)
        assert max(map(cell_len, Text.from_ansi(text).plain.splitlines())) <= width
        assert re.search(r"dtd +(coop)? +", text)
