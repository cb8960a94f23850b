"""Tables in a terminal fit it, say all that the markdown says, and have colour only where there is any."""

import io
import math
import re
from pathlib import Path

import pytest
from made_rows import make_row

from jcredit.report import terminal
from jcredit.report.rows import read_rows
from jcredit.report.tables import Column, TableSpec, tables_of
from jcredit.study.experiment import grid_of, in_grid, reported
from jcredit.study.scripts import load_experiment

ROOT = Path(__file__).parents[1]
COMMITTED = sorted(ROOT.glob("results/*/quick/rows.jsonl"))
LONG = "an estimator whose label is longer than thirty characters"


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self):
        return True


def row_of(label="a", seed=0, value=0.5, flags=()):
    metrics = {f"m{i}": value + i for i in range(12)}
    return make_row(label, seed, flags=list(flags), metrics=metrics, tier="0: random feedback, sequential")


def wide(rows, **kwargs):
    columns = tuple(Column(f"column {i}", f"metrics.m{i}") for i in range(12))
    return tables_of(rows, TableSpec("Wide", columns, notes=("word " * 60,), **kwargs))


ROWS = [row_of(label, seed, 0.1 + 0.2 * seed) for label in ("a", LONG) for seed in (0, 1)]


def test_a_wide_table_is_split_between_columns_and_labels_are_repeated():
    text = terminal.plain_text(wide(ROWS, study={"a": {"column 3": ".45"}}))
    assert max(map(len, text.splitlines())) <= 100
    headers = [line for line in text.splitlines() if line.startswith("label")]
    assert len(headers) > 1 and [f"column {i}" in " ".join(headers) for i in range(12)] == [True] * 12
    assert len([line for line in text.splitlines() if line.startswith("a ")]) == len(headers)
    [with_study] = [line for line in headers if "study" in line]
    assert re.search(r"column 3 +study", with_study)  # the study's figure stays beside its number
    assert all(word in text for word in LONG.split())


def test_a_number_is_written_as_the_study_writes_it():
    # Mean .2 and half width 12.706 * .1 by hand: one degree of freedom, sd / sqrt(2) = .1.
    assert ".20 ±1.27" in terminal.plain_text(wide(ROWS))
    assert terminal.shorter("-0.080 ± 0.004, p=.50") == "-.080 ±.004 p=.50"
    assert terminal.shorter("-4.5e-03 ± 1.2e+10 (n=1)") == "-4.5e-3 ±1.2e+10 (n=1)"
    assert terminal.shorter("10.05 ± 20.0") == "10.05 ±20.0"


def test_flags_and_tiers_are_spelt_out_below():
    text = terminal.plain_text(wide([row_of(flags=["worse_than_nothing"]), row_of("b")]))
    assert "! worse_than_nothing 1/1: a\n" in text
    assert "0 seq." in text and "Tiers: 0: random feedback, sequential." in text


@pytest.mark.parametrize(("variable", "coloured"), [(None, True), ("NO_COLOR", False)])
def test_colour_is_for_terminals_that_want_it(monkeypatch, variable, coloured):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if variable:
        monkeypatch.setenv(variable, "1")
    shown = terminal.shown(wide(ROWS), Terminal())
    assert bool(re.search(r"\x1b\[[\d;]*3\dm", shown + terminal.shown(significant(), Terminal()))) == coloured
    assert "\x1b" not in terminal.shown(wide(ROWS), io.StringIO())


def significant():
    rows = [row_of(label, seed, 0.5 + 0.1 * (label == "b")) for label in "ab" for seed in range(6)]
    return tables_of(rows, TableSpec("", (Column("gain", "metrics.m0", "+.3f", paired_with="a"),)))


def test_a_significant_difference_is_bold():
    # The second and third are both p=.050 in three digits.
    styles = [str(terminal._styled("+.1", p).style) for p in (0.03125, 0.0498, 0.0502, 0.5, math.nan)]
    assert styles == ["bold green", "bold green", "", "", ""]
    [reference], [difference] = ([line.cells[-1]] for line in significant().tables[0].lines)
    assert difference.p == 2 / 2**6 and math.isnan(reference.p)
    assert " p=.031" in terminal.plain_text(significant())


def test_a_narrow_terminal_is_narrower(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = re.sub(r"\x1b\[[\d;]*m", "", terminal.shown(wide(ROWS), Terminal()))
    assert 50 < max(map(len, shown.splitlines())) <= 60


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.parent.name)
def test_every_committed_table_fits(path):
    experiment = load_experiment(ROOT / "experiments" / f"{path.parent.parent.name}.py")
    rows = in_grid(read_rows(path), grid_of(experiment, "quick"))
    tables = reported(experiment, rows)
    text = terminal.plain_text(tables)
    assert max(map(len, text.splitlines())) <= 100
    numbers = {
        terminal.shorter(c.text) for t in tables.tables for line in t.lines for c in line.cells[3:] if "±" in c.text
    }
    assert all(number in text for number in numbers)  # nothing is cut
