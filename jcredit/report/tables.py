"""Tables made from rows alone: mean and 95% interval over seeds, with the study's own figures beside ours."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from jcredit.report import stats
from jcredit.report.origins import origins
from jcredit.report.schema import (
    ESTIMATOR_DIVERGED,
    WORSE_THAN_NOTHING,
    ResultsError,
    Row,
    grouped,
    number_at,
    varied,
    with_reference,
)

MISSING = "\N{EN DASH}"
REFERENCE = "reference"
MANY_NOTE = "No p where a difference has more than 20 seeds."
NO_BLOCK = "no block"
"""Heading of lines that have none, below lines that have one."""
INTERVAL_NOTE = "Mean over seeds ± half width of its 95% interval (Student's t); one seed has no interval."
P_NOTE = (
    "p: exact sign-flip test of the differences at each seed; for n seeds it never falls below 2^(1-n): .50 for two,"
    " .25 for three, .031 for six."
)
DEPTH_NOTE = (
    "Depth: steps, each as deep as one block, that must follow each other until every layer has its credit once the"
    " forward pass is over."
)
RATIO_NOTE = "A ratio is taken at each seed; one to a number near zero says nothing."
WORSE_NOTE = (
    f"The flag {WORSE_THAN_NOTHING}: on evaluation samples a relative error that the estimator is fitted to ends above"
    " that of predicting zero."
)
DIVERGED_NOTE = (
    f"The flag {ESTIMATOR_DIVERGED}: what the estimator is trained on rose above ten times its smallest epoch, as it"
    " may in a sound one that begins with little to explain."
)
ONE_FIGURE = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?: ?± ?[\d.e+-]+)?(?: \(.*\))?")
FIXED_POINT = re.compile(r"(\+?)\.(\d+)f")  # formats that lose decimals where the interval has none to spare


class Column(NamedTuple):
    """One column of a table: mean and 95% interval over seeds of ``scale`` times a number of the row."""

    title: str
    metric: str
    """Dotted path into the row, such as "metrics.test_accuracy"."""
    format: str = ".3f"
    scale: float = 1.0
    paired_with: str | None = None
    """If given, the label whose number at the same seed is subtracted first (see ``with_reference``)."""
    ratio: bool = False
    """Divide by that label's number instead."""


class TableSpec(NamedTuple):
    """What a table shows."""

    title: str
    columns: tuple[Column, ...] | Mapping[str, tuple[Column, ...]]
    """The columns, or {heading: columns} where one table per block would be too wide; titles differ in all of them."""
    study: Mapping[str, Mapping[str, str]] = {}
    """The study's own figures as text: {label: {column title: figure}}; a label that occurs in several blocks can be
    given as "block | label"."""
    notes: tuple[str, ...] = ()
    summary: Callable[[Sequence[Row]], str] | None = None
    """If given, what stands above the tables: markdown made of the rows, the study's figures with them (with_study)."""


Kind = Literal["label", "tier", "depth", "seeds", "number", "study", "flags"]


class Cell(NamedTuple):
    """What a table says in one place, the number it says, and the p of that; nan where there is none."""

    text: str
    value: float = math.nan
    p: float = math.nan


class Line(NamedTuple):
    """A line of a table: the rows it is made of, and its cells."""

    rows: Sequence[Row]
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """One block of rows under one group of columns; ``block`` and ``heading`` are "" where there is only one."""

    block: str
    heading: str
    header: tuple[str, ...]
    kinds: tuple[Kind, ...]
    lines: tuple[Line, ...]


class Tables(NamedTuple):
    """All that is said of some rows, before it is markdown, text in a terminal or part of a page."""

    title: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    summary: str = ""


