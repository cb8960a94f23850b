"""Small pure predicates on rows, of which the ledger's verdicts are made.

A ``Number`` is a quantity with a value at every seed; a ``Check`` judges numbers.  Its answer is *yes*, *no*,
*opposite* (an order that is significantly the other way round) or *unknown* (no rows, no interval, or too few seeds).
Each carries the sentence that a reader can judge it by.  Lines are named "block | label", or "label" where there are no
blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from jcredit.report import stats
from jcredit.report.schema import Row, number_at

Lines = Mapping[tuple[str, str], Sequence[Row]]
"""Rows of one experiment and preset by (block, label)."""

Answer = Literal["yes", "no", "opposite", "unknown"]
SEEDS_NEEDED = 6
"""Paired seeds below which no exact sign-flip test can reach p = .05."""
LEVEL = 0.05
WIDE = "interval too wide"
EDGE = "interval across the edge of what agrees"
UNMEASURED = "not measured in these rows"
UNORDERED = "a step against the order, not significant"
_WORST: tuple[Answer, ...] = ("opposite", "no", "unknown", "yes")
NAMES = {
    "gamma": "Gamma", "gamma_clamped": "clamped Gamma", "rho": "rho", "test_accuracy": "accuracy",
    "test_state_error": "state error",
    "dl_held_inner_product_eta1e-02_k5": "held-out loss change in 5 steps",
    "dl_held_inner_product_eta1e-03_k5": "held-out loss change in 5 steps of .001",
    "dl_held_inner_product_eta1e-02_k1": "held-out loss change in one step",
    "dl_held_inner_product_eta1e-03_k1": "held-out loss change in one step of .001",
    "dl_held_target_shift1e-01_eta1e-02_k5": "held-out loss change in 5 steps of target shift .1",
    "dl_held_target_shift1e-02_eta1e-02_k5": "held-out loss change in 5 steps of target shift .01",
    "dl_held_cosine_eta1e-02_k5": "held-out loss change in 5 steps of the cosine rule",
    "dl_held_target_shift1e-01_eta1e-03_k5": "held-out loss change in 5 steps of .001 of target shift .1",
    "dl_held_target_shift1e-02_eta1e-03_k5": "held-out loss change in 5 steps of .001 of target shift .01",
    "dl_held_cosine_eta1e-03_k5": "held-out loss change in 5 steps of .001 of the cosine rule",
    "dl_same_rms_all": "same-batch loss change, RMS credit", "dl_held_rms_all": "held-out loss change, RMS credit",
    "dl_same_raw_all": "same-batch loss change, raw credit",
}  # fmt: skip


class Number(NamedTuple):
    """A quantity with a value at each seed.

    Attributes:
      text: what it is.
      lines: the lines it needs.
      at: rows -> {seed: value}; a seed without a finite value is absent.
    """

    text: str
    lines: tuple[str, ...]
    at: Callable[[Lines], dict[int, float]]


class Outcome(NamedTuple):
    """What a check found.

    Attributes:
      answer: see ``Answer``.
      why: the figures it rests on, or what is missing.
      n: seeds it rests on.
      lack: what an unknown answer lacks, without figures.
      absent: lines that have no rows.
    """

    answer: Answer
    why: str
    n: int
    lack: str = ""
    absent: tuple[str, ...] = ()


class Check(NamedTuple):
    """A predicate.

    Attributes:
      text: what it asks.
      lines: the lines it needs.
      judge: rows -> outcome.
    """

    text: str
    lines: tuple[str, ...]
    judge: Callable[[Lines], Outcome]


def key_of(line: str) -> tuple[str, str]:
    """(block, label) of a line's name."""
    block, _, label = line.rpartition(" | ")
    return block, label


# --- numbers ----------------------------------------------------------------------------------------------------------


def mean_of(line: str, metric: str = "gamma") -> Number:
    """A metric of a line; the mean over seeds is what is judged."""
    path = metric if "." in metric else f"metrics.{metric}"

    def at(rows: Lines) -> dict[int, float]:
        values = {row["seed"]: number_at(row, path) for row in rows.get(key_of(line), ())}
        return {seed: value for seed, value in values.items() if value is not None}

    return Number(f"{NAMES.get(metric, metric)} of {_short(line)}", (line,), at)


def paired(a: str, b: str, metric: str = "gamma") -> Number:
    """A metric of line a minus that of line b at the same seed."""
    d = difference(mean_of(a, metric), mean_of(b, metric))
    return d._replace(text=f"{NAMES.get(metric, metric)} of {_short(a)} - {_short(b)}")


def difference(x: Number, y: Number | float) -> Number:
    """One number minus another at equal seeds, or minus a constant."""
    if isinstance(y, float | int):
        return Number(f"{x.text} - {y:g}", x.lines, lambda rows: {s: v - y for s, v in x.at(rows).items()})
    return Number(f"{x.text} - {y.text}", _all(x, y), _seedwise(x, y, lambda a, b: a - b))


