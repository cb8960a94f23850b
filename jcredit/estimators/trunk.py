"""The network behind every free-form estimator: [LN(h), time(t), s] -> hidden layers -> output."""

from __future__ import annotations

import itertools
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


class Trunk(NamedTuple):
    """A multilayer perceptron with SiLU: ``hidden_layers`` of ``hidden`` units."""

    hidden: int = 256
    hidden_layers: int = 2

    def init(self, key: Key, shapes: Shapes, outputs: int) -> Params:
        """Parameters for states of width D, a code of width S and ``outputs`` outputs."""
        inputs = (jnp.zeros((1, width), float_type()) for width in (shapes.width, TIME_FEATURES, shapes.code))
        return _Mlp(self.hidden, self.hidden_layers, outputs).init(key, *inputs)

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
        inputs = (
            env.normalise(h),
            time.reshape((1,) * (h.ndim - time.ndim) + time.shape),
            code.reshape((1,) * (h.ndim - 2) + code.shape),
        )
        return _Mlp(self.hidden, self.hidden_layers, outputs).apply(params, *inputs)  # type: ignore[return-value]