def usual_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """What a table shows unless told: accuracy and depth utility where there are any, Gamma, rho, RMS(h_L), loss."""
    accuracy = "metrics.test_accuracy"
    has_accuracy = any(number_at(row, accuracy) is not None for row in rows)
    frozen = [row["method"] for row in rows if varied(row, "frozen") is not None]
    has_frozen = bool(frozen) and set(frozen) == {"frozen"}  # whatever else somebody has called so
    return (
        *((Column("accuracy", accuracy),) if has_accuracy else ()),
        *((Column("depth utility", accuracy, "+.3f", paired_with="frozen"),) if has_accuracy and has_frozen else ()),
        Column("Gamma", "metrics.gamma"),
        Column("rho", "metrics.rho"),
        Column("RMS(h_L)", "metrics.h_rms_last", ".2f"),
        Column("loss", "metrics.test_loss"),
    )


def tables_of(rows: Sequence[Row], spec: TableSpec) -> Tables:
    """One table per block and group of columns, one line per label.

    A cell is "mean ± half width of the 95% t interval" over seeds, the value alone for one seed, "–" where nothing was
    measured, and says "(n=…)" where some seeds have no value. A group none of whose columns has a value in a block is
    left out there, but for the first. Differences to a reference carry the p of the exact sign-flip test (up to 20
    seeds); the reference's own line has none. Diverged runs and flags are counted in a last column. Notes below the
    tables say what their signs mean, when the rows come from more than one commit of the code, and which were copied
    from another experiment.

    Raises:
      ResultsError: one label of one block stands for more than one configuration, or has a seed twice.
    """
    groups: dict[str, list[_Shown]] = {}
    for heading, columns in _groups(spec).items():
        for column in columns:
            path = column.metric
            if column.paired_with is not None:
                name = f"{column.title} of {heading}".replace(".", " ")  # dots part paths
                rows = with_reference(rows, path, column.paired_with, name, ratio=column.ratio)
                path = f"metrics.{name}"
            groups.setdefault(heading, []).append(_Shown(column, path))
    tables: list[Table] = []
    for block, labels in grouped(rows).items():
        for label, label_rows in labels.items():
            check_variant(block, label, label_rows)
        study = _study_of(spec, block, labels)
        first, *others = (_table(block, k, labels, c, study, flags=not i) for i, (k, c) in enumerate(groups.items()))
        tables += [first, *filter(_says_something, others)]
    notes = (*_signs_notes(tables, spec), *spec.notes, *origins(rows))
    summary = spec.summary(with_study(rows, spec)) if spec.summary else ""
    return Tables(spec.title, tuple(tables), notes, summary)


def markdown(tables: Tables) -> str:
    """GitHub markdown: title, summary, a heading for each block and group of columns, aligned tables, notes."""
    parts = [f"# {tables.title}"] if tables.title else []
    parts += [tables.summary] if tables.summary else []
    block = ""
    for table in tables.tables:
        parts += [f"## {table.block or NO_BLOCK}"] if table.block != block else []
        block = table.block
        parts += [f"{'###' if block else '##'} {table.heading}"] if table.heading else []
        cells = [list(table.header), *([cell.text for cell in line.cells] for line in table.lines)]
        parts.append(aligned(cells))
    parts += ["\n".join(f"- {note}" for note in tables.notes)] if tables.notes else []
    return "\n\n".join(parts) + "\n"


def with_study(rows: Sequence[Row], spec: TableSpec) -> list[Row]:
    """Adds the study's figures to rows, as numbers that a figure can mark.

    row["study"] is {name in row["metrics"]: number}; {title: number} for a column that is paired with a reference.  A
    figure of the study that is not one number (a range, a list, a word) is left out.
    """
    columns = [column for group in _groups(spec).values() for column in group]

    def numbers(row: Row) -> dict[str, float]:
        texts = _study_of(spec, row.get("block") or "", [row["label"]])[row["label"]]
        found = ((c, ONE_FIGURE.fullmatch(texts[c.title])) for c in columns if c.title in texts)
        return {
            c.metric.removeprefix("metrics.") if c.paired_with is None else c.title: float(match[1]) / c.scale
            for c, match in found
            if match
        }

    return [{**row, "study": numbers(row)} for row in rows]


