"""Everything that is made of the rows and of nothing else: tables, figures, the ledger, the page; and its check."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

from jcredit.config import ConfigError
from jcredit.files import one_line, write_json, write_text
from jcredit.report.lines import GRID
from jcredit.report.page import build
from jcredit.report.rows import Rows
from jcredit.settings import known
from jcredit.study import claims, claims_page, findings, quotes
from jcredit.study.experiment import USER_ERRORS, Experiment, write_report
from jcredit.study.found import directories, found_in, sections

PAGE = "index.html"
FINDINGS = "findings"
"""Folder under the results with the figures of docs/findings.md, and that of results/online/README.md."""
DRAWN_BY = "matplotlib.txt"
"""File under the results that says which version of Matplotlib drew the figures."""
LEDGER = ("CLAIMS.md", "claims.json")
SHOWN = 120
"""Characters of two lines that differ."""

# --- report -----------------------------------------------------------------------------------------------------------


class Rebuilt(NamedTuple):
    """What became of one directory of rows, or of one page."""

    where: str
    text: str
    failed: bool = False


def report(
    results_dir: Path, experiments: dict[str, Experiment], only: Collection[str] | None = None
) -> Iterator[Rebuilt]:
    """Rebuilds table.md, figure.png and config.json wherever there are rows, from these alone, and findings' figures.

    Args:
      results_dir: where the rows are.
      experiments: all of them.
      only: just the tables and figures of these experiments, "toy_lq", or of these presets, "toy_lq/quick".

    Raises:
      ConfigError: a results directory that does not exist, or an experiment that has no rows.
    """
    places = {directory.relative_to(results_dir).as_posix(): directory for directory in directories(results_dir)}
    called = {where: {where, where.partition("/")[0]} for where in places}
    for name in only or ():
        known("experiment with rows", name, sorted(set().union(*called.values())))
    for where, directory in places.items():
        if only is not None and called[where].isdisjoint(only):
            continue
        try:
            yield Rebuilt(where, _rebuilt(directory, experiments, directory))
        except USER_ERRORS as error:
            yield Rebuilt(where, said(error), failed=True)
    if only is not None:
        return
    try:
        if drawn := findings.draw(results_dir, experiments, results_dir / FINDINGS):
            yield Rebuilt(FINDINGS, f"{len(drawn)} figures drawn")
    except USER_ERRORS as error:
        yield Rebuilt(FINDINGS, said(error), failed=True)
    if places:
        write_text(results_dir / DRAWN_BY, matplotlib.__version__ + "\n")


def said(error: Exception) -> str:
    """An error on one line."""
    return f"error: {one_line(error)}"


def _rebuilt(directory: Path, experiments: dict[str, Experiment], into: Path) -> str:
    """Writes table, figure and lines of a directory's rows into another one, or the same; what they were made of."""
    found = found_in(directory, experiments)
    if found.experiment is None:
        rows = Rows(found.rows)
        write_text(into / "table.md", rows.table())
        rows.plot(into / "figure.png", title=directory.parent.name)
    else:
        write_json(into / GRID, found.config)  # lines may have other names than when they were run
        write_report(found.experiment, found.rows, into)
    return found.text


# --- the check --------------------------------------------------------------------------------------------------------


def check(results_dir: Path, experiments: dict[str, Experiment], quoted: Path | None) -> Iterator[Rebuilt]:
    """Makes everything anew in a folder of its own and compares: what differs is a failed outcome.

    Figures are compared, byte by byte, where the installed Matplotlib is the one that ``report`` noted; other versions
    draw other bytes.

    Args:
      results_dir: what is checked.
      experiments: all of them.
      quoted: the file of quoted numbers (None: none are checked).

    Raises:
      ConfigError: a results directory that does not exist, or a file of quoted numbers that cannot be read.
    """
    record = results_dir / DRAWN_BY
    drawn_by, here = record.read_text(encoding="utf-8").strip() if record.exists() else "?", matplotlib.__version__
    places = directories(results_dir)
    files = ("table.md", "figure.png") if drawn_by == here else ("table.md",)
    for directory in places:
        make, of_study = functools.partial(_rebuilt, directory, experiments), directory.parent.name in experiments
        yield from _compared(str(directory.relative_to(results_dir)), make, directory, (*files, *[GRID] * of_study))
    if drawn_by == here:
        make = functools.partial(findings.draw, results_dir, experiments)
        yield from _compared(FINDINGS, make, results_dir / FINDINGS)
    if ledger := [name for name in LEDGER if (results_dir / name).exists()]:
        make = functools.partial(write_claims, results_dir, experiments)
        yield from _compared("claims", make, results_dir, ledger)
    yield from _page_checked(results_dir / PAGE, results_dir, experiments)
    texts = quotes.read_quotes(quoted) if quoted else []
    differing = list(quotes.differences(texts, results_dir, experiments))
    yield from (Rebuilt("quoted", text, failed=True) for text in differing)
    figures = "figures" if drawn_by == here else f"no figures (drawn by Matplotlib {drawn_by}, here is {here})"
    numbers = sum(len(quote.numbers) for quote in texts)
    yield Rebuilt("checked", f"{len(places)} tables, {figures}, {numbers} quoted numbers")


