"""The results page holds every row, escapes what is not ours, loads nothing; same rows, same bytes."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_rows import make_row

from jcredit.__main__ import main
from jcredit.files import write_text
from jcredit.report.page import build, data
from jcredit.report.rows import append_rows, read_rows
from jcredit.report.tables import TableSpec, tables_of, usual_columns
from jcredit.study.found import sections
from jcredit.study.scripts import load_experiments

ROOT = Path(__file__).parents[1]
CHARTS = build.Bundle("window.vegaEmbed = null;", "charts 1.0")
EVIL = "<script>alert('x')</script> & \"quoted\""


def row_of(label="dfa", seed=0, gamma=0.5, block="", **more):
    given = {"metrics": {"gamma": gamma, "test_loss": None}, "curves": {"gamma": [0.1, 0.2, gamma]}, "epochs": 3}
    row = make_row(label, seed, block, experiment="mine", preset="sweep", layers={"gamma": [gamma, None]}, **given)
    return row | more


def section(rows, name="mine"):
    return data.Section(name, "sweep", "Is it?", tables_of(rows, TableSpec("", usual_columns(rows))), rows)


def claim(**more):
    figure = {"metric": "Gamma", "line": EVIL, "text": "0.8", "mean": 0.8, "low": None, "high": None, "n": 1}
    reading = {
        "reading": EVIL, "verdict": "partly", "why": "so", "ours": [figure], "control": [],
        "checks": [{"answer": "yes", "text": EVIL, "why": "so"}],
    }  # fmt: skip
    return {
        "id": "LQ1", "claim": EVIL, "verdict": "partly", "robustness": "", "why": "because", "study": ".9",
        "source": "mine/sweep", "n": 2, "readings": [reading], **more,
    }  # fmt: skip


class Seen(HTMLParser):
    """Tags and attributes of a page, its text outside scripts and styles, and elements that are not closed in order."""

    VOID = ("meta", "input", "br")

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open, self.wrong = [], [], [], []
        self.feed(page)
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"/{tag}")

    def handle_data(self, text):
        if not {"script", "style"} & set(self.open):
            self.text.append(text)

    def count(self, tag, **attributes):
        return sum(t == tag and attributes.items() <= a.items() for t, a in self.tags)


def test_every_row_and_line_is_there():
    rows = [row_of(label, seed, block=block) for block in ("b1", "b2") for label in ("x", "y") for seed in (0, 1, 2)]
    seen = Seen(build.page([section(rows)], [], CHARTS))
    assert seen.count("tr", **{"class": "run"}) == 12 and seen.count("tr", **{"class": "line"}) == 4
    line = {"data-experiment": "mine", "data-block": "b2", "data-method": "dfa", "data-depth": "4"}
    assert seen.count("tr", **line, **{"data-seed": "0 1 2", "data-label": "y"}) == 1
    assert seen.count("tr", **line, **{"data-seed": "2", "data-label": "y"}) == 1
    assert not seen.wrong


def test_text_of_rows_is_escaped_everywhere():
    rows = [row_of(EVIL, seed, block=EVIL, tier=EVIL, flags=[EVIL]) for seed in (0, 1)]
    page = build.page([section(rows, EVIL)], [claim()], CHARTS)
    seen = Seen(page)
    assert not seen.wrong and seen.count("script") == 3  # data, charts, ours
    assert "alert('x')</script>" not in page and "".join(seen.text).count(EVIL) >= 8
    assert any(attrs.get("data-label") == EVIL for _, attrs in seen.tags)


def test_a_page_loads_nothing():
    page = build.page([section([row_of()])], [claim()], CHARTS)
    seen = Seen(page)
    loading = [a for _, attrs in seen.tags for a in attrs if a in ("src", "srcset", "action", "data", "poster")]
    assert not loading and not seen.count("link") and "@import" not in page and "url(" not in page
    assert all(attrs["href"].startswith("#") for tag, attrs in seen.tags if tag == "a")
    [policy] = [attrs["content"] for tag, attrs in seen.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "http" not in policy


def test_links_inside_the_page_lead_somewhere_and_names_are_unique():
    seen = Seen(build.page([section([row_of()]), section([row_of()])], [claim()], CHARTS))
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    targets = {attrs["href"][1:] for tag, attrs in seen.tags if tag == "a"}
    targets |= {attrs["aria-labelledby"] for _, attrs in seen.tags if "aria-labelledby" in attrs}
    assert targets <= set(ids)


def test_tables_can_be_read_aloud():
    seen = Seen(build.page([section([row_of()])], [claim()], CHARTS))
    tables = seen.count("table")
    assert tables == seen.count("caption") == 3
    assert seen.count("th", scope="row") == 3 and seen.count("html", lang="en") == 1
    heads = [attrs for tag, attrs in seen.tags if tag == "th" and attrs["scope"] == "col"]
    assert heads and all(attrs["aria-sort"] == "none" for attrs in heads)


def test_the_charts_numbers_are_means_and_intervals():
    rows = [row_of(seed=seed, gamma=gamma, study={"gamma": 0.45}) for seed, gamma in ((0, 0.4), (1, 0.6))]
    charts = data.charts_of(section(rows))
    half = 12.706204736 * 0.1  # Student's t for one degree of freedom, times sd / sqrt(2)
    assert charts["metrics"] == {
        "gamma": [[0.5, pytest.approx(0.5 - half, rel=1e-3), pytest.approx(0.5 + half, rel=1e-3), 0.45, [0.4, 0.6]]]
    }
    [[which, mean, low, high]] = charts["curves"]["gamma"]
    assert charts["xs"][which] == [1, 2, 3] and (mean, low, high) == ([0.1, 0.2, 0.5], [0.1, 0.2, 0.4], [0.1, 0.2, 0.6])
    [[_, *alone]] = data.charts_of(section(rows[:1]))["curves"]["gamma"]
    assert alone == [[0.1, 0.2, 0.4]]  # one seed has no range
    assert charts["layers"] == {}  # one layer with a number is no profile
    [line] = charts["lines"]
    assert line["label"] == "dfa" and line["color"] == "#D55E00"


def test_long_curves_are_thinned_but_end_where_they_end():
    for length in (1, 40, 41, 100, 1000):
        kept = data._thinned([float(i) for i in range(length)])
        assert len(kept) <= data.LONGEST + 1 and kept[0] == 0 and kept[-1] == length - 1


def test_numbers_are_short_and_strict_json():
    assert [data.rounded(v) for v in (0.123456, 3.0, float("nan"), None, -1e-9)] == [0.1235, 3, None, None, -1e-9]
    text = re.search(r'id="data">(.*?)</script>', build.page([section([row_of(EVIL)])], [], CHARTS), re.S)
    assert json.loads(text[1])["mine-sweep"]["lines"][0]["label"] == EVIL


@pytest.fixture
def results(tmp_path):
    """One experiment's committed rows and the ledger's files."""
    for name in ("toy_lq/quick/rows.jsonl", "toy_lq/quick/config.json", "claims.json"):
        write_text(tmp_path / name, (ROOT / "results" / name).read_text(encoding="utf-8"))
    return tmp_path


def test_the_command_writes_the_same_bytes_and_check_compares_them(results, monkeypatch, capsys):
    monkeypatch.setattr(build, "bundle", lambda: CHARTS)
    command = ["report", "--results-dir", str(results), "--experiments", str(ROOT / "experiments"), "--quotes"]
    monkeypatch.chdir(results)  # no quotes here
    report = command[:-1]
    main(["claims", *command[1:-1]])
    main([*report, "--html"])
    first = (results / "index.html").read_bytes()
    main([*report, "--html", str(results / "other.html")])
    assert (results / "other.html").read_bytes() == first and b"LQ1" in first
    main([*report, "--check"])
    assert "quick" in capsys.readouterr().out
    edited = first.replace(b"toy_lq/quick, n = ", b"toy_lq/quick, n = 9", 1)
    assert edited != first
    (results / "index.html").write_bytes(edited)
    with pytest.raises(SystemExit) as stop:
        main([*report, "--check"])
    assert stop.value.code == 2 and "page: index.html line" in capsys.readouterr().err


def test_without_the_package_the_extra_is_named(results, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(SystemExit) as stop:
        main(["report", "--results-dir", str(results), "--experiments", str(ROOT / "experiments"), "--html"])
    assert stop.value.code == 2 and "jcredit[html]" in capsys.readouterr().err


def test_a_sweep_of_ones_own_is_shown_last(tmp_path):
    append_rows(tmp_path / "mine/sweep/rows.jsonl", [row_of()])
    committed = ROOT / "results/toy_lq/quick/rows.jsonl"
    append_rows(tmp_path / "toy_lq/quick/rows.jsonl", read_rows(committed))
    found = sections(tmp_path, load_experiments(ROOT / "experiments"))
    assert [(s.name, s.preset) for s in found] == [("toy_lq", "quick"), ("mine", "sweep")]