class _Shown(NamedTuple):
    """A column and the path of its numbers, which for a paired one are made for this table."""

    column: Column
    path: str


def _groups(spec: TableSpec) -> Mapping[str, tuple[Column, ...]]:
    return spec.columns if isinstance(spec.columns, Mapping) else {"": spec.columns}


def _study_of(spec: TableSpec, block: str, labels: Iterable[str]) -> dict[str, Mapping[str, str]]:
    return {label: spec.study.get(f"{block} | {label}", spec.study.get(label, {})) for label in labels}


def _signs_notes(tables: Sequence[Table], spec: TableSpec) -> list[str]:
    """What ±, p, ratios and a flag are, each where the tables have it."""
    text = "\n".join(cell.text for table in tables for line in table.lines for cell in line.cells)
    ratios = any(column.ratio for columns in _groups(spec).values() for column in columns)
    said = {
        DEPTH_NOTE: any("depth" in table.kinds for table in tables),
        INTERVAL_NOTE: " ± " in text,
        P_NOTE: ", p=" in text or ", p<" in text,
        MANY_NOTE: any(
            column.paired_with and not column.ratio for columns in _groups(spec).values() for column in columns
        )
        and any(len(line.rows) > stats.MAX_SIGN_FLIPS for table in tables for line in table.lines),
        RATIO_NOTE: ratios,
        WORSE_NOTE: WORSE_THAN_NOTHING in text,
        DIVERGED_NOTE: ESTIMATOR_DIVERGED in text,
    }
    return [note for note, needed in said.items() if needed]


def check_variant(block: str, label: str, rows: Sequence[Row]) -> None:
    """Raises ResultsError if a line stands for more than one configuration, or has a seed twice."""
    hashes = sorted({r["config_hash"] for r in rows})
    where = f"label {label!r}" + (f" of block {block!r}" if block else "")
    several = next((place for place in ("experiment", "preset") if len({row.get(place) for row in rows}) > 1), None)
    one_of = f"one {several}'s with rows.where({several}={rows[0].get(several)!r})" if several else ""
    if len(hashes) > 1:
        raise ResultsError(
            f"{where} stands for {len(hashes)} configs ({', '.join(hashes)}); choose"
            f" {one_of or 'one with rows.where(config_hash=...)'}"
        )
    seed, count = Counter(r["seed"] for r in rows).most_common(1)[0]
    if count > 1:
        mend = f"choose {one_of}" if one_of else "leave out the duplicates"
        raise ResultsError(f"{where} has {count} rows for seed {seed}; {mend}")


def _says_something(table: Table) -> bool:
    """Whether any of its columns has a number."""
    at = [i for i, kind in enumerate(table.kinds) if kind == "number"]
    return any(line.cells[i].text not in (MISSING, REFERENCE) for line in table.lines for i in at)


def _table(
    block: str, heading: str, labels: Mapping[str, Sequence[Row]], columns: Sequence[_Shown],
    study: Mapping[str, Mapping[str, str]], flags: bool,
) -> Table:  # fmt: skip
    """One table; with a column of flags if they are asked for and there are any."""
    beside = {c.title for c, _ in columns if any(c.title in figures for figures in study.values())}
    counted = {label: _flags(rows) if flags else "" for label, rows in labels.items()}
    with_depth = any("depth" in row for rows in labels.values() for row in rows)
    header: list[tuple[str, Kind]] = [("label", "label"), ("tier", "tier")]
    if with_depth:
        header.append(("depth", "depth"))
    header.append(("seeds", "seeds"))
    for column, _ in columns:
        header.append((column.title, "number"))
        if column.title in beside:
            header.append(("study", "study"))
    if any(counted.values()):
        header.append(("flags", "flags"))

    def cells(label: str, rows: Sequence[Row]) -> Iterator[Cell]:
        yield from (Cell(label), Cell(str(rows[0].get("tier") or MISSING)))
        if with_depth:
            depth = rows[0].get("depth")
            yield Cell(MISSING if depth is None else str(depth))
        yield Cell(str(len(rows)), len(rows))
        for column, path in columns:
            is_reference = column.paired_with is not None and varied(rows[0], column.paired_with) is not None
            yield Cell(REFERENCE) if is_reference else _cell(rows, column, path)
            if column.title in beside:
                yield Cell(study[label].get(column.title, MISSING))
        if any(counted.values()):
            yield Cell(counted[label])

    titles, kinds = zip(*header, strict=True)
    lines = tuple(Line(rows, tuple(cells(label, rows))) for label, rows in labels.items())
    return Table(block, heading, titles, kinds, lines)


