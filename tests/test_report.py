"""The page of `vlprompt report`, as its HTML says it; tests in a browser are in test_report_browser.py."""

import itertools
import json
import re
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import record as base_to_novel
from report_records import Page, predictions, run, save
from running import ROOT, ask, succeed

from vlprompt.cli import main
from vlprompt.errors import Note, UserError
from vlprompt.reports.figures.cells import Request
from vlprompt.reports.report.again import command, hydra
from vlprompt.reports.report.charts import Styles, text
from vlprompt.reports.report.content import Sources, content
from vlprompt.reports.report.figures import FIGURES, draw
from vlprompt.reports.report.images import KnownImages, Thumbnails
from vlprompt.reports.report.libraries import load
from vlprompt.reports.report.notes import in_print
from vlprompt.reports.report.page import breakable, finite, render
from vlprompt.reports.report.runs import class_names, read_predictions
from vlprompt.reports.summary import summarise
from vlprompt.results.predictions import PREDICTIONS
from vlprompt.results.record import Record

EVIL = "</script><img src=x onerror=alert(1)>\"'`\u2028\u202e%{x}&amp;${y}"
NOTHING = Sources(lambda record, recipe: None, lambda record, test: None, lambda dataset: {})


def page_of(runs: Mapping[Path, Record], sources: Sources = NOTHING, **more: Any) -> str:
    return render(content(runs, "accuracy", [], sources), more.get("title", "Results"), "vlprompt report")


def sources_with(images: KnownImages | None) -> Sources:
    return Sources(lambda record, recipe: None, lambda *_: images, lambda dataset: {})


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """A page of runs all of whose texts are evil, in two learners, of which one failed once."""
    names = {"dataset": EVIL, "backbone": EVIL, "weights": EVIL, "device": EVIL, "git": EVIL, "recipe": [EVIL]}
    names |= {"versions": {EVIL: EVIL}, "config": {"fit": {"optimizer": EVIL, "lr": EVIL}}, "changes": {EVIL: EVIL}}
    names |= {"split_hash": EVIL, "target_hashes": {EVIL: EVIL}}
    runs = [run(method, seed, **names) for method in (EVIL, "zero_shot", "coop") for seed in (1, 2)]
    runs.append(run("coop", 3, **names | {"variant": EVIL, "status": "failed", "scores": {}, "reason": EVIL}))
    saved = save(tmp_path_factory.mktemp("evil"), runs, ["cat\u202e<b>", "d'og\"&amp;", "%{owl}"])
    html = page_of(saved, sources_with(None), title=EVIL)
    return html, Page(html)


