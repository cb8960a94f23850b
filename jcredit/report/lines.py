"""Which configuration each label stands for, beside the rows on disk.

Whoever edits an estimator and sweeps again has rows of both in one file, under one label; the latest sweep says which.
Lines of an experiment are renamed in its script: then its ``config.json`` says what its rows, written before, are
called.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jcredit.files import locked, write_json
from jcredit.report.schema import Row

LINES = "lines.json"
"""{label: what it stands for} of a folder's lines, those of the latest sweep first: rows lie there in the order in
which they ended, and beside them those of configurations that their labels stood for before.
"""

GRID = "config.json"
"""What an experiment's folder holds; its "variants" are the lines, each with label, block, depth and config_hash."""


class Line(NamedTuple):
    """What a label stands for.

    Attributes:
      key: of its configuration; None where an earlier version did not write it down.
      config: the configuration, described; lines whose runs read the same have one key and settings of their own.
    """

    key: str | None
    config: dict[str, Any] | None = None


def keep_lines(directory: Path, lines: Mapping[str, Line]) -> None:
    """Writes a sweep's lines down, in their order, before the other ones of earlier sweeps.

    An earlier label of what has another one now is forgotten, or its runs would be read twice.
    """
    with locked(directory / LINES):
        before = _kept_lines(directory)
        left = {label: line for label, line in before.items() if label not in lines and line not in lines.values()}
        wanted = {**lines, **left}
        if list(wanted.items()) != list(before.items()):
            write_json(directory / LINES, {label: line._asdict() for label, line in wanted.items()})


def of_lines(directory: Path, rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of their lines, one for each label that stands for a row's configuration, with its settings.

    Those of configurations that no label stands for any more are left out; a label whose key was not written down keeps
    all its rows.  In an experiment's folder lines have blocks as well, and their depths; rows of
    lines that are newer than its latest table come last, as they were written.
    """
    if grid := _grid(directory):
        known = {key for key, _ in grid}
        return placed(rows, grid) + [row for row in rows if row["config_hash"] not in known]
    lines = _kept_lines(directory)
    place, labels = {label: i for i, label in enumerate(lines)}, dict[str, list[str]]()
    for label, line in lines.items():
        labels.setdefault(line.key or "", []).append(label)
    found = []
    for row in rows:
        named = labels.get(row["config_hash"], [])
        own = lines.get(row["label"])
        if row["label"] not in named and (own.key is None if own else not named):
            found.append(row)
        found += [{**row, "label": label, **_settings(lines[label])} for label in named]
    return sorted(found, key=lambda row: place.get(row["label"], len(place)))


def placed(rows: Sequence[Row], grid: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Row]:
    """The rows that belong to a grid, in its order and by seed: one for each line of a row's configuration.

    Args:
      rows: of one experiment.
      grid: of each line the key of its configuration, and what its rows bear (label, block, depth).
    """
    by_key: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        by_key.setdefault(row["config_hash"], []).append(row)
    return [{**row, **line} for key, line in grid for row in by_key.get(key, ())]


def _grid(directory: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of an experiment as it was when its tables were made; none in a folder of other rows."""
    if (directory / LINES).exists():
        return []
    try:
        variants = json.loads((directory / GRID).read_text(encoding="utf-8"))["variants"]
        return [(line["config_hash"], {name: line[name] for name in ("label", "block", "depth")}) for line in variants]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):  # without it rows stand as they were written
        return []


def _settings(line: Line) -> dict[str, Any]:
    return {} if line.config is None else {"config": line.config}


def _kept_lines(directory: Path) -> dict[str, Line]:
    try:
        found = json.loads((directory / LINES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # without it rows stand as they were written
        return {}
    if isinstance(found, list):  # labels alone, as they were written once
        return {label: Line(None) for label in found if isinstance(label, str)}
    return {label: _line(value) for label, value in found.items()} if isinstance(found, dict) else {}


def _line(value: Any) -> Line:
    key, config = (value.get("key"), value.get("config")) if isinstance(value, dict) else (value, None)
    return Line(key if isinstance(key, str) else None, config if isinstance(config, dict) else None)
