"""The claims of phases 4 to 6: frozen networks, online learning, the vector field, what credit is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from jcredit.study.predicates import above, best, mean_of, monotone, near, not_below, paired, same
from jcredit.study.settings import ORACLE
from jcredit.study.statements import ACC, TOL, Claim, Reading, each, gamma_rho, metrics, one, over

SHUFFLED = ("shuffled", "shuffled, alone")
"""Controls that are there to fail."""

FIELDS = {"field as described": "vector_field M=4", "our field, times RMS(delta_L)": "vector_field scaled M=4"}
"""Readings of the vector field on frozen features: what the study says of it, which a short fit leaves worse than a
credit of zero, and the same field with the size of each sample's error given to it (``study.frozen``)."""
STEP_SIZES = {"steps of .01": "1e-02", "steps of .001": "1e-03"}
"""Of the local steps of snapshot_exploit; the study does not state its own."""
ONLINE = ("vec wr=0.2 tw=1", "vec scaled wr=0.2 tw=1")
"""The same two online."""


def by_field(reading: Callable[[str], Reading], labels: Iterable[str] = FIELDS.values()) -> dict[str, Reading]:
    """A claim on the vector field under both readings of it; reading: label of the field -> its predicates."""
    return {name: reading(label) for name, label in zip(FIELDS, labels, strict=True)}


def by_field_and_step(reading: Callable[[str, str], Reading]) -> dict[str, Reading]:
    """The same for each size of a local step; reading: label of the field, size as metrics spell it."""
    return {
        f"{name}, {steps}": reading(label, eta) for steps, eta in STEP_SIZES.items() for name, label in FIELDS.items()
    }


def _more(field: str) -> list[str]:
    """The same field with more directions."""
    return [NET + field.replace("M=4", f"M={m}") for m in (8, 16)]


# --- phases 4 and 5: frozen networks, online, the vector field --------------------------------------------------------

NET = "L = 4, D = 256 | "


def phase4() -> Iterator[Claim]:
    """FZ1, ON1-ON3, VP1."""
    order = [NET + x for x in ("state_bridge eT", "scalar_bridge eT", "scalar_bridge deltaL", "dfa")]
    yield Claim(
        "FZ1", "4A", "frozen net: SB > CB eT > CB deltaL >> DFA",
        "Gamma .287 .115 .070 .006, rho .246 .125 .062 .005", "frozen_recovery",
        one((over(a, b, by, m) for m, halves in (("gamma", (0.086, 0.022, 0.032)), ("rho", (0.06, 0.031, 0.028)))
             for a, b, by in zip(order, order[1:], halves, strict=False)),
            each(order), each((NET + "broadcast",))),
    )  # fmt: skip
    tgw1, tgw4 = "cb_eT wr=0.2 tgw=1", "cb_eT wr=0.2 tgw=4"
    gains = (paired(x, "dfa", m) for x in (tgw1, tgw4) for m in ("gamma", "rho"))
    controls = (mean_of("broadcast"), *each(("frozen", "broadcast", ORACLE), ACC))
    yield Claim(
        "ON1", "4B", "online: two settings with S1, S2 > 0 (Gamma, rho above DFA's)",
        "CB eT, w_r .2: S1 +.079, S2 +.014 (tgw 1), +.087, +.007 (tgw 4)", "online_scan",
        one((*(over(x, "dfa", metric=m) for x in (tgw1, tgw4) for m in ("gamma", "rho")),
             *(near(paired(x, "dfa", m), gain, TOL) for x, m, gain in (
                 (tgw1, "gamma", 0.079), (tgw1, "rho", 0.014), (tgw4, "gamma", 0.087), (tgw4, "rho", 0.007)))),
            gains, controls),
    )  # fmt: skip
    yield Claim(
        "ON2", "4B", "tgw 1: S1 holds, S2 marginal", "S1 +.079 +.059 +.135, S2 +.014 -.004 +.003", "online_scan",
        one((over(tgw1, "dfa"), near(paired(tgw1, "dfa", "rho"), (-0.004, 0.014), 0.02)),
            (paired(tgw1, "dfa"), paired(tgw1, "dfa", "rho")), controls),
    )  # fmt: skip
    yield Claim(
        "ON3", "4B", "CB deltaL near chance, SB fails online", "SB Gamma .025, rho -.013; CB deltaL near .1",
        "online_scan",
        {
            f"warm-up {r}": Reading(
                (*gamma_rho(f"sb wr={r}", 0.025, -0.013),
                 *(near(mean_of(f"cb_deltaL wr={r} tgw={w}", ACC), 0.1, TOL) for w in (1, 4)),
                 *(near(mean_of(f"cb_deltaL wr={r} tgw={w}"), 0.0, TOL) for w in (1, 4))),
                (*metrics(f"sb wr={r}", "gamma", "rho", ACC), *metrics(f"cb_deltaL wr={r} tgw=1", ACC, "gamma")),
                controls)
            for r in ("0", "0.2")
        },
        may_fail=tuple(f"cb_deltaL wr={r} tgw={w}" for r in ("0", "0.2") for w in (1, 4)),
    )  # fmt: skip
    fields = {depth: f"L = {depth} | vector M=4" for depth in (4, 8)}
    yield Claim(
        "VP1", "4C", "ladder, alpha = 1, L = 4 and 8: vector field far above CB",
        "Gamma / rho: M = 4 .91 / .96 (VA1: .847 / .951), .96 / .95; CB .34 / .33, .26 / .29; M = 8 (L = 4) .84 / .92",
        "vector_pilot",
        one((*gamma_rho(fields[4], (0.847, 0.91), (0.951, 0.96)), *gamma_rho(fields[8], 0.96, 0.95),
             *(over(fields[d], f"L = {d} | scalar_bridge", by, m) for d in (4, 8)
               for m, by in (("gamma", 0.3), ("rho", 0.3))),
             over("L = 4 | vector M=8", "L = 4 | scalar_bridge", 0.25)),
            (*each(n for d in (4, 8) for n in (fields[d], f"L = {d} | scalar_bridge")), *each(fields.values(), "rho")),
            each(f"L = {d} | broadcast" for d in (4, 8))),
    )  # fmt: skip