def test_texts_of_records_are_texts_alone(evil: tuple[str, Page]) -> None:
    html, page = evil
    assert not page.all("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert any("</script><img src=x onerror=alert(1)>" in text for text in page.text("a", "td", "th"))
    assert not [mark for mark in "\u2028\u2029\u202e" if mark in html]
    scripts = [attributes.get("type") for attributes in page.all("script")]
    assert [kind for kind in scripts if kind != "application/json"] == [None, "module", "module"]


def test_figures_say_the_same_names_harmlessly(evil: tuple[str, Page]) -> None:
    blocks = [json.loads(text) for text in evil[1].text("script") if text.startswith("{")]
    assert blocks
    shown = json.dumps([[trace for view in block["views"] for trace in view["data"]] for block in blocks])
    for trace in (t for block in blocks for view in block["views"] for t in view["data"]):
        for value in [trace.get("name", ""), *map(str, trace.get("hovertext") or [])]:
            assert not re.search(r"<(?!/?b>|br>)|%\{", value), value
    assert "onerror" in shown


def test_learners_have_colours_whatever_their_company(tmp_path: Path) -> None:
    other = {"protocol": "stranger", "precision": "bf16"}  # by which the two are told apart where both are
    runs = save(tmp_path, [run("coop"), run("lora"), run("coop", **other), run("zero_shot", 0, 0)])
    styles = Styles(runs)
    alone = [name for name in ("CoOp", "LoRA") if styles[name].emphasised]
    assert alone == ["CoOp", "LoRA"]
    assert styles["CoOp"].colour != styles["LoRA"].colour
    assert not styles["CLIP"].emphasised
    assert not Styles({}).known


def test_plotly_gets_no_markup_and_no_templates() -> None:
    assert text("$x$") == "&#36;x&#36;"
    assert text("<b>&amp;%{x}\n\u202e") == "&lt;b&gt;&amp;amp;%&#123;x} \\u202e"


def test_nothing_is_fetched(evil: tuple[str, Page]) -> None:
    _, page = evil
    addresses = [
        value for _, a in page.elements for name in ("src", "href", "srcset", "action") if (value := a.get(name))
    ]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "url(http" not in "".join(page.text("style"))


def test_ids_are_single_and_links_lead_somewhere(evil: tuple[str, Page]) -> None:
    ids = [a["id"] for _, a in evil[1].elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {href for a in evil[1].all("a") if (href := a.get("href"))}
    assert links <= {f"#{name}" for name in ids}
    labelled = {name for _, a in evil[1].elements if (name := a.get("aria-labelledby"))}
    assert labelled <= set(ids)


def test_tables_have_captions_and_scopes(evil: tuple[str, Page]) -> None:
    page = evil[1]
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert all("scope" in attributes for attributes in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], str, Page]:
    """A page of a learner with three seeds and known images, and of one whose predictions are damaged."""
    from PIL import Image

    changed = {"changes": {"fit.lr": 0.01}, "variant": "abcd0123"}
    records = [run("coop", seed, right=0.5 + seed / 10, **changed) for seed in (1, 2)] + [run("lora", 1, 4, right=0.25)]
    runs = save(tmp_path_factory.mktemp("ordinary"), records, ["a", "b", "c"])
    ([*runs][2] / PREDICTIONS).write_bytes(b"no predictions")
    known = {image: f"the {image[0]}" for image in predictions(["a", "b", "c"], 1).images.tolist()}
    images = KnownImages(known, lambda name: Image.new("L", (30, 20)), "x")
    html = page_of(runs, sources_with(images))
    return records, html, Page(html)


def test_numbers_are_those_of_the_tables(ordinary: tuple[list[Record], str, Page]) -> None:
    texts = ordinary[2].text("td", "strong", "u")
    summary = summarise(ordinary[0]).set_index("method")
    assert f"{summary['test']['coop']:.2f} ± {summary['test_sd']['coop']:.2f}" in texts
    assert "25.00" in texts


def test_each_run_says_how_it_is_made_again(ordinary: tuple[list[Record], str, Page]) -> None:
    texts = ordinary[2].text("code")
    shared = "vlprompt run {}method=coop dataset=dtd protocol=few_shot backbone=vit_b16 shots=16 seed={} fit.lr=0.01"
    assert shared.format("-m ", "1,2") in texts
    assert shared.format("", "2") in texts


def test_classes_and_images_are_those_of_the_data_set(ordinary: tuple[list[Record], str, Page]) -> None:
    _, html, page = ordinary
    assert {"the a", "the b", "the c"} <= set(page.text("th"))
    shown = [a for a in page.all("span") if "picture" in (a.get("class") or "")]
    assert shown
    assert all(a.get("role") == "img" and a.get("aria-label") for a in shown)
    assert "data:image/jpeg;base64," in html
    assert "✗ wrong" in html


def test_damaged_predictions_leave_a_page(ordinary: tuple[list[Record], str, Page]) -> None:
    page = ordinary[2]
    assert [text for text in page.text("li") if "is damaged" in text]
    assert {"CoOp (fit.lr=0.01)", "LoRA"} <= set(page.text("a"))


def test_classes_of_unknown_data_sets_are_called_as_their_folders() -> None:
    assert class_names(predictions(["a", "b"], 1), None) == {0: "a", 1: "b"}
    flat = replace(predictions(["a", "b"], 1), images=np.array([f"{i}.jpg" for i in range(24)], dtype=np.str_))
    assert class_names(flat, None) == {0: "class 0", 1: "class 1"}
    both = KnownImages(dict.fromkeys(flat.images.tolist(), "crane"), lambda name: None, "x")  # type: ignore[arg-type]
    assert class_names(flat, both) == {0: "crane (0)", 1: "crane (1)"}


def test_settings_that_are_not_known_are_not_made_up() -> None:
    assert command([run("coop", variant="abcd0123")]) == ""
    assert command([run("coop", changes={"fit.lr": "(absent)"}, variant="abcd0123")]) == ""
    assert command([run("coop", imported={"test": {"log": "log.txt"}})]) == ""
    assert shlex.split(command([run("coop", shots=0, seed=0, variant="tuned", changes={})]))[-1] == "name=tuned"


@pytest.mark.parametrize(
    "value",
    [
        *(
            0.002,
            5,
            True,
            None,
            "coop",
            "1e-3",
            "null",
            "a photo of a {}.",
            "it's",
            'say "x"',
            "a,b",
            "${x}",
            "x=y",
            "",
        ),
        *("back\\", "back\\'s", "end \\\\", "Jürgen", [1, 2.5, "a b"], {"b": 5, "a": [None]}),
    ],
)
def test_settings_are_read_by_hydra_as_they_were(value: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    read = OverridesParser.create().parse_override(f"method.x={hydra(value)}").value()
    assert read == value or str(read) == str(value)


def test_an_image_is_in_the_page_once_and_not_too_many_are() -> None:
    from PIL import Image

    images = KnownImages({}, lambda name: Image.new("RGB", (8, 8)) if name != "gone" else Image.open("/no/such"), "x")
    thumbnails = Thumbnails(most=2)
    shown = [thumbnails.add(images, name) for name in ("a", "a", "gone", "b", "c", "a")]
    assert shown == ["p0", "p0", "", "p1", "", "p0"]
    assert len(thumbnails.sources) == 2


def test_predictions_beyond_a_limit_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    runs = save(tmp_path, [run(method, seed) for method in ("coop", "lora") for seed in (1, 2)])
    notes: list[str] = []
    read = read_predictions(runs, notes, most=3)
    assert [runs[folder].seed for folder in read] == [1, 1, 2]  # each learner's first
    assert "3 of 4 runs" in notes[0]


def test_runs_that_failed_alone_make_a_page(tmp_path: Path) -> None:
    failed = run("coop", status="failed", scores={}, reason="no GPU here", cost={}, curve=[])
    page = Page(page_of(save(tmp_path, [failed])))
    assert "No run has a result." in page.text("p")
    assert "failed: no GPU here" in page.text("p")


@pytest.mark.slow
def test_other_protocols_backbones_and_single_values(tmp_path: Path) -> None:
    runs = [base_to_novel("coop", name, seed) for name in ("dtd", "eurosat") for seed in (1, 2)]
    runs += [base_to_novel("zero_shot", name, 0, shots=0) for name in ("dtd", "eurosat")]
    odd = {"protocol": "stranger", "scores": {"left": {"accuracy": 0.5, "odd": float("inf")}}, "headline": {"x": 0.4}}
    runs += [run("mine", shots="all", **odd)]
    page = Page(page_of(save(tmp_path, runs)))
    titles = page.text("h3")
    assert {"Base against novel classes", "Mean ranks over data sets", "stranger"} <= set(titles)
    assert {"average of 2", "H"} <= set(page.text("td"))


def test_data_sets_with_other_shots_have_their_own_axis(tmp_path: Path) -> None:
    runs = [run("coop", 1, shots, dataset=name) for name, shots in (("dtd", 1), ("dtd", 16), ("eurosat", "all"))]
    chart = draw(FIGURES[0], save(tmp_path, runs), Request(), Styles({}))
    assert {view.label.partition(",")[0]: view.data[0]["x"] for view in chart.views} == {
        "DTD": ["1", "16"],
        "EuroSAT": ["all"],
    }
    assert all(view.data[0].get("visible", True) for view in chart.views)


def test_a_figure_opens_with_most_of_its_learners(tmp_path: Path) -> None:
    learners = ["coop", "lora", "maple", "vpt_deep", "tcp"]
    of_few = [base_to_novel(method, name, 1) for method in learners[:2] for name in ("dtd", "eurosat")]
    of_few += [base_to_novel(method, "dtd", 1) for method in learners[2:]]
    scored = enumerate(learners[1:])
    of_many = [run(m, dataset=name, right=0.5 + i / 10) for i, m in scored for name in ("dtd", "eurosat")]
    runs = save(tmp_path, [*of_few, *of_many])
    ranks = draw(next(f for f in FIGURES if f.name == "critical-difference"), runs, Request(), Styles(runs))
    assert [view.n_learners for view in ranks.views] == [4, 2]


def test_few_reliability_lines_are_on_at_first(tmp_path: Path) -> None:
    runs = save(tmp_path, [run(m, right=r / 10) for r, m in enumerate(("coop", "lora", "maple", "tcp", "zero_shot"))])
    figure = next(f for f in FIGURES if f.name == "reliability")
    for n, on in ((4, 4), (5, 3)):
        chart = draw(figure, dict([*runs.items()][-n:]), Request(), Styles(runs))
        shown = {t["meta"] for t in chart.views[0].data if "meta" in t and t.get("visible", True)}
        assert len(shown) == on
        assert "CLIP" in shown


def test_notes_have_names_in_print() -> None:
    notes = [Note("No average_2 of {}, few_shot: dtd missing.", name) for name in ("coop", "lora@rank=4", "<b>@x")]
    assert in_print([*notes, "average_2_targets is over a, b.", "Seen: coop"]) == [
        "3 times: No average of 2 of CoOp, LoRA (rank=4), <b>@x, few_shot: dtd missing.",
        "The average of 2 targets is over a, b.",
        "Seen: coop",
    ]


def test_texts_break_where_words_do_and_stay_harmless() -> None:
    assert breakable("base_to_novel, <b_c>") == "base_<wbr>to_<wbr>novel, &lt;b_<wbr>c&gt;"
    assert breakable("70.80 ± 1.25") == "70.80 ±\u00a01.25"


def test_numbers_that_json_lacks_are_none() -> None:
    value = {"a": [float("nan"), np.float64(1.5), (np.int64(3), float("inf"))]}
    assert json.dumps(finite(value), allow_nan=False) == '{"a": [null, 1.5, [3, null]]}'


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    save(tmp_path / "results", [run("mine", seed, dataset="made") for seed in (1, 2)])
    output = tmp_path / "deep" / "page.html"
    answer = succeed(main, ["report", str(tmp_path / "results"), "--output", str(output), "--title", "A & B"])
    assert "2 runs" in answer.out
    page = Page(output.read_text(encoding="utf-8"))
    assert page.text("h1") == ["A & B"]
    assert "mine" in page.text("a")


@pytest.mark.parametrize(("name", "words"), [("page.txt", ".html"), ("page.html", "no runs")])
def test_mistakes_are_told_in_a_sentence(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "none").mkdir()
    answer = ask(main, ["report", str(tmp_path / "none"), "--output", str(tmp_path / name)])
    assert answer.code == 2
    assert answer.err.startswith("error: ")
    assert words in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("package", ["plotly", "itables"])
def test_libraries_that_are_missing_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed: pip install 'vlprompt\[report\]'"):
        load()


@pytest.mark.slow
@pytest.mark.parametrize(
    "run_folder",
    [
        *("base_to_novel/digits/shapes_vit/coop/shots16/seed2", "few_shot/shapes/shapes_vit/coop@tuned/shots16/seed1"),
        *("few_shot/shapes/shapes_vit/hard_prompts@*/shots0/seed0", "cross_dataset/*/shapes_vit/lora/shots16/seed3"),
        *("few_shot/shapes/shapes_vit/intrinsic_dimension@*/shots16/seed1", "few_shot/*/*/zero_shot/shots0/seed0"),
    ],
)
def test_the_commands_of_the_demo_are_its_runs(run_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlprompt.commands.selection import with_changes
    from vlprompt.config.compose import read_run

    monkeypatch.chdir(ROOT)
    runs = {
        folder: record for folder in (ROOT / "results" / "demo").glob(run_folder) if (record := Record.read(folder))
    }
    assert runs
    for record in with_changes(runs).values():
        words = shlex.split(command([record]))
        assert words[:2] == ["vlprompt", "run"]
        spec = read_run(words[2:])
        assert spec.key == record.key
        assert spec.matches(record)


@pytest.mark.slow
def test_thousands_of_runs_make_a_page(tmp_path: Path) -> None:
    methods = ["zero_shot", *(f"method{i}" for i in range(20))]
    datasets = [f"set{i}" for i in range(11)]
    runs = [
        run(method, seed, shots, dataset=name, right=0.4 + shots / 40, config={"fit": {"lr": 0.1, "epochs": 5}})
        for method in methods
        for name in datasets
        for shots in ((0,) if method == "zero_shot" else (1, 2, 4, 8, 16))
        for seed in ((0,) if method == "zero_shot" else (1, 2, 3))
    ]
    assert len(runs) > 3300
    saved = save(tmp_path, runs, [f"class {i}" for i in range(20)])
    start = time.process_time()
    html = page_of(saved)
    seconds = time.process_time() - start
    assert len(html.encode()) < 40e6
    assert "of 3,311 runs are read" in html
    assert seconds < 240, seconds
