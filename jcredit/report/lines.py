"""Which configuration each label of a sweep stands for, beside its rows on disk.

Whoever edits an estimator and sweeps again has rows of both in one file, under one label; the latest sweep says which.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jcredit.files import write_json
from jcredit.report.schema import Row

LINES = "lines.json"
"""{label: key of its configuration} of a folder's lines, those of the latest sweep first: rows lie there in the order
in which they ended, and beside them those of configurations that their labels stood for before.
"""


def keep_lines(directory: Path, lines: Mapping[str, str]) -> None:
    """Writes the labels and keys of a sweep's lines down, in their order, before the other ones of earlier sweeps."""
    before = _kept_lines(directory)
    wanted = {**lines, **{label: key for label, key in before.items() if label not in lines}}
    if list(wanted.items()) != list(before.items()):
        write_json(directory / LINES, wanted)


def of_lines(directory: Path, rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of their lines, without those of configurations that no label stands for any more.

    A label whose key was not written down keeps all its rows.
    """
    lines = _kept_lines(directory)
    place, labels = {label: i for i, label in enumerate(lines)}, {key: label for label, key in lines.items() if key}
    found = []
    for row in rows:
        key = row["config_hash"]
        if lines.get(row["label"]) in (None, key):
            found.append(row)
        elif key in labels:  # its line is called something else now
            found.append({**row, "label": labels[key]})
    return sorted(found, key=lambda row: place.get(row["label"], len(place)))


def _kept_lines(directory: Path) -> dict[str, str | None]:
    try:
        found = json.loads((directory / LINES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # without it rows stand as they were written
        return {}
    if isinstance(found, list):  # labels alone, as they were written once
        return {label: None for label in found if isinstance(label, str)}
    lines = found.items() if isinstance(found, dict) else ()
    return {label: key if isinstance(key, str) else None for label, key in lines}