def phase5() -> Iterator[Claim]:
    """VA1, FV1, OV1."""
    m4, shuffled, alone = "L = 4 | vector M=4", "L = 4 | shuffled", "L = 4 | shuffled, alone"
    plain, single, cb = "L = 4 | no terminal", "L = 4 | one-sided", "L = 4 | scalar_bridge"
    yield Claim(
        "VA1", "5A", "shuffled collapses, no terminal loss needed, one-sided like central, field above CB (L = 4)",
        "Gamma / rho: M = 4 .847 / .951, shuffled .051 / .068, no tw .955 / .971, one-sided .832 / .943"
        "; CB .224 / .210, below by at least .49 / .55",
        "vector_audit",
        one((near(mean_of(shuffled), 0.051, TOL), near(mean_of(shuffled, "rho"), 0.068, TOL),
             *gamma_rho(alone, 0.0, 0.0),
             *(not_below(mean_of(plain, m), mean_of(m4, m), TOL) for m in ("gamma", "rho")),
             *(same(mean_of(single, m), mean_of(m4, m), TOL) for m in ("gamma", "rho")),
             over(m4, cb, 0.49), over(m4, cb, 0.55, "rho")),
            each((m4, shuffled, alone, plain, single, cb)), each(("L = 4 | broadcast",))),
        may_fail=SHUFFLED,
    )  # fmt: skip
    sb, scalar = NET + "state_bridge eT", NET + "scalar_bridge eT"
    yield Claim(
        "FV1", "5B", "frozen net: vector field best, M = 4 enough",
        "Gamma / rho: .364 / .426; SB .287 / .264, CB .115 / .120", "frozen_recovery",
        by_field(lambda field: Reading(
            (*(best(mean_of(NET + field, m), each((sb, scalar), m)) for m in ("gamma", "rho")),
             *(not_below(mean_of(NET + field), mean_of(x), TOL) for x in _more(field))),
            each((NET + field, *_more(field), sb, scalar)), each((NET + "broadcast",)))),
    )  # fmt: skip
    yield Claim(
        "OV1", "5C", "vector field online: Gamma and rho 0, accuracy .035 or more below DFA's",
        "accuracy .243 (DFA .312), Gamma / rho .001 / .000 (.101 / -.005)",
        "online_vector",
        by_field(lambda field: Reading(
            (over("dfa", field, 0.035, ACC), *gamma_rho(field, 0.0, 0.0)),
            (*metrics(field, ACC, "gamma", "rho"), mean_of("dfa", ACC)),
            (*each(("frozen", "broadcast", "mended vec"), ACC), mean_of("mended vec"))), ONLINE),
    )  # fmt: skip


# --- phase 6: what credit is worth ------------------------------------------------------------------------------------

CB6 = "scalar_bridge eT"


