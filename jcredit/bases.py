"""Base configurations that experiments vary: the study's settings per task, and jcredit's own."""

from __future__ import annotations

import dataclasses

from jcredit.config import Config


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

TANGENT = {"estimator_learning_rate": 3e-3, "estimator_clip": 0.0}
"""Fields of the tangent bridges (method.md 9): Adam 3e-3, no warm-up."""
