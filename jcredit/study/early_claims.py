"""The claims of phases 1 to 3: toy LQ, 12 blocks, the ladder, depth, boundary conditions."""

from __future__ import annotations

from collections.abc import Iterator

from jcredit.study.predicates import above, best, mean_of, monotone, near, not_below, paired, ratio, same
from jcredit.study.settings import ORACLE
from jcredit.study.statements import ACC, TOL, Claim, Reading, each, gamma_rho, metrics, one, over

# --- phase 1: toy LQ, and CIFAR-10 on 12 blocks -----------------------------------------------------------------------

LQ_READINGS = tuple(
    f"A near the {start}, {goal}"
    for start in ("isometry", "identity")
    for goal in ("a y* for each sample", "one y* for all")
)


def lq(checks, *ours: str, blind: bool = False) -> dict[str, Reading]:
    """A claim under the four readings and, if blind, with bridges that see no e_T; checks: (label -> line) -> them."""

    def reading(block: str, code: str = "") -> Reading:
        at = lambda label: f"{block} | {label}{code if 'bridge' in label else ''}"  # noqa: E731
        return Reading(tuple(checks(at)), each(map(at, ours)), each([at("broadcast")]))

    no_code = {f"{LQ_READINGS[1]}, no e_T": reading(LQ_READINGS[1], ", no code")} if blind else {}
    return {block: reading(block) for block in LQ_READINGS} | no_code


RMS12, RAW12 = "per-sample RMS credit, no clip | ", "raw credit | "


def phase1() -> Iterator[Claim]:
    """LQ1-LQ3, CF1-CF3."""
    yield Claim(
        "LQ1", "1", "SB and CB recover the costate, DFA does not",
        "Gamma / rho: SB .945 / .931, CB .944 / .930, DFA .001 / .001", "toy_lq",
        lq(lambda at: (*(not_below(mean_of(at(x), m), figure, TOL) for x, m, figure in (
                           ("state_bridge", "gamma", 0.945), ("state_bridge", "rho", 0.931),
                           ("scalar_bridge", "gamma", 0.944), ("scalar_bridge", "rho", 0.930))),
                       *(over(at(x), at("dfa"), 0.47, m) for x in ("state_bridge", "scalar_bridge")
                         for m in ("gamma", "rho"))),
           "state_bridge", "scalar_bridge", "dfa", blind=True),
    )  # fmt: skip
    yield Claim(
        "LQ2", "1", "without terminal gradient CB carries nothing", "Gamma falls from .944 to .03", "toy_lq",
        lq(lambda at: (near(mean_of(at("scalar_bridge tgw=0")), 0.03, TOL),
                       over(at("scalar_bridge"), at("scalar_bridge tgw=0"), by=0.45)),
           "scalar_bridge", "scalar_bridge tgw=0"),
    )  # fmt: skip
    yield Claim(
        "LQ3", "1", "normalised error keeps SB stable (judged here by Gamma alone, as no raw run was unstable)",
        "none (raw error in debug runs)", "toy_lq",
        lq(lambda at: (over(at("state_bridge"), at("state_bridge raw")),), "state_bridge", "state_bridge raw"),
        may_fail=("state_bridge raw",),
    )  # fmt: skip
    bp, dfa, cb, sb = RAW12 + "bp", RMS12 + "dfa", RMS12 + "scalar_bridge", RMS12 + "state_bridge"
    frozen = each((RAW12 + "frozen", RAW12 + "broadcast"), ACC)
    yield Claim(
        "CF1", "1", "accuracy on 12 blocks: BP > DFA, CB beside it, > SB", "BP .592, DFA .300, CB .296, SB .185",
        "cifar12",
        one((over(bp, dfa, 0.15, ACC), same(mean_of(dfa, ACC), mean_of(cb, ACC), 0.03), over(cb, sb, 0.05, ACC)),
            each((bp, dfa, cb, sb), ACC), frozen),
    )  # fmt: skip
    yield Claim(
        "CF2", "1", "the same, credit: clamped Gamma, CB above DFA; rho 1 for BP, 0 for the others",
        "Gamma BP .940, CB .056, DFA .030, SB .021; rho .990, others .005 or less", "cifar12",
        one((near(mean_of(bp, "gamma_clamped"), 0.940, TOL), near(mean_of(bp, "rho"), 0.990, TOL),
             over(cb, dfa, 0.013, "gamma_clamped"),
             *(near(mean_of(x, "gamma_clamped"), g, TOL) for x, g in ((cb, 0.056), (dfa, 0.030), (sb, 0.021))),
             *(near(mean_of(x, "rho"), 0.0, TOL) for x in (cb, dfa, sb))),
            each((bp, cb, dfa, sb), "gamma_clamped"), each((RAW12 + "broadcast",), "gamma_clamped")),
        may_fail=("scalar_bridge",),
    )  # fmt: skip
    yield Claim(
        "CF3", "1", "SB predicts h_L and is the worst learner", "state error .0000, accuracy .185", "cifar12",
        one((near(mean_of(sb, "test_state_error"), (0.0, 0.01), 0.0), over(dfa, sb, 0.05, ACC),
             over(cb, sb, 0.05, ACC)),
            (*metrics(sb, "test_state_error", ACC), *each((dfa, cb), ACC)), frozen),
    )  # fmt: skip


