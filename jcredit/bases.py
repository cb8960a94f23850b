"""Base configurations that experiments vary: the study's settings per task, jcredit's own, and grids made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jcredit.config import Config
from jcredit.sweep import Variant


def with_fields(config: Config, **fields) -> Config:
    """The configuration with some fields replaced."""
    return dataclasses.replace(config, **fields)


TOY_LQ = Config(
    task="lq", depth=12, width=64, process_noise=0.03, trains="nothing", batch_size=256, steps_per_epoch=400, epochs=20,
    estimator_learning_rate=1e-3, hidden=256, hidden_layers=3, ema=0.995, bridge_target="softmin", noise_samples=8,
    sigma=0.1, softmin_lambda=0.1, diagnostic_samples=1024,
)  # fmt: skip
"""Toy LQ (method.md 7): 8,000 steps of batch 256, nothing trained but the estimator."""

LADDER = Config(
    task="teacher", depth=4, width=128, alpha=1.0, epochs=80, batch_size=128, normalise="rms", clip=1.0,
    warmup_ratio=0.2, direction_layers="all", diagnostic_samples=512,
)  # fmt: skip
"""The synthetic ladder as the study ran it (method.md 8): Adam 1e-3, per-sample RMS credit, clip 1, warm-up 0.2."""

CIFAR10_STUDY = Config(
    task="cifar10", depth=4, width=256, epochs=100, batch_size=128, weight_decay=0.01, schedule="cosine", crops=True,
    flips=True, normalise="rms", clip=1.0, diagnostic_samples=512,
)  # fmt: skip
"""CIFAR-10 as the study ran it (method.md 1): AdamW 1e-3 with cosine schedule, per-sample RMS credit, clip 1."""

CIFAR10 = with_fields(CIFAR10_STUDY, normalise="raw", clip=0.0)
"""CIFAR-10 with jcredit's local rule: raw credit, no clipping."""

FASHION_MNIST_STUDY = with_fields(CIFAR10_STUDY, task="fashion_mnist", crops=False, flips=False, epochs=20)
"""Fashion-MNIST under the study's rule: its debug runs, whose sizes are not known; no augmentation."""

FASHION_MNIST = with_fields(FASHION_MNIST_STUDY, normalise="raw", clip=0.0)
"""Fashion-MNIST with jcredit's local rule."""

TANGENT = {"estimator_learning_rate": 3e-3, "estimator_clip": 0.0}
"""Fields of the tangent bridges (method.md 9): Adam 3e-3, no warm-up."""


# --- lines of a grid --------------------------------------------------------------------------------------------------


def named(*methods: str) -> dict[str, dict[str, Any]]:
    """Lines that are called what their method is called."""
    return {method: {"method": method} for method in methods}


def lines(
    base: Config, table: Mapping[str, Mapping[str, Any]], block: str = "", only: Sequence[str] = (), **fields
) -> tuple[Variant, ...]:
    """One block of a grid.

    Args:
      base: what all lines share.
      table: {label: fields in which the line differs}.
      block: heading of the block.
      only: labels that are wanted; none given means all.
      **fields: changes to all lines; a line's own fields come first.
    """
    return tuple(
        Variant(label, with_fields(base, **{**fields, **line}), block)
        for label, line in table.items()
        if not only or label in only
    )


CONTROLS = named("bp", "frozen", "broadcast")
"""The lines every table has: what is to be reached, and what a credit has to beat (evidence.md)."""

STUDY_BLOCK = "the study's rule: per-sample RMS credit, clip 1"
RAW_BLOCK = "jcredit's rule: raw credit"


def both_rules(study: Config, raw: Config, only: Sequence[str] = (), **fields) -> tuple[Variant, ...]:
    """Two blocks, one per local rule, with every kind of credit in each."""
    study_lines = named("bp", "dfa", "state_bridge") | {
        "scalar_bridge": {"method": "scalar_bridge", "warmup_ratio": 0.2},
        "vector_field": {"method": "vector_field", "warmup_ratio": 0.2},
    }
    raw_lines = named("bp", "frozen", "broadcast", "dfa") | {
        "vector_field": {"method": "vector_field", "scheme": "jvp", "exact_terminal": True},
        **{label: line | TANGENT for label, line in named("tangent_gate", "tangent_mask", "tangent_chain").items()},
    }
    return (
        *lines(study, study_lines, STUDY_BLOCK, only, **fields),
        *lines(raw, raw_lines, RAW_BLOCK, only, **fields),
    )
