"""How large a difference a claim asks for: half the study's, or what it says "at least" of; and seeds of verdicts."""

import pytest
from made_rows import SIX, made_up

from jcredit.study import claims as ledger
from jcredit.study.early_claims import CODES, LQ_READINGS, RAW12, RMS12, WEIGHTS
from jcredit.study.late_claims import CB6, FIELDS, NET, ONLINE
from jcredit.study.predicates import mean_of
from jcredit.study.statements import ACC

BY_ID = {claim.id: claim for claim in ledger.CLAIMS}
ISOMETRY = LQ_READINGS[0] + " | "
SB, CB, DELTA, DFA = (NET + x for x in ("state_bridge eT", "scalar_bridge eT", "scalar_bridge deltaL", "dfa"))
FIELD, LAST = FIELDS["field as described"], "epoch 100 | "
FIVE = "dl_held_inner_product_eta1e-02_k5"
SHIFT, COSINE = "dl_held_target_shift1e-01_eta1e-02_k5", "dl_held_cosine_eta1e-02_k5"
CLAMPED, RMS, RAW = "gamma_clamped", "dl_same_rms_all", "dl_same_raw_all"

DIFFERENCES = [
    # claim, (line, metric) that is larger, (line, metric) that is smaller, the study's figures of both
    ("LQ1", (ISOMETRY + "state_bridge", "gamma"), (ISOMETRY + "dfa", "gamma"), 0.945, 0.001),
    ("LQ1", (ISOMETRY + "scalar_bridge", "rho"), (ISOMETRY + "dfa", "rho"), 0.930, 0.001),
    ("LQ2", (ISOMETRY + "scalar_bridge", "gamma"), (ISOMETRY + "scalar_bridge tgw=0", "gamma"), 0.944, 0.03),
    ("CF1", (RAW12 + "bp", ACC), (RMS12 + "dfa", ACC), 0.592, 0.300),
    ("CF1", (RMS12 + "scalar_bridge", ACC), (RMS12 + "state_bridge", ACC), 0.296, 0.185),
    ("CF2", (RMS12 + "scalar_bridge", CLAMPED), (RMS12 + "dfa", CLAMPED), 0.056, 0.030),
    ("CF3", (RMS12 + "dfa", ACC), (RMS12 + "state_bridge", ACC), 0.300, 0.185),
    ("CF3", (RMS12 + "scalar_bridge", ACC), (RMS12 + "state_bridge", ACC), 0.296, 0.185),
    ("BA1", (CODES + "deltaL", "gamma"), (CODES + "eT", "gamma"), 0.562, 0.452),
    ("BA2", (CODES + "eT", ACC), (WEIGHTS + "tgw=4", ACC), 0.558, 0.394),
    ("BA3", ("warm-up (eT, tgw 1) | wr=0", "gamma"), ("warm-up (eT, tgw 1) | wr=0.5", "gamma"), 0.676, 0.233),
    ("BA3", ("warm-up (eT, tgw 1) | wr=0", "rho"), ("warm-up (eT, tgw 1) | wr=0.5", "rho"), 0.667, 0.340),
    ("BA3", ("warm-up (eT, tgw 1) | wr=0.5", ACC), ("warm-up (eT, tgw 1) | wr=0", ACC), 0.663, 0.459),
    ("BA4", ("warm-up (deltaL, tgw 1) | wr=0.5", ACC), ("warm-up (deltaL, tgw 1) | wr=0", ACC), 0.664, 0.290),
    ("FZ1", (SB, "gamma"), (CB, "gamma"), 0.287, 0.115),
    ("FZ1", (CB, "gamma"), (DELTA, "gamma"), 0.115, 0.070),
    ("FZ1", (DELTA, "gamma"), (DFA, "gamma"), 0.070, 0.006),
    ("FZ1", (SB, "rho"), (CB, "rho"), 0.246, 0.125),
    ("FZ1", (CB, "rho"), (DELTA, "rho"), 0.125, 0.062),
    ("FZ1", (DELTA, "rho"), (DFA, "rho"), 0.062, 0.005),
    *(("VP1", (f"L = {d} | vector M=4", m), (f"L = {d} | scalar_bridge", m), field, cb)
      for d, m, field, cb in ((4, "gamma", 0.91, 0.34), (8, "gamma", 0.96, 0.26),
                              (4, "rho", 0.96, 0.33), (8, "rho", 0.95, 0.29))),
    ("VP1", ("L = 4 | vector M=8", "gamma"), ("L = 4 | scalar_bridge", "gamma"), 0.84, 0.34),
    # "Below by at least .49 / .55": twice that, of which half is asked for.
    ("VA1", ("L = 4 | vector M=4", "gamma"), ("L = 4 | scalar_bridge", "gamma"), 2 * 0.49, 0.0),
    ("VA1", ("L = 4 | vector M=4", "rho"), ("L = 4 | scalar_bridge", "rho"), 2 * 0.55, 0.0),
    ("OV1", ("dfa", ACC), (ONLINE[0], ACC), 0.312, 0.243),
    ("SX1", (CB6, FIVE), ("dfa", FIVE), 0.042, -0.0001),
    ("US1", (FIELD, FIVE), (FIELD, SHIFT), 0.057, 0.002),
    ("LS3", (LAST + FIELD, RAW), (LAST + FIELD, RMS), -0.005, -0.135),
]  # fmt: skip
SIZES = [
    # claim, (line, metric), the study's figure, tolerance
    ("US1", (FIELD, COSINE), 0.0, 0.005),
    ("US1", (CB6, COSINE), 0.0, 0.005),
    ("US1", ("bp", COSINE), 0.0, 0.005),
    ("US1", (FIELD, SHIFT), 0.002, 0.01),
    ("LS2", (LAST + "dfa", "dl_held_rms_all"), 0.004, 0.01),
    ("LS3", (LAST + FIELD, RAW), -0.005, 0.01),
]


