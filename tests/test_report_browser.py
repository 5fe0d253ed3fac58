"""The page of `vlprompt report` in a real Chromium: Debian's, or the one that the variable CHROMIUM names."""

import os
import re
import shutil
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from made_records import record as base_to_novel
from report_records import run, save
from running import succeed

from vlprompt.cli import main

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "</script><script>alert(1)</script><img src=//example.org/x onerror=alert(2)>%{x}\u2028"
SECONDS = 120
NARROW = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium, or set CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of two protocols, two data sets and four learners, one of them with an evil name."""
    folder = tmp_path_factory.mktemp("report")
    runs = [run("zero_shot", 0, 0, dataset=name, right=0.4) for name in ("first", "second")]
    runs += [
        run(method, seed, shots, dataset=name, right=0.5 + shots / 50 + i / 20)
        for i, method in enumerate(("coop", "lora", EVIL))
        for name in ("first", "second")
        for shots in (1, 16)
        for seed in (1, 2)
    ]
    runs += [base_to_novel(method, "first", seed) for method in ("coop", "lora") for seed in (1, 2)]
    save(folder / "results", runs, ["cat", "dog", EVIL.replace("/", "")])
    succeed(main, ["report", str(folder / "results"), "--output", str(folder / "page.html")])
    return f"file://{folder / 'page.html'}"


class Opened:
    """A page with what it said and asked for."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * SECONDS)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def draw(self, name: str) -> Any:
        """A figure, scrolled to and drawn."""
        figure = self.page.locator(f"#figure-{name}")
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()
        return figure


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Opened]:
    opened = Opened(browser, address)
    yield opened
    opened.context.close()


def test_it_opens_without_errors_and_asks_for_nothing(opened: Opened, address: str) -> None:
    for figure in opened.page.locator(".chart").all():
        opened.draw((figure.get_attribute("id") or "").removeprefix("figure-"))
    for details in opened.page.locator("details.group").all()[:3]:
        details.locator("summary").first.click()
    assert opened.said == []
    assert opened.asked == [address]
    assert opened.page.locator("img").count() == 0
    buttons = opened.page.locator(".modebar-btn").evaluate_all("all => all.map(one => one.dataset.title)")
    assert buttons
    assert not [words for words in buttons if re.search("share|cloud|send", words, re.IGNORECASE)]


def column(table: Any, name: str) -> list[str]:
    position = [text.strip() for text in table.locator("thead th .dt-column-title").all_inner_texts()].index(name)
    return [row.locator("th, td").nth(position).inner_text() for row in table.locator("tbody tr").all()]


def test_tables_are_sorted_by_mouse_and_keyboard(opened: Opened) -> None:
    table = opened.page.locator("#results table").last
    heading = table.locator("thead th", has_text="test")
    values = [float(text.partition(" ")[0]) for text in column(table, "test")]
    assert values != sorted(values)
    heading.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text.partition(" ")[0]) for text in column(table, "test")] == sorted(values)
    heading.locator("[tabindex='0']").focus()
    opened.page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(text.partition(" ")[0]) for text in column(table, "test")] == sorted(values)[::-1]


def test_filters_choose_rows_tables_and_runs(opened: Opened) -> None:
    page = opened.page
    tables = page.locator("#results table")
    n_groups = page.locator("details.group:visible").count()
    page.locator("[data-filter=protocol]").select_option("few_shot")
    assert tables.filter(visible=True).count() == 1
    page.locator("[data-filter=shots]").select_option("1")
    page.locator("[data-filter=dataset]").select_option("second")
    shown = tables.filter(visible=True)
    assert set(column(shown, "shots")) == {"1"}
    assert set(column(shown, "data set")) == {"second"}
    assert len(column(shown, "shots")) == 4
    assert page.locator("#shown").inner_text() == "4 rows of results"
    assert page.locator("details.group:visible").count() == 4
    page.locator("#filters button").click()
    page.wait_for_function("document.querySelectorAll('#results table').length === 2")
    assert tables.filter(visible=True).count() == 2
    assert page.locator("details.group:visible").count() == n_groups


