"""The network behind every free-form estimator: [LN(h), time(t), s] -> hidden layers -> output."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jcredit.numerics import float_type
from jcredit.types import Array, Env, Key, Params, Shapes

FREQUENCIES = (1, 2, 3, 4)
TIME_FEATURES = 1 + 2 * len(FREQUENCIES)


def time_features(t: Array) -> Array:
    """t in [0, 1] -> [t, sin(k pi t), cos(k pi t)] for k = 1..4; adds a last axis of 9."""
    phase = jnp.pi * t[..., None] * jnp.asarray(FREQUENCIES, float_type()).reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([t[..., None], jnp.sin(phase), jnp.cos(phase)], axis=-1)


def layer_times(depth: int) -> Array:
    """Normalised depth t_l = l / L for l = 0..L; shape (L+1,)."""
    return jnp.arange(depth + 1, dtype=float_type()) / depth


class _Mlp(nn.Module):
    hidden: int
    layers: int
    outputs: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.layers):
            x = nn.silu(nn.Dense(self.hidden, dtype=float_type(), param_dtype=float_type())(x))
        return nn.Dense(self.outputs, dtype=float_type(), param_dtype=float_type())(x)


class Trunk(NamedTuple):
    """A multilayer perceptron with SiLU: ``hidden_layers`` of ``hidden`` units."""

    hidden: int = 256
    hidden_layers: int = 2

    def init(self, key: Key, shapes: Shapes, outputs: int) -> Params:
        """Parameters for states of width D, a code of width S and ``outputs`` outputs."""
        inputs = jnp.zeros((1, shapes.width + TIME_FEATURES + shapes.code), float_type())
        return _Mlp(self.hidden, self.hidden_layers, outputs).init(key, inputs)

    def apply(self, params: Params, env: Env, h: Array, t: Array, code: Array, outputs: int) -> Array:
        """Evaluates the trunk.

        Args:
          params: from ``init``.
          env: its ``normalise`` is what the trunk sees of h.
          h: states (..., B, D).
          t: normalised depth of each state (..., B), or (..., 1) for all samples of a layer.
          code: conditioning code (B, S), the same for all leading axes of h.
          outputs: as in ``init``.

        Returns:
          (..., B, outputs).
        """
        time = time_features(t)
        pieces = [
            env.normalise(h),
            jnp.broadcast_to(time, (*h.shape[:-1], time.shape[-1])),
            jnp.broadcast_to(code.reshape((1,) * (h.ndim - 2) + code.shape), (*h.shape[:-1], code.shape[-1])),
        ]
        return _Mlp(self.hidden, self.hidden_layers, outputs).apply(params, jnp.concatenate(pieces, axis=-1))  # type: ignore[return-value]
