"""The benchmark's table says a ratio only of two rates of one run."""

import runpy
from pathlib import Path

import pytest

SHOWING = runpy.run_path(str(Path(__file__).parent.parent / "experiments/benchmark/showing.py"))


def measurement(rate, **fields):
    return {"rates": [rate], "flops": 1e8, "compile_s": 1.0, "peak_bytes": 2**20, **fields}


@pytest.fixture
def measured():
    """BP at 10 steps a second, the chain at 8, DFA at 5 and eager PyTorch's BP at 4; a peak of 2 GFLOP/s."""
    rates = {"matmul peak": 2e9, "bp | 6": 10.0, "tangent_chain | 6": 8.0, "dfa | 6": 5.0, "torch bp | 6": 4.0}
    return {name: measurement(rate) for name, rate in rates.items()}


def cells(text, line):
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {line} |")]
    head = next(row for row in text.splitlines() if row.startswith("| method |"))
    titles, values = ([cell.strip() for cell in row.strip("|").split("|")] for row in (head, found))
    return dict(zip(titles, values, strict=True))


def test_ratios_of_one_run(measured):
    text = SHOWING["table"](measured, "made up")
    assert cells(text, "tangent_chain")["cost / BP"] == "1.25"  # 10 / 8
    assert cells(text, "tangent_chain")["of peak"] == "40%"  # 8 x 1e8 of 2e9
    assert cells(text, "bp")["ratio"] == "2.50"  # 10 / 4
    assert "later run" not in text


def test_a_line_measured_in_a_later_run_is_compared_with_none_before_it(measured):
    measured["dfa | 6"]["run"] = 1
    text = SHOWING["table"](measured, "made up")
    late = cells(text, "dfa")
    assert late["seed-steps/s"] == "5.0" and late["cost / BP"] == late["of peak"] == SHOWING["MISSING"]
    assert "later run: dfa | 6." in text
    assert cells(text, "tangent_chain")["cost / BP"] == "1.25"  # as before


def test_bars_leave_out_what_two_runs_would_tell(measured):
    shape = {f"bp, L = {depth}, D = 64 | 1": measurement(1.0) for depth in (2, 48)}
    measured |= shape | {"bp | 1 on one core": measurement(5.0)}
    bars = lambda: SHOWING["bars"](measured, 2e9)  # noqa: E731
    assert "| six seeds on all cores against one on one core | >= 1.7 | 2.00 | yes |" in bars()
    assert "| cost of dfa against BP | <= 1 | 2.00 | no |" in bars()
    measured["dfa | 6"]["run"] = measured["bp | 1 on one core"]["run"] = 1
    assert "cost of dfa" not in bars() and "against one on one core" not in bars()


def test_a_cost_measured_in_turn_counts_whenever_it_was_measured(measured):
    measured["dfa | 6"]["run"] = 1
    measured["dfa beside bp | 6 in turn"] = {"costs": [0.8, 0.9, 1.3], "run": 1}
    measured |= {f"bp, L = {depth}, D = 64 | 1": measurement(1.0) for depth in (2, 48)}
    measured["bp | 1 on one core"] = measurement(5.0)
    assert "| cost of dfa against BP | <= 1 | 0.90 | yes |" in SHOWING["bars"](measured, 2e9)