def _compared(
    where: str, make: Callable[[Path], object], there: Path, names: Collection[str] = ()
) -> Iterator[Rebuilt]:
    """Failed outcomes for those files that ``make`` writes into a folder which are not the files that are there.

    Args:
      where: what the outcomes are of.
      make: writes into a folder of its own.
      there: the folder that is checked.
      names: the files that count (none: all that were made).
    """
    with tempfile.TemporaryDirectory(prefix="jcredit-") as scratch:
        try:
            make(Path(scratch))
        except USER_ERRORS as error:
            yield Rebuilt(where, said(error), failed=True)
            return
        for name in names or sorted(path.name for path in Path(scratch).iterdir()):
            if difference := _difference(there / name, Path(scratch, name).read_bytes()):
                yield Rebuilt(where, difference, failed=True)


def _difference(path: Path, expected: bytes) -> str:
    """How a file differs from what it should hold, in one line; empty if it does not."""
    if not path.exists():
        return f"{path.name} is missing; python -m jcredit report makes it"
    if (found := path.read_bytes()) == expected:
        return ""
    if path.suffix == ".png":
        return f"{path.name} is not what its rows give"
    old, new = found.decode(errors="replace").split("\n"), expected.decode().split("\n")
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    texts = [lines[same].strip() if same < len(lines) else "nothing" for lines in (old, new)]
    return "{} line {}: has {!r}, its rows give {!r}".format(path.name, same + 1, *_where_they_part(*texts))


def _where_they_part(one: str, other: str) -> tuple[str, str]:
    """Two lines, cut to where they begin to differ: a table on the page is one line of kilobytes."""
    apart = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = 0 if apart < SHOWN else apart - SHOWN // 4

    def cut(text: str) -> str:
        return ("..." if start else "") + text[start : start + SHOWN] + ("..." if start + SHOWN < len(text) else "")

    return cut(one), cut(other)


# --- claims -----------------------------------------------------------------------------------------------------------


def write_claims(results_dir: Path, experiments: dict[str, Experiment], into: Path) -> int:
    """Writes the verdict on every claim, made of the rows, and returns how many there are."""
    verdicts, text = _judged(results_dir, experiments)
    write_text(into / LEDGER[0], text)
    write_json(into / LEDGER[1], verdicts)
    return len(verdicts)


def _judged(results_dir: Path, experiments: dict[str, Experiment]) -> tuple[list[dict[str, Any]], str]:
    """The ledger as data and as markdown."""
    verdicts = claims.claims(results_dir, experiments)
    return claims_page.to_json(verdicts), claims_page.render_markdown(verdicts)


# --- the page ---------------------------------------------------------------------------------------------------------


def write_page(path: Path, results_dir: Path, experiments: dict[str, Experiment]) -> str:
    """Writes the results page, and returns what it was made of.

    Raises:
      ConfigError: the charts' package is not installed.
    """
    try:
        charts = build.bundle()
    except ImportError as error:
        raise ConfigError(str(error)) from None
    text, count = _page(results_dir, experiments, charts)
    write_text(path, text)
    return f"{count} directories of rows, {len(text.encode()) / 1e6:.1f} MB"


def _page(results_dir: Path, experiments: dict[str, Experiment], charts: build.Bundle) -> tuple[str, int]:
    found = sections(results_dir, experiments)
    judged = _judged(results_dir, experiments) if (results_dir / LEDGER[1]).exists() else ([], "")
    return build.page(found, judged[0], charts), len(found)


def _page_checked(path: Path, results_dir: Path, experiments: dict[str, Experiment]) -> Iterator[Rebuilt]:
    """A failed outcome if the page is there and not what the rows give, whichever version of the charts it contains."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    try:
        expected, _ = _page(results_dir, experiments, build.bundle_of(text))
    except USER_ERRORS as error:
        yield Rebuilt("page", said(error), failed=True)
        return
    if difference := _difference(path, expected.encode()):
        yield Rebuilt("page", difference, failed=True)
