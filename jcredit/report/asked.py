"""What rows are asked by: the settings of a row by their paths, and values that match them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jcredit.report.schema import ResultsError, Row

_KINDS = ("estimator", "rule", "network", "task", "trunk")


def settings_of(row: Row) -> dict[str, Any]:
    """{path: value} of a row's settings, of what it starts from and of what was measured on it."""
    origin = {name: row[name] for name in ("start", "followup") if row.get(name)}
    return dict(_flat("", {**row["config"], **origin}))


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """{"credit": {"estimator": "dfa", "scale": 1}} as credit="dfa" and credit.scale=1."""
    if not isinstance(value, Mapping):
        yield path, value
        return
    first = next(iter(value), None)
    kind = first if path and first in _KINDS and isinstance(value[first], str) else None
    for name, inner in value.items():
        yield from _flat(path if name == kind else f"{path}.{name}".lstrip("."), inner)


def asked(name: str, wanted: Any, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The values of a field that are asked for, each of which some row has, but of a ``status``.

    Args:
      name: of the field.
      wanted: a value or several; a list is one value where a row has just that list.
      rows: the fields of each row by path.

    Raises:
      ResultsError: there is no such row; the message has the nearest name, or those that there are.
    """
    there = [value for row in rows for value in _values(row, name)]
    if not there:
        names = sorted({path for row in rows for path in row})
        raise ResultsError(f"field {name!r} is in none of {len(rows)} rows; {hint(name, names)}")
    values = _alternatives(wanted, there)
    for value in values:
        if name != "status" and not _among(value, there):
            found = list({repr(v): v for v in there}.values())
            texts = [v for v in found if isinstance(v, str)]
            near = difflib.get_close_matches(value, texts, n=1) if isinstance(value, str) else []
            shown = ", ".join(map(repr, found[:8])) + (", ..." if len(found) > 8 else "")
            told = f"did you mean {near[0]!r}?" if near else f"there are {shown}"
            raise ResultsError(f"{name}={value!r} is in none of the rows; {told}")
    return values


def matches(row: Mapping[str, Any], name: str, values: Sequence[Any]) -> bool:
    """Whether a row's field has one of these values; a name stands for that setting in any part."""
    there = _values(row, name)
    return any(_among(value, there) for value in values)


def hint(name: str, names: Sequence[str]) -> str:
    """The name most like another, or all of them."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"they have {', '.join(names)}"


def _values(row: Mapping[str, Any], name: str) -> list[Any]:
    """The values a name stands for: those of that path, else of that setting in any part."""
    return [row[name]] if name in row else [value for path, value in row.items() if path.endswith(f".{name}")]


def _alternatives(wanted: Any, there: Sequence[Any]) -> list[Any]:
    """The values that are asked for, as Python's own; a tuple is one, and so is a list where rows have just that."""
    if isinstance(wanted, tuple):
        return [_own(wanted)]
    wanted = _own(wanted)
    if isinstance(wanted, list | range | set | frozenset) and wanted not in there:
        return [_own(value) for value in wanted]
    return [wanted]


def _own(value: Any) -> Any:
    """Numpy's and jax's numbers, texts and arrays as Python's own, and a tuple as rows have it."""
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _among(value: Any, there: Sequence[Any]) -> bool:
    """Whether a value is one of others, of which fractions may differ in what float32 does not hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value in [v for v in there if isinstance(v, bool) == isinstance(value, bool)]
    numbers = [v for v in there if isinstance(v, int | float) and not isinstance(v, bool)]
    return value in numbers if isinstance(value, int) else any(math.isclose(value, v, rel_tol=1e-6) for v in numbers)
