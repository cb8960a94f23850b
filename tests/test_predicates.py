"""What claims are judged by: every predicate on made-up rows."""

import math

import pytest
from made_rows import SIX, made_up

from jcredit.study.predicates import (
    Figure,
    above,
    best,
    figure_text,
    figures,
    key_of,
    mean_of,
    monotone,
    near,
    not_below,
    paired,
    ratio,
    same,
)


def gammas(**values):
    return made_up({label: {"gamma": value} for label, value in values.items()})


X, Y, Z = mean_of("x"), mean_of("y"), mean_of("z")
WIDE = [0.1, 0.9, 0.2, 0.8, 0.5, 0.4]


@pytest.mark.parametrize(
    ("check", "values", "answer"),
    [
        (near(X, 0.5, 0.05), {"x": 0.54}, "yes"),
        (near(X, 0.5, 0.05), {"x": 0.56}, "no"),
        (near(X, 0.5, 0.05), {"x": WIDE}, "unknown"),
        (near(X, 0.5, 0.05), {"x": [0.545, 0.55, 0.57, 0.56, 0.58, 0.555]}, "unknown"),  # the mean, .56, is outside
        (near(X, 0.5, 0.05), {"x": [0.525, 0.53, 0.55, 0.54, 0.56, 0.535]}, "yes"),  # .54, its interval up to .554
        (near(X, 0.5, 0.05), {"x": [0.4, 0.45, 0.5, 0.5, 0.55, 0.6]}, "unknown"),  # .43 to .57: wider than the band
        (near(X, (0.2, 0.5), 0.05), {"x": 0.3}, "yes"),
        (near(X, (0.2, 0.5), 0.0), {"x": 0.1}, "no"),
        (near(ratio("x", "y"), (3, 7), 1.0), {"x": 0.5, "y": 0.1}, "yes"),
        (near(ratio("x", "y"), (3, 7), 1.0), {"x": 0.1, "y": 0.1}, "no"),
        (near(ratio("x", "y"), (3, 7), 1.0), {"x": 0.1, "y": 0}, "unknown"),  # about zero, of either sign
        (near(paired("x", "y"), 0.1, 0.01), {"x": 0.5, "y": 0.4}, "yes"),
        (above(X, Y), {"x": 0.50, "y": 0.49}, "yes"),
        (above(X, Y), {"x": 0.49, "y": 0.50}, "opposite"),
        (above(X, Y), {"x": WIDE, "y": 0.5}, "unknown"),
        (above(X, Y, by=0.1), {"x": 0.55, "y": 0.5}, "no"),
        (above(X, Y, by=0.1), {"x": 0.65, "y": 0.5}, "yes"),
        (above(X, Y, by=0.1), {"x": 0.45, "y": 0.5}, "opposite"),
        (above(X, Y, by=0.1), {"x": [0.52, 0.47, 0.51, 0.48, 0.53, 0.49], "y": 0.5}, "no"),  # p > .05, surely < .1
        # Significant, and its interval has what is asked for inside: neither as large as that nor surely smaller.
        (above(X, Y, by=0.1), {"x": [0.55, 0.62, 0.56, 0.63, 0.57, 0.6], "y": 0.5}, "unknown"),
        (above(X, 0.3), {"x": 0.4}, "yes"),
        (above(X, 0.0), {"x": -0.4}, "opposite"),
        (best(X, [Y, Z]), {"x": 0.5, "y": 0.4, "z": 0.3}, "yes"),
        (best(X, [Y, Z]), {"x": 0.5, "y": 0.6, "z": 0.3}, "opposite"),
        (best(X, [Y, Z]), {"x": 0.5, "y": 0.4, "z": WIDE}, "unknown"),
        (same(X, Y, 0.05), {"x": 0.5, "y": 0.53}, "yes"),
        (same(X, Y, 0.05), {"x": 0.5, "y": 0.6}, "no"),
        (same(X, Y, 0.05), {"x": [0.525, 0.53, 0.55, 0.54, 0.56, 0.535], "y": 0.5}, "unknown"),  # up to .054
        (same(X, Y, 0.05), {"x": WIDE, "y": 0.5}, "unknown"),
        (not_below(X, Y, 0.05), {"x": 0.9, "y": 0.5}, "yes"),
        (not_below(X, Y, 0.05), {"x": 0.47, "y": 0.5}, "yes"),
        (not_below(X, Y, 0.05), {"x": 0.4, "y": 0.5}, "no"),
        (not_below(X, Y, 0.05), {"x": WIDE, "y": 0.5}, "unknown"),
        (monotone([X, Y, Z]), {"x": 0.1, "y": 0.2, "z": 0.3}, "yes"),
        (monotone([X, Y, Z], rising=False), {"x": 0.1, "y": 0.2, "z": 0.3}, "opposite"),
        (monotone([X, Y, Z]), {"x": 0.1, "y": 0.05, "z": 0.3}, "no"),
        (monotone([X, Y, Z]), {"x": 0.1, "y": WIDE, "z": 0.6}, "yes"),  # its mean, .48, is in order
        (monotone([X, Y, Z]), {"x": 0.1, "y": WIDE, "z": 0.3}, "unknown"),  # its mean is against the order, not surely
        (monotone([X, Y, Z]), {"x": WIDE, "y": 0.2, "z": 0.5}, "unknown"),
        (monotone([X, Y, Z]), {"x": 0.2, "y": 0.1, "z": 0.2}, "no"),  # its ends are open, its first step is not
    ],
    ids=lambda value: value.text if hasattr(value, "text") else None,
)
def test_predicates(check, values, answer):
    assert check.judge(gammas(**values)).answer == answer
    nothing = check.judge({})
    assert (nothing.answer, nothing.n, set(nothing.absent)) == ("unknown", 0, set(check.lines))
    assert "no rows: " in nothing.why
    unmeasured = check.judge({key_of(line): [{"seed": s, "metrics": {}} for s in SIX] for line in check.lines})
    assert (unmeasured.answer, unmeasured.n, unmeasured.lack) == ("unknown", 0, "not measured in these rows")


