"""What a claim of the study is as data, and the shorthand in which claims are written (docs/method.md 10).

Tolerances: .05 of Gamma, rho or accuracy unless a predicate says otherwise (the study's own tables give one
configuration Gamma .224 to .45); "by" is half the study's difference where it gives one, and where it says
"at least", that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jcredit.study.predicates import Check, Number, above, mean_of, near


class Reading(NamedTuple):
    """A claim under one reading of what the study leaves open.

    Attributes:
      checks: its predicates; the claim is reproduced if all of them answer yes.
      ours: numbers shown beside the study's.
      control: numbers of the controls.
    """

    checks: tuple[Check, ...]
    ours: tuple[Number, ...]
    control: tuple[Number, ...]


class Claim(NamedTuple):
    """A claim of the study.

    Attributes:
      id: as in docs/method.md 10.
      phase: of the study.
      text: what it says.
      study: the study's figures.
      experiment: whose rows judge it.
      readings: by name; one called "" where nothing is left open.
      quick: blocks of the quick preset that stand for blocks of the full one.
      may_fail: labels whose flag worse_than_nothing is what the claim is about.
    """

    id: str
    phase: str
    text: str
    study: str
    experiment: str
    readings: Mapping[str, Reading]
    quick: Mapping[str, str] = {}
    may_fail: tuple[str, ...] = ()


TOL = 0.05
ACC = "test_accuracy"


def one(checks: Iterable[Check], ours: Iterable[Number], control: Iterable[Number]) -> dict[str, Reading]:
    """The readings of a claim that has one."""
    return {"": Reading(tuple(checks), tuple(ours), tuple(control))}


def metrics(line: str, *names: str) -> tuple[Number, ...]:
    """Several metrics of a line."""
    return tuple(mean_of(line, name) for name in names or ("gamma", "rho"))


def each(lines: Iterable[str], metric: str = "gamma") -> tuple[Number, ...]:
    """One metric of several lines."""
    return tuple(mean_of(line, metric) for line in lines)


def over(a: str, b: str, by: float = 0.0, metric: str = "gamma") -> Check:
    """Whether line a has more of a metric than line b."""
    return above(mean_of(a, metric), mean_of(b, metric), by)


def gamma_rho(line: str, gamma: float | tuple[float, float], rho: float | tuple[float, float]) -> tuple[Check, Check]:
    """Whether Gamma and rho of a line are near the study's."""
    return near(mean_of(line), gamma, TOL), near(mean_of(line, "rho"), rho, TOL)
