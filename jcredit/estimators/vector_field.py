"""The vector credit field a(h, t, s), trained on measured effects of perturbations (the study's phase 4C)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcredit.estimators.linear_maps import TangentMap
from jcredit.estimators.trunk import Trunk, layer_times
from jcredit.losses.bridge import terminal_gradient_loss
from jcredit.losses.perturbation import all_layers, directional_loss, measure, random_layers, shuffled_order
from jcredit.types import Context, Env, Estimator, EstState


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
    """A parameterised credit: for all layers, for one given layer per sample, and its own terminal loss."""

    init: Callable
    credit: Callable  # (params, ctx, env) -> a_0..a_L
    at: Callable  # (params, ctx, env, layer_B) -> a_BxD
    terminal: Callable  # (params, ctx, env) -> scalar


def _mlp_field(trunk: Trunk) -> _Field:
    def credit(params, ctx, env):
        h_LxBxD = ctx.trace.h_LxBxD
        times = layer_times(h_LxBxD.shape[0] - 1)[:, None]
        return trunk.apply(params, env, h_LxBxD, times, ctx.code_BxS, h_LxBxD.shape[-1])

    def at(params, ctx, env, layer_B):
        h_LxBxD = ctx.trace.h_LxBxD
        times = layer_times(h_LxBxD.shape[0] - 1)[layer_B]
        h_BxD = h_LxBxD[layer_B, np.arange(layer_B.shape[0])]
        return trunk.apply(params, env, h_BxD, times, ctx.code_BxS, h_BxD.shape[-1])

    def terminal(params, ctx, env):
        last = np.full(ctx.target_B.shape[0], ctx.trace.h_LxBxD.shape[0] - 1)
        return terminal_gradient_loss(at(params, ctx, env, last), ctx.delta_BxD)

    return _Field(lambda key, shapes: trunk.init(key, shapes, shapes.width), credit, at, terminal)


def _linear_field(tangent_map: TangentMap) -> _Field:
    """Linear in delta_L: the terminal credit is exact, so there is no terminal loss."""

    def credit(params, ctx, env):
        return tangent_map.pull(params, env, ctx.trace.h_LxBxD[:-1], ctx.delta_BxD)

    def at(params, ctx, env, layer_B):
        return credit(params, ctx, env)[layer_B, np.arange(layer_B.shape[0])]

    return _Field(tangent_map.init, credit, at, lambda params, ctx, env: jnp.zeros((), ctx.delta_BxD.dtype))


def _directional(field: _Field, params, ctx: Context, env: Env, hp, key, how: Measurement):
    """Regression of <a, v> on measured effects, every sample at its own random layer or at all layers."""
    layer_key, v_key, shuffle_key = jax.random.split(key, 3)
    batch = ctx.target_B.shape[0]
    probe = random_layers(layer_key, ctx) if how.layers == "random" else all_layers(ctx)
    v_MxNxD = jax.random.normal(v_key, (how.directions, *probe.h_BxD.shape), probe.h_BxD.dtype)
    g_MxN = jax.lax.stop_gradient(measure(env, probe.ctx, probe.layer_B, probe.h_BxD, v_MxNxD, how.scheme, hp.epsilon))
    if how.shuffled:
        g_MxN = g_MxN.reshape(how.directions, -1, batch)[..., shuffled_order(shuffle_key, batch)].reshape(g_MxN.shape)
    if how.layers == "random":
        return directional_loss(field.at(params, probe.ctx, env, probe.layer_B), v_MxNxD, g_MxN)
    a_LxBxD = field.credit(params, ctx, env)[:-1]
    by_layer = lambda x: x.reshape(how.directions, *a_LxBxD.shape[:2], *x.shape[2:])  # noqa: E731
    return jnp.mean(jax.vmap(directional_loss, (0, 1, 1))(a_LxBxD, by_layer(v_MxNxD), by_layer(g_MxN)))


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
        directional = _directional(field, params, ctx, env, hp, key, how)
        terminal = field.terminal(params, ctx, env)
        return directional + hp.terminal_weight * terminal, {"directional": directional, "terminal_gradient": terminal}

    return Estimator(
        init=lambda key, shapes: EstState(field.init(key, shapes), {}),
        credit=lambda state, ctx, env, hp, key: field.credit(state.params, ctx, env),
        loss=fit,
        tier="2: loss under perturbation" + (", sequential" if tangent_map and tangent_map.chained else ""),
    )
