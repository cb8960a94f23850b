"""Small-sample statistics against numbers worked out by hand."""

import math

import pytest

from jcredit.report import stats


def test_mean_and_sd_by_hand():
    assert stats.mean([1, 2, 3, 6]) == 3.0
    # squared deviations 4 + 1 + 0 + 9 = 14, divided by n - 1 = 3
    assert stats.sd([1, 2, 3, 6]) == pytest.approx(math.sqrt(14 / 3))


def test_one_value_has_a_mean_and_no_spread():
    assert stats.mean([0.5]) == 0.5
    assert math.isnan(stats.sd([0.5]))
    assert all(math.isnan(end) for end in stats.interval95([0.5]))
    assert math.isnan(stats.mean([]))


def test_interval_is_students():
    # mean 2, sd 1, n 3; the t table's 97.5% point for two degrees of freedom is 4.3027
    low, high = stats.interval95([1, 2, 3])
    assert low == pytest.approx(2 - 4.302652730 / math.sqrt(3), abs=1e-8)
    assert high == pytest.approx(2 + 4.302652730 / math.sqrt(3), abs=1e-8)


def test_missing_values_are_left_out_and_counted():
    s = stats.summary([1.0, None, math.nan, 3.0, math.inf])
    assert (s.mean, s.n) == (2.0, 2)
    assert s.sd == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("n", [1, 2, 3, 6, 10])
def test_sign_flip_of_differences_that_agree_is_two_patterns_in_all(n):
    # Only the observed pattern and its mirror image reach the observed sum: p = 2 / 2^n, so three seeds give 0.25.
    assert stats.sign_flip_p([0.1 * (i + 1) for i in range(n)]) == 2 / 2**n
    assert stats.sign_flip_p([-0.1 * (i + 1) for i in range(n)]) == 2 / 2**n


def test_sign_flip_counts_every_pattern():
    # Signs of (3, 1, -2): |sum| over the four patterns up to mirror image is 2 (observed), 6, 4, 0; so 3 of 4 reach 2.
    assert stats.sign_flip_p([3, 1, -2]) == 0.75


def test_sign_flip_ties_survive_rounding():
    # |sums| of (.1, .1, .1, -.1): .4 in 2 patterns, .2 in 8, as observed, and 0 in 6.  In floating point some of the 8
    # fall just below the observed one.
    assert stats.sign_flip_p([0.1, 0.1, 0.1, -0.1]) == 10 / 16
    assert stats.sign_flip_p([0.0, 0.0]) == 1.0


def test_sign_flip_limits():
    assert stats.sign_flip_p([1.0] * 20) == 2 / 2**20
    assert stats.sign_flip_p([1.0, None, 1.0]) == 0.5
    assert math.isnan(stats.sign_flip_p([None]))
    with pytest.raises(ValueError, match="21 differences"):
        stats.sign_flip_p([1.0] * 21)
