"""The results page does what it should in a real browser: sort, filter, hover, narrow, dark, keyboard, no network."""

import shutil
from pathlib import Path

import pytest
from opening import browser, opened

from jcredit.study.rebuilding import write_page
from jcredit.study.scripts import load_experiments

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.browser
TABLE = "#cifar10 table >> nth=0"


WHOLE = ROOT / "results/index.html"  # report --check: it is what the rows give
SHOWN = ("cifar10", "cifar_depth_scan", "toy_lq")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page of some of the committed rows, which opens faster than the whole."""
    results = tmp_path_factory.mktemp("page")
    for name in SHOWN:
        shutil.copytree(ROOT / "results" / name / "quick", results / name / "quick")
    shutil.copy(ROOT / "results/claims.json", results)
    write_page(results / "index.html", results, load_experiments(ROOT / "experiments"))
    return results / "index.html"


@pytest.fixture(scope="module")
def running():
    with browser() as running:
        yield running


@pytest.fixture
def window(running, path):
    """Opens the page; in the end nothing must have been asked for over a network, and nothing complained of."""
    windows = []

    def open_(path=path, **kwargs):
        windows.append(opened(running, path, **kwargs))
        return windows[-1].page

    yield open_
    for each in windows:
        each.page.wait_for_timeout(200)
        assert each.complaints == []
        assert [url for url in each.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        each.page.context.close()


def column(page, title):
    """The shown texts of a column of the first table of cifar10."""
    return page.evaluate(
        """title => {
          const table = document.querySelector("#cifar10 table");
          const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.innerText.trim() === title);
          return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[at].innerText.trim());
        }""",
        title,
    )


def numbers(texts):
    return [float(text.split(" ")[0]) for text in texts]


def draw(page, kind, section="cifar10"):
    figure = f"#{section} figure[data-kind={kind}]"
    page.locator(figure).scroll_into_view_if_needed()
    page.wait_for_selector(f"{figure}[data-drawn]")
    return page.locator(figure)


def test_a_click_sorts_up_down_and_back(window):
    page = window()
    before = column(page, "label")
    button = page.locator(TABLE).get_by_role("button", name="accuracy", exact=True)
    button.click()
    up = numbers(column(page, "accuracy"))
    assert up == sorted(up) and len(up) == len(before) > 5
    head = page.locator(TABLE).locator("th[scope=col]", has_text="accuracy")
    assert head.first.get_attribute("aria-sort") == "ascending"
    button.click()
    assert numbers(column(page, "accuracy")) == sorted(up, reverse=True)
    button.click()
    assert column(page, "label") == before and head.first.get_attribute("aria-sort") == "none"


def test_a_small_number_written_with_a_power_sorts_by_its_size(window):
    page = window()
    page.locator(TABLE).get_by_role("button", name="nudge", exact=True).click()
    found = numbers(column(page, "nudge"))
    assert found == sorted(found) and min(found) < 0


def test_the_keyboard_sorts_and_skips(window):
    page = window()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    page.locator(TABLE).get_by_role("button", name="Gamma", exact=True).focus()
    page.keyboard.press("Enter")
    found = numbers(column(page, "Gamma"))
    assert found == sorted(found)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_filters_leave_what_they_name(window):
    page = window()
    page.get_by_label("method", exact=True).select_option("dfa")
    page.get_by_label("L, blocks", exact=True).select_option("4")
    shown = page.locator("tr.line:visible, tr.run:visible")
    assert shown.count() > 10
    found = shown.evaluate_all("rows => rows.map(row => [row.dataset.method, row.dataset.depth])")
    assert {tuple(each) for each in found} == {("dfa", "4")}
    runs = page.locator("tr.run")
    expected = f"{page.locator('tr.run:visible').count()} of {runs.count()} runs"
    assert page.locator("#count").inner_text().split(", ")[1] == expected
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function("document.querySelectorAll('tr.line[hidden], tr.run[hidden]').length === 0")


@pytest.mark.parametrize(
    ("name", "value", "data"),
    [("experiment", "toy_lq", "experiment"), ("tier", "oracle: back-propagation", "tier"), ("seed", "456", "seed")],
)
def test_each_filter_by_itself(window, name, value, data):
    page = window()
    every = page.locator("tr.run").evaluate_all(f"rows => rows.map(row => row.dataset.{data})")
    page.get_by_label(name, exact=True).select_option(value)
    left = page.locator("tr.run:visible").evaluate_all(f"rows => rows.map(row => row.dataset.{data})")
    assert left == [value] * every.count(value) and 0 < len(left) < len(every)


def test_seed_counts_text_and_verdicts_filter_too(window):
    page = window()
    page.get_by_label("seeds, at least").fill("3")
    found = page.locator("tr.line:visible").evaluate_all("rows => rows.map(row => row.dataset.seed)")
    assert found and all(len(each.split()) >= 3 for each in found)
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("text", exact=True).fill("shuffled tangent_gate")
    labels = page.locator("tr.line:visible").evaluate_all("rows => rows.map(row => row.dataset.label)")
    assert labels and set(labels) == {"tangent_gate, shuffled"}
    page.get_by_label("text", exact=True).fill("")
    page.get_by_label("verdict", exact=True).select_option("partly")
    verdicts = page.locator("tr.claim:visible").evaluate_all("rows => rows.map(row => row.dataset.verdict)")
    assert verdicts and set(verdicts) == {"partly"}


def test_a_chart_loses_the_lines_that_are_filtered_out(window):
    page = window()
    figure = draw(page, "curves")
    legend = figure.locator(".role-legend-label text")
    assert legend.count() > 5
    page.get_by_label("method", exact=True).select_option("fa")
    page.wait_for_function(
        "document.querySelectorAll('#cifar10 figure[data-kind=curves] .role-legend-label text').length === 1"
    )
    assert legend.text_content() == "fa"


@pytest.mark.parametrize("kind", ["metrics", "curves", "layers"])
def test_hovering_shows_the_numbers(window, kind):
    page = window()
    figure = draw(page, kind)
    marks = figure.locator("svg .mark-symbol.role-mark path")
    assert marks.count() > 5
    marks.last.scroll_into_view_if_needed()
    marks.last.hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "line" in tip.inner_text() and any(word in tip.inner_text() for word in ("mean", "study"))


def test_another_block_and_number_are_drawn(window):
    page = window()
    figure = draw(page, "metrics")
    before = figure.locator(".role-axis-label text").all_inner_texts()
    page.locator("#cifar10 select.block").select_option(index=1)
    page.wait_for_function(
        "n => document.querySelectorAll('#cifar10 figure[data-kind=metrics] .role-axis-label text').length > n",
        arg=len(before),
    )
    figure.locator("select.metric").select_option("h_rms_last")
    page.wait_for_function(
        "document.querySelector('#cifar10 figure[data-kind=metrics]').textContent.includes('RMS of h_L, log scale')"
    )


def test_the_studys_figures_are_marks(window):
    figure = draw(window(), "metrics")
    described = figure.locator("svg.marks [aria-label*='the study']").evaluate_all("m => m.map(x => x.ariaLabel)")
    assert any("dfa" in text and "0.312" in text for text in described)


def test_a_charts_numbers_are_there_as_text(window):
    page = window()
    figure = draw(page, "layers")
    figure.get_by_text("The numbers of this chart").click()
    table = figure.locator(".numbers table")
    table.wait_for()  # made once the browser says that it was opened
    assert table.locator("tbody tr").count() >= 9 * 4
    assert table.locator("th[scope=col]").all_inner_texts() == ["label", "depth (layer / L)", "mean", "low", "high"]


def test_a_phone_need_not_scroll_sideways(window):
    page = window(WHOLE, width=360, height=740)
    for kind in ("metrics", "curves", "layers"):
        draw(page, kind)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    widest = page.locator(".chart svg").evaluate_all(
        "all => Math.max(...all.map(svg => svg.getBoundingClientRect().right))"
    )
    assert widest <= 360


def luminance(color):
    return sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(", "))) / 765


def test_dark_follows_the_system_and_the_button(window):
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.body).color"
    page = window(dark=True)
    assert luminance(page.evaluate(ground)) < 0.2 < 0.8 < luminance(page.evaluate(ink))
    button = page.get_by_role("button", name="Dark")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert luminance(page.evaluate(ground)) > 0.9 and button.get_attribute("aria-pressed") == "false"
    assert luminance(window().evaluate(ground)) > 0.9


def test_without_scripts_the_tables_are_there(running):
    context = running.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(WHOLE.as_uri())
    assert page.locator("tr.line:visible").count() > 100 and page.locator("tr.claim:visible").count() == 31
    context.close()
