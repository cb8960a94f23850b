"""The ledger: for every claim of the study its figure, ours, the control, and a verdict computed from rows.

    claims(Path("results"), load_experiments(None)) -> verdicts; render_markdown(verdicts); to_json(verdicts)

What is claimed is in ``early_claims`` and ``late_claims``, how it is judged in ``predicates``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jcredit.files import plain
from jcredit.report.schema import WORSE_THAN_NOTHING, Row, grouped, read_rows
from jcredit.study.early_claims import early
from jcredit.study.experiment import Experiment, grid_of, in_grid
from jcredit.study.late_claims import late
from jcredit.study.predicates import LEVEL, SEEDS_NEEDED, Lines, Number, Outcome, figures, key_of
from jcredit.study.statements import Claim, Reading

CLAIMS: tuple[Claim, ...] = (*early(), *late())
PRESETS = ("full", "quick")
VERDICTS = ("reproduced", "partly", "not reproduced", "reversed", "undecided")
DASH = "\N{EN DASH}"
NAMED = 3
"""Missing lines that are named before the rest is counted."""


class Judged(NamedTuple):
    """A predicate and what it found."""

    reading: str
    text: str
    answer: str
    why: str


class _Part(NamedTuple):
    """A claim under one reading: verdict, why, what each predicate found, and whether an estimator of it is broken."""

    verdict: str
    why: str
    outcomes: list[Outcome]
    broken: bool = False


class Verdict(NamedTuple):
    """A line of the ledger.

    Attributes:
      id: of the claim.
      phase: of the study.
      claim: what it says.
      study: the study's figures.
      ours: mean, 95% interval and n of each number it rests on.
      control: the same of the controls.
      verdict: one of ``VERDICTS``.
      why: what it rests on, or what is missing.
      source: "experiment/preset" of its rows, or the experiment alone.
      n: the fewest seeds that one of its predicates had.
      robustness: "robust" or "fragile" where more than one reading has been run, else "".
      checks: its predicates.
    """

    id: str
    phase: str
    claim: str
    study: str
    ours: str
    control: str
    verdict: str
    why: str
    source: str
    n: int
    robustness: str
    checks: tuple[Judged, ...]


def claims(results_dir: Path, experiments: Mapping[str, Experiment] | None = None) -> list[Verdict]:
    """Every claim judged from the rows under a directory.

    Args:
      results_dir: where rows are, as ``<experiment>/<preset>/rows.jsonl``.
      experiments: if given, rows count under the present labels and blocks of their scripts, and only those of the
        present grid; else as the rows themselves name them.

    Raises:
      ResultsError: rows that cannot be read.
      ConfigError: an experiment without such a preset.
    """
    found: dict[tuple[str, str], dict[tuple[str, str], list[Row]]] = {}
    for name in dict.fromkeys(claim.experiment for claim in CLAIMS):
        for preset in PRESETS:
            rows: list[Row] = read_rows(results_dir / name / preset / "rows.jsonl", name, preset)
            script = (experiments or {}).get(name)
            rows = in_grid(rows, grid_of(script, preset)) if script else rows
            found[name, preset] = {
                (block, label): lines for block, labels in grouped(rows).items() for label, lines in labels.items()
            }
    return [judge(claim, {p: found[claim.experiment, p] for p in PRESETS}) for claim in CLAIMS]


def judge(claim: Claim, by_preset: Mapping[str, Lines]) -> Verdict:
    """One claim.

    Args:
      claim: the claim.
      by_preset: {"full": rows, "quick": rows}; the preset that has the most of its lines is used, full before quick.
    """
    needed = _lines(claim.readings.values())
    seen = {preset: _aliased(by_preset.get(preset, {}), _stand_ins(claim, preset)) for preset in PRESETS}
    has = {preset: sum(bool(rows.get(key_of(line))) for line in needed) for preset, rows in seen.items()}
    preset = max(PRESETS, key=lambda p: (has[p], p == "full"))
    rows, blocks = seen[preset], _stand_ins(claim, preset)
    run = {name: r for name, r in claim.readings.items() if any(rows.get(key_of(line)) for line in _lines([r]))}
    parts = {name: _judge_reading(r, rows, claim.may_fail) for name, r in (run or claim.readings).items()}
    verdict, why, robustness = _together(parts, len(claim.readings))
    if 0 < has["full"] < len(needed) and preset == "quick":
        why += f"; full rows are there for {has['full']} of {len(needed)} lines"
    judged = tuple(
        Judged(name, _renamed(check.text, blocks), outcome.answer, _renamed(outcome.why, blocks))
        for name, part in parts.items()
        for check, outcome in zip(claim.readings[name].checks, part.outcomes, strict=True)
    )
    telling = {name: r for name, r in run.items() if not parts[name].broken} or run
    seeds = [len(x.at(rows)) for r in telling.values() for x in r.ours]
    seeds += [outcome.n for name in telling or parts for outcome in parts[name].outcomes]
    return Verdict(
        claim.id, claim.phase, claim.text, claim.study,
        _renamed(_shown({name: r.ours for name, r in run.items()}, rows), blocks),
        _renamed(_shown({name: r.control for name, r in run.items()}, rows), blocks),
        verdict if run else "undecided", _renamed(why, blocks) if run else "no rows",
        f"{claim.experiment}/{preset}" if run else claim.experiment, min((n for n in seeds if n), default=0),
        robustness, judged,
    )  # fmt: skip


def verdict_of(outcomes: Sequence[Outcome]) -> str:
    """The verdict that a claim's predicates give together.

    Any unknown for want of rows or seeds (fewer than six): *undecided*.  Else some yes and some no: *partly*, whatever
    six seeds have left open; any unknown: *undecided*; all yes: *reproduced*; all of them the other way round:
    *reversed*; none yes: *not reproduced*.
    """
    answers = {outcome.answer for outcome in outcomes}
    if not answers or any(outcome.answer == "unknown" and outcome.n < SEEDS_NEEDED for outcome in outcomes):
        return "undecided"
    if "yes" in answers and answers & {"no", "opposite"}:
        return "partly"
    if "unknown" in answers:
        return "undecided"
    return {frozenset({"yes"}): "reproduced", frozenset({"opposite"}): "reversed"}.get(
        frozenset(answers), "not reproduced"
    )


def _judge_reading(reading: Reading, rows: Lines, may_fail: Sequence[str]) -> _Part:
    """Its verdict, which is open if its rows can judge nothing."""
    outcomes = [check.judge(rows) for check in reading.checks]
    trouble, broken = _trouble(reading, rows, may_fail)
    if trouble:
        return _Part("undecided", trouble, outcomes, broken)
    return _Part(verdict_of(outcomes), _why(outcomes), outcomes)


def _trouble(reading: Reading, rows: Lines, may_fail: Sequence[str]) -> tuple[str, bool]:
    """Why its rows can judge nothing, or "", and whether that is an estimator that ends worse than nothing."""
    for line in _lines([reading]):
        mine = rows.get(key_of(line), ())
        if len({row["config_hash"] for row in mine}) > 1 or len({row["seed"] for row in mine}) < len(mine):
            return f"{line} stands for more than one configuration", False
        diverged = sum(row["status"] != "ok" for row in mine)
        if diverged and key_of(line)[1] not in may_fail:
            return f"{line}: diverged at {diverged} of {len(mine)} seeds", False
        broken = sum(WORSE_THAN_NOTHING in (row.get("flags") or ()) for row in mine)
        if broken and key_of(line)[1] not in may_fail:
            return f"{line}: the estimator ends worse than nothing at {broken} of {len(mine)} seeds", True
    return "", False


def _why(outcomes: Sequence[Outcome]) -> str:
    """How many predicates say yes, how many no, and what the others lack."""
    counts = Counter(outcome.answer for outcome in outcomes)
    words = {"yes": "yes", "no": "no", "opposite": "the other way round", "unknown": "open"}
    text = ", ".join(f"{counts[a]} {word}" for a, word in words.items() if counts[a])
    lacking = list(dict.fromkeys(o.lack for o in outcomes if o.lack))
    if absent := list(dict.fromkeys(line for o in outcomes for line in o.absent)):
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        lacking.append(f"no rows: {', '.join(absent[:NAMED])}{more}")
    against = verdict_of(outcomes) == "undecided" and _refuted(outcomes)
    text += f": {'; '.join(lacking)}" if lacking else ""
    return text + ("; what six seeds did tell is against it" if against else "")


def _refuted(outcomes: Sequence[Outcome]) -> bool:
    """Whether six seeds or more say no to one of them: these rows do not bear the claim out, whatever is open."""
    return any(outcome.answer in ("no", "opposite") and outcome.n >= SEEDS_NEEDED for outcome in outcomes)


def _together(parts: Mapping[str, _Part], readings: int) -> tuple[str, str, str]:
    """Verdict, why and robustness of a claim from what each reading that has been run says of it.

    A reading whose estimator is broken says nothing of the claim: the others judge it, and then it is never robust.
    """
    if readings == 1:
        part = next(iter(parts.values()))
        return part.verdict, part.why, ""
    by_verdict: dict[str, list[str]] = {}
    for name, part in parts.items():
        by_verdict.setdefault(part.verdict, []).append(name)
    why = "; ".join(f"{part.verdict} under {name} ({part.why})" for name, part in parts.items())
    holds = by_verdict.get("reproduced", [])
    why = (f"holds under {', '.join(holds)}: " if 0 < len(holds) < len(parts) else "") + why
    why += f"; {len(parts)} of {readings} readings run" if len(parts) < readings else ""
    decided = [verdict for verdict in by_verdict if verdict != "undecided"]
    if len(decided) > 1:
        some = any(verdict in ("reproduced", "partly") for verdict in decided)
        return "partly" if some else "not reproduced", why, "fragile"
    if decided and all(part.broken for part in parts.values() if part.verdict == "undecided"):
        return decided[0], why, "robust" if 1 < len(parts) == len(by_verdict[decided[0]]) else ""
    return "undecided", why, ""


def _lines(readings: Iterable[Reading]) -> list[str]:
    """The lines that their predicates need."""
    return list(dict.fromkeys(line for r in readings for check in r.checks for line in check.lines))


def _stand_ins(claim: Claim, preset: str) -> Mapping[str, str]:
    """Blocks of a preset that stand for blocks of the full one."""
    return claim.quick if preset == "quick" else {}


def _renamed(text: str, blocks: Mapping[str, str]) -> str:
    """A text with the blocks that were looked at in place of those they stand for."""
    for block, own in blocks.items():
        text = text.replace(block, own)
    return text


def _aliased(rows: Lines, blocks: Mapping[str, str]) -> Lines:
    """Rows under the blocks they stand for as well."""
    stand_in = {
        (block, label): found
        for block, own in blocks.items() for (there, label), found in rows.items() if there == own
    }  # fmt: skip
    return {**rows, **stand_in}


def _shown(numbers: Mapping[str, Sequence[Number]], rows: Lines) -> str:
    """Numbers as text, those of a reading after its name; what has no rows is left out."""
    texts = {name: figures([x for x in mine if x.at(rows)], rows) for name, mine in numbers.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values())) or DASH
    return " / ".join(f"{name}: {text}" for name, text in texts.items() if text) or DASH


# --- the page ---------------------------------------------------------------------------------------------------------


def to_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Plain dictionaries, predicates included."""
    return [plain(v._asdict() | {"checks": [check._asdict() for check in v.checks]}) for v in verdicts]


