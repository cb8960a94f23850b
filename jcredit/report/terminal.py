"""Tables in a terminal: no wider than it is, at most 100 columns, with colour where it has any.

Numbers are written as the study writes them (.39 ±.15 p=.50), tiers by their short names, spelt out below.  A table
that is still too wide is split between columns; each part repeats the labels.  ``rich`` draws, and decides about
colour: none in files and pipes, with ``NO_COLOR`` or in a dumb terminal.
"""

from __future__ import annotations

import io
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from jcredit.report.tables import MISSING, NO_BLOCK, REFERENCE, Table, Tables

WIDTH = 100
LABEL_WIDTH = 30
"""Columns of the longest label; longer ones are broken over lines."""
STYLES = {"label": "bold", "tier": "dim", "depth": "dim", "seeds": "dim", "number": "", "study": "cyan"}
SIGNIFICANT = 0.05
SHORTER = ((r"(?<![\d.])0\.(?=\d)", "."), (r"e([+-])0(?=\d)", r"e\1"), (r" ± ", " ±"), (r", p(?=[=<])", " p"))
GAP = 2


def shown(tables: Tables, file: TextIO | None = None) -> str:
    """The text of tables, with colour if the file has it.

    Args:
      tables: what is shown.
      file: where it will be printed; None: the standard output.
    """
    file = file or sys.stdout
    there = Console(file=file)
    width = min(WIDTH, there.width) if there.is_terminal else WIDTH
    console = Console(file=file, width=width, highlight=False, emoji=False, markup=False)
    with console.capture() as capture:
        _print(console, tables)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def plain_text(tables: Tables) -> str:
    """The text of tables without colour, in 100 columns."""
    return shown(tables, io.StringIO())


def shorter(text: str) -> str:
    """ "0.396 ± 0.150, p=.50" as ".396 ±.150 p=.50", and -4.5e-03 as -4.5e-3."""
    for pattern, replacement in SHORTER:
        text = re.sub(pattern, replacement, text)
    return text


def _print(console: Console, tables: Tables) -> None:
    if tables.title:
        console.print(Text(tables.title, "bold"))
    if tables.summary:
        console.print(Text(f"\n{tables.summary}"))
    block = ""
    for table in tables.tables:
        if table.block != block:
            console.print(Text(f"\n{table.block or NO_BLOCK}", "bold underline"))
        block = table.block
        if table.heading:
            console.print(Text(f"\n{table.heading}", "italic"))
        for part in _parts(table, console.width):
            console.print("", _grid(table, part), sep="\n")
        for flag in _flags(table):
            console.print(Text(textwrap.fill(f"! {flag}", console.width, subsequent_indent="  "), "yellow"))
    console.print()
    for note in (*_tiers(tables), *tables.notes):
        console.print(Text(textwrap.fill(f"- {note}", console.width, subsequent_indent="  "), "dim"))


def _parts(table: Table, width: int) -> Iterator[list[int]]:
    """The columns of each part of a table that is no wider than the terminal; the first has tier and seeds as well."""
    units: list[list[int]] = []
    for j, kind in enumerate(table.kinds):
        if kind in ("tier", "depth", "seeds", "number"):
            units.append([j])
        elif kind == "study":
            units[-1].append(j)  # stays beside the number it belongs to
    part = [0]
    for unit in units:
        if len(part) > 1 and sum(_width(table, j) + GAP for j in (*part, *unit)) > width + GAP:
            yield part
            part = [0]
        part += unit
    yield part


def _width(table: Table, j: int) -> int:
    widest = max(cell_len(text) for text in (_header(table, j), *(_text(table, j, k) for k in range(len(table.lines)))))
    return min(widest, LABEL_WIDTH) if table.kinds[j] == "label" else widest


def _header(table: Table, j: int) -> str:
    return "n" if table.kinds[j] == "seeds" else table.header[j]


def _text(table: Table, j: int, line: int) -> str:
    text, kind = table.lines[line].cells[j].text, table.kinds[j]
    return _short(text) if kind == "tier" else shorter(text) if kind == "number" else text


def _grid(table: Table, part: Sequence[int]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    for j in part:
        kind = table.kinds[j]
        grid.add_column(
            Text(_header(table, j)), style=STYLES[kind], justify="left" if kind in ("label", "tier") else "right",
            width=_width(table, j), no_wrap=kind != "label", overflow="fold",
        )  # fmt: skip
    for k in range(len(table.lines)):
        grid.add_row(*(_styled(_text(table, j, k), table.lines[k].cells[j].p) for j in part))
    return grid


def _styled(text: str, p: float) -> Text:
    """Text of a cell: dim where it says nothing, bold where a difference is significant at .05."""
    if text in (MISSING, REFERENCE):
        return Text(text, "dim")
    return Text(text, "bold green" if p <= SIGNIFICANT else "")


def _flags(table: Table) -> Iterator[str]:
    """Each flag with the labels that have it."""
    if table.kinds[-1] == "flags":
        found: dict[str, list[str]] = {}
        for line in table.lines:
            for flag in filter(None, line.cells[-1].text.split(", ")):
                found.setdefault(flag, []).append(line.cells[0].text)
        yield from (f"{flag}: {'; '.join(labels)}" for flag, labels in found.items())


def _short(tier: str) -> str:
    """ "0: random feedback, sequential" as "0 seq."."""
    return tier.partition(":")[0] + (" seq." if tier.endswith(", sequential") else "")


def _tiers(tables: Tables) -> Iterator[str]:
    """A note that spells out the short names of the tiers."""
    texts = {line.cells[1].text for table in tables.tables for line in table.lines} - {MISSING}
    yield from [f"n: seeds. Tiers: {'; '.join(sorted(texts))}."] if texts else ["n: seeds."]
