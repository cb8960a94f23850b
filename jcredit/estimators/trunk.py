"""The network behind every free-form estimator, [LN(h), time(t), code s] -> hidden layers -> output, and its code s."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jcredit import parts
from jcredit.numerics import float_type
from jcredit.settings import Count
from jcredit.types import Array, Context, Env, Key, Params, Shapes

FREQUENCIES = (1, 2, 3, 4)
TIME_FEATURES = 1 + 2 * len(FREQUENCIES)


class Trunk(NamedTuple):
    """The network inside an estimator.

    Attributes:
      init: (key, Shapes, outputs) -> (trained params, fixed arrays).
      code: (fixed arrays, Context) -> code_BxS, the conditioning code; held fixed where h is differentiated.
      apply: (params, env, h, t, code, outputs) -> (..., B, outputs): h states (..., B, D); t normalised depth of each
        state (..., B), or (..., 1) for all samples of a layer; code (B, S), the same for all leading axes of h.
    """

    init: Callable[[Key, Shapes, int], tuple[Params, Any]]
    code: Callable[[Any, Context], Array]
    apply: Callable[[Params, Env, Array, Array, Array, int], Array]


def time_features(t: Array) -> Array:
    """t in [0, 1] -> [t, sin(k pi t), cos(k pi t)] for k = 1..4; adds a last axis of 9."""
    phase = jnp.pi * t[..., None] * jnp.asarray(FREQUENCIES, float_type()).reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([t[..., None], jnp.sin(phase), jnp.cos(phase)], axis=-1)


def layer_times(depth: int) -> Array:
    """Normalised depth t_l = l / L for l = 0..L; shape (L+1,)."""
    return jnp.arange(depth + 1, dtype=float_type()) / depth


class _Joined(nn.Module):
    """``nn.Dense`` of the concatenation of its inputs, which is never formed; the same parameters from the same key.

    Each input meets its own rows of the kernel, so that what is the same for all layers (the code) or for all samples
    (the time) is multiplied once; leading axes broadcast.
    """

    features: int

    @nn.compact
    def __call__(self, *inputs):
        widths = [x.shape[-1] for x in inputs]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (sum(widths), self.features), float_type())
        bias = self.param("bias", nn.initializers.zeros, (self.features,), float_type())
        rows = jnp.split(kernel, list(itertools.accumulate(widths))[:-1])
        first, *others = (x @ w for x, w in zip(inputs, rows, strict=True))
        return sum(others, first) + bias.reshape((1,) * (first.ndim - 1) + (-1,))


class _Mlp(nn.Module):
    hidden: int
    layers: int
    outputs: int

    @nn.compact
    def __call__(self, *inputs):
        x = inputs
        for i in range(self.layers):
            x = (nn.silu(_Joined(self.hidden, name=f"Dense_{i}")(*x)),)
        return _Joined(self.outputs, name=f"Dense_{self.layers}")(*x)


@parts.trunk
def mlp(
    hidden: Count = 256,
    hidden_layers: Count = 2,
    code: Literal["eT", "deltaL", "eT_hL", "deltaL_hL", "none"] = "eT",
    projection_dim: Count = 32,
    projection_scale: Literal["unit", "fan_in"] = "fan_in",
) -> Trunk:
    """A multilayer perceptron with SiLU (docs/method.md 3 and 4).

    Args:
      hidden: width of its hidden layers.
      hidden_layers: how many there are.
      code: conditioning code s: e_T or delta_L, alone or with a fixed random projection of h_L; or nothing at all.
      projection_dim: columns of that projection.
      projection_scale: its entries, N(0, 1) or N(0, 1/D); the study's is not known.
    """
    of, _, state = code.partition("_")
    with_state = state == "hL"

    def init(key, shapes, outputs):
        base = {"eT": shapes.outputs, "deltaL": shapes.width, "none": 0}[of]
        code_width = base + projection_dim * with_state
        inputs = (jnp.zeros((1, width), float_type()) for width in (shapes.width, TIME_FEATURES, code_width))
        params = _Mlp(hidden, hidden_layers, outputs).init(key, *inputs)
        if not with_state:
            return params, {}
        scale = shapes.width**-0.5 if projection_scale == "fan_in" else 1.0
        drawn = jax.random.normal(jax.random.fold_in(key, 1), (shapes.width, projection_dim), float_type())
        return params, {"projection": scale * drawn}

    def code_of(fixed, ctx):
        base_BxS = {"eT": ctx.error_BxC, "deltaL": ctx.delta_BxD, "none": ctx.error_BxC[:, :0]}[of]
        return jnp.concatenate([base_BxS, ctx.trace.h_KxBxD[-1] @ fixed["projection"]], -1) if with_state else base_BxS

    def apply(params, env, h, t, code_BxS, outputs):
        time = time_features(t)
        inputs = (
            env.normalise(h),
            time.reshape((1,) * (h.ndim - time.ndim) + time.shape),
            code_BxS.reshape((1,) * (h.ndim - 2) + code_BxS.shape),
        )
        return _Mlp(hidden, hidden_layers, outputs).apply(params, *inputs)

    return Trunk(init, code_of, apply)  # type: ignore[arg-type]
