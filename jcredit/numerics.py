"""Small numerical pieces that stay exact at the scales credit has: norms of 1e-10, constant batches, zero vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Array = jax.Array
F = TypeVar("F", bound=Callable[..., Any])

LAYER_NORM_EPS = 1e-5
RMS_EPS = 1e-6
APART = 2**31
"""Folded into a key for what is measured: steps count up from 0 and epochs down from -1, so that no draw is shared."""
NUMERICS = {
    "enable_x64": False, "default_matmul_precision": None, "default_prng_impl": "threefry2x32",
    "threefry_partitionable": True,
}  # fmt: skip
"""JAX's options that decide a run's bits, as they are by default."""


FULL_PRECISION = ("highest", "float32")
"""Names of the precision that runs have anyway: see ``in_full_precision``."""


def in_full_precision(function: F) -> F:
    """``function`` with matrix products of float32 arrays in float32, unless the user has chosen otherwise.

    By default a GPU rounds their factors to ten bits (TF32) and a TPU to seven (bfloat16), where a CPU does not: one
    run would be three experiments.  ``jax_default_matmul_precision`` chooses otherwise, and makes it another run.
    """

    @functools.wraps(function)
    def precise(*args, **kwargs):
        with jax.default_matmul_precision(numerics()["default_matmul_precision"] or "highest"):
            return function(*args, **kwargs)

    return precise  # type: ignore[return-value]


def numerics() -> dict[str, Any]:
    """The values of the options in ``NUMERICS``, here and now."""
    return {name: getattr(jax.config, f"jax_{name}") for name in NUMERICS}


def unusual_numerics() -> dict[str, Any]:
    """Those of them that are not what they are by default."""
    found = {name: value for name, value in numerics().items() if value != NUMERICS[name]}
    if found.get("default_matmul_precision") in FULL_PRECISION:
        del found["default_matmul_precision"]
    return found


def float_type() -> jnp.dtype:
    """float32, or float64 where ``jax_enable_x64`` is set."""
    return jnp.result_type(float)


def layer_norm(h_BxD: Array) -> Array:
    """LayerNorm without affine parameters over the last axis (Ba et al. 2016).  Same shape as its input."""
    centred = h_BxD - jnp.mean(h_BxD, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS)


def layer_norm_tangent(h_BxD: Array, v_BxD: Array) -> Array:
    """Jacobian of ``layer_norm`` at ``h`` applied to ``v``; symmetric, so also its transpose (docs/method.md 1)."""
    centred = h_BxD - jnp.mean(h_BxD, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + LAYER_NORM_EPS)
    unit = centred * scale
    v_centred = v_BxD - jnp.mean(v_BxD, axis=-1, keepdims=True)
    return scale * (v_centred - unit * jnp.mean(unit * v_centred, axis=-1, keepdims=True))


def rms_normalise(a_BxD: Array) -> Array:
    """a / (RMS_D(a) + 1e-6) for each sample (the study's credit normalisation)."""
    return a_BxD / (jnp.sqrt(jnp.mean(a_BxD * a_BxD, axis=-1, keepdims=True)) + RMS_EPS)


def batch_normalise(a_BxD: Array) -> Array:
    """a / (RMS(a) + 1e-6) with one scale for the whole batch: relative sizes of samples are kept."""
    return a_BxD / (jnp.sqrt(jnp.mean(a_BxD * a_BxD, axis=(-2, -1), keepdims=True)) + RMS_EPS)


def _unit_scale(a: Array) -> Array:
    """``a`` divided by its largest magnitude along the last axis, so that squares neither under- nor overflow.

    The scale is a constant of differentiation: what uses it does not depend on it.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(a), axis=-1, keepdims=True))
    return a / jnp.where(largest > 0, largest, 1.0)


def _binary_scale(a: Array) -> Array:
    """The power of two at or below the largest magnitude along the last axis, kept as 1; 1 where all is zero.

    It stops at half the largest there is, whose reciprocal is still a normal number: XLA may multiply by that.
    Division by it is exact, so that whatever neither under- nor overflows without it has the same bits with it.
    """
    largest = jnp.max(jnp.abs(a), axis=-1, keepdims=True)
    _, exponent = jnp.frexp(jnp.where(largest > 0, largest, 1.0))
    return jnp.ldexp(jnp.ones_like(largest), jnp.minimum(exponent - 1, jnp.finfo(a.dtype).maxexp - 2))


def norm(a_BxD: Array) -> Array:
    """Euclidean norm over the last axis, exact at any scale.  Drops the last axis."""
    scale_Bx1 = _binary_scale(a_BxD)
    return jnp.linalg.norm(a_BxD / scale_Bx1, axis=-1) * scale_Bx1[..., 0]


def clamped_cosine(a_BxD: Array, b_BxD: Array, least: float) -> Array:
    """<a, b> / max(||a|| ||b||, least) over the last axis, exact at any scale.  Drops the last axis."""
    scale_a, scale_b = _binary_scale(a_BxD), _binary_scale(b_BxD)
    a, b = a_BxD / scale_a, b_BxD / scale_b
    dots, norms = jnp.sum(a * b, axis=-1), jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    back = lambda x: x * scale_a[..., 0] * scale_b[..., 0]  # noqa: E731
    clamped = back(norms) < least  # zero vectors among them
    return jnp.where(clamped, back(dots) / jnp.maximum(back(norms), least), dots / jnp.where(norms > 0, norms, 1.0))


def cosine(a_BxD: Array, b_BxD: Array) -> Array:
    """Cosine over the last axis, exact at any scale; 0 where either vector is zero, nan where one is not finite.

    Drops the last axis.
    """
    a, b = _unit_scale(a_BxD), _unit_scale(b_BxD)
    squares = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    # Guarded before the root as well: at zero its derivative is infinite, and one solved sample would give nan.
    norms = jnp.sqrt(jnp.where(squares == 0, 1.0, squares))
    return jnp.where(squares == 0, 0.0, jnp.sum(a * b, axis=-1) / norms)


def pearson(a: Array, b: Array) -> Array:
    """Pearson correlation of all entries of two equal-shaped arrays; 0 if either is constant."""

    def centre(x: Array) -> Array:
        from_first = (x - x.ravel()[:1].reshape((1,) * x.ndim)).reshape(1, -1)  # a constant becomes exactly zero
        return from_first - jnp.mean(from_first)

    return cosine(centre(a), centre(b))[0]


def scale_free(error: Array, reference: Array) -> Array:
    """sum error^2 / sum reference^2: a squared error relative to what it should explain; 0 / 0 gives 0."""
    total = jnp.sum(reference * reference)
    return jnp.sum(error * error) / jnp.where(total > 0, total, 1.0)


def clip_by_norm(tree, limit: Array | float):
    """Scales a pytree to a global norm of at most ``limit``, exact at any scale; ``limit`` = 0 leaves it as it is."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return tree
    scale = _binary_scale(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))[0]
    size = jnp.sqrt(sum(jnp.sum((leaf / scale) ** 2) for leaf in leaves))
    clips = (jnp.asarray(limit) > 0) & (size > limit / scale)
    factor = limit / jnp.where(size > 0, size, 1.0)
    return jax.tree.map(lambda leaf: jnp.where(clips, leaf / scale * factor, leaf), tree)


def clamp(tree, limit: Array):
    """Clamps every entry of a pytree to [-limit, limit]; ``limit`` = 0 leaves it as it is."""
    bound = jnp.where(limit > 0, limit, jnp.inf)
    return jax.tree.map(lambda leaf: jnp.clip(leaf, -bound, bound), tree)