def render_markdown(verdicts: Sequence[Verdict]) -> str:
    """The ledger as a page that lies in the results directory: counts, the table, and below it every predicate."""
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
        "Built from rows by code; nothing here is typed by hand. Numbers are mean [95% t interval] over n seeds.",
        "",
        f"- An order needs an exact sign-flip test of paired differences with p <= {LEVEL:g}: {SEEDS_NEEDED} seeds at"
        " least. A size needs a mean within a tolerance of the study's figure and an interval no wider than that band,"
        " an equality the whole interval within it.",
        "- Some predicates yes and some no: *partly*, whatever six seeds leave open. A predicate that wants rows or"
        " seeds leaves its claim *undecided*, and so does one that six seeds leave open where the others do not"
        " disagree, be they all yes or all no. So does an estimator that diverges or whose relative error (of a field,"
        " a tangent map, a predicted state, a terminal gradient) ends above that of zero; where another reading of it"
        " does not, that one judges the claim.",
        "- *Robust*, *fragile*: the verdict is, or is not, the same under all readings of what the study leaves open"
        " that were run.",
        "- No correction is made for the number of claims. Quick presets are shorter, some also narrower; the notes"
        " below each table say how.",
        "",
        "| id | claim | the study | ours | control | verdict | why | rows |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(_cell(text) for text in _cells(verdict)) + " |" for verdict in verdicts]
    lines += ["", "## Predicates", ""]
    for verdict in verdicts:
        lines += [f"### {verdict.id}: {verdict.verdict}", "", f"{verdict.claim}. Rows: {_link(verdict)}.", ""]
        lines += [
            f"- **{check.answer}**{f' ({check.reading})' if check.reading else ''}: {check.text}. {check.why}."
            for check in verdict.checks
        ]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def _cells(verdict: Verdict) -> tuple[str, ...]:
    strength = f", {verdict.robustness}" if verdict.robustness else ""
    return (
        f"[{verdict.id}](#{verdict.id.lower()}-{verdict.verdict.replace(' ', '-')})", verdict.claim, verdict.study,
        verdict.ours, verdict.control, f"**{verdict.verdict}**{strength}", verdict.why, _link(verdict),
    )  # fmt: skip


def _link(verdict: Verdict) -> str:
    if "/" not in verdict.source:
        return f"{verdict.source}, none yet"
    quick = ", at quick length" if verdict.source.endswith("/quick") else ""
    return f"[{verdict.source}]({verdict.source}/table.md){quick}, n = {verdict.n}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