def test_learners_are_switched_on_and_off(opened: Opened) -> None:
    figure = opened.draw("few-shot")
    drawn = "plot => plot.data.filter(trace => trace.meta && trace.visible !== false).map(trace => trace.meta)"
    plot = figure.locator(".plot")
    before = plot.evaluate(drawn)
    assert "LoRA" in before
    assert any("alert(1)" in name for name in before)
    figure.get_by_label("LoRA").uncheck()
    assert plot.evaluate(drawn) == [name for name in before if name != "LoRA"]
    figure.locator("select.view").select_option(index=1)
    assert "LoRA" not in plot.evaluate(drawn)
    figure.get_by_role("button", name="none").click()
    assert plot.evaluate(drawn) == []
    figure.get_by_role("button", name="all").click()
    assert set(plot.evaluate(drawn)) == set(before)


def test_a_method_leads_to_its_runs(opened: Opened) -> None:
    link = opened.page.locator("#results a", has_text="lora").first
    target = opened.page.locator(link.get_attribute("href"))
    assert not target.is_visible()
    link.click()
    target.wait_for(state="visible")


def test_colours_follow_the_system_and_the_button(browser: Any, address: str) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    opened = Opened(browser, address, color_scheme="dark")
    dark = opened.page.evaluate(colour)
    figure = opened.draw("few-shot")
    ink = "plot => plot.layout.font.color"
    of_dark = figure.locator(".plot").evaluate(ink)
    opened.page.locator("#theme").click()
    assert opened.page.evaluate(colour) == "rgb(255, 255, 255)" != dark
    assert figure.locator(".plot").evaluate(ink) != of_dark
    opened.page.reload()
    assert opened.page.evaluate(colour) == "rgb(255, 255, 255)"
    opened.context.close()


def test_without_scripts_all_is_plain_tables(browser: Any, address: str) -> None:
    opened = Opened(browser, address, java_script_enabled=False)
    page = opened.page
    assert page.locator("#results table").filter(visible=True).count() == 2
    assert page.locator("select:visible, button:visible, .plot:visible").count() == 0
    page.locator("#figure-few-shot summary").click()
    assert page.locator("#figure-few-shot table:visible").count() > 0
    page.locator("details.group summary").first.click()
    page.locator("details.run summary").first.click()
    assert page.locator("details.run table:visible").count() > 0
    opened.context.close()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_narrow_screen_scrolls_tables_alone(browser: Any, address: str, scripts: bool) -> None:
    opened = Opened(browser, address, viewport=NARROW, java_script_enabled=scripts)
    if scripts:
        for details in opened.page.locator("details.group > summary, details.run > summary").all()[:4]:
            details.click()
        opened.draw("few-shot")
        opened.draw("forest")
    box = opened.page.locator("body").bounding_box()
    assert box["width"] <= NARROW["width"]
    opened.page.mouse.wheel(500, 0)
    assert opened.page.locator("h1").bounding_box()["x"] >= 0
    if scripts:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    opened.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_complaint(browser: Any, address: str, scheme: str) -> None:
    try:
        axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    except ImportError:
        pytest.skip("axe-playwright-python is not installed")
    opened = Opened(browser, address, color_scheme=scheme, bypass_csp=True)
    for name in ("few-shot", "forest", "class-gains"):
        opened.draw(name)
    for summary in opened.page.locator("details.group > summary").all()[:2]:
        summary.click()
    opened.page.locator("details.run > summary").first.click()
    opened.page.evaluate(axe)
    violations = opened.page.evaluate("axe.run().then(result => result.violations)")
    assert not [(v["id"], [node["html"][:150] for node in v["nodes"][:3]]) for v in violations]
    opened.context.close()
