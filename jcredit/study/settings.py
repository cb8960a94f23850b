"""Base configurations that experiments vary: the study's settings per task, jcredit's own, and grids made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jcredit import estimators
from jcredit.config import Config, change, paths_of
from jcredit.estimators import bp, exact_terminal, mlp, scalar_bridge, state_bridge, tangent_sweeps, vector_field
from jcredit.networks import image_mlp, ladder_mlp, lq_dynamics
from jcredit.parts import Part
from jcredit.sweeps.variants import Variant
from jcredit.tasks import cifar10, fashion_mnist, lq, teacher

SMOKE: dict[str, Any] = {"train_size": 256, "test_size": 128, "batch_size": 64, "diagnostic_samples": 64}
"""Sizes with which a preset only shows that a script runs."""

TOY_LQ = Config(
    task=lq(process_noise=0.03), network=lq_dynamics(depth=12), trains="nothing", batch_size=256, steps_per_epoch=400,
    epochs=20, diagnostic_samples=1024,
)  # fmt: skip
"""Toy LQ (docs/method.md 7): 8,000 steps of batch 256, nothing trained but the estimator."""

LADDER = Config(
    task=teacher(), network=ladder_mlp(depth=4, width=128, alpha=1.0), epochs=80, batch_size=128, normalise="rms",
    clip=1.0, diagnostic_samples=512,
)  # fmt: skip
"""The synthetic ladder as the study ran it (docs/method.md 8): Adam 1e-3, per-sample RMS credit, a clip (here 1)."""

CIFAR10_STUDY = Config(
    task=cifar10(), network=image_mlp(depth=4, width=256), epochs=100, batch_size=128, weight_decay=0.01,
    schedule="cosine", normalise="rms", clip=1.0, diagnostic_samples=512,
)  # fmt: skip
"""CIFAR-10 as the study ran it (docs/method.md 1): AdamW 1e-3, cosine schedule, per-sample RMS credit, a clip (1)."""

CIFAR10 = CIFAR10_STUDY.replace(normalise="raw", clip=0.0)
"""CIFAR-10 with jcredit's local rule: raw credit, no clipping."""

CIFAR10_DEEP = CIFAR10.replace(depth=12, width=512)
"""The same on the study's first network, twelve blocks, of a width that it does not state."""

FASHION_MNIST_STUDY = CIFAR10_STUDY.replace(task=fashion_mnist(), network=image_mlp(depth=4, width=256), epochs=20)
"""Fashion-MNIST under the study's rule: its debug runs, whose sizes are not known; no augmentation."""

FASHION_MNIST = FASHION_MNIST_STUDY.replace(normalise="raw", clip=0.0)
"""Fashion-MNIST with jcredit's local rule."""


# --- lines of a grid --------------------------------------------------------------------------------------------------

Table = Mapping[str, Mapping[str, Any]]
"""{label: changes for ``Config.replace`` in which the line differs}, usually of its ``credit``."""


def named(*names: str) -> dict[str, dict[str, Any]]:
    """Lines that are called what their estimator is called, at its defaults."""
    return {name: {"credit": getattr(estimators, name)()} for name in names}


def lines(base: Config, table: Table, block: str = "", only: Sequence[str] = (), **fields) -> tuple[Variant, ...]:
    """One block of a grid.

    Args:
      base: what all lines share.
      table: the lines.
      block: heading of the block.
      only: labels that are wanted; none given means all.
      **fields: changes to every line that has a setting of this name, unless the line sets it itself: by a change of
        its own, or by a part of its own in which it is not the default.

    Raises:
      ConfigError: a setting that no line has, or a value that cannot run.
    """
    configs = {label: base.replace(**own) for label, own in table.items()}
    for name, value in fields.items():
        if not any(paths_of(config, name) for config in configs.values()):
            change(base, name, value)  # says which names there are
    for label, own in table.items():
        taken = set(_set_by(own))
        for name, value in fields.items():
            free = (path for path in paths_of(configs[label], name) if path not in taken)
            configs[label] = configs[label].replace(**dict.fromkeys(free, value))
    return tuple(Variant(label, config, block) for label, config in configs.items() if not only or label in only)


def _set_by(own: Mapping[str, Any]) -> Iterator[str]:
    """Paths of the settings that a line's changes set: their own, and those of their parts that are not the default."""
    for path, value in own.items():
        yield path
        for inner, part in value.walk(path) if isinstance(value, Part) else ():
            yield from (
                f"{inner}.{s.name}" for s in part.factory.settings.values() if part.settings[s.name] != s.default
            )


CONTROLS = named("bp", "frozen", "broadcast")
"""The lines every table has: what is to be reached, and what a credit has to beat (docs/method.md 10)."""

ORACLE = "oracle, RMS rule"
STUDY_CONTROLS = {ORACLE: {"credit": bp()}} | named("frozen", "broadcast")
"""The same under the study's rule, which takes the gradient through per-sample RMS and a clip: that is not BP."""

WARMUP = {"warmup_ratio": 0.2}
"""DFA's credit for the first fifth of the steps, as the study trained its scalar bridge and vector field."""

PLAIN_FIELD = exact_terminal(of=vector_field(scheme="jvp"))
"""A field as free as the study's, measured exactly and with delta_L at h_L: raw and online it explodes."""

PULL: dict[str, Any] = {"state_penalty": 1e-4}
"""A pull lam h on the states, added to the credit of h."""
MENDED_FIELD: dict[str, Any] = PULL | {
    "credit": exact_terminal(of=vector_field(scheme="jvp", scale="delta", skip=True))
}  # fmt: skip
"""The vector field with the scale of each sample's delta_L, delta_L itself added, and a pull lam h on the states."""

STUDY_BLOCK = "the study's rule: per-sample RMS credit, clip 1"
RAW_BLOCK = "jcredit's rule: raw credit"


def both_rules(study: Config, raw: Config, only: Sequence[str] = (), **fields) -> tuple[Variant, ...]:
    """Two blocks, one per local rule, with every kind of credit in each; controls, shuffled ones too, beside them."""
    study_lines = STUDY_CONTROLS | named("dfa", "fa", "state_bridge") | {
        "scalar_bridge": {"credit": scalar_bridge()} | WARMUP,
        "vector_field, plain": {"credit": vector_field()} | WARMUP,
        **named("tangent_chain"),
    }  # fmt: skip
    tangents = ("tangent_gate", "tangent_mask", "tangent_chain")
    raw_lines = CONTROLS | named("dfa", "fa", "state_bridge", "scalar_bridge") | {
        "state_bridge, no code": {"credit": state_bridge(trunk=mlp(code="none"))},
        "vector_field, plain": {"credit": PLAIN_FIELD},
        "vector_field, mended": MENDED_FIELD,
        **named(*tangents),
        **{
            f"tangent_sweeps K={k}, {how}": {"credit": tangent_sweeps(k, how)}
            for k, how in ((1, "jacobi"), (1, "neumann"), (2, "neumann"))
        },
        **{f"{name}, shuffled": {"credit": getattr(estimators, name)(shuffled=True)} for name in tangents},
    }  # fmt: skip
    return (
        *lines(study, study_lines, STUDY_BLOCK, only, **fields),
        *lines(raw, raw_lines, RAW_BLOCK, only, **fields),
    )
