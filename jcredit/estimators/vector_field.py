"""The vector credit field a(h, t, s), trained on measured effects of perturbations (the study's phase 4C)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcredit.estimators.linear_maps import TangentMap
from jcredit.estimators.trunk import Trunk, layer_times
from jcredit.losses.bridge import terminal_gradient_loss
from jcredit.losses.perturbation import all_layers, directional_loss, measure, random_layers, shuffled_order
from jcredit.types import Array, Context, Env, Estimator, EstState


class Measurement(NamedTuple):
    """How effects of perturbations are measured.

    Attributes:
      directions: M fresh directions v ~ N(0, I) a step.
      layers: ``random``, one layer per sample and one perturbed pass for all; or ``all``, every sample at every layer.
      scheme: ``central``, ``one_sided`` or ``jvp``.
      shuffled: control; measurements moved to other samples of the batch, each sample keeping its own directions.
    """

    directions: int = 4
    layers: str = "random"
    scheme: str = "central"
    shuffled: bool = False


class _Field(NamedTuple):
    """A parameterised credit: at all layers, or at one layer per sample and at the last."""

    init: Callable
    credit: Callable  # (params, ctx, env) -> a_0..a_L
    at: Callable  # (params, ctx, env, probe) -> (a_BxD where the probe of the batch is, a_BxD of the batch at h_L)


def _mlp_field(trunk: Trunk) -> _Field:
    def credit(params, ctx, env):
        h_LxBxD = ctx.trace.h_LxBxD
        times = layer_times(h_LxBxD.shape[0] - 1)[:, None]
        return trunk.apply(params, env, h_LxBxD, times, ctx.code_BxS, h_LxBxD.shape[-1])

    def at(params, ctx, env, probe):
        times, h_last = layer_times(ctx.trace.h_LxBxD.shape[0] - 1), ctx.trace.h_LxBxD[-1]
        both = jnp.concatenate([probe.h_BxD, h_last])  # one pass of the trunk for the two losses
        t = jnp.concatenate([times[probe.layer_B], jnp.broadcast_to(times[-1:], probe.layer_B.shape)])
        code = jnp.concatenate([probe.ctx.code_BxS, ctx.code_BxS])
        return jnp.split(trunk.apply(params, env, both, t, code, both.shape[-1]), 2)

    return _Field(lambda key, shapes: trunk.init(key, shapes, shapes.width), credit, at)


def _linear_field(tangent_map: TangentMap) -> _Field:
    """Linear in delta_L: the terminal credit is exact, so its terminal loss is zero."""

    def credit(params, ctx, env):
        return tangent_map.pull(params, env, ctx.trace.h_LxBxD[:-1], ctx.delta_BxD)

    def at(params, ctx, env, probe):
        a_LxBxD = credit(params, ctx, env)  # as the step asks for it: made once
        return a_LxBxD[probe.layer_B, probe.index_B], a_LxBxD[-1]

    return _Field(tangent_map.init, credit, at)


def _losses(field: _Field, params, ctx: Context, env: Env, hp, key, how: Measurement) -> tuple[Array, Array]:
    """Regression of <a, v> on measured effects, every sample at its own random layer or at all; terminal gradient."""
    layer_key, v_key, shuffle_key = jax.random.split(key, 3)
    batch = ctx.target_B.shape[0]
    probe = random_layers(layer_key, ctx) if how.layers == "random" else all_layers(ctx)
    v_MxNxD = jax.random.normal(v_key, (how.directions, *probe.h_BxD.shape), probe.h_BxD.dtype)
    g_MxN = jax.lax.stop_gradient(measure(env, probe, v_MxNxD, how.scheme, hp.epsilon))
    if how.shuffled:
        g_MxN = g_MxN.reshape(how.directions, -1, batch)[..., shuffled_order(shuffle_key, batch)].reshape(g_MxN.shape)
    if how.layers == "random":
        a_NxD, last_BxD = field.at(params, ctx, env, probe)
        return directional_loss(a_NxD, v_MxNxD, g_MxN), terminal_gradient_loss(last_BxD, ctx.delta_BxD)
    a_LxBxD = field.credit(params, ctx, env)
    by_layer = lambda x: x.reshape(how.directions, -1, batch, *x.shape[2:])  # noqa: E731
    each_L = jax.vmap(directional_loss, (0, 1, 1))(a_LxBxD[:-1], by_layer(v_MxNxD), by_layer(g_MxN))
    return jnp.mean(each_L), terminal_gradient_loss(a_LxBxD[-1], ctx.delta_BxD)


def vector_field(
    trunk: Trunk = Trunk(),  # noqa: B008
    how: Measurement = Measurement(),  # noqa: B008
    tangent_map: TangentMap | None = None,
) -> Estimator:
    """a(h, t, s) in R^D with loss mean (<a, v> - g)^2 / mean g^2 + terminal_weight * terminal gradient loss.

    Args:
      trunk: size of the free-form field.
      how: directions, layers and scheme of the measurement, and the shuffled control.
      tangent_map: a credit linear in delta_L in place of the free form (method.md 4 and 9); its a_L is exact.
    """
    field = _mlp_field(trunk) if tangent_map is None else _linear_field(tangent_map)

    def fit(params, state, ctx, env, hp, key):
        del state
        directional, terminal = _losses(field, params, ctx, env, hp, key, how)
        return directional + hp.terminal_weight * terminal, {"directional": directional, "terminal_gradient": terminal}

    return Estimator(
        init=lambda key, shapes: EstState(field.init(key, shapes), {}),
        credit=lambda state, ctx, env, hp, key: field.credit(state.params, ctx, env),
        loss=fit,
        tier="2: loss under perturbation" + (", sequential" if tangent_map and tangent_map.chained else ""),
    )