def _cell(rows: Sequence[Row], column: Column, path: str) -> Cell:
    numbers = [number_at(row, path) for row in rows]
    values = [None if v is None else v * column.scale for v in numbers]
    s = stats.summary(values)
    if s.n == 0:
        return Cell(MISSING)
    text = _estimate(s.mean, s.high - s.mean if s.n > 1 else None, column.format)
    p = math.nan
    if column.paired_with is not None and not column.ratio and 1 < s.n <= stats.MAX_SIGN_FLIPS:
        p = stats.sign_flip_p(values)
        text += f", {_probability(p)}"
    return Cell(text if s.n == len(rows) else f"{text} (n={s.n})", s.mean, p)


def _estimate(mean: float, half: float | None, format: str) -> str:
    """Mean and half width in a column's format, with fewer decimals where the half width has over three digits."""
    if fixed := FIXED_POINT.fullmatch(format):
        sign, decimals = fixed[1], int(fixed[2])
        if half:
            decimals = min(decimals, 2 - _exponent(half))
        elif abs(mean) >= 100:
            decimals = min(decimals, 3 - _exponent(mean))
        if decimals < 0 or abs(mean) >= 9999.5:  # as many digits of the mean as its half width leaves certain
            digits = min(15, max(1, _exponent(mean) - _exponent(half) + 1)) if half else 1
            return f"{mean:{sign}.{digits}e}" + ("" if half is None else f" ± {half:.1e}")
        format = f"{sign}.{decimals}f"
    return f"{mean:{format}}" + ("" if half is None else f" ± {half:{format.lstrip('+')}}")


def _exponent(value: float) -> int:
    """The power of ten of a number rounded to three digits; 0 for zero."""
    return int(f"{value:.2e}".partition("e")[2])


def _probability(p: float) -> str:
    if p < 0.0005:
        return "p<.001"
    return "p=1" if p > 0.995 else "p=" + f"{p:.{2 if p >= 0.1 else 3}f}".lstrip("0")


def _flags(rows: Sequence[Row]) -> str:
    counts = Counter(flag for r in rows for flag in dict.fromkeys(r.get("flags") or []))
    diverged = sum(r["status"] != "ok" for r in rows)
    shown = ([f"diverged {diverged}/{len(rows)}"] if diverged else []) + [
        f"{flag} {count}/{len(rows)}" for flag, count in counts.items()
    ]
    return ", ".join(shown)


def _in_cell(text: str) -> str:
    """A text as one cell of a markdown table: on one line, with no bar and no tag of its own."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.split())).replace("|", "\\|")


def aligned(cells: list[list[str]]) -> str:
    """A markdown table padded to equal widths: label, tier and flags to the left, numbers to the right."""
    cells = [[_in_cell(text) for text in line] for line in cells]
    widths = [max(3, *(len(line[j]) for line in cells)) for j in range(len(cells[0]))]
    left = [j < 2 or title == "flags" for j, title in enumerate(cells[0])]

    def joined(line: list[str]) -> str:
        padded = (t.ljust(w) if is_left else t.rjust(w) for t, w, is_left in zip(line, widths, left, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if is_left else "-" * (w - 1) + ":" for w, is_left in zip(widths, left, strict=True)]
    return "\n".join([joined(cells[0]), joined(rule), *map(joined, cells[1:])])
