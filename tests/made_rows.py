"""Rows that are made up, and what rows and tables say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jcredit.report.rows import Rows
from jcredit.report.tables import TableSpec
from jcredit.study.predicates import key_of

SIX = (42, 123, 456, 7, 8, 9)
NOISE = (-2, 1, 3, -3, 2, -1)


def make_row(label: str = "DFA", seed: int = 0, block: str = "", **given: Any) -> dict[str, Any]:
    """A good row of schema 2; what is given stands for a field of it, or else for a metric."""
    row = {
        "schema": 2, "experiment": "ladder", "preset": "quick", "method": "dfa", "label": label, "tier": "tier 0",
        "block": block, "config": {"network": {"network": "ladder_mlp", "depth": 4}},
        "config_hash": f"{label}{block}", "seed": seed, "status": "ok", "flags": [], "epochs": 2, "metrics": {},
        "layers": {"gamma": [0.1, 0.4]}, "curves": {}, "timing": {}, "versions": {}, "git_commit": None,
        "device": "cpu",
    }  # fmt: skip
    metrics = {name: value for name, value in given.items() if name not in row}
    return row | {"metrics": metrics} | {name: value for name, value in given.items() if name in row}


def made_up(table: Mapping[str, Mapping[str, Any]], seeds: Sequence[int] = SIX, noise: float = 1e-4, **given: Any):
    """Rows of {line: {metric: mean}}, nearly the same at every seed; lists are values at each seed."""
    rows = {}
    for line, metrics in table.items():
        block, label = key_of(line)
        at_seed = [
            {m: v[i] if isinstance(v, list) else v + noise * NOISE[i] for m, v in metrics.items()}
            for i in range(len(seeds))
        ]
        rows[block, label] = [
            make_row(label, seed, block, config_hash=line, metrics=at_seed[i], **given) for i, seed in enumerate(seeds)
        ]
    return rows


def without_times(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What two runs of the same may not differ in."""
    return [{name: value for name, value in row.items() if name != "timing"} for row in rows]


def cells(line: str) -> list[str]:
    """The cells of a line of a markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def line_of(table: str, number: int) -> list[str]:
    """The cells of a line of a text, counted from 0."""
    return cells(table.splitlines()[number])


def markdown_of(rows: Iterable[dict[str, Any]], spec: TableSpec) -> str:
    """The table of rows as a results folder has it."""
    return Rows(rows).table(spec)