def check_of(claim, text):
    """The predicate of a claim whose text starts with these words; the same in all readings that have it."""
    found = [
        c for reading in BY_ID[claim].readings.values() for c in reading.checks if f"{c.text} ".startswith(f"{text} ")
    ]
    assert len({check.text for check in found}) == 1, text
    return found[0]


def rows_of(*figures):
    """Made-up rows of ((line, metric), figure)."""
    table = {}
    for (line, metric), figure in figures:
        table.setdefault(line, {})[metric] = figure
    return made_up(table, noise=1e-5)


@pytest.mark.parametrize(("claim", "more", "less", "high", "low"), DIFFERENCES)
def test_a_quarter_of_the_studys_difference_is_not_enough_and_three_quarters_are(claim, more, less, high, low):
    check = check_of(claim, f"{mean_of(*more).text} > {mean_of(*less).text}")
    at = lambda share: check.judge(rows_of((more, low + share * (high - low)), (less, low))).answer  # noqa: E731
    assert (at(0.25), at(0.75), at(-0.25)) == ("no", "yes", "opposite")


@pytest.mark.parametrize(("claim", "what", "figure", "tolerance"), SIZES)
def test_a_size_agrees_within_its_tolerance_and_no_further(claim, what, figure, tolerance):
    check = check_of(claim, f"{mean_of(*what).text} is near")
    at = lambda off: check.judge(rows_of((what, figure + off * tolerance))).answer  # noqa: E731
    assert [at(off) for off in (-1.5, -0.5, 0.5, 1.5)] == ["no", "yes", "yes", "no"]


@pytest.mark.parametrize(
    ("claim", "pair", "tolerance"),
    [
        ("CF1", ((RMS12 + "dfa", ACC), (RMS12 + "scalar_bridge", ACC)), 0.03),
        ("DS1", (("L = 2 | dfa", ACC), ("L = 8 | dfa", ACC)), 0.02),
        ("VA1", (("L = 4 | one-sided", "rho"), ("L = 4 | vector M=4", "rho")), 0.05),
    ],
)
def test_two_lines_are_the_same_within_a_tolerance_and_no_further(claim, pair, tolerance):
    a, b = pair
    check = check_of(claim, f"{mean_of(*a).text} = {mean_of(*b).text}, tolerance")
    at = lambda off: check.judge(rows_of((a, 0.5 + off * tolerance), (b, 0.5))).answer  # noqa: E731
    assert [at(off) for off in (-1.5, -0.5, 0.5, 1.5)] == ["no", "yes", "yes", "no"]


CIFAR12 = {
    RAW12 + "bp": {ACC: 0.592}, RMS12 + "dfa": {ACC: 0.3}, RMS12 + "scalar_bridge": {ACC: 0.296},
    RMS12 + "state_bridge": {ACC: 0.185},
}  # fmt: skip


def test_a_verdict_rests_on_the_fewest_seeds_that_a_line_has():
    rows = made_up(CIFAR12)
    assert ledger.judge(BY_ID["CF1"], {"full": rows}).n == 6
    block, label = RAW12.removesuffix(" | "), "bp"
    rows[block, label] = rows[block, label][:3]
    assert ledger.judge(BY_ID["CF1"], {"full": rows}).n == 3


def test_a_no_of_three_seeds_is_not_what_six_seeds_told():
    close = CIFAR12 | {RAW12 + "bp": {ACC: 0.31}}  # .01 above DFA: below half the study's difference at any seeds
    three, six = (ledger.judge(BY_ID["CF1"], {"full": made_up(close, SIX[:n])}) for n in (3, 6))
    assert three.readings[0].checks[0].answer == six.readings[0].checks[0].answer == "no"
    assert three.verdict == "undecided" and "against it" not in three.why
    assert six.verdict == "partly"
