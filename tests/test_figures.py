"""Figures: what they show, that no text covers another, and `vlprompt plot`."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import running
from drawn import faults, texts_of
from figure_cases import CLASSES, made, predicted, write
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import few_shot, record, save
from running import Answer

from vlprompt import cli
from vlprompt.commands.plots import KINDS as TOLD
from vlprompt.errors import UserError
from vlprompt.reports.figures import data, images, ranks
from vlprompt.reports.figures.cells import Request, dataset_name
from vlprompt.reports.figures.data import pareto_front
from vlprompt.reports.figures.kinds import KINDS
from vlprompt.reports.figures.labels import spread_out
from vlprompt.reports.figures.reliability import bars
from vlprompt.reports.figures.style import DISTINCT, WIDTHS, balanced, looks, new_figure, short, styled
from vlprompt.reports.figures.style import save as save_figure
from vlprompt.results.metrics import score
from vlprompt.results.record import Record
from vlprompt.results.store import find_runs

pytest.importorskip("matplotlib")

NEEDS_PREDICTIONS = ("reliability", "confusion", "class-gains", "forest")


@pytest.fixture(scope="module")
def learners(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[Path, Record]]:
    """The runs of so many learners, made once."""
    known: dict[int, dict[Path, Record]] = {}

    def runs(n: int) -> dict[Path, Record]:
        if n not in known:
            known[n] = find_runs([made(tmp_path_factory.mktemp("runs"), n, datasets=2 if n == 2 else 3)])
        return known[n]

    return runs


def drawn(kind: str, runs: dict[Path, Record], width: float, **request: Any) -> Any:
    return KINDS[kind].draw(KINDS[kind].data(runs, Request(**request), []), width)


# Text


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_covers_another_with_two_learners(kind: str, learners: Any) -> None:
    figure = drawn(kind, learners(2), WIDTHS["column"])
    assert faults(figure) == []
    assert figure.get_figwidth() == WIDTHS["column"]
    texts = "\n".join(text for text, _ in texts_of(figure))
    assert "\\$x" in texts  # a dollar, and no mathematics


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n", [7, 34])
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_covers_another(kind: str, n: int, width: str, learners: Any) -> None:
    figure = drawn(kind, learners(n), WIDTHS[width])
    assert faults(figure) == []
    if n == 34 and (kind, width) != ("cost", "column"):
        texts = "\n".join(text for text, _ in texts_of(figure))
        assert {"KgCoOp", "Tip-Adapter-F"} <= {line.split("  ")[0] for line in texts.splitlines()}


@pytest.mark.parametrize(
    ("places", "wrong"),
    [
        ([(0.3, 0.3), (0.33, 0.31)], "'name 0' overlaps 'name 1'"),
        ([(0.95, 0.5)], "'name 0' leaves the canvas"),
        ([(0.1, 0.2), (0.1, 0.8)], ""),
    ],
)
def test_texts_that_overlap_or_leave_would_be_seen(places: list[tuple[float, float]], wrong: str) -> None:
    with styled():
        figure = new_figure(2.0, 1.0)
        for i, (x, y) in enumerate(places):
            figure.text(x, y, f"name {i}")
        seen = faults(figure)
    assert len(seen) == bool(wrong)
    assert "".join(seen).startswith(wrong)


def test_names_that_do_not_fit_lose_their_middle() -> None:
    with styled():
        assert short("MaPLe", 100.0) == "MaPLe"
        cut = short("begin " * 500 + "end", 60.0)
        assert (cut.startswith("begin"), cut.endswith("end"), "…" in cut) == (True, True, True)
        assert short("a\nb $x_1$", 100.0) == "a b \\$x_1\\$"


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(st.floats(0, 100), max_size=12))
def test_positions_are_spread_without_changing_their_order(wanted: list[float]) -> None:
    at = spread_out(wanted, 8.0, 0.0, 100.0)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(at[order]) >= 8.0 - 1e-6).all()
    assert len(wanted) == 0 or (at.min() >= -1e-6 and at.max() <= 100 + 1e-6)
    if len(wanted) > 1 and np.diff(np.sort(wanted)).min() >= 8.0:
        assert at == pytest.approx(wanted, abs=1e-6)


def test_spread_is_as_small_as_can_be() -> None:
    assert spread_out([50.0, 50.0, 90.0], 10.0, 0.0, 100.0) == pytest.approx([45.0, 55.0, 90.0])
    assert spread_out([99.0, 98.0], 10.0, 0.0, 100.0) == pytest.approx([100.0, 90.0])


def test_twelve_learners_are_distinct() -> None:
    names = [f"m{i}" for i in range(20)]
    table = pd.DataFrame({"learner": ["zero_shot", *names], "method": ["zero_shot", *names]})
    of_learners = looks(table, [*names[::-1], "zero_shot"])
    distinct = [look for look in of_learners.values() if look.distinct]
    assert len(distinct) == DISTINCT
    assert len({look.colour for look in distinct}) == len({look.marker for look in distinct}) == DISTINCT
    assert of_learners["zero_shot"].distinct
    assert not of_learners["m0"].distinct


@pytest.mark.parametrize("kind", ["critical-difference", "class-gains", "forest", "reliability"])
def test_no_title_is_none(kind: str, learners: Any) -> None:
    table = KINDS[kind].data(learners(2), Request(), [])
    assert table.attrs["title"]
    table.attrs["title"] = ""
    figure = KINDS[kind].draw(table)
    assert not [text for text, _ in texts_of(figure) if "16 shots" in text or text.endswith((", ", "data sets"))]


# What they show


def test_few_shot_has_bands_over_seeds_and_an_average() -> None:
    runs = {
        Path(f"{d}{k}{s}"): few_shot("coop", d, accuracy, s, shots=k)
        for d, k, s, accuracy in [("dtd", 1, 1, 0.4), ("dtd", 1, 2, 0.5), ("dtd", 16, 1, 0.6), ("eurosat", 1, 1, 0.2),
                                  ("eurosat", 1, 2, 0.3), ("eurosat", 16, 1, 0.8)]
    }  # fmt: skip
    table = data.few_shot(runs, Request(), []).set_index(["dataset", "shots"])
    assert table.loc[("dtd", 1), "mean"] == pytest.approx(45.0)
    assert table.loc[("dtd", 1), "deviation"] == pytest.approx(5 * 2**0.5)
    assert table.loc[("average_2", 16), "mean"] == pytest.approx(70.0)
    assert np.isnan(table.loc[("dtd", 16), "deviation"])


def test_base_novel_is_of_the_average_where_all_have_it() -> None:
    results = [("coop", "dtd", 0.8, 0.4), ("coop", "eurosat", 0.6, 0.6), ("lora", "dtd", 0.5, 0.5)]
    runs = {Path(f"{m}{d}"): record(m, d, base=base, novel=novel) for m, d, base, novel in results}
    notes: list[str] = []
    table = data.base_novel(runs, Request(), notes)
    assert (set(table["dataset"]), sorted(table["name"])) == ({"dtd"}, ["CoOp", "LoRA"])
    assert any("Drawn: dtd" in note for note in notes)
    coop = {folder: run for folder, run in runs.items() if run.method == "coop"}
    (row,) = data.base_novel(coop, Request(), []).itertuples()
    assert (row.dataset, row.base, row.novel) == ("average_2", pytest.approx(70.0), pytest.approx(50.0))


def test_pareto_front() -> None:
    costs, scores = pd.Series([0, 10, 10, 20, 30, np.nan]), pd.Series([50.0, 60, 55, 58, 70, 90])
    assert pareto_front(costs, scores) == [True, True, False, False, True, False]


def test_costs_are_means_over_runs_and_zero_shot_trains_nothing() -> None:
    runs = {Path(str(s)): few_shot("coop", seed=s, cost={"trained_parameters": 100, "train_seconds": 10.0 * s})
            for s in (1, 2)}  # fmt: skip
    table = data.cost({**runs, Path("z"): few_shot("zero_shot", seed=0, shots=0)}, Request(), []).set_index("learner")
    assert table.loc["coop", ["trained_parameters", "train_seconds"]].tolist() == [100, 15]
    assert table.loc["zero_shot", ["trained_parameters", "train_seconds"]].tolist() == [0, 0]
    assert table["flops_per_image"].isna().all()


def test_every_learner_is_named_though_the_last_cost_is_not_known() -> None:
    costs = {"coop": {"trained_parameters": 10, "flops_per_image": 1e9}, "lora": {"trained_parameters": 20}, "tcp": {}}
    runs = {Path(method): few_shot(method, cost=cost) for method, cost in costs.items()}
    notes: list[str] = []
    figure = KINDS["cost"].draw(data.cost(runs, Request(), notes))
    assert {"CoOp", "LoRA"} <= {text for text, _ in texts_of(figure)}
    assert any("tcp" in note for note in notes)


def test_a_band_that_reaches_zero_does_not_stretch_the_powers() -> None:
    runs = {
        Path(str(seed)): few_shot("coop", seed=seed, curve=[
            {"epoch": epoch, "loss": loss, "accuracy": 0.5} for epoch, loss in enumerate((2.0, 1.0, last))
        ]) for seed, last in ((1, 1e-6), (2, 0.2))
    }  # fmt: skip
    panel = drawn("training", runs, 3.35).axes[0]
    assert panel.get_yscale() == "log"
    assert panel.get_ylim()[0] == pytest.approx(0.08, rel=1e-3)


def test_points_at_zero_are_inside_the_axes() -> None:
    runs = {Path(m): record(m, base=base, novel=1 - base) for m, base in (("coop", 0.0), ("lora", 1.0))}
    panel = drawn("base-novel", runs, 3.35).axes[0]
    for low, high in (panel.get_xlim(), panel.get_ylim()):
        assert low < -1
        assert high > 101


def test_stretches_of_ranks_that_do_not_differ() -> None:
    assert ranks.cliques([1.0, 1.5, 2.4, 4.0], 1.0) == [(1.0, 1.5), (1.5, 2.4)]
    assert ranks.cliques([1.0, 1.5, 1.9, 4.0], 1.0) == [(1.0, 1.9)]
    assert ranks.cliques([1.0, 3.0], 1.0) == []
    assert ranks.cliques([1.5, 1.5, 3.0], 1.0) == [(1.5, 1.5)]


def test_reliability_shows_the_curve() -> None:
    curve = pd.DataFrame({"low": [0.0, 0.5], "high": [0.5, 1.0], "confidence": [0.4, np.nan], "accuracy": [0.3, np.nan],
                          "images": [10, 0], "share": [1.0, 0.0]})  # fmt: skip
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    bars(panel, curve)
    right, gap = panel.patches[:2]  # the empty bin has no bar
    assert (right.get_height(), gap.get_y(), gap.get_height()) == (0.3, 0.3, pytest.approx(0.1))


@pytest.mark.parametrize("values", [{}, {"loss": None, "accuracy": None}])
def test_training_without_a_value_is_refused(values: dict[str, Any]) -> None:
    curve = [{"epoch": 0, **values}] if values else []
    with pytest.raises(UserError, match="no run has a loss"):
        data.training({Path("1"): few_shot("coop", curve=curve)}, Request(), [])


def one_class_wrong(n_wrong: int) -> Any:
    """The first `n_wrong` images of the first class are taken for the second, all others are right."""
    import torch

    perfect = predicted(100.0, np.random.default_rng(0))
    logits = torch.nn.functional.one_hot(torch.from_numpy(perfect.labels), len(CLASSES)).float()
    for i in range(n_wrong):
        logits[len(CLASSES) * i, 1] = 2.0
    return type(perfect).from_logits(perfect.images.tolist(), torch.from_numpy(perfect.labels), logits)


@pytest.fixture
def wrong(tmp_path: Path) -> dict[Path, Record]:
    """Of the ten images of the first class zero-shot takes 8 for the second, coop 2."""
    for method, n_wrong, shots in (("zero_shot", 8, 0), ("coop", 2, 16)):
        test = one_class_wrong(n_wrong)
        write(tmp_path / method, few_shot(method, shots=shots, scores={"test": score(test)}), test=test)
    return find_runs([tmp_path])


def test_confusions_and_gains(wrong: dict[Path, Record]) -> None:
    pairs = images.confusion(wrong, Request(), []).set_index("learner")
    assert (pairs["true"].unique().tolist(), pairs["predicted"].unique().tolist()) == ([CLASSES[0]], [CLASSES[1]])
    assert pairs["share"].to_dict() == {"zero_shot": pytest.approx(80), "coop": pytest.approx(20)}
    gains = images.class_gains(wrong, Request(), [])
    assert gains.attrs["against"] == "CLIP"
    assert gains.set_index("class_name")["gain"].to_dict() == {
        name: pytest.approx(60.0 if i == 0 else 0.0) for i, name in enumerate(CLASSES)
    }
    turned = images.class_gains(wrong, Request(against="coop"), [])
    assert turned["gain"].min() == pytest.approx(-60.0)
    (row,) = images.forest(wrong, Request(), []).itertuples()
    assert (row.learner, row.difference) == ("coop", pytest.approx(10.0))
    assert row.low < 10 < row.high
    coop = {folder: run for folder, run in wrong.items() if run.method == "coop"}
    for compare in (images.class_gains, images.forest):
        with pytest.raises(UserError, match="did you mean 'coop'"):
            compare(wrong, Request(against="cop"), [])
        with pytest.raises(UserError, match="run method=zero_shot"):
            compare(coop, Request(), [])


def test_classes_are_named_as_their_data_set_has_them(wrong: dict[Path, Record]) -> None:
    names = {image: f"name of {image.split('/')[1]}" for image in predicted(1.0, np.random.default_rng(0)).images}
    pairs = images.confusion(wrong, Request(class_names=lambda dataset: names), [])
    assert set(pairs["true"]) == {"name of plain red star"}


@pytest.mark.parametrize("n_learners", [1, 2])
def test_classes_that_look_alike_when_shortened_are_each_a_column(n_learners: int) -> None:
    names = [f"class number {i} of some whose names {'go on and ' * 20}end" for i in range(4)]
    rows = [{"learner": learner, "name": learner, "method": learner, "class_name": name, "label": label, "gain": gain}
            for learner in ("coop", "lora")[:n_learners]
            for label, (name, gain) in enumerate(zip(names, (5.0, -5.0, 20.0, 0.0), strict=True))]  # fmt: skip
    table = pd.DataFrame(rows)
    table.attrs |= {"title": "", "against": "CLIP"}
    panel = KINDS["class-gains"].draw(table).axes[0]
    shown = [label.get_text() for label in panel.get_xticklabels()]
    assert len(set(shown)) == len(shown) == 4
    assert "all 4 classes" in panel.get_xlabel()


def test_panels_are_in_rows_of_one_length() -> None:
    assert [balanced(n, 4) for n in (1, 3, 4, 5, 6, 8, 9, 12)] == [1, 3, 4, 3, 3, 4, 3, 4]


def test_data_sets_are_named_as_papers_print_them() -> None:
    folder = "folder-my-birds-3a4e26"
    assert [dataset_name(name) for name in ("dtd", "average_2_targets", folder)] == [
        "DTD", "average of 2 data sets", "my-birds"]  # fmt: skip
    assert dataset_name(folder, [folder, "dtd"]) == "my-birds"
    assert dataset_name(folder, [folder, "folder-my-birds-417b97"]) == folder


def test_training_counts_epochs_from_one() -> None:
    curve = [{"epoch": e, "loss": 2.0 / (e + 1), "accuracy": 0.5} for e in range(3)]
    table = data.training({Path("1"): few_shot("coop", curve=curve)}, Request(), [])
    assert table[["epoch", "loss", "accuracy"]].values.tolist()[1] == [2, 1.0, 50.0]


# The command


def ask(*arguments: object) -> Answer:
    return running.ask(cli.main, [str(argument) for argument in arguments])


def test_every_kind_is_told_and_drawn() -> None:
    assert list(TOLD) == list(KINDS)


def test_the_file_has_vector_fonts_and_is_the_same_again(learners: Any, tmp_path: Path) -> None:
    figure = drawn("critical-difference", learners(2), 3.35)
    for name in ("a.pdf", "a.svg", "b.svg"):
        save_figure(figure, tmp_path / "folder" / name)
    content = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    assert b"/CIDFontType2" in content["a.pdf"]
    assert b"/Type3" not in content["a.pdf"]
    assert content["a.svg"] == content["b.svg"]


def test_plot_command(tmp_path: Path) -> None:
    runs = [few_shot("coop", seed=1, accuracy=0.5), few_shot("coop", seed=2, accuracy=0.6),
            few_shot("zero_shot", seed=0, shots=0, accuracy=0.4)]  # fmt: skip
    save(tmp_path, runs)
    target = tmp_path / "figures" / "x.png"
    assert ask("plot", "few-shot", tmp_path, "--width", "column", "--no-title", "--output", target) == (0, "", "")
    assert target.read_bytes().startswith(b"\x89PNG")
    for arguments, words in (
        (("few-shoot",), "did you mean 'few-shot'"),
        (("base-novel",), "run protocol=base_to_novel"),
        (("cost",), "no run has its costs"),
        (("critical-difference",), "two data sets or more"),
        (("training",), "no run has a loss"),
        (("few-shot", "--split", "novel"), "unknown split 'novel'"),
        (("few-shot", "--metric", "ecce"), "did you mean 'ece'"),
        *(((kind,), "seed0: no predictions.npz") for kind in NEEDS_PREDICTIONS),
        (("confusion", "--against", "coop"), "no effect on confusion"),
        (("training", "--split", "test"), "no effect on training"),
        (("forest", "--metric", "ece"), "no effect on forest"),
        (("critical-difference", "--split", "novel"), "unknown split 'novel'"),
    ):
        code, out, err = ask("plot", arguments[0], tmp_path, *arguments[1:], "--output", tmp_path / "y.png")
        assert (code, out) == (2, ""), arguments
        assert words in err, arguments
        assert err.count("error:") == err.count("\n") == 1
    (tmp_path / "file").touch()
    for name, words in (("x.gif", ".pdf, .png, .svg"), ("file/x.PNG", "is no folder")):
        code, _, err = ask("plot", "few-shot", tmp_path, "--output", tmp_path / name)
        assert (code, words in err) == (2, True), err


def test_plot_draws_the_cell_with_the_most_learners(tmp_path: Path) -> None:
    curve = [{"epoch": 0, "loss": 1.0, "accuracy": 0.5}, {"epoch": 1, "loss": 0.5, "accuracy": 0.7}]
    save(tmp_path, [few_shot(m, d, curve=curve) for m, d in (("coop", "dtd"), ("lora", "dtd"), ("coop", "eurosat"))])
    code, _, err = ask("plot", "training", tmp_path, "--output", tmp_path / "x.svg")
    assert code == 0
    assert "Drawn: dataset=dtd" in err
    assert "--where draws another: dataset=eurosat" in err


def load_script() -> Any:
    path = Path(__file__).parents[1] / "scripts" / "draw_figures.py"
    spec = importlib.util.spec_from_file_location("draw_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw_figures = load_script()


@pytest.mark.slow
def test_a_single_run_is_drawn_or_refused(tmp_path: Path) -> None:
    test = predicted(1.0, np.random.default_rng(0))
    curve = [{"epoch": 0, "loss": 1.0, "accuracy": 0.5}]
    known = {"curve": curve, "cost": {"trained_parameters": 100}, "scores": {"test": score(test)}}
    write(tmp_path / "a", few_shot("coop", **known), test=test)
    write(tmp_path / "b", record("coop"))
    refused = []
    for kind in KINDS:
        try:
            assert faults(drawn(kind, find_runs([tmp_path]), WIDTHS["column"])) == []
        except UserError:
            refused.append(kind)
    assert refused == ["critical-difference", "class-gains", "forest"]


PAGE = Path(__file__).parents[1] / "docs" / "figures.md"


def test_the_page_shows_every_kind_and_its_pictures_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    drawn_into = {
        Path(arguments[arguments.index("--output") + 1]).name for arguments in draw_figures.commands(Path("x"))
    }
    assert {arguments[1] for arguments in draw_figures.commands(Path("x"))} == {*KINDS}
    of_other_pages = {"interpret.svg", "explain.png"}
    assert {path.name for path in PAGE.with_suffix("").iterdir()} == drawn_into | of_other_pages
    assert all(f"(figures/{name})" in text for name in drawn_into)


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    assert draw_figures.draw(tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in PAGE.with_suffix("").iterdir()}


def test_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, [few_shot("coop")])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = ask("plot", "few-shot", tmp_path, "--output", tmp_path / "x.png")
    assert (code, "pip install 'vlprompt[plots]'" in err) == (2, True)


def test_all_right_has_no_confusions(tmp_path: Path) -> None:
    test = one_class_wrong(0)
    write(tmp_path / "a", few_shot("coop", scores={"test": score(test)}), test=test)
    with pytest.raises(UserError, match="every image is right"):
        images.confusion(find_runs([tmp_path]), Request(), [])
