"""Vector credit fields, trained on measured effects of perturbations (the study's phase 4C; docs/method.md 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.estimators.linear_maps import MapForm, TangentMap, make_map
from jcredit.estimators.trunk import Trunk, layer_times, mlp
from jcredit.losses.bridge import terminal_gradient_loss
from jcredit.losses.perturbation import Scheme, all_layers, directional_loss, measure, random_layers, shuffled_order
from jcredit.parts import TrunkPart
from jcredit.settings import Added, Count, NonNegative, Positive
from jcredit.types import Array, Context, Env, Estimator, EstState, adam

Layers = Literal["one", "all"]
Scale = Literal["free", "delta"]


class _Effects(NamedTuple):
    """How effects of perturbations are measured; see ``vector_field``."""

    directions: int
    layers: Layers
    scheme: Scheme
    epsilon: Array | float
    shuffled: bool


class _Field(NamedTuple):
    """A parameterised credit: at all layers, or at one layer per sample and at the last."""

    init: Callable
    credit: Callable  # (state, ctx, env) -> a_0..a_L
    at: Callable  # (state, ctx, env, probe) -> (a_BxD where the probe of the batch is, a_BxD of the batch at h_L)


def _free_field(trunk: Trunk, scale: Scale, skip: bool) -> _Field:
    def formed(raw, delta):
        """The credit made of the trunk's output and of delta_L, which broadcasts to it."""
        size = jnp.sqrt(jnp.mean(delta**2, axis=-1, keepdims=True)) if scale == "delta" else 1.0
        return raw * size + (delta if skip else 0.0)

    def credit(state, ctx, env):
        h_KxBxD = ctx.trace.h_KxBxD
        times = layer_times(h_KxBxD.shape[0] - 1)[:, None]
        raw = trunk.apply(state.params, env, h_KxBxD, times, trunk.code(state.extra, ctx), h_KxBxD.shape[-1])
        return formed(raw, ctx.delta_BxD[None])

    def at(state, ctx, env, probe):
        times, h_last = layer_times(ctx.trace.h_KxBxD.shape[0] - 1), ctx.trace.h_KxBxD[-1]
        # One pass of the trunk for the two losses: the probe's samples, then the batch at h_L.
        both = jnp.concatenate([probe.h_BxD, h_last])
        t = jnp.concatenate([times[probe.layer_B], jnp.broadcast_to(times[-1:], h_last.shape[:1])])
        code = jnp.concatenate([trunk.code(state.extra, probe.ctx), trunk.code(state.extra, ctx)])
        delta = jnp.concatenate([probe.ctx.delta_BxD, ctx.delta_BxD])
        a = formed(trunk.apply(state.params, env, both, t, code, both.shape[-1]), delta)
        return a[: probe.h_BxD.shape[0]], a[probe.h_BxD.shape[0] :]

    return _Field(lambda key, shapes: EstState(*trunk.init(key, shapes, shapes.width)), credit, at)


def _linear_field(tangent_map: TangentMap) -> _Field:
    """Linear in delta_L: the terminal credit is exact, so its terminal loss is zero."""

    def credit(state, ctx, env):
        return tangent_map.pull(state.params, env, ctx.trace, ctx.delta_BxD)

    def at(state, ctx, env, probe):
        a_KxBxD = credit(state, ctx, env)  # as the step asks for it: made once
        return a_KxBxD[probe.layer_B, probe.index_B], a_KxBxD[-1]

    return _Field(lambda key, shapes: EstState(tangent_map.init(key, shapes), {}), credit, at)


def _losses(field: _Field, state: EstState, ctx: Context, env: Env, key, how: _Effects) -> tuple[Array, Array]:
    """Regression of <a, v> on measured effects, every sample at its own random layer or at all; terminal gradient."""
    layer_key, v_key, shuffle_key = jax.random.split(key, 3)
    batch = ctx.target_B.shape[0]
    probe = random_layers(layer_key, ctx) if how.layers == "one" else all_layers(ctx)
    v_MxNxD = jax.random.normal(v_key, (how.directions, *probe.h_BxD.shape), probe.h_BxD.dtype)
    g_MxN = jax.lax.stop_gradient(measure(env, probe, v_MxNxD, how.scheme, how.epsilon))
    if how.shuffled:
        g_MxN = g_MxN.reshape(how.directions, -1, batch)[..., shuffled_order(shuffle_key, batch)].reshape(g_MxN.shape)
    if how.layers == "one":
        a_NxD, last_BxD = field.at(state, ctx, env, probe)
    else:
        a_KxBxD = field.credit(state, ctx, env)
        a_NxD, last_BxD = a_KxBxD[:-1].reshape(probe.h_BxD.shape), a_KxBxD[-1]
    directional = directional_loss(a_NxD, v_MxNxD, g_MxN, probe)
    return directional, terminal_gradient_loss(last_BxD, ctx.delta_BxD)