@pytest.mark.parametrize("check", [above(X, Y), best(X, [Y]), monotone([Y, X])], ids=["above", "best", "monotone"])
def test_an_order_needs_six_seeds(check):
    table = {"x": {"gamma": 0.9}, "y": {"gamma": 0.1}}
    assert check.judge(made_up(table)).answer == "yes"
    for n in (1, 2, 3, 5):
        outcome = check.judge(made_up(table, SIX[:n]))
        assert (outcome.answer, outcome.lack, outcome.n) == ("unknown", f"n = {n}; needs 6", n)


def test_no_answer_without_an_interval():
    one = made_up({"x": {"gamma": 0.5}, "y": {"gamma": 0.5}}, SIX[:1])
    for check in (near(X, 0.5, 0.1), same(X, Y, 0.1), not_below(X, Y, 0.1)):
        assert check.judge(one).lack == "n = 1; needs 2"


def test_pairs_are_made_at_equal_seeds():
    rows = made_up({"x": {"gamma": 0.9}}) | made_up({"y": {"gamma": 0.1}}, (456, 7, 8, 9, 10, 11))
    assert above(X, Y).judge(rows).lack == "n = 4; needs 6"
    assert set(paired("x", "y").at(rows)) == {456, 7, 8, 9}


def test_means_that_are_ordered_are_of_the_same_seeds():
    """A line with more seeds than another: those it has alone do not decide."""
    rows = gammas(x=0.5, y=0.6, z=0.7)
    alone = [{**row, "seed": row["seed"] + 1000, "metrics": {"gamma": 0.0}} for row in rows["", "z"]]
    rows["", "z"] = [*rows["", "z"], *alone]
    assert monotone([X, Y, Z]).judge(rows).answer == "yes"


def test_a_ratio_to_zero_counts_for_no_seed():
    rows = gammas(x=0.5, y=0.25)
    rows["", "y"][0]["metrics"]["gamma"] = 0.0
    assert set(ratio("x", "y").at(rows)) == set(SIX[1:])
    assert near(ratio("x", "y"), 2.0, 0.1).judge(rows).n == 5


def test_a_size_can_be_excluded_with_few_seeds_but_not_an_order():
    rows = made_up({"x": {"gamma": 0.51}, "y": {"gamma": 0.5}}, SIX[:3])
    assert above(X, Y, by=0.3).judge(rows).answer == "no"
    assert above(X, Y).judge(rows).answer == "unknown"


def test_a_mean_below_a_size_excludes_it_with_few_seeds_only_if_its_interval_does():
    rows = made_up({"x": {"gamma": [0.55, 0.7, 0.55]}, "y": {"gamma": 0.5}}, SIX[:3], noise=0)
    outcome = above(X, Y, by=0.12).judge(rows)  # differences .05, .2, .05: .1 +- 4.303 * .05
    assert (outcome.answer, outcome.lack) == ("unknown", "n = 3; needs 6")


def test_the_best_of_several_rests_on_the_fewest_seeds():
    rows = gammas(x=0.5, y=0.4, z=0.3)
    rows["", "y"] = rows["", "y"][:3]
    for others in ([Y, Z], [Z, Y]):
        outcome = best(X, others).judge(rows)
        assert (outcome.answer, outcome.n) == ("unknown", 3)


def test_the_first_twenty_seeds_decide_an_order():
    values = [0.1 + 0.01 * (seed % 3) for seed in range(20)] + [-10.0] * 6
    outcome = above(X, 0.0).judge(made_up({"x": {"gamma": values}}, range(26)))
    assert (outcome.answer, outcome.n) == ("yes", 20)


def test_figures_are_means_and_intervals_of_what_has_rows():
    rows = made_up({"x": {"gamma": [1.0, 2.0, 3.0]}}, SIX[:3]) | made_up({"y": {"gamma": [0.25]}}, SIX[:1])
    x, y = figures([X, Y, mean_of("z")], rows)
    half = 4.302652730 / math.sqrt(3)  # Student's t of two degrees of freedom, sd 1
    assert (x.metric, x.line, x.n) == ("Gamma", "x", 3)
    assert (x.low, x.mean, x.high) == pytest.approx((2 - half, 2.0, 2 + half), abs=1e-8)
    assert figure_text(x) == "2 [-0.484, 4.484]"
    assert y == Figure("Gamma", "y", 0.25, None, None, 1) and figure_text(y) == "0.25"
