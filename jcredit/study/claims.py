"""The ledger: for every claim of the study its figure, ours, the control, and a verdict computed from rows.

    claims(Path("results"), load_experiments(None)) -> verdicts

What is claimed is in ``early_claims`` and ``late_claims``, how it is judged in ``predicates``, the page of it in
``claims_page``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jcredit.report.schema import WORSE_THAN_NOTHING, Row, grouped, read_rows
from jcredit.study.early_claims import early
from jcredit.study.experiment import Experiment, grid_of, in_grid
from jcredit.study.late_claims import late
from jcredit.study.predicates import SEEDS_NEEDED, Figure, Lines, Number, Outcome, figures, key_of
from jcredit.study.statements import Claim, Reading

CLAIMS: tuple[Claim, ...] = (*early(), *late())
PRESETS = ("full", "quick")
VERDICTS = ("reproduced", "partly", "not reproduced", "reversed", "undecided")
NAMED = 3
"""Missing lines that are named before the rest is counted."""


class Judged(NamedTuple):
    """A predicate and what it found."""

    text: str
    answer: str
    why: str


class Judgement(NamedTuple):
    """A claim under one reading of what the study leaves open.

    Attributes:
      reading: its name; "" where nothing is left open.
      verdict: one of ``VERDICTS``.
      why: what it rests on, or what is missing.
      ours: the numbers it is about.
      control: those of the controls.
      checks: its predicates.
    """

    reading: str
    verdict: str
    why: str
    ours: tuple[Figure, ...]
    control: tuple[Figure, ...]
    checks: tuple[Judged, ...]


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
      verdict: one of ``VERDICTS``.
      why: what it rests on, or what is missing; of several readings, how many say what.
      source: "experiment/preset" of its rows, or the experiment alone.
      n: the fewest seeds that one of its predicates had.
      robustness: "robust" or "fragile" where more than one reading has been run, else "".
      readings: what each reading that has rows says; all of them where none has.
    """

    id: str
    phase: str
    claim: str
    study: str
    verdict: str
    why: str
    source: str
    n: int
    robustness: str
    readings: tuple[Judgement, ...]


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
    readings = tuple(_judgement(name, claim.readings[name], part, rows, blocks) for name, part in parts.items())
    telling = {name: r for name, r in run.items() if not parts[name].broken} or run
    seeds = [len(x.at(rows)) for r in telling.values() for x in r.ours]
    seeds += [outcome.n for name in telling or parts for outcome in parts[name].outcomes]
    return Verdict(
        claim.id, claim.phase, claim.text, claim.study,
        verdict if run else "undecided", _renamed(why, blocks) if run else "no rows",
        f"{claim.experiment}/{preset}" if run else claim.experiment, min((n for n in seeds if n), default=0),
        robustness, readings,
    )  # fmt: skip


def _judgement(name: str, reading: Reading, part: _Part, rows: Lines, blocks: Mapping[str, str]) -> Judgement:
    """A part with its numbers, under the names of the blocks that were looked at."""

    def shown(numbers: Sequence[Number]) -> tuple[Figure, ...]:
        return tuple(figure._replace(line=_renamed(figure.line, blocks)) for figure in figures(numbers, rows))

    checks = tuple(
        Judged(_renamed(check.text, blocks), outcome.answer, _renamed(outcome.why, blocks))
        for check, outcome in zip(reading.checks, part.outcomes, strict=True)
    )
    why = _renamed(part.why, blocks)
    return Judgement(name, part.verdict, why, shown(reading.ours), shown(reading.control), checks)


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
    excused = [
        line for line in _lines([reading])
        if key_of(line)[1] in may_fail
        and any(row["status"] != "ok" or _broken([row]) for row in rows.get(key_of(line), ()))
    ]  # fmt: skip
    spared = (
        f"; counted though diverged or worse than nothing, as the claim has it fail: {', '.join(excused)}"
        if excused
        else ""
    )
    return _Part(verdict_of(outcomes), _why(outcomes) + spared, outcomes)


def _trouble(reading: Reading, rows: Lines, may_fail: Sequence[str]) -> tuple[str, bool]:
    """Why its rows can judge nothing, or "", and whether that is an estimator that ends worse than nothing."""
    for line in _lines([reading]):
        mine = rows.get(key_of(line), ())
        if len({row["config_hash"] for row in mine}) > 1 or len({row["seed"] for row in mine}) < len(mine):
            return f"{line} stands for more than one configuration", False
        diverged = sum(row["status"] != "ok" for row in mine)
        if diverged and key_of(line)[1] not in may_fail:
            return f"{line}: diverged at {diverged} of {len(mine)} seeds", False
        broken = _broken(mine)
        if broken and key_of(line)[1] not in may_fail:
            return f"{line}: the estimator ends worse than nothing at {broken} of {len(mine)} seeds", True
    return "", False


def _broken(rows: Sequence[Row]) -> int:
    """How many of them end worse than nothing."""
    return sum(WORSE_THAN_NOTHING in (row.get("flags") or ()) for row in rows)


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
    names: dict[tuple[str, bool], list[str]] = {}
    for name, part in parts.items():
        names.setdefault((part.verdict, part.broken), []).append(name)
    why = "; ".join(
        f"{verdict} under {mine[0] if len(mine) == 1 else f'{len(mine)} of {readings} readings'}"
        + (", where an estimator ends worse than nothing" if broken else "")
        for (verdict, broken), mine in names.items()
    )
    why += f"; {len(parts)} of {readings} readings run" if len(parts) < readings else ""
    decided = [verdict for verdict, _ in names if verdict != "undecided"]
    if len(decided) > 1:
        some = any(verdict in ("reproduced", "partly") for verdict in decided)
        return "partly" if some else "not reproduced", why, "fragile"
    if decided and all(part.broken for part in parts.values() if part.verdict == "undecided"):
        return decided[0], why, "robust" if 1 < len(parts) == len(names[decided[0], False]) else ""
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