# --- phase 2: the ladder, and depth on CIFAR-10 -----------------------------------------------------------------------


def ladder(alpha: float, depth: int, label: str = "") -> str:
    """A line of the ladder."""
    return f"alpha = {alpha:g}, L = {depth} | {label}"


def phase2() -> Iterator[Claim]:
    """LD1-LD5, DS1, DS2."""
    depths, alphas = (2, 4, 8, 12), (0.0, 0.25, 0.5, 1.0)
    sb, cb, dfa = "state_bridge", "scalar_bridge", "dfa"
    lost = lambda x: paired(ladder(1, 2, x), ladder(1, 12, x), ACC)  # noqa: E731
    yield Claim(
        "LD1", "2.1", "alpha = 1: CB best at L = 2, 4, 8, 12",
        "Gamma CB .53 .45 .36 .24, SB .52 .34 .25 .22; rho CB .57 .51 .42 .32, SB .47 .32 .23 .21", "synth_ladder",
        one((best(mean_of(ladder(1, depth, cb), m), [mean_of(ladder(1, depth, x), m) for x in (sb, dfa)])
             for m in ("gamma", "rho") for depth in depths),
            each(ladder(1, depth, x) for depth in depths for x in (cb, sb)),
            each(ladder(1, depth, "broadcast") for depth in (4,))),
    )  # fmt: skip
    yield Claim(
        "LD2", "2.1", "alpha = 0: SB ahead of CB; CB above DFA in rho",
        "SB/CB Gamma 3 to 7, rho 1.5 to 2; CB/DFA rho 2 to 6", "synth_ladder",
        one((check for d in depths for a in [lambda x, d=d: ladder(0, d, x)] for check in (
                over(a(sb), a(cb)), near(ratio(a(sb), a(cb)), (3, 7), 1.0),
                near(ratio(a(sb), a(cb), "rho"), (1.5, 2), 0.5), over(a(cb), a(dfa), metric="rho"),
                near(ratio(a(cb), a(dfa), "rho"), (2, 6), 1.0))),
            (n for d in depths for n in (ratio(ladder(0, d, sb), ladder(0, d, cb)),
                                         ratio(ladder(0, d, sb), ladder(0, d, cb), "rho"),
                                         ratio(ladder(0, d, cb), ladder(0, d, dfa), "rho"))),
            each((ladder(0, 4, "broadcast"),))),
    )  # fmt: skip
    yield Claim(
        "LD3", "2.1", "alpha = .25, .5: SB ahead in Gamma (L = 4)",
        "SB/CB Gamma 2 to 5, 1.5 to 3; rho 1.2 to 1.5, parity", "synth_ladder",
        one((over(ladder(0.25, 4, sb), ladder(0.25, 4, cb)), over(ladder(0.5, 4, sb), ladder(0.5, 4, cb)),
             near(ratio(ladder(0.25, 4, sb), ladder(0.25, 4, cb)), (2, 5), 0.5),
             near(ratio(ladder(0.5, 4, sb), ladder(0.5, 4, cb)), (1.5, 3), 0.5),
             near(ratio(ladder(0.25, 4, sb), ladder(0.25, 4, cb), "rho"), (1.2, 1.5), 0.2),
             near(ratio(ladder(0.5, 4, sb), ladder(0.5, 4, cb), "rho"), 1.0, 0.2)),
            (ratio(ladder(a, 4, sb), ladder(a, 4, cb), m) for a in (0.25, 0.5) for m in ("gamma", "rho")),
            each(ladder(a, 4, "broadcast") for a in (0.25, 0.5))),
    )  # fmt: skip
    yield Claim(
        "LD4", "2.1", "SB's Gamma falls with alpha, its prediction stays good (L = 4)", "none", "synth_ladder",
        one((monotone(each(ladder(a, 4, sb) for a in alphas), rising=False),
             near(mean_of(ladder(1, 4, sb), "test_state_error"), (0.0, 0.1), 0.0)),
            (*each(ladder(a, 4, sb) for a in alphas), mean_of(ladder(1, 4, sb), "test_state_error")),
            each(ladder(a, 4, "broadcast") for a in alphas)),
    )  # fmt: skip
    yield Claim(
        "LD5", "2.1", "SB, CB and DFA degrade with depth, BP least (alpha = 1)",
        "as LD1; DFA rises: Gamma .03 .05 .06 .07", "synth_ladder",
        one((*(monotone(each((ladder(1, d, x) for d in depths), m), rising=False)
               for x in (sb, cb, dfa) for m in ("gamma", "rho")),
             *(above(lost(x), lost("bp (raw)")) for x in (sb, cb, dfa))),
            (*each(ladder(1, d, x) for x in (sb, cb, dfa) for d in depths), *map(lost, (sb, cb, dfa, "bp (raw)"))),
            (*each(ladder(1, d, "broadcast") for d in depths), lost(ORACLE))),
    )  # fmt: skip
    two = (2, 8)  # of the study's five depths: the first, and the deepest that the presets have
    dfas, cbs = [f"L = {d} | dfa" for d in two], [f"L = {d} | scalar_bridge" for d in two]
    yield Claim(
        "DS1", "2.2", "accuracy of DFA level with depth, CB's falls (L = 2, 8)",
        "DFA .312 .306, CB .311 .288 (L = 12: .309, .239)", "cifar_depth_scan",
        one((*(near(mean_of(x, ACC), g, TOL) for x, g in zip(dfas, (0.312, 0.306), strict=True)),
             *(near(mean_of(x, ACC), g, TOL) for x, g in zip(cbs, (0.311, 0.288), strict=True)),
             same(mean_of(dfas[0], ACC), mean_of(dfas[-1], ACC), 0.02), monotone(each(cbs, ACC), rising=False)),
            each((*dfas, *cbs), ACC), each((f"L = {d} | frozen" for d in two), ACC)),
    )  # fmt: skip
    yield Claim(
        "DS2", "2.2", "Gamma falls with depth, rho near 0 (L = 2, 8)",
        "Gamma DFA .196 .047, CB .175 .045; rho -.004 to .031", "cifar_depth_scan",
        one((*(near(mean_of(x), g, TOL) for x, g in zip((*dfas, *cbs), (0.196, 0.047, 0.175, 0.045),
                                                       strict=True)),
             monotone(each(dfas), rising=False), monotone(each(cbs), rising=False),
             *(near(mean_of(x, "rho"), 0.0, TOL) for x in (*dfas, *cbs))),
            each((*dfas, *cbs)), each(f"L = {d} | broadcast" for d in two)),
    )  # fmt: skip


