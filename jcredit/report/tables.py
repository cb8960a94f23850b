"""Tables made from rows alone: mean and spread over seeds, with the study's own figures beside ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jcredit.report import stats
from jcredit.report.schema import ResultsError, Row, grouped, number_at, with_reference

MISSING = "\N{EN DASH}"
SHOWN_LABELS = 5


class Column(NamedTuple):
    """One column of a table: mean and sd over seeds of ``scale`` times a number of the row."""

    title: str
    metric: str
    """Dotted path into the row, such as "metrics.test_accuracy"."""
    format: str = ".3f"
    scale: float = 1.0
    paired_with: str | None = None
    """If given, the label whose number at the same seed is subtracted first (see ``with_reference``)."""


class TableSpec(NamedTuple):
    """What a table shows."""

    title: str
    columns: tuple[Column, ...]
    study: Mapping[str, Mapping[str, str]] = {}
    """The study's own figures as text: {label: {column title: figure}}; a label that occurs in several blocks can be
    given as "block | label"."""
    notes: tuple[str, ...] = ()


def usual_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """What a table shows unless told: accuracy and depth utility where there are any, Gamma, rho, RMS(h_L), loss."""
    accuracy = "metrics.test_accuracy"
    has_accuracy = any(number_at(row, accuracy) is not None for row in rows)
    has_frozen = any(row["label"] == "frozen" for row in rows)
    return (
        *((Column("accuracy", accuracy),) if has_accuracy else ()),
        *((Column("depth utility", accuracy, "+.3f", paired_with="frozen"),) if has_accuracy and has_frozen else ()),
        Column("Gamma", "metrics.gamma"),
        Column("rho", "metrics.rho"),
        Column("RMS(h_L)", "metrics.h_rms_last", ".2f"),
        Column("loss", "metrics.test_loss"),
    )


def render_table(rows: Sequence[Row], spec: TableSpec) -> str:
    """Renders rows as GitHub markdown that also reads as plain text: one table per block, one line per label.

    A cell is "mean ± sd" over seeds, the value alone for one seed, "–" where nothing was measured, and says "(n=…)"
    where some seeds have no value.  Diverged runs and flags are counted in a last column.  Notes below the table say
    when its rows come from more than one commit of the code, and which were copied from another experiment.

    Raises:
      ResultsError: one label of one block stands for more than one configuration, or has a seed twice.
    """
    for i, column in enumerate(spec.columns):
        if column.paired_with is not None:
            rows = with_reference(rows, column.metric, column.paired_with, _paired_name(i))
    parts = [f"# {spec.title}"] if spec.title else []
    for block, labels in grouped(rows).items():
        for label, label_rows in labels.items():
            _check_variant(block, label, label_rows)
        parts += [f"## {block}"] if block else []
        parts.append(_aligned(_block_cells(block, labels, spec)))
    notes = (*spec.notes, *_commits_note(rows), *_copies_note(rows))
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def _paired_name(i: int) -> str:
    return f"column {i} minus its reference"


def _check_variant(block: str, label: str, rows: Sequence[Row]) -> None:
    hashes = sorted({r["config_hash"] for r in rows})
    where = f"label {label!r}" + (f" of block {block!r}" if block else "")
    if len(hashes) > 1:
        raise ResultsError(f"{where} stands for {len(hashes)} configs ({', '.join(hashes)}); leave out the stale rows")
    seed, count = Counter(r["seed"] for r in rows).most_common(1)[0]
    if count > 1:
        raise ResultsError(f"{where} has {count} rows for seed {seed}; leave out the duplicates")


def _block_cells(block: str, labels: Mapping[str, Sequence[Row]], spec: TableSpec) -> list[list[str]]:
    """Header and lines of one block; the first two columns are text, the last one too if it is "flags"."""
    study = {label: spec.study.get(f"{block} | {label}", spec.study.get(label, {})) for label in labels}
    beside = {c.title for c in spec.columns if any(c.title in figures for figures in study.values())}
    flags = {label: _flags(label_rows) for label, label_rows in labels.items()}
    cells = [["label", "tier", "seeds"]]
    for column in spec.columns:
        cells[0] += [column.title, "study"] if column.title in beside else [column.title]
    for label, label_rows in labels.items():
        line = [label, str(label_rows[0].get("tier") or MISSING), str(len(label_rows))]
        for i, column in enumerate(spec.columns):
            line.append(_cell(label_rows, column, i))
            if column.title in beside:
                line.append(study[label].get(column.title, MISSING))
        cells.append(line)
    if any(flags.values()):
        cells = [[*cells[0], "flags"]] + [[*line, flags[label]] for line, label in zip(cells[1:], labels, strict=True)]
    return cells


def _cell(rows: Sequence[Row], column: Column, i: int) -> str:
    path = column.metric if column.paired_with is None else f"metrics.{_paired_name(i)}"
    values = [number_at(row, path) for row in rows]
    s = stats.summary(None if v is None else v * column.scale for v in values)
    if s.n == 0:
        return MISSING
    text = f"{s.mean:{column.format}}" + (f" ± {s.sd:{column.format.lstrip('+')}}" if s.n > 1 else "")
    return text if s.n == len(rows) else f"{text} (n={s.n})"


def _flags(rows: Sequence[Row]) -> str:
    counts = Counter(flag for r in rows for flag in dict.fromkeys(r.get("flags") or []))
    diverged = sum(r["status"] != "ok" for r in rows)
    shown = ([f"diverged {diverged}/{len(rows)}"] if diverged else []) + [
        f"{flag} {count}/{len(rows)}" for flag, count in counts.items()
    ]
    return ", ".join(shown)


def _commits_note(rows: Sequence[Row]) -> list[str]:
    """A note that rows come from more than one commit, each with its labels; rows of no known commit count as one."""
    commits: dict[str, dict[str, None]] = {}
    for row in rows:
        commits.setdefault(row.get("git_commit") or "an unknown one", {})[row["label"]] = None
    if len(commits) < 2:
        return []
    shown = ", ".join(f"{commit} ({_some(list(labels))})" for commit, labels in commits.items())
    return [f"Rows come from {len(commits)} commits of the code: {shown}."]


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels if len(labels) <= SHOWN_LABELS else [*labels[: SHOWN_LABELS - 1], "..."])


def _copies_note(rows: Sequence[Row]) -> list[str]:
    """A note that rows were copied from other experiments, counted for each."""
    counts = Counter(row["from"] for row in rows if row.get("from"))
    if not counts:
        return []
    first, *others = (f"{n} row{'s are those' if n > 1 else ' is that'} of {place}" for place, n in counts.items())
    return ["; ".join([first, *others]) + "."]


def _aligned(cells: list[list[str]]) -> str:
    """A markdown table padded to equal widths: label, tier and flags to the left, numbers to the right."""
    cells = [[text.replace("|", "\\|") for text in line] for line in cells]
    widths = [max(3, *(len(line[j]) for line in cells)) for j in range(len(cells[0]))]
    left = [j < 2 or title == "flags" for j, title in enumerate(cells[0])]

    def joined(line: list[str]) -> str:
        padded = (t.ljust(w) if is_left else t.rjust(w) for t, w, is_left in zip(line, widths, left, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if is_left else "-" * (w - 1) + ":" for w, is_left in zip(widths, left, strict=True)]
    return "\n".join([joined(cells[0]), joined(rule), *map(joined, cells[1:])])
