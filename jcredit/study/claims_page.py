"""The ledger as data and as a page: one line per claim, and below the table what each verdict is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jcredit.files import plain
from jcredit.study.claims import VERDICTS, Judgement, Verdict
from jcredit.study.predicates import LEVEL, SEEDS_NEEDED, Figure, figure_text


def to_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Plain dictionaries, with their readings, and each number also as ``text``."""
    return [plain(_data(verdict)) for verdict in verdicts]


def _data(value: Any) -> Any:
    """Named tuples as dictionaries, at every depth; numbers to six digits, as many as machines agree on."""
    if isinstance(value, Figure):
        ends = {"mean": value.mean, "low": value.low, "high": value.high}
        numbers = {name: None if x is None else float(f"{x:.6g}") for name, x in ends.items()}
        return value._asdict() | numbers | {"text": figure_text(value)}
    if hasattr(value, "_asdict"):
        return {name: _data(part) for name, part in value._asdict().items()}
    return [_data(part) for part in value] if isinstance(value, tuple) else value


def render_markdown(verdicts: Sequence[Verdict]) -> str:
    """The ledger as a page that lies in the results directory: counts, how verdicts are made, the table, each claim."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    shown = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])
    quick = sum(verdict.source.endswith("/quick") for verdict in verdicts)
    absent = sum("/" not in verdict.source for verdict in verdicts)
    lines = [
        "# The study's claims, judged",
        "",
        f"**{len(verdicts)} claims: {shown or 'none'}.** {len(verdicts) - quick - absent} rest on full rows, {quick} on"
        f" rows at quick length (far shorter than the study), {absent} have no rows.",
        "",
        "Built from rows by code; nothing here is typed by hand. Below the table stand, claim by claim, the study's"
        " figures, ours beside controls, as mean [95% t interval] over n seeds, and the predicates that the verdict is"
        " made of.",
        "",
        f"- An order needs an exact sign-flip test of paired differences with p <= {LEVEL:g}: {SEEDS_NEEDED} seeds at"
        " least. A size needs a mean within a tolerance of the study's figure and an interval no wider than that band,"
        " an equality the whole interval within it.",
        "- Some predicates yes and some no: *partly*, whatever six seeds leave open. A predicate that wants rows or"
        " seeds leaves its claim *undecided*, and so does one that six seeds leave open where the others do not"
        " disagree, be they all yes or all no. So does an estimator that diverges or whose relative error (of a field,"
        " a tangent map, a predicted state, a terminal gradient) ends above that of zero; where another reading of it"
        " does not, that one judges the claim (a vector field of ours, given the size of each sample's error). Excepted"
        " are estimators of which the claim itself says that they fail; they are named.",
        "- *Robust*, *fragile*: the verdict is, or is not, the same under all readings of what the study leaves open"
        " that were run.",
        "- No correction is made for the number of claims. Quick presets are shorter, some also narrower; the notes"
        " below each table say how.",
        "",
        "| id | claim | verdict | predicates | rows |",
        "|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(_cell(text) for text in _cells(verdict)) + " |" for verdict in verdicts]
    lines += ["", "## Claim by claim", ""]
    for verdict in verdicts:
        lines += _section(verdict)
    return "\n".join(lines).rstrip() + "\n"


def _cells(verdict: Verdict) -> tuple[str, ...]:
    strength = f", {verdict.robustness}" if verdict.robustness else ""
    return (
        f"[{verdict.id}](#{verdict.id.lower()}-{verdict.verdict.replace(' ', '-')})", verdict.claim,
        f"**{verdict.verdict}**{strength}", verdict.why, _link(verdict),
    )  # fmt: skip


def _link(verdict: Verdict) -> str:
    if "/" not in verdict.source:
        return f"{verdict.source}, none yet"
    quick = ", at quick length" if verdict.source.endswith("/quick") else ""
    return f"[{verdict.source}]({verdict.source}/table.md){quick}, n = {verdict.n}"


def _section(verdict: Verdict) -> Iterator[str]:
    """A claim: what it says, the study's figures, and what each reading of it rests on."""
    yield from (f"### {verdict.id}: {verdict.verdict}", "", f"{verdict.claim}. Rows: {_link(verdict)}.", "")
    yield from (f"The study: {verdict.study}.", "")
    for judgement in verdict.readings:
        name = f"**{judgement.reading}**: {judgement.verdict}, " if judgement.reading else ""
        yield from (f"{name}{judgement.why}.", "")
        yield from _figures(judgement)
        yield from (f"- **{check.answer}**: {check.text}. {check.why}." for check in judgement.checks)
        yield ""


def _figures(judgement: Judgement) -> Iterator[str]:
    """A table of the numbers of a reading: a line of the experiment each, a metric per column, controls last."""
    metrics = list(dict.fromkeys(figure.metric for figure in (*judgement.ours, *judgement.control)))
    if not metrics:
        return
    yield f"| line | {' | '.join(metrics)} | n |"
    yield f"|---|{'---:|' * len(metrics)}---:|"
    for mark, figures in (("", judgement.ours), ("control: ", judgement.control)):
        lines: dict[str, dict[str, Figure]] = {}
        for figure in figures:
            lines.setdefault(figure.line, {})[figure.metric] = figure
        yield from (_row(mark + line, metrics, found) for line, found in lines.items())
    yield ""


def _row(line: str, metrics: Sequence[str], found: Mapping[str, Figure]) -> str:
    """A line of such a table; its n are one number where they agree."""
    cells = [figure_text(found[metric]) if metric in found else "" for metric in metrics]
    seeds = "/".join(str(n) for n in dict.fromkeys(figure.n for figure in found.values()))
    return f"| {' | '.join(_cell(text) for text in (line, *cells))} | {seeds} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
