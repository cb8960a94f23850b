"""Every example runs as a reader runs it, and shows what its docstring says it shows."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "experiments/examples"
NEEDS = {
    "own_network": ["sklearn"],
    "own_task": ["sklearn"],
    "search": ["sklearn", "optuna"],
    "cluster": ["distributed"],
}
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))


def line(table, label):
    """The cells of a table's line, by the titles of their columns."""
    head, *found = re.findall(rf"^\| (?:label|{re.escape(label)}) +\|.*\|$", table, re.M)
    assert found, f"no line {label!r} in\n{table}"
    titles, cells = ([cell.strip() for cell in text.strip("|").split("|")] for text in (head, found[0]))
    return dict(zip(titles, cells, strict=True))


def mean(table, label, title):
    return float(line(table, label)[title].split()[0])


def own_estimator(out):
    assert line(out, "M = 1")["tier"] == "2: loss under perturbation"
    assert mean(out, "M = 1", "Gamma") < mean(out, "M = 16", "Gamma") < mean(out, "bp", "Gamma") == 1.0


def own_rule(out):
    assert all(line(out, f"{credit} mix={mix}")["seeds"] == "3" for credit in ("bp", "dfa") for mix in (0.0, 0.5, 1.0))
    assert mean(out, "bp mix=0.0", "accuracy") > mean(out, "dfa mix=0.0", "accuracy")


def own_network(out):
    assert all(mean(out, label, "accuracy") > 0.3 for label in ("bp", "fa", "chain"))  # ten classes: they learn


def own_task(out):
    digits, parity = out.split("# parity\n")
    assert mean(digits, "bp", "accuracy") > 0.8
    assert mean(parity, "bp", "accuracy") > 0.6  # chance is a half


def own_diagnostic(out):
    found = re.findall(r"^(\w+) +dimensions of a_0 .. a_L ([\d. ]+) cosine to delta_L .* (\S+)$", out, re.M)
    assert len(found) == 3
    for name, numbers, last in found:
        mean = sum(map(float, numbers.split())) / 4
        assert abs(float(line(out, name)["credit_mean_dimensions"].split()[0]) - mean) < 0.01
        assert all(1 <= float(x) <= (10 if name == "dfa" else 32) for x in numbers.split())
        assert (float(last) == 1.0) == (name != "dfa")  # a_L is delta_L, but for DFA


def search(out):
    best = [float(x) for x in re.findall(r"best on validation ([\d.]+)", out)]
    assert len(best) == 3 and best == sorted(best) and "24 trials" in out
    assert all(line(out, label)["seeds"] == "3" for label in ("found", "default", "frozen"))


def cluster(out):
    for credit in ("bp", "dfa", "broadcast"):
        assert all(line(out, f"{credit} learning_rate={rate}")["seeds"] == "4" for rate in (0.001, 0.003))


SHOWN = {f.__name__: f for f in (own_estimator, own_rule, own_network, own_task, own_diagnostic, search, cluster)}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs_and_shows_what_it_says(name, tmp_path):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package, reason="the examples' packages: pip install -e '.[examples]'")
    environment = os.environ | {"JCREDIT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    SHOWN[name](done.stdout)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_short_says_what_it_shows_and_is_checked(name):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert len((ast.get_docstring(ast.parse(text)) or "").splitlines()) >= 3
    assert 30 <= len(text.splitlines()) <= 80 and name in SHOWN
