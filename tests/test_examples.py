"""Every example runs as a reader runs it, and shows what its docstring says it shows."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "experiments/examples"
NEEDS = {"own_network": ["sklearn"], "own_task": ["sklearn"], "search": ["sklearn", "optuna"], "cluster": ["distributed"]}
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))


def lines(table, label):
    """The cells of a table's line."""
    found = re.findall(rf"^\| {re.escape(label)} +\|(.*)\|$", table, re.M)
    assert found, f"no line {label!r} in\n{table}"
    return [cell.strip() for cell in found[0].split("|")]


def accuracy(table, label):
    return float(lines(table, label)[2].split()[0])


def own_estimator(out):
    assert lines(out, "M = 1")[0] == "2: loss under perturbation"
    gamma = [float(lines(out, label)[3].split()[0]) for label in ("M = 1", "M = 16", "bp")]
    assert gamma[0] < gamma[1] < gamma[2] == 1.0  # more directions, less noise


def own_rule(out):
    assert all(lines(out, f"{credit} mix={mix}") for credit in ("bp", "dfa") for mix in (0.0, 0.5, 1.0))
    assert accuracy(out, "bp mix=0.0") > accuracy(out, "dfa mix=0.0")


def own_network(out):
    assert all(accuracy(out, label) > 0.3 for label in ("bp", "fa", "chain"))  # ten classes: they learn


def own_task(out):
    digits, parity = out.split("# parity/sweep")
    assert accuracy(digits, "bp") > 0.8
    assert accuracy(parity, "bp") > 0.6  # chance is a half


def own_diagnostic(out):
    found = re.findall(r"^(\w+) +epoch (\d) +dimensions of a_0 .. a_L ([\d. ]+) cosine", out, re.M)
    assert len(found) == 3 * 5
    for name, _, numbers in found:
        assert all(1 <= float(x) <= (10 if name == "dfa" else 32) for x in numbers.split())
    for name, epoch in (("bp", "0"), ("dfa", "0")):
        last = re.search(rf"^{name} +epoch {epoch} .* (\S+)$", out, re.M)
        assert last is not None and (float(last[1]) == 1.0) == (name == "bp")  # a_L is delta_L, or is not


def search(out):
    best = [float(x) for x in re.findall(r"best on validation ([\d.]+)", out)]
    assert len(best) == 3 and best == sorted(best)
    assert len(lines(out, "found")) == len(lines(out, "default")) and "24 trials" in out


def cluster(out):
    assert all(
        lines(out, f"{credit} learning_rate={rate}")[1] == "4"
        for credit in ("bp", "dfa", "broadcast")
        for rate in (0.001, 0.003)
    )


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