# --- phase 3: boundary conditions -------------------------------------------------------------------------------------

CODES, WEIGHTS = "code s (tgw 1, warm-up 0.2) | ", "terminal gradient weight (eT, warm-up 0.2) | "


def phase3() -> Iterator[Claim]:
    """BA1-BA4, DL1."""
    eT, deltaL = CODES + "eT", CODES + "deltaL"
    broadcast = each((CODES + "broadcast",)) + each((CODES + "frozen",), ACC)
    yield Claim(
        "BA1", "3", "code deltaL best in Gamma, h_L destroys credit",
        "Gamma / rho: eT .452 / .509, deltaL .562 / .510, eT_hL .002 / .016, deltaL_hL .018 / .026",
        "boundary_ablation",
        {
            f"projection of h_L: {scale}": Reading(
                (over(deltaL, eT, 0.05), *gamma_rho(f"{CODES}eT_hL {scale}", 0.002, 0.016),
                 *gamma_rho(f"{CODES}deltaL_hL {scale}", 0.018, 0.026)),
                each((eT, deltaL, f"{CODES}eT_hL {scale}", f"{CODES}deltaL_hL {scale}")), broadcast)
            for scale in ("unit", "fan_in")
        },
        may_fail=tuple(f"{code}_hL {scale}" for code in ("eT", "deltaL") for scale in ("unit", "fan_in")),
    )  # fmt: skip
    weights = (WEIGHTS + "tgw=0", WEIGHTS + "tgw=0.25", eT, WEIGHTS + "tgw=4")
    yield Claim(
        "BA2", "3", "terminal gradient weight 0, .25, 1, 4 raises Gamma; 4 costs accuracy",
        "Gamma .120 .227 .458 .574, rho .161 .268 .532 .595, accuracy .532 .558 .558 .394", "boundary_ablation",
        one((monotone(each(weights)), monotone(each(weights, "rho")), over(eT, weights[-1], 0.08, ACC)),
            (*each(weights), *each((eT, weights[-1]), ACC)), broadcast),
    )  # fmt: skip
    warm = ["warm-up (eT, tgw 1) | wr=0", "warm-up (eT, tgw 1) | wr=0.05", eT, "warm-up (eT, tgw 1) | wr=0.5"]
    yield Claim(
        "BA3", "3", "warm-up 0, .05, .2, .5 trades credit for accuracy (code eT)",
        "Gamma .676 .456 .458 .233, rho .667 .505 .532 .340, accuracy .459 .450 .558 .663", "boundary_ablation",
        one((over(warm[0], warm[-1], 0.22), over(warm[0], warm[-1], 0.16, "rho"), over(warm[-1], warm[0], 0.1, ACC)),
            (*each(warm), *each((warm[0], warm[-1]), ACC)), broadcast),
    )  # fmt: skip
    warm = [f"warm-up (deltaL, tgw 1) | wr={r}" for r in ("0", "0.05", "0.5")]
    yield Claim(
        "BA4", "3", "the same with code deltaL, credit best at warm-up .05",
        "Gamma .533 .768 .558 .340, rho .513 .691 .498 .400, accuracy .290 .389 .442 .664", "boundary_ablation",
        one((*(best(mean_of(warm[1], m), each((warm[0], deltaL, warm[2]), m)) for m in ("gamma", "rho")),
             over(warm[2], warm[0], 0.18, ACC)),
            (*each((warm[0], warm[1], deltaL, warm[2])), *each((warm[0], warm[2]), ACC)), broadcast),
    )  # fmt: skip
    line = "scalar_bridge deltaL"
    yield Claim(
        "DL1", "3", "CIFAR-10, D = 512: code deltaL fails", "accuracy .172, Gamma 0, rho 0", "cifar_delta_code",
        one((near(mean_of(line, ACC), 0.172, TOL), *gamma_rho(line, 0.0, 0.0)),
            metrics(line, ACC, "gamma", "rho"), (*each(("frozen", "broadcast"), ACC), mean_of("broadcast"))),
    )  # fmt: skip


def early() -> Iterator[Claim]:
    """All of them, in order."""
    for phase in (phase1, phase2, phase3):
        yield from phase()