def ratio(a: str, b: str, metric: str = "gamma") -> Number:
    """A metric of line a divided by that of line b at the same seed."""
    x, y = mean_of(a, metric), mean_of(b, metric)
    text = f"{NAMES.get(metric, metric)} of {_short(a)} / {_short(b)}"
    return Number(text, _all(x, y), _seedwise(x, y, lambda u, v: u / v if v else float("nan")))


def _seedwise(x: Number, y: Number, of: Callable[[float, float], float]) -> Callable[[Lines], dict[int, float]]:
    def at(rows: Lines) -> dict[int, float]:
        left, right = x.at(rows), y.at(rows)
        found = {seed: of(left[seed], right[seed]) for seed in left if seed in right}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    return at


def _all(*numbers: Number) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line for number in numbers for line in number.lines))


def _short(line: str) -> str:
    """A line's name without a heading that is a sentence."""
    block, label = key_of(line)
    return f"{label} ({block})" if block and len(block) <= 20 else label


# --- checks -----------------------------------------------------------------------------------------------------------


def near(x: Number, figure: float | tuple[float, float], tolerance: float, *, surely: bool = False) -> Check:
    """Whether the mean lies at the study's figure, or in its range, widened by a tolerance.

    An interval that lies outside is *no*.  One that is wider than that band is *unknown* (what is vague agrees with
    everything), and so is one across its edge where the mean is outside, or, if ``surely``, wherever the mean is.
    """
    low, high = figure if isinstance(figure, tuple) else (figure, figure)
    shown = f"{_num(low)}" if low == high else f"{_num(low)} to {_num(high)}"
    low, high = low - tolerance, high + tolerance

    def judge(rows: Lines) -> Outcome:
        s = stats.summary(x.at(rows).values())
        if s.n < 2:
            return _missing(x.lines, rows, s.n, 2)
        band = f"[{_num(low)}, {_num(high)}]"
        if s.high < low or s.low > high:
            return Outcome("no", f"{_interval(s)} is outside {band}", s.n)
        if s.high - s.low > high - low:
            return Outcome("unknown", f"{_interval(s)} is too wide for {band}", s.n, WIDE)
        if not low <= (s.low if surely else s.mean) <= (s.high if surely else s.mean) <= high:
            return Outcome("unknown", f"{_interval(s)} lies across the edge of {band}", s.n, EDGE)
        return Outcome("yes", f"{_interval(s)} {'lies within' if surely else 'agrees with'} {band}", s.n)

    return Check(f"{x.text} is near {shown}, tolerance {_num(tolerance)}", x.lines, judge)


def above(x: Number, y: Number | float, by: float = 0.0) -> Check:
    """Whether x exceeds y at equal seeds: exact sign-flip test, six seeds at least (the first 20 count), p <= .05.

    ``by`` is the smallest difference that the claim can mean: a 95% interval that lies below it is *no*, at any number
    of seeds (where ``by`` is 0 that still takes six), a mean below it whose interval reaches it *unknown*.
    """
    d = difference(x, y)
    other = f"{y:g}" if isinstance(y, float | int) else y.text

    def judge(rows: Lines) -> Outcome:
        values = list(d.at(rows).values())[: stats.MAX_SIGN_FLIPS]
        s = stats.summary(values)
        if by > 0 and 2 <= s.n < SEEDS_NEEDED and s.high < by:
            return Outcome("no", f"difference {_interval(s, sign=True)} is below {_num(by)}", s.n)
        if s.n < SEEDS_NEEDED:
            return _missing(d.lines, rows, s.n, SEEDS_NEEDED, f"difference {_interval(s, sign=True)}" if s.n else "")
        p = stats.sign_flip_p(values)
        why = f"difference {_interval(s, sign=True)}, p {'< 0.001' if p < 5e-4 else f'= {p:.3f}'}"
        if p > LEVEL:
            return Outcome("no", why, s.n) if s.high < by else Outcome("unknown", why, s.n, f"p > {LEVEL:g}")
        if s.mean < 0:
            return Outcome("opposite", f"{why}: the other way round", s.n)
        if s.mean < by:
            if s.high < by:
                return Outcome("no", f"{why}, less than {_num(by)}", s.n)
            return Outcome("unknown", f"{why}, about {_num(by)}", s.n, EDGE)
        return Outcome("yes", why, s.n)

    return Check(f"{x.text} > {other}" + (f" by {_num(by)} or more" if by else ""), d.lines, judge)


def best(x: Number, others: Sequence[Number]) -> Check:
    """Whether x is above all others; *opposite* if one of them is above x."""
    checks = [above(x, other) for other in others]

    def judge(rows: Lines) -> Outcome:
        found = [check.judge(rows) for check in checks]
        worst = min(found, key=lambda outcome: _WORST.index(outcome.answer))
        why = "; ".join(f"to {y.text}: {o.why}" for y, o in zip(others, found, strict=True))
        absent = tuple(dict.fromkeys(line for outcome in found for line in outcome.absent))
        return Outcome(worst.answer, why, min(o.n for o in found), worst.lack, absent)

    return Check(f"{x.text} > {', '.join(y.text for y in others)}", _all(x, *others), judge)