def _fitted(field: _Field, how: _Effects, terminal_weight, optimizer, tier: str, depth) -> Estimator:
    def loss(state, ctx, env, key):
        directional, terminal = _losses(field, state, ctx, env, key, how)
        return directional + terminal_weight * terminal, {"directional": directional, "terminal_gradient": terminal}

    credit = lambda state, ctx, env, key: field.credit(state, ctx, env)  # noqa: E731
    return Estimator(field.init, credit, loss, optimizer=optimizer, tier=tier, depth=depth)


@parts.estimator
def vector_field(
    directions: Count = 4,
    layers: Layers = "one",
    scheme: Scheme = "central",
    epsilon: Positive = 1e-2,
    shuffled: bool = False,
    terminal_weight: NonNegative = 1.0,
    scale: Annotated[Scale, Added("free")] = "free",
    skip: Annotated[bool, Added(False)] = False,
    trunk: TrunkPart = mlp(),  # noqa: B008
    learning_rate: Positive = 1e-3,
    clip: NonNegative = 1.0,
) -> Estimator:
    """a([LN(h), t, s]) in R^D with loss sum (<a, v> - g)^2 / sum g^2 + terminal_weight * terminal gradient loss.

    Free, as the study describes it, the field has to learn the size of every sample's error, and online it explodes
    (its directional loss stands far above 1, that of a credit of zero); ``scale="delta"`` hands it that size.

    Args:
      directions: M fresh directions v ~ N(0, I) a step.
      layers: each sample perturbed at one random layer (as many at each), or every sample at all layers.
      scheme: how the effect g of a perturbation is measured: finite differences, or their exact limit (jvp).
      epsilon: size of a finite perturbation.
      shuffled: control; effects moved to other samples of the batch, each sample keeping its own directions.
      terminal_weight: weight of the terminal gradient loss (the study's tw; 0: none).
      scale: the trunk's output as it is, or times the RMS of the sample's delta_L, so that what it has to fit is of
        order one.
      skip: whether delta_L is added, so that the trunk fits what the broadcast lacks.
      trunk: the free-form field.
      learning_rate: Adam's step size for the field.
      clip: global-norm clip of the field's gradient (0: off).
    """
    how = _Effects(directions, layers, scheme, epsilon, shuffled)
    return _fitted(
        _free_field(trunk.build(), scale, skip),
        how,
        terminal_weight,
        adam(learning_rate, clip),
        "2: loss under perturbation",
        depth=1,
    )


@parts.estimator
def linear_field(
    form: MapForm = "gate",
    rank: Count = 256,
    directions: Count = 4,
    layers: Layers = "one",
    scheme: Scheme = "jvp",
    epsilon: Positive = 1e-2,
    shuffled: bool = False,
    learning_rate: Positive = 1e-3,
    clip: NonNegative = 0.0,
    sweeps: Annotated[Count, Added(1)] = 1,
) -> Estimator:
    """A field linear in delta_L, the maps of the tangent bridges, fitted to effects on the loss alone (scalar tier).

    Its terminal credit is exact, so it has no terminal loss.  Scheme and clip default to those of the tangent bridges,
    not of ``vector_field``, which has the study's: set them alike to compare the forms.

    Args:
      form: learned gates, the activation derivatives of all blocks above, a chain over blocks, its maps in sweeps, or
        maps over one, two, four ... blocks.
      rank: of the gate form.
      directions: M fresh directions v ~ N(0, I) a step.
      layers: each sample perturbed at one random layer (as many at each), or every sample at all layers.
      scheme: how the effect of a perturbation is measured.
      epsilon: size of a finite perturbation.
      shuffled: control; effects moved to other samples of the batch, each sample keeping its own directions.
      learning_rate: Adam's step size for the map; chosen on CIFAR-10's validation split (gates, L = 4, one seed), where
        the tangent bridges' 3e-3 leaves the fit worse than a credit of zero.
      clip: global-norm clip of the map's gradient (0: off).
      sweeps: K of the sweeps form (neumann).
    """
    tangent_map = make_map(form, rank, sweeps)
    how = _Effects(directions, layers, scheme, epsilon, shuffled)
    tier = "2: loss under perturbation" + (f", {tangent_map.path}" if tangent_map.path else "")
    return _fitted(_linear_field(tangent_map), how, 0.0, adam(learning_rate, clip), tier, tangent_map.depth)
