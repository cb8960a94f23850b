"""What lies in the results directories: rows of experiments and sweeps, under their present grids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jcredit.config import ConfigError
from jcredit.report.lines import GRID, of_lines
from jcredit.report.page.data import Section
from jcredit.report.rows import Row, read_rows
from jcredit.report.tables import TableSpec, tables_of, usual_columns, with_study
from jcredit.study.experiment import USER_ERRORS, Experiment, describe_sweep, grid_of, in_grid, reported
from jcredit.study.own import FIELDS, Own
from jcredit.sweeps.door import PRESET as SWEEP


class Found(NamedTuple):
    """The rows of one directory that count, their experiment (None: a sweep of one's own), and what they are.

    ``config`` is what the directory's config.json says, if it is written today.
    """

    experiment: Experiment | None
    rows: list[Row]
    text: str
    config: dict[str, Any] | None = None


def directories(results_dir: Path) -> list[Path]:
    """Every directory under the results that has rows.

    Raises:
      ConfigError: no such results directory.
    """
    if not results_dir.is_dir():
        raise ConfigError(f"results directory {results_dir} does not exist; give one with --results-dir DIR")
    return [path.parent for path in sorted(results_dir.glob("*/*/rows.jsonl"))]


def found_in(directory: Path, experiments: Mapping[str, Experiment]) -> Found:
    """The rows of a directory that belong to the present grid of their experiment, or to the lines of a sweep.

    Raises:
      ConfigError: no script for them, none that belongs, or a torn config.json.
      ResultsError: rows that cannot be read.
    """
    experiment = experiments.get(directory.parent.name)
    if experiment is None and directory.name == SWEEP:
        return _of_sweep(directory)
    if experiment is None:
        raise ConfigError(
            f"no script has an experiment called {directory.parent.name!r}; left as it is (--experiments DIR names the"
            " folder of the scripts)"
        )
    described = _described(directory)
    grid = grid_of(experiment, *described)
    rows = read_rows(directory / "rows.jsonl", experiment.name, directory.name)
    mine = in_grid(rows, grid)
    strangers = len(rows) - len({(row["config_hash"], row["seed"]) for row in mine})
    if not mine:
        raise ConfigError(
            f"none of its {len(rows)} rows belongs to the present grid, which has changed since; left as it is"
        )
    missing = sum(v.hash not in {row["config_hash"] for row in mine} for v in grid)
    text = f"rebuilt from {len(rows) - strangers} rows" + "".join((
        f"; {strangers} rows do not belong to the present grid and are left out" if strangers else "",
        f"; {missing} of {len(grid)} configurations have no rows yet" if missing else "",
    ))  # fmt: skip
    return Found(experiment, mine, text, describe_sweep(experiment, *described, grid))


def _of_sweep(directory: Path) -> Found:
    """The rows of the configurations that the labels of a sweep stand for since it was last called."""
    there = read_rows(directory / "rows.jsonl", directory.parent.name, SWEEP)
    rows = of_lines(directory, there)
    if there and not rows:
        raise ConfigError(
            f"its {len(there)} rows are of earlier configurations of their labels, and the present ones have none yet;"
            " run the sweep again"
        )
    runs = len({(row["config_hash"], row["seed"]) for row in rows})
    strangers = len(there) - runs
    left_out = f"; {strangers} rows of earlier configurations of their labels are left out" if strangers else ""
    return Found(None, rows, f"jc.sweep's table and figure rebuilt from {runs} rows{left_out}")


def sections(results_dir: Path, experiments: Mapping[str, Experiment]) -> list[Section]:
    """What the results page shows, in the order of the study's phases; directories that cannot be used are left out."""
    shown: list[tuple[str, Section]] = []
    for directory in directories(results_dir):
        name, preset = directory.parent.name, directory.name
        try:
            experiment, rows, *_ = found_in(directory, experiments)
            if experiment is None:
                spec = TableSpec(name, usual_columns(rows))
                shown.append(("~", Section(name, preset, "", tables_of(rows, spec), with_study(rows, spec))))
            else:
                tables, marked = reported(experiment, rows), with_study(rows, experiment.table)
                shown.append((experiment.phase, Section(name, preset, experiment.question, tables, marked)))
        except USER_ERRORS:
            continue  # ``report`` says why
    return [section for _, section in sorted(shown, key=lambda pair: pair[0])]


def _described(directory: Path) -> tuple[str, dict[str, Any], list[Own]]:
    """Preset, overridden settings and own parts of a directory's config.json; a sweep under way has none yet."""
    path = directory / GRID
    if not path.exists() and "+" not in directory.name:
        return directory.name, {}, []
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        preset, overrides = described["preset"], described["overrides"]
        owns = [Own(kind, spec) for kind, spec in described["own"]]
        plain = isinstance(preset, str) and isinstance(overrides, dict)
        if not plain or not all(own.kind in FIELDS and isinstance(own.spec, str) for own in owns):
            raise TypeError
        return preset, overrides, owns
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: missing, torn or not an experiment's ({type(error).__name__}), so its preset is not known; run"
            " the experiment again"
        ) from error