def same(x: Number, y: Number, tolerance: float) -> Check:
    """Whether the interval of the paired difference lies within a tolerance of zero."""
    check = near(difference(x, y), 0.0, tolerance, surely=True)
    return check._replace(text=f"{x.text} = {y.text}, tolerance {_num(tolerance)}")


def not_below(x: Number, y: Number | float, margin: float) -> Check:
    """Whether x is no more than a margin below y, a number or a figure: the interval of the difference decides."""
    d = difference(x, y)
    than = y.text if isinstance(y, Number) else _num(y)

    def judge(rows: Lines) -> Outcome:
        s = stats.summary(d.at(rows).values())
        if s.n < 2:
            return _missing(d.lines, rows, s.n, 2)
        why = f"difference {_interval(s, sign=True)}"
        if s.low > -margin or s.high < -margin:
            return Outcome("yes" if s.low > -margin else "no", why, s.n)
        return Outcome("unknown", f"{why} contains {_num(-margin)}", s.n, EDGE)

    return Check(f"{x.text} is at most {_num(margin)} below {than}", d.lines, judge)


def monotone(numbers: Sequence[Number], rising: bool = True) -> Check:
    """Whether numbers rise, or fall, along a list: their ends as in ``above``, and all means in order.

    A step that goes significantly the other way is *no*, one that does so in the mean alone *unknown*.
    """
    lines = _all(*numbers)
    up = [above(b, a) for a, b in pairwise(numbers)] if rising else [above(a, b) for a, b in pairwise(numbers)]
    ends = above(numbers[-1], numbers[0]) if rising else above(numbers[0], numbers[-1])

    def judge(rows: Lines) -> Outcome:
        outcome = ends.judge(rows)
        absent = [line for line in lines if not rows.get(key_of(line))]
        if absent:
            return _missing(lines, rows, 0, SEEDS_NEEDED)
        values = [x.at(rows) for x in numbers]
        common = set.intersection(*map(set, values))
        means = [stats.mean(at[seed] for seed in common) for at in values]
        why = f"means {' '.join(map(_num, means))}; ends: {outcome.why}"
        if outcome.answer in ("yes", "unknown") and any(step.judge(rows).answer == "opposite" for step in up):
            return Outcome("no", f"{why}; one step goes the other way", outcome.n)
        if outcome.answer == "yes" and means != sorted(means, reverse=not rising):
            return Outcome("unknown", f"{why}; one step goes the other way, not significantly", outcome.n, UNORDERED)
        return outcome._replace(why=why)

    text = " < ".join(x.text for x in (numbers if rising else numbers[::-1]))
    return Check(f"in this order, no step against it: {text}", lines, judge)


def _missing(lines: Sequence[str], rows: Lines, n: int, needed: int, why: str = "") -> Outcome:
    """Unknown, and what would have to be there."""
    absent = tuple(_short(line) for line in lines if not rows.get(key_of(line)))
    if absent:
        return Outcome("unknown", f"no rows: {', '.join(absent)}", 0, absent=absent)
    if not n:
        return Outcome("unknown", UNMEASURED, 0, UNMEASURED)
    lack = f"n = {n}; needs {needed}"
    return Outcome("unknown", f"{lack}{f' ({why})' if why else ''}", n, lack)


# --- figures as text --------------------------------------------------------------------------------------------------


def _num(value: float, sign: bool = False) -> str:
    """A figure with three decimals, four below .01, and two significant digits where those would show little."""
    plus, size = "+" if sign else "", abs(value)
    if 0 < size < 5e-4:
        return f"{value:{plus}.1e}"
    text = f"{value:{plus}.{4 if size < 0.01 else 3 if size < 10 else 1}f}"
    return text if sign else text.rstrip("0").rstrip(".")


def _interval(s: stats.Summary, sign: bool = False) -> str:
    if s.n < 2:
        return _num(s.mean, sign)
    return f"{_num(s.mean, sign)} [{_num(s.low, sign)}, {_num(s.high, sign)}]"


class Figure(NamedTuple):
    """A number over the seeds that have it.

    Attributes:
      metric: what is measured.
      line: of which line, or lines.
      mean: over seeds.
      low: lower end of the 95% t interval; None for a single seed.
      high: its upper end.
      n: seeds.
    """

    metric: str
    line: str
    mean: float
    low: float | None
    high: float | None
    n: int


def figures(numbers: Sequence[Number], rows: Lines) -> tuple[Figure, ...]:
    """Means and 95% intervals of those numbers that have rows."""
    found = []
    for x in numbers:
        if values := x.at(rows):
            s = stats.summary(values.values())
            metric, _, line = x.text.partition(" of ")
            low, high = (s.low, s.high) if s.n > 1 else (None, None)
            found.append(Figure(metric, line, s.mean, low, high, s.n))
    return tuple(found)


def figure_text(figure: Figure) -> str:
    """Mean and interval as in 0.44 [0.41, 0.48]."""
    if figure.low is None or figure.high is None:
        return _num(figure.mean)
    return f"{_num(figure.mean)} [{_num(figure.low)}, {_num(figure.high)}]"
