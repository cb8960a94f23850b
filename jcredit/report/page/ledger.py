"""The ledger of claims on the page: a card for each, its figures and predicates folded below what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from jcredit.report.page.markup import opening


def claims(verdicts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The ledger; a claim's predicates, with their intervals, open below its verdict."""
    if not verdicts:
        return
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict["verdict"]] = counts.get(verdict["verdict"], 0) + 1
    shown = ", ".join(f"{n} {name}" for name, n in counts.items())
    yield '<section id="claims" aria-labelledby="claims-title"><h2 id="claims-title">The study\'s claims, judged</h2>'
    yield (
        f"<p>{len(verdicts)} claims: {escape(shown)}. Verdicts are computed from rows: an order needs six seeds and"
        " p at most .05, a size a mean within a tolerance of the study's figure and an interval no wider than that"
        " band, an equality the whole interval within it; too few seeds leave a claim undecided."
        " Numbers are mean [95% t interval].</p>"
    )
    choice = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in counts)
    yield '<p><label for="verdict">verdict</label>'
    yield f'<select id="verdict"><option value="">all</option>{choice}</select></p>'
    header = ("claim", "verdict", "the study", "what it rests on", "rows")
    yield opening("claims", "Claims of the study and verdicts on them", ((title, "") for title in header), "cards")
    for verdict in verdicts:
        yield _claim(verdict, header)
    yield "</tbody></table></div></section>"


def _claim(verdict: Mapping[str, Any], header: Sequence[str]) -> str:
    name, robust, readings = verdict["verdict"], verdict["robustness"], verdict["readings"]
    seeds = f", n = {verdict['n']}" if verdict["n"] else ", no rows yet"
    cells = (
        f'<span class="verdict" data-verdict="{escape(name)}">{escape(name)}</span> {escape(robust)}',
        escape(verdict["study"]),
        f"{escape(verdict['why'])}<details><summary>figures and predicates</summary>"
        f"{''.join(map(_reading, readings))}</details>",
        escape(verdict["source"] + seeds),
    )
    body = "".join(
        f'<td role="cell" data-title="{title}">{cell}</td>' for title, cell in zip(header[1:], cells, strict=True)
    )
    experiment = verdict["source"].partition("/")[0]
    text = f"{verdict['id']} {verdict['claim']} {experiment}".lower()
    return (
        f'<tr role="row" class="claim" id="claim-{escape(verdict["id"])}" data-experiment="{escape(experiment)}"'
        f' data-verdict="{escape(name)}" data-text="{escape(text)}"><th role="rowheader" scope="row">'
        f"{escape(verdict['id'])}: {escape(verdict['claim'])}</th>{body}</tr>"
    )


def _reading(reading: Mapping[str, Any]) -> str:
    """A claim under one reading: its numbers, a line of the experiment each, and its predicates."""
    said = f"{reading['reading']}: {reading['verdict']}, {reading['why']}"
    head = f"<p><b>{escape(said)}</b></p>" if reading["reading"] else ""
    figures = "".join(
        f"<li>{escape(mark + text)}</li>"
        for mark, key in (("", "ours"), ("control: ", "control"))
        for text in _lines(reading[key])
    )
    checks = "".join(
        f"<li><b>{escape(check['answer'])}</b>: {escape(check['text'])}. {escape(check['why'])}.</li>"
        for check in reading["checks"]
    )
    return f"{head}{f'<ul>{figures}</ul>' if figures else ''}<ul>{checks}</ul>"


def _lines(figures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line's name, each of its metrics with its interval, and n."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for figure in figures:
        lines.setdefault(figure["line"], []).append(figure)
    for line, mine in lines.items():
        shown = ", ".join(f"{figure['metric']} {figure['text']}" for figure in mine)
        yield f"{line}: {shown}; n = {'/'.join(str(n) for n in dict.fromkeys(figure['n'] for figure in mine))}"
