"""The study's boundary ablation (phase 3): its configurations and figures, which two experiments read.

The synthetic ladder at alpha = 1, L = 4; its lines are scalar bridges that differ in code, terminal weight and warm-up.
The state bridge, which the study never warmed up, gets the same warm-ups here.
"""

from __future__ import annotations

from typing import Any

from jcredit.estimators import mlp, scalar_bridge, state_bridge

CODES, WEIGHTS, WARMUPS, OTHER_BRIDGE = (
    "code s (tgw 1, warm-up 0.2)",
    "terminal gradient weight (eT, warm-up 0.2)",
    "warm-up ({}, tgw 1)",
    "warm-up (state bridge)",
)
FIGURES = {
    CODES: {
        "eT": (".452±.042", ".509±.033", ".523"), "deltaL": (".562±.007", ".510±.014", ".448"),
        "eT_hL": (".002", ".016", ".559"), "deltaL_hL": (".018", ".026", ".564"),
    },
    WEIGHTS: {
        "tgw=0": (".120", ".161", ".532"), "tgw=0.25": (".227", ".268", ".558"), "tgw=4": (".574", ".595", ".394"),
    },
    WARMUPS.format("eT"): {
        "wr=0": (".676", ".667", ".459"), "wr=0.05": (".456", ".505", ".450"), "wr=0.5": (".233", ".340", ".663"),
    },
    WARMUPS.format("deltaL"): {
        "wr=0": (".533", ".513", ".290"), "wr=0.05": (".768", ".691", ".389"), "wr=0.5": (".340", ".400", ".664"),
    },
}  # fmt: skip
"""{block: {label: (Gamma, rho, accuracy)}} after 80 epochs; a spread where the study gives one."""


def cells(figures: tuple[str, ...]) -> dict[str, str]:
    """Gamma, rho and accuracy under the titles of their columns."""
    return dict(zip(("Gamma", "rho", "accuracy"), figures, strict=True))


def bridge(code: str = "eT", projection_scale: str = "fan_in", warmup_ratio: float = 0.2, **settings) -> dict[str, Any]:
    """A line of the ablation: a scalar bridge and its warm-up."""
    trunk = mlp(code=code, projection_scale=projection_scale)
    return {"credit": scalar_bridge(trunk=trunk, **settings), "warmup_ratio": warmup_ratio}


WEIGHT_LINES = {f"tgw={w:g}": bridge(terminal_weight=w) for w in (0.0, 0.25, 4.0)}
WARMUP_LINES = {
    code: {f"wr={r:g}": bridge(code, warmup_ratio=r) for r in (0.0, 0.05, 0.5)} for code in ("eT", "deltaL")
}
OTHER_BRIDGE_LINES = {f"state_bridge wr={r:g}": {"credit": state_bridge(), "warmup_ratio": r} for r in (0.0, 0.2, 0.5)}