def phase6() -> Iterator[Claim]:
    """SX1, US1, LS1-LS3; negative changes of the loss are good."""
    yield Claim(
        "SX1",
        "6A",
        "held-out loss, 5 steps: worse from DFA to CB to field; the oracle's rises too, less than CB's",
        "DFA -.0001, CB +.042, field +.057, oracle +.011",
        "snapshot_exploit",
        by_field_and_step(_damage),
    )
    yield Claim(
        "US1",
        "6C",
        "target shift shrinks that, but never to below 0; cosine near zero",
        "field +.057 to +.002 (shift .1), cosine about 0; of DFA it does not say",
        "update_swap",
        by_field_and_step(_shrunk),
    )
    yield from _line_search()


def _damage(field: str, eta: str) -> Reading:
    """SX1 for a field and a step size."""
    held = f"dl_held_inner_product_eta{eta}_k5"
    return Reading(
        (over(CB6, "dfa", 0.02, held), over(field, CB6, metric=held), over(CB6, "bp", metric=held),
         *(above(mean_of(x, held), 0.0) for x in (CB6, field, "bp"))),
        tuple(each(("dfa", CB6, field, "bp"), held)), tuple(each(("broadcast",), held)),
    )  # fmt: skip


def _shrunk(field: str, eta: str) -> Reading:
    """US1 for a field and a step size."""
    held, once = (f"dl_held_inner_product_eta{eta}_k{k}" for k in (5, 1))  # one step: about as far as five of shift .1
    shift, cosine = f"dl_held_target_shift1e-01_eta{eta}_k5", f"dl_held_cosine_eta{eta}_k5"
    lowest = lambda line: mean_of(line, f"dl_held_target_shift1e-02_eta{eta}_k5")  # noqa: E731 - the smallest of sizes
    return Reading(
        (above(mean_of(field, held), mean_of(field, shift), 0.025), near(mean_of(field, shift), 0.002, 0.01),
         *(near(mean_of(x, cosine), 0.0, 0.005) for x in (CB6, field, "bp")),
         *(above(lowest(x), 0.0) for x in (CB6, field, "bp"))),
        (mean_of(field, held), mean_of(field, shift), *each((field, "bp"), cosine),
         *map(lowest, ("dfa", CB6, field, "bp"))),
        (mean_of("broadcast", held), mean_of("bp", held), mean_of("bp", shift), lowest("broadcast"),
         *each((field, "bp"), once)),
    )  # fmt: skip


def _line_search() -> Iterator[Claim]:
    """LS1-LS3, on the snapshot of the last epoch."""
    last, quick = "epoch 100 | ", {"epoch 100": "epoch 3"}
    same_, held_, raw = "dl_same_rms_all", "dl_held_rms_all", "dl_same_raw_all"
    on = lambda field: [last + x for x in ("dfa", CB6, field, "bp")]  # noqa: E731
    others = (last + "broadcast", last + "state_bridge eT")
    control = each(others, same_) + each(others, held_)
    yield Claim(
        "LS1", "6.5A", "same-batch decrease monotone in credit (RMS credit, all blocks)",
        "DFA -.003, CB -.025, field -.135, oracle -.406", "exploit_linesearch",
        by_field(lambda field: Reading(
            (monotone(each(on(field), same_), rising=False),), each(on(field), same_), control)), quick,
    )  # fmt: skip
    yield Claim(
        "LS2", "6.5A", "held-out loss rises, but for DFA's tiny change (case D)",
        "DFA +.004, CB +.027, field +.045, oracle +.094", "exploit_linesearch",
        by_field(lambda field: Reading(
            (near(mean_of(last + "dfa", held_), 0.004, 0.01),
             *(above(x, 0.0) for x in each(on(field)[1:], held_))), each(on(field), held_), control)), quick,
    )  # fmt: skip
    yield Claim(
        "LS3", "6.5A", "raw credit gives tiny steps, at the best of several sizes",
        "same batch: field -.005 raw, -.135 RMS", "exploit_linesearch",
        by_field(lambda field: Reading(
            (above(mean_of(last + field, raw), mean_of(last + field, same_), 0.065),
             near(mean_of(last + field, raw), -0.005, 0.01)),
            (mean_of(last + field, raw), mean_of(last + field, same_), mean_of(last + "bp", raw)),
            each((last + "broadcast",), raw))), quick,
    )  # fmt: skip


def late() -> Iterator[Claim]:
    """All of them, in order."""
    for phase in (phase4, phase5, phase6):
        yield from phase()
