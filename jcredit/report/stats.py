"""Small-sample statistics over seeds: mean, standard deviation, t interval and an exact paired test.

A missing value (``None``, nan or infinite: a run that diverged, a metric that was not measured) is left out, and the
``n`` that is reported is the number of values that were left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

MAX_SIGN_FLIPS = 20


class Summary(NamedTuple):
    """Mean, standard deviation (n - 1), 95% t interval and number of the values that were present."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


def present(values: Iterable[float | None]) -> np.ndarray:
    """Returns the finite values, in order, as a float64 vector."""
    return np.asarray([float(v) for v in values if v is not None and math.isfinite(v)], dtype=np.float64)


def mean(values: Iterable[float | None]) -> float:
    """Arithmetic mean of the values that are present; nan if there is none."""
    x = present(values)
    return float(x.mean()) if x.size else math.nan


def sd(values: Iterable[float | None]) -> float:
    """Sample standard deviation (divisor n - 1) of the values that are present; nan if there are fewer than two."""
    x = present(values)
    return float(x.std(ddof=1)) if x.size > 1 else math.nan


def interval95(values: Iterable[float | None]) -> tuple[float, float]:
    """Two-sided 95% interval of the mean, mean +- t(n - 1) sd / sqrt(n), Student's t; (nan, nan) below two values."""
    x = present(values)
    if x.size < 2:
        return math.nan, math.nan
    from scipy.special import stdtrit  # Student t's quantile function; comes with jax and takes a while to load

    half = float(stdtrit(x.size - 1, 0.975)) * sd(x) / math.sqrt(x.size)
    return float(x.mean()) - half, float(x.mean()) + half


def sign_flip_p(differences: Iterable[float | None]) -> float:
    """Exact two-sided sign-flip permutation test of paired differences (Fisher 1935).

    Under the null hypothesis each difference is as likely as its negative, so p is the share of the 2^n sign patterns
    whose absolute sum is at least the observed one.  The smallest p it can give is 2 / 2^n: **three seeds can never
    give p < 0.25**, five never p < 0.0625; six give p = 0.03125 if all differences agree in sign.

    Args:
      differences: one paired difference per seed; missing ones are left out.

    Returns:
      p in (0, 1]; nan if no difference is present.

    Raises:
      ValueError: more than 20 differences, where enumerating all patterns stops being cheap.
    """
    x = present(differences)
    if not x.size:
        return math.nan
    if x.size > MAX_SIGN_FLIPS:
        raise ValueError(f"sign_flip_p got {x.size} differences; it enumerates 2^n patterns, so give at most 20")
    sums = np.zeros(1)
    for d in x:
        sums = np.concatenate([sums + d, sums - d])
    # Patterns that tie with the observed one must count although their sums round differently.
    tolerance = 1e-12 * np.abs(x).sum()
    return float(np.mean(np.abs(sums) >= abs(x.sum()) - tolerance))


def summary(values: Iterable[float | None]) -> Summary:
    """Mean, sd, 95% interval and n of the values that are present."""
    x = present(values)
    return Summary(mean(x), sd(x), *interval95(x), int(x.size))
