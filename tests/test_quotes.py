"""``python -m jcredit report --check``: it passes on a fresh report, and names what was edited since."""

import json
import types
from pathlib import Path

import pytest

from jcredit import __main__ as command
from jcredit.report.rows import read_rows
from jcredit.settings import ConfigError
from jcredit.study import quotes, rebuilding
from jcredit.study.experiment import main
from jcredit.study.scripts import load_experiment, load_experiments

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")

ROOT = Path(__file__).parent.parent
SCRIPT = """
import test_command as t
EXPERIMENT = t.tiny_experiment(t.Variant("dfa", t.TINY.replace(credit=t.jc.dfa()), "second"))
"""
QUOTES = """
[[quote]]
text = "Frozen blocks reach {}%, DFA {}% ({})"
experiment = "tiny"
metric = "test_accuracy"
numbers = [
  { label = "frozen", scale = 100, format = ".1f" }, { label = "dfa", block = "second", scale = 100, format = ".1f" },
  { label = "dfa", block = "second", minus = "frozen", format = "+.3f" },
]

[[quote]]
text = "its Gamma is {} at seed 1"
experiment = "tiny"
label = "dfa"
block = "second"
metric = "layers.gamma.0"
seeds = [1]
"""


def test_quotes_that_are_no_tables_are_named(tmp_path):
    (tmp_path / "quotes.toml").write_text('quote = ["The chain has {}"]')
    with pytest.raises(ConfigError, match=r"quote 1: 'The chain has \{\}' must be a table"):
        quotes.read_quotes(tmp_path / "quotes.toml")


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    """A checkout in small: a script, its fresh report, and a page that quotes it."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "experiments/tiny.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    main(load_experiment(Path("experiments/tiny.py")), ["--no-progress"])
    command.main(["report"])
    capsys.readouterr()
    rows = read_rows("results/tiny/quick/rows.jsonl")
    frozen, dfa = ([r["metrics"]["test_accuracy"] for r in rows if r["label"] == n] for n in ("frozen", "dfa"))
    gamma = next(r for r in rows if r["label"] == "dfa" and r["seed"] == 1)["layers"]["gamma"][0]
    above = f"{(sum(dfa) - sum(frozen)) / 2:+.3f}".replace("0.", ".")
    text = f"Frozen blocks reach {50 * sum(frozen):.1f}%, DFA\n{50 * sum(dfa):.1f}% ({above}); its Gamma is {gamma:.2f}"
    (tmp_path / "README.md").write_text(f"# Tiny\n\n{text}\nat seed 1.\n")
    (tmp_path / "docs/quotes.toml").write_text(QUOTES)
    return tmp_path


def checked(capsys, *argv):
    """What ``report --check`` says on stdout if all is well, and the lines of what is not."""
    try:
        command.main(["report", "--check", *argv])
    except SystemExit as exit_:
        assert exit_.code == 2
        return capsys.readouterr().err.strip().splitlines()
    text = capsys.readouterr()
    assert text.err == ""
    return text.out


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def files(place):
    return {p: p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file() and "__pycache__" not in p.parts}


def test_a_fresh_report_passes_and_nothing_is_written(place, capsys):
    before = files(place)
    assert checked(capsys) == "checked: 1 tables, figures, 4 quoted numbers\n"
    assert files(place) == before


def test_an_edited_table_is_named(place, capsys):
    edit(place / "results/tiny/quick/table.md", "| frozen |", "| frosen |")
    [line] = checked(capsys)
    assert line.startswith("tiny/quick: table.md line 5") and "frosen" in line and "frozen" in line


def test_an_edited_row_is_named_in_the_table_the_figure_and_the_page(place, capsys):
    path = place / "results/tiny/quick/rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["metrics"]["test_accuracy"] += 0.5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert checked(capsys)[0].startswith("tiny/quick: error: results/tiny/quick/rows.jsonl line 1")  # by its digest
    del rows[0]["sha256"]  # as rows were once, or by a careful hand
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = checked(capsys)
    assert [line.partition(" line")[0] for line in lines[:2]] == [
        "tiny/quick: table.md", "tiny/quick: figure.png is not what its rows give"
    ]  # fmt: skip
    assert sum("README.md, 'Frozen blocks" in line and "in the rows" in line for line in lines[2:]) == 2  # and minus


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("reach ", "reach 9", ["on the page", "in the rows (tiny/quick, frozen, metrics.test_accuracy)"]),
        ("Frozen blocks reach", "Frozen blocks get", ["'Frozen blocks reach {}%", "no times"]),
        ("at seed 1", "at seed 1, its Gamma is 0.1 at seed 1", ["2 times"]),
    ],
)
def test_an_edited_page_is_named(place, capsys, old, new, named):
    edit(place / "README.md", old, new)
    [line] = checked(capsys)
    assert line.startswith("quoted: README.md, ") and all(word in line for word in named), line


def test_missing_rows_are_said(place, capsys):
    path = place / "results/tiny/quick/rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:-1]))  # without dfa, seed 1
    lines = checked(capsys)
    assert sum("cannot be checked" in line and "no rows yet for seed 1" in line for line in lines) == 3
    path.unlink()
    assert sum("cannot be checked" in line for line in checked(capsys)) == 4


def test_figures_of_another_matplotlib_are_left_out(place, capsys):
    (place / "results/matplotlib.txt").write_text("1.0\n")
    (place / "results/tiny/quick/figure.png").write_bytes(b"")
    assert "no figures (drawn by Matplotlib 1.0, here is" in checked(capsys)
    (place / "results/tiny/quick/table.md").unlink()
    assert "table.md is missing" in checked(capsys)[0]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('experiment = "tiny"', 'experiment = "tine"', ["experiment 'tine'", "tiny"]),
        ('label = "frozen"', 'label = "frosen"', ["label 'frosen'", "frozen"]),
        ('block = "second"', 'block = "secnd"', ["block 'secnd'", "second"]),
        ('minus = "frozen"', 'minus = "frosen"', ["label 'frosen'", "frozen"]),
        ('minus = "frozen"', 'minus = "second | frozen"', ["label 'frozen'", "dfa"]),
        ("layers.gamma.0", "layers.gama.0", ["1 of 1 rows have no layers.gama.0"]),
        ('text = "its', 'page = "nowhere.md"\ntext = "its', ["there is no page", "nowhere.md"]),
    ],
)
def test_quotes_of_what_there_is_not_are_said(place, capsys, old, new, named):
    edit(place / "docs/quotes.toml", old, new)
    lines = checked(capsys)
    assert all(word in lines[0] for word in named), lines


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('format = ".1f"', 'format = ".1q"', ["quote 1", ".1q"]),
        ('metric = "layers', 'metrics = "layers', ["quote 2", "metrics", "metric"]),
        ("seeds = [1]", "seeds = 1", ["quote 2", "seeds=1"]),
        ("its Gamma is {}", "its Gamma", ["quote 2", "0 places {} for 1 numbers"]),
        ('label = "dfa"\n', "", ["quote 2", "label is missing"]),
        ("[[quote]]", "[[quote]", ["not a list of quotes"]),
    ],
)
def test_a_wrong_list_of_quotes_is_one_line(place, capsys, old, new, named):
    edit(place / "docs/quotes.toml", old, new)
    [line] = checked(capsys)
    assert "docs/quotes.toml" in line and all(word in line for word in named), line


def test_a_line_of_any_block_can_be_subtracted(place, capsys):
    edit(place / "docs/quotes.toml", 'minus = "frozen"', 'minus = " | frozen"')  # the block that has no heading
    assert "4 quoted numbers" in checked(capsys)


def test_a_page_with_no_list_of_quotes_is_not_checked(place, capsys):
    (place / "docs/quotes.toml").rename(place / "docs/others.toml")
    assert "0 quoted numbers" in checked(capsys)
    assert "4 quoted numbers" in checked(capsys, "--quotes", "docs/others.toml")
    assert "not found" in checked(capsys, "--quotes", "docs/quotes.toml")[0]


def test_claims_are_written_and_checked(place, capsys, monkeypatch):
    ledger = types.SimpleNamespace(
        claims=lambda results_dir, experiments: [
            len(experiments) + len(read_rows(results_dir / "tiny/quick/rows.jsonl"))
        ]
    )
    page = types.SimpleNamespace(
        render_markdown=lambda verdicts: f"# Claims\n\n{verdicts}\n",
        to_json=lambda verdicts: [{"rows": n} for n in verdicts],
    )
    monkeypatch.setattr(rebuilding, "claims", ledger)
    monkeypatch.setattr(rebuilding, "claims_page", page)
    command.main(["claims"])
    assert capsys.readouterr().out == "1 claims: results/CLAIMS.md\n"
    assert (place / "results/CLAIMS.md").read_text() == "# Claims\n\n[5]\n"
    assert json.loads((place / "results/claims.json").read_text()) == [{"rows": 5}]
    assert "checked: 1 tables" in checked(capsys)
    edit(place / "results/CLAIMS.md", "[5]", "[6]")
    [line] = checked(capsys)
    assert line == "claims: CLAIMS.md line 3: has '[6]', its rows give '[5]'"


def test_long_lines_are_cut_to_where_they_begin_to_differ(tmp_path):
    path = tmp_path / "index.html"
    path.write_text("x" * 4000 + "old" + "y" * 4000)
    said = rebuilding._difference(path, b"x" * 4000 + b"new" + b"y" * 4000)
    xs, ys = "x" * 30, "y" * 87
    assert said == f"index.html line 1: has '...{xs}old{ys}...', its rows give '...{xs}new{ys}...'"
    path.write_text("x" * 4000)
    assert rebuilding._difference(path, b"x" * 4001) == f"index.html line 1: has '...{xs}', its rows give '...{xs}x'"


def test_the_numbers_of_this_repository_name_lines_and_stand_on_their_pages():
    """Which numbers they are is for ``report --check``: rows of some lines may be on their way."""
    found = quotes.read_quotes(ROOT / "docs/quotes.toml")
    assert sum(len(quote.numbers) for quote in found) > 40
    experiments = load_experiments(ROOT / "experiments")
    lines = list(quotes.differences(found, ROOT / "results", experiments))
    assert all("no rows yet" in line or "on the page, " in line for line in lines), lines


def test_a_half_width_is_that_of_students_interval(place, capsys):
    rows = read_rows("results/tiny/quick/rows.jsonl")
    a, b = (r["layers"]["h_rms"][-1] for r in rows if r["label"] == "dfa")
    half = 12.7062 * abs(a - b) / 2  # t of one degree of freedom at .975, times sd / sqrt(2) of two values
    entry = (
        'experiment = "tiny"\nblock = "second"\nlabel = "dfa"\nmetric = "layers.h_rms.2"\nformat = ".3g"\nhalf = true\n'
    )
    (place / "docs/quotes.toml").write_text(f'[[quote]]\ntext = "give or take {{}}"\n{entry}')
    (place / "README.md").write_text(f"An RMS, give or take {half:.3g}.\n")
    assert "1 quoted numbers" in checked(capsys)
    edit(place / "README.md", f"{half:.3g}", "9.99")
    assert "9.99 on the page" in checked(capsys)[0]
    edit(place / "docs/quotes.toml", "half = true", "half = true\nseeds = [1]")
    assert "one seed has no interval" in checked(capsys)[0]
