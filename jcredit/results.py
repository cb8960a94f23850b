"""Tidy rows on disk, one per run.

``rows.jsonl`` holds one JSON object per line (schema 1, see ``Row``).  Every write is atomic (temporary file, fsync,
rename), a file that does not parse is reported by name and line and left as it is, and two processes that append to
one file wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

SCHEMA = 1

Row = dict[str, Any]
"""One run.  Required: schema, experiment, preset, method, label (the variant's name in tables), config, config_hash,
seed, status ("ok" or "diverged"), metrics {name: number or null}.  Optional: tier (information tier), block (title of
the table block, "" if none), flags (list of str), epochs, layers, curves, timing, versions, git_commit, device."""

_REQUIRED = {
    "experiment": str, "preset": str, "method": str, "label": str, "config": dict, "config_hash": str, "seed": int,
    "status": str, "metrics": dict,
}  # fmt: skip


class ResultsError(ValueError):
    """Rows that cannot be used; the message names the file, the bad value and the fix."""


# ---------------------------------------------------------------------------------------------------------------
# files


def experiment_dir(results_dir: str | Path, experiment: str, preset: str) -> Path:
    """Where an experiment's rows.jsonl, config.json, table.md and figure.png live."""
    return Path(results_dir) / experiment / preset


def plain(value: Any) -> Any:
    """Turns numpy and jax scalars and arrays, tuples, mappings and paths into plain strict-JSON values.

    Numbers that are not finite become None, which is how a row says "missing".

    Raises:
      ResultsError: a value of a type that has no JSON form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        return plain(array.tolist() if array.dtype.kind in "biufU" else array.astype(np.float64).tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    raise ResultsError(f"cannot store {value!r} of type {type(value).__name__}; give numbers, text, lists or dicts")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file atomically: a reader, or a kill at any instant, meets the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)  # the rename itself is durable only once its directory is
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as indented strict JSON, atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_rows(path: str | Path, experiment: str | None = None, preset: str | None = None) -> list[Row]:
    """Reads the rows of one experiment in file order; a missing file has none.

    Args:
      path: a rows.jsonl.
      experiment: if given, the experiment that every row must belong to; else that of the first row.
      preset: the same for the preset.

    Raises:
      ResultsError: a line that is torn or not a schema-1 row, a row of another experiment, or a run that is there
        twice.  The file is left as it is.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: labels may hold U+2028
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: not UTF-8 text ({error.reason}); move the file away and run again") from error
    numbered = [(f"{path} line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    rows = [(where, _parsed(where, line)) for where, line in numbered]
    _check_together(rows, experiment, preset)
    return [row for _, row in rows]


def append_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file atomically, under a lock that other processes respect; numbers not finite become null.

    Raises:
      ResultsError: the file cannot be read (see ``read_rows``), a row is malformed or of another experiment, or its
        run (config_hash, seed) is already there.  Nothing is written.
    """
    path = Path(path)
    new = [plain(row) for row in rows]
    for row in new:
        _check_row(f"{path} new row", row)
    if not new:
        return
    with _locked(path):
        old = read_rows(path)
        _check_together([(str(path), row) for row in old] + [(f"{path} new row", row) for row in new])
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        text += "\n" if text and not text.endswith("\n") else ""
        write_text(path, text + "".join(json.dumps(r, allow_nan=False, ensure_ascii=False) + "\n" for r in new))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock file beside ``path``: the file itself is replaced by each write, so it cannot carry the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _parsed(where: str, line: str) -> Row:
    def reject(constant: str):
        raise ValueError(f"{constant} is not strict JSON")

    try:
        row = json.loads(line, parse_constant=reject)
    except ValueError as error:
        raise ResultsError(f"{where}: torn or not JSON ({error}); delete the line or move the file away") from error
    _check_row(where, row)
    return row


def _check_row(where: str, row: Any) -> None:
    fix = "move the file away" if "line" in where else "mend the caller"
    if not isinstance(row, dict) or row.get("schema") != SCHEMA:
        found = row.get("schema") if isinstance(row, dict) else type(row).__name__
        raise ResultsError(f"{where}: schema is {found!r}, not {SCHEMA}; {fix}")
    for name, kind in _REQUIRED.items():
        if not isinstance(row.get(name), kind) or isinstance(row.get(name), bool):
            raise ResultsError(f"{where}: {name}={row.get(name)!r} must be of type {kind.__name__}; {fix}")
    if row["status"] not in ("ok", "diverged"):
        raise ResultsError(f"{where}: status={row['status']!r} must be 'ok' or 'diverged'; {fix}")


def _check_together(rows: Sequence[tuple[str, Row]], experiment: str | None = None, preset: str | None = None) -> None:
    """Raises ResultsError unless all rows belong to one experiment and preset and no run is there twice."""
    if not rows:
        return
    expected = (experiment or rows[0][1]["experiment"], preset or rows[0][1]["preset"])
    seen: set[tuple[str, int]] = set()
    for where, row in rows:
        if (row["experiment"], row["preset"]) != expected:
            found = f"{row['experiment']}/{row['preset']}"
            raise ResultsError(
                f"{where}: a row of {found} among rows of {'/'.join(expected)}; move the stray rows away"
            )
        key = (row["config_hash"], row["seed"])
        if key in seen:
            raise ResultsError(f"{where}: run config_hash={key[0]} seed={key[1]} is already there; drop one of the two")
        seen.add(key)


# ---------------------------------------------------------------------------------------------------------------
# rows


def find_row(rows: Iterable[Row], config_hash: str, seed: int) -> Row | None:
    """The row of one run, or None."""
    return next((r for r in rows if r["config_hash"] == config_hash and r["seed"] == seed), None)


def finished(rows: Iterable[Row]) -> set[tuple[str, int]]:
    """Keys (config_hash, seed) of all runs that have a row; a diverged run is finished too."""
    return {(r["config_hash"], r["seed"]) for r in rows}


def number_at(row: Row, path: str) -> float | None:
    """The finite number at a dotted path such as "metrics.gamma" or "layers.gamma.-1" (last layer); None if missing."""
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.lstrip("-").isdigit() and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def grouped(rows: Iterable[Row], order: Sequence[str] = ()) -> dict[str, dict[str, list[Row]]]:
    """Rows by block, then label: labels of ``order`` first, all else in order of first appearance."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.get("block", ""), {}).setdefault(row["label"], []).append(row)
    rank = {label: i for i, label in enumerate(order)}
    return {
        block: dict(sorted(labels.items(), key=lambda item: rank.get(item[0], len(rank))))
        for block, labels in groups.items()
    }


def with_reference(rows: Sequence[Row], metric: str, reference_label: str, name: str) -> list[Row]:
    """Adds to each row how far a number lies above the reference variant's at the same seed.

    So are made depth utility (accuracy above the frozen network's) and S1, S2 (Gamma, rho above DFA's).

    Args:
      rows: rows of one experiment; they are not changed.
      metric: dotted path of the number, as in ``number_at``.
      reference_label: the variant that is subtracted; its row in the same block if there is one, else in any block.
      name: metrics[name] holds the difference; it is absent where either number is missing.

    Returns:
      Copies of the rows, in order.
    """
    anywhere: dict[int, float] = {}
    in_block: dict[tuple[str, int], float] = {}
    for row in rows:
        if row["label"] == reference_label and (value := number_at(row, metric)) is not None:
            anywhere.setdefault(row["seed"], value)
            in_block[row.get("block", ""), row["seed"]] = value

    def added(row: Row) -> Row:
        own = number_at(row, metric)
        reference = in_block.get((row.get("block", ""), row["seed"]), anywhere.get(row["seed"]))
        if own is None or reference is None:
            return dict(row)
        return {**row, "metrics": {**row["metrics"], name: own - reference}}

    return [added(row) for row in rows]
