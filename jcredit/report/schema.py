"""What a row is, rows on disk, and the few questions that tables and figures ask of rows.

``rows.jsonl`` holds one JSON object per line, one per run (schema 2, see ``Row``), with its own SHA-256 as a last field
on disk (rows from before that have none).  Every write is atomic, a file that does not parse or a row that is not what
was written is reported by name and line and left as it is, and two processes that append to one file wait for each
other.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jcredit.files import SEAL, FileError, locked, plain, sealed, unsealed, write_text

SCHEMA = 2
RELATIVE_ERRORS = ("directional", "unexplained", "start_unexplained", "state_error")
"""Metrics of estimators that are 1 for a credit, correction or prediction of zero."""
WEIGHED_ERRORS = {"terminal_gradient": "terminal_weight"}
"""The same, but part of an estimator's loss only where this setting of the credit is not 0."""
WORSE_THAN_NOTHING = "worse_than_nothing"
"""The flag of a row whose estimator ends above 1 in one of these, on evaluation samples."""
ESTIMATOR_DIVERGED = "estimator_diverged"
"""The flag of a row whose estimator's loss blew up on the way."""

Row = dict[str, Any]
"""One run.

Required: schema, experiment, preset, method (the credit's name), label (the variant's name in tables), config (every
setting; a part is an object whose kind holds its name), config_hash (the variant's key), seed, status ("ok" or
"diverged"), metrics {name: number or null}.

Optional: tier (information tier), depth (of the credit, in sequence, where its estimator states one; absent from rows
from before it was kept), block (heading of its block of the table), flags (list of str), epochs, layers {name: number
per layer}, curves {name: number per epoch}, initial {name: number per layer, before the first step}, data (hash of the
images that it was trained on; absent from rows from before it was kept), numerics (options of JAX that decide bits,
such as enable_x64, where they are not what they are by default), start and followup (what it starts from, what was
measured on it in the end), from ("experiment/preset" it was copied from), git_commit (of the code when the sweep
started), layout, timing, versions, device.
"""

_REQUIRED: dict[str, type] = {
    "experiment": str, "preset": str, "method": str, "label": str, "config": dict, "config_hash": str, "seed": int,
    "status": str, "metrics": dict,
}  # fmt: skip
_OPTIONAL: dict[str, type] = {
    "tier": str, "depth": int, "block": str, "flags": list, "epochs": int, "layers": dict, "curves": dict,
    "data": str, "numerics": dict, "start": dict, "followup": dict, "from": str, "git_commit": str,
}  # fmt: skip


class ResultsError(ValueError):
    """Rows that cannot be used; the message names the file, the bad value and the fix."""


# --- rows on disk -----------------------------------------------------------------------------------------------------


def read_rows(path: str | Path, experiment: str | None = None, preset: str | None = None) -> list[Row]:
    """Reads the rows of one experiment in file order; a missing file has none.

    Args:
      path: a rows.jsonl.
      experiment: if given, the experiment that every row must belong to; else that of the first row.
      preset: the same for the preset.

    Raises:
      ResultsError: a file that cannot be read, a line that is torn, not a schema-2 row or not what was written, a row
        of another experiment, or a run that is there twice.  The file is left as it is.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: labels may hold U+2028
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: not UTF-8 text ({error.reason}); move the file away and run again") from error
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror}); use another results directory") from error
    numbered = [(f"{path} line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    rows = [(where, _parsed(where, line)) for where, line in numbered]
    _check_together(rows, experiment, preset)
    return [_flagged(row) for _, row in rows]


def worse_than_nothing(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether an estimator's relative error ends above that of predicting zero: on evaluation samples, as all scores
    are; a row without these has the mean over the last epoch's steps alone.

    Args:
      metrics: of a run.
      config: its settings.  What ``exact_terminal`` replaces is not asked for.
    """
    credit = config.get("credit", {})
    while credit.get("estimator") != "exact_terminal" and "estimator" in _part(inner := credit.get("of")):
        credit = inner
    fitted = (*RELATIVE_ERRORS, *(name for name, weight in WEIGHED_ERRORS.items() if credit.get(weight)))
    errors = [metrics.get(f"test_{name}", metrics.get(name)) for name in fitted]
    return any(error > 1 for error in errors if error is not None)


def _part(value: Any) -> Mapping[str, Any]:
    """A part inside another one as rows describe it; of any other setting, nothing."""
    return value if isinstance(value, Mapping) else {}


def _flagged(row: Row) -> Row:
    """The row with the flag that rows from before had by their training samples only."""
    flags = row.get("flags", [])
    if row["status"] != "ok" or WORSE_THAN_NOTHING in flags or not worse_than_nothing(row["metrics"], row["config"]):
        return row
    return {**row, "flags": [*flags, WORSE_THAN_NOTHING]}


def append_rows(path: str | Path, rows: Iterable[Row], *, known: Literal["refuse", "leave"] = "refuse") -> None:
    """Adds rows to a file atomically, under a lock that other processes respect; numbers not finite become null.

    Args:
      path: a rows.jsonl.
      rows: what to add.
      known: what is done where a row's run (config_hash, seed) is already there: everything refused, or its row left.

    Raises:
      ResultsError: the file cannot be read (see ``read_rows``), a row is malformed or of another experiment, or its
        run is already there, or the file cannot be written.  Nothing is written.
      FileError: a value that has no JSON form.
    """
    path = Path(path)
    new = [plain(row) for row in rows]
    for row in new:
        _check_row(f"{path} new row", row, "mend the caller")
    if not new:
        return
    try:
        with locked(path):
            old = read_rows(path)
            if known == "leave":
                there = finished(old)
                new = [row for row in new if (row["config_hash"], row["seed"]) not in there]
                if not new:
                    return
            _check_together([(str(path), row) for row in old] + [(f"{path} new row", row) for row in new])
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            text += "\n" if text and not text.endswith("\n") else ""
            lines = [json.dumps(sealed(row), allow_nan=False, ensure_ascii=False) + "\n" for row in new]
            write_text(path, text + "".join(lines))
    except OSError as error:
        raise ResultsError(f"{path}: cannot write ({error}); free space or use another results directory") from error


