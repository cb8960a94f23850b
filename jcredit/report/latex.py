"""A table as LaTeX: booktabs tabulars with the lines and columns that the markdown has."""

from __future__ import annotations

import re

from jcredit.report.tables import MISSING, NO_BLOCK, Kind, Table, Tables

LEFT: tuple[Kind, ...] = ("label", "tier", "flags")
ESCAPES = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", MISSING: "--",
    "[": "{[}", "*": "{*}",  # which the end of the line above would take for its own
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
"""What LaTeX would read, or its usual fonts lack."""
ESTIMATE = re.compile(r"([+-]?[\d.,]*\d(?:e[+-]\d+)?)(%?)(?: ± ([\d.,]*\d(?:e[+-]\d+)?)%?)?(.*)")
P = re.compile(r"p(=|\\textless\{\})([\d.]+)")


def latex(tables: Tables) -> str:
    """Every table as a ``tabular``; title, headings and notes are comments.  Needs ``\\usepackage{booktabs}``."""
    parts = [_comment(tables.title)] if tables.title else []
    for table in tables.tables:
        blocks = any(other.block for other in tables.tables)
        heading = ", ".join(filter(None, [table.block or NO_BLOCK * blocks, table.heading]))
        parts.append("\n".join([*([_comment(heading)] if heading else []), _tabular(table)]))
    parts += ["\n".join(map(_comment, tables.notes))] if tables.notes else []
    return "\n\n".join(parts) + "\n"


def _tabular(table: Table) -> str:
    columns = "".join("l" if kind in LEFT else "r" for kind in table.kinds)
    shown = [_number if kind == "number" else escaped for kind in table.kinds]
    lines = [[show(cell.text) for show, cell in zip(shown, line.cells, strict=True)] for line in table.lines]
    head, *body = (" & ".join(cells) + r" \\" for cells in [[*map(escaped, table.header)], *lines])
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    )


def escaped(text: str) -> str:
    """A text on one line, as LaTeX prints it."""
    return "".join(ESCAPES.get(sign, sign) for sign in " ".join(text.split()))


def _number(text: str) -> str:
    """A cell of the markdown such as "+0.67 ± 6.25, p=.75 (n=3)", its numbers as mathematics; words as they are."""
    if (found := ESTIMATE.fullmatch(text)) is None:
        return escaped(text)
    mean, percent, half, rest = found.groups()
    estimate = _power(mean) if half is None else rf"{_power(mean)} \pm {_power(half)}"
    unit = r"\%" if percent else ""
    space = " " if rest.startswith(" ") else ""
    words = P.sub(lambda p: f"$p{'<' if 'less' in p[1] else '='}{p[2]}$", escaped(rest))
    return f"${estimate}${unit}" + space + words


def _power(number: str) -> str:
    mantissa, _, exponent = number.replace(",", "{,}").partition("e")
    return mantissa + (rf" \times 10^{{{int(exponent)}}}" if exponent else "")


def _comment(text: str) -> str:
    return f"% {' '.join(text.split())}"