def _parsed(where: str, line: str) -> Row:
    def reject(constant: str):
        raise ValueError(f"{constant} is not strict JSON")

    try:
        row = json.loads(line, parse_constant=reject)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{where}: torn or not JSON ({error}); delete the line or move the file away") from error
    if isinstance(row, dict) and SEAL in row:
        try:
            row = unsealed(row)
        except FileError as error:
            fix = f"delete the line to run it again, or its {SEAL!r} if the change is yours"
            raise ResultsError(f"{where}: {error}; {fix}") from error
    _check_row(where, row, "move the file away and run again")
    return row


def _check_row(where: str, row: Any, fix: str) -> None:
    if not isinstance(row, dict):
        raise ResultsError(f"{where}: a {type(row).__name__}, not a row; {fix}")
    if row.get("schema") == 1:
        raise ResultsError(f"{where}: a row of schema 1, from before estimators owned their settings; {fix}")
    if row.get("schema") != SCHEMA:
        raise ResultsError(f"{where}: schema is {row.get('schema')!r}, not {SCHEMA}; {fix}")
    for name, kind in (_REQUIRED | _OPTIONAL).items():
        value = row.get(name)
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ResultsError(f"{where}: {name}={value!r} must be of type {kind.__name__}; {fix}")
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


# --- questions to rows ------------------------------------------------------------------------------------------------


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


def grouped(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows by block, then label, both in order of first appearance."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.get("block") or "", {}).setdefault(row["label"], []).append(row)
    return groups


VARIED = re.compile(r" ([\w.]+)=.+")
"""What ``jc.sweep`` adds to a label for the settings that it varies: the first of them."""


def varied(row: Row, line: str) -> str | None:
    """What varied settings have added to the label of a line; None: the row is another line's.

    Labels of one's own may look alike ("bridge tgw=0" beside "bridge"): what is varied is a setting by its name.
    """
    label: str = row["label"]
    rest = label.removeprefix(line)
    if not label.startswith(line) or not rest:
        return rest if label == line else None
    found = VARIED.fullmatch(rest)
    return rest if found and _has_setting(row.get("config") or {}, found[1]) else None


def _has_setting(config: Mapping[str, Any], name: str) -> bool:
    """Whether a configuration, or a part in it, has a setting that a sweep can vary by this name or dotted path."""
    parts = [value for value in config.values() if isinstance(value, Mapping)]
    head, _, rest = name.partition(".")
    if rest:
        return isinstance(config.get(head), Mapping) and _has_setting(config[head], rest)
    return name in config or any(_has_setting(part, name) for part in parts)


def with_reference(
    rows: Sequence[Row], metric: str, reference_label: str, name: str, *, ratio: bool = False
) -> list[Row]:
    """Adds to each row how far a number lies above the reference variant's at the same seed, or their ratio.

    So are made depth utility (accuracy above the frozen network's) and S1, S2 (Gamma, rho above DFA's).

    Args:
      rows: rows of one experiment; they are not changed.
      metric: dotted path of the number, as in ``number_at``.
      reference_label: the variant that is subtracted: its row of the same task, network, batches, length of training
        and start.  Where the block has such a line, at whatever seeds, it is that one or none; else that of another
        block.  Where settings are varied, each line has the reference of its own values.
      name: metrics[name] holds the result; it is absent where either number is missing.
      ratio: divide by the reference's number instead; absent where that is zero.

    Returns:
      Copies of the rows, in order.
    """
    alike: dict[tuple[str, str], dict[Any, dict[int, list[Row]]]] = {}  # per block, per seed
    for row in rows:
        if (values := varied(row, reference_label)) is not None:
            blocks = alike.setdefault((values, _trained(row)), {})
            blocks.setdefault(_place(row), {}).setdefault(row["seed"], []).append(row)
    suffixes = sorted({values for values, _ in alike}, key=len, reverse=True)

    def added(row: Row) -> Row:
        own, copy = number_at(row, metric), row.get("data")  # two copies of a data set are not compared
        values = next((values for values in suffixes if row["label"].endswith(values)), "")
        blocks = alike.get((values, _trained(row)), {})
        found = [blocks[_place(row)]] if _place(row) in blocks else blocks.values()
        same_seed = (other for seeds in found for other in seeds.get(row["seed"], ()))
        numbers = (number_at(other, metric) for other in same_seed if _same_copy(copy, other.get("data")))
        reference = next((value for value in numbers if value is not None), None)
        if own is None or reference is None or (ratio and reference == 0):
            return dict(row)
        return {**row, "metrics": {**row["metrics"], name: own / reference if ratio else own - reference}}

    return [added(row) for row in rows]


def _same_copy(one: str | None, other: str | None) -> bool:
    return not one or not other or one == other


def _place(row: Row) -> tuple[Any, ...]:
    """The block of a row: blocks of two experiments, or presets, are two, also where both have no name."""
    return row.get("experiment"), row.get("preset"), row.get("block") or ""


def _trained(row: Row) -> str:
    """What was trained, on what and for how long: rows that differ in it are no reference for each other."""
    config = row.get("config") or {}
    shared = {name: config.get(name) for name in ("task", "network", "epochs", "steps_per_epoch", "batch_size")}
    return json.dumps([shared, row.get("start")], sort_keys=True)
