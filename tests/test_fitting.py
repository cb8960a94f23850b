"""What estimators fit: the truth has no loss, ignorance has a known one, and every term is checked by hand."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import branch_weights_of, make_scene, relative, shapes_of

from jcredit.estimators import (
    BridgeNoise,
    Measurement,
    chain_map,
    gate_map,
    mask_map,
    scalar_bridge,
    state_bridge,
    tangent_bridge,
    vector_field,
)  # fmt: skip
from jcredit.types import EstState

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_tangent_loss_is_zero_at_the_truth_and_one_per_layer_at_the_start(x64, kind):
    for tangent_map, depth in ((chain_map(), 3), (mask_map(), 1)):
        scene = make_scene(kind, depth=depth)
        u, v = branch_weights_of(scene)
        fit = lambda params, s=scene, m=tangent_map: tangent_bridge(m, 8).loss(  # noqa: E731
            params, None, s.ctx, s.env, None, jax.random.key(0)
        )
        loss, metrics = fit({"u": u, "v": v})
        assert loss < 1e-20 and metrics["unexplained"] < 1e-20
        loss, metrics = fit({"u": u, "v": 0 * v})
        assert loss == pytest.approx(depth) and metrics["unexplained"] == pytest.approx(1)


def test_gate_loss_is_relative_to_the_tangent_itself(x64):
    # At the start the error of P_l u_l is u_L - u_l: the loss is sum_l ||u_L - u_l||^2 / ||u_l||^2, in one sweep.
    scene = make_scene("image")
    swept = []

    def tangents(h, u):
        swept.append(scene.env.tangents(h, u))
        return swept[-1]

    params = gate_map(8).init(jax.random.key(0), shapes_of(scene))
    fit = tangent_bridge(gate_map(8), 5).loss
    loss, metrics = fit(params, None, scene.ctx, scene.env._replace(tangents=tangents), None, jax.random.key(0))
    (u,) = map(np.asarray, swept)
    assert u.shape == (4, 5, 12)  # five of the eight samples suffice
    assert loss == pytest.approx(sum(((u[3] - u[k]) ** 2).sum() / (u[k] ** 2).sum() for k in range(3)))
    assert metrics["unexplained"] == pytest.approx(1)


class TrueField:
    """A trunk that knows delta_l at every state of the batch, whichever it is asked for and in whatever order."""

    def __init__(self, h_LxBxD, delta_LxBxD):
        self.h, self.delta = h_LxBxD, delta_LxBxD

    def init(self, key, shapes, outputs):
        return {}

    def apply(self, params, env, h, t, code, outputs):
        layer = jnp.round(t * (self.delta.shape[0] - 1)).astype(int)
        distance = jnp.sum((h[..., None, :] - self.h[layer]) ** 2, axis=-1)  # to the batch's states at that layer
        assert distance.min(-1).max() == 0
        return self.delta[layer, jnp.argmin(distance, axis=-1)]


@pytest.mark.parametrize("layers", ["random", "all"])
def test_field_loss_is_zero_at_the_truth_and_one_at_zero(x64, layers):
    scene = make_scene("image")
    how = Measurement(directions=2, layers=layers, scheme="jvp")
    hp: Any = SimpleNamespace(epsilon=None, terminal_weight=0.5)
    u, v = branch_weights_of(scene)
    h, delta = scene.ctx.trace.h_LxBxD, scene.delta_LxBxD
    true = [(TrueField(h, delta), None, {}), (None, chain_map(), {"u": u, "v": v})]
    for trunk, tangent_map, params in true:
        fit = vector_field(trunk, how, tangent_map).loss  # type: ignore
        loss, _ = fit(params, None, scene.ctx, scene.env, hp, jax.random.key(0))  # type: ignore
        assert loss < 1e-20
    fit = vector_field(TrueField(h, 0 * delta), how).loss  # type: ignore
    loss, terms = fit({}, None, scene.ctx, scene.env, hp, jax.random.key(0))  # type: ignore
    assert terms["directional"] == pytest.approx(1) and terms["terminal_gradient"] == pytest.approx(1)
    assert loss == pytest.approx(1.5)


class Affine:
    """A value function V = w sum(h) + c t, whose every term can be written down."""

    def init(self, key, shapes, outputs):
        return {"w": jnp.asarray(0.5), "c": jnp.asarray(2.0)}

    def apply(self, params, env, h, t, code, outputs):
        value = params["w"] * jnp.sum(h, axis=-1) + params["c"] * jnp.broadcast_to(t, h.shape[:-1])
        return value[..., None]


@pytest.mark.parametrize("kind", ["image", "lq"])  # with and without process noise
@pytest.mark.parametrize("at", ["next", "present", "paired"])
@pytest.mark.parametrize("target", ["mean", "softmin"])
def test_scalar_bridge_terms_by_hand(x64, kind, at, target):
    scene = make_scene(kind)
    h = np.asarray(scene.ctx.trace.h_LxBxD)
    hp: Any = SimpleNamespace(sigma=0.0, softmin_lambda=0.3, value_weight=3.0, terminal_weight=5.0, ema=0.75)
    bridge = scalar_bridge(Affine(), BridgeNoise(at, 4, target))  # type: ignore
    state = EstState({"w": jnp.asarray(0.5), "c": jnp.asarray(2.0)}, {"w": jnp.asarray(0.1), "c": jnp.asarray(1.0)})
    loss, terms = bridge.loss(state.params, state, scene.ctx, scene.env, hp, jax.random.key(0))  # type: ignore
    times = np.arange(4)[:, None] / 3
    value, slow = (w * h.sum(-1) + c * times for w, c in ((0.5, 2.0), (0.1, 1.0)))
    # Without noise all K next values are the same, in whichever place it would have entered.
    assert terms["consistency"] == pytest.approx(np.mean((value[:-1] - slow[1:]) ** 2))
    task_loss = np.asarray(scene.loss(scene.ctx.trace.outputs_BxC, scene.target_B))
    assert terms["terminal_value"] == pytest.approx(np.mean((value[-1] - task_loss) ** 2))
    delta = np.asarray(scene.ctx.delta_BxD)
    assert terms["terminal_gradient"] == pytest.approx(((0.5 - delta) ** 2).sum() / (delta**2).sum())
    parts = 3 * terms["terminal_value"] + terms["consistency"] + 5 * terms["terminal_gradient"]
    assert loss == pytest.approx(float(parts))
    np.testing.assert_allclose(bridge.credit(state, scene.ctx, scene.env, hp, None), np.full((4, 8, 12), 0.5))
    slow_after = bridge.update(state, hp).extra  # 3/4 of the old and 1/4 of the new
    assert slow_after["w"] == pytest.approx(0.75 * 0.1 + 0.25 * 0.5)
    assert slow_after["c"] == pytest.approx(0.75 * 1.0 + 0.25 * 2.0)


@pytest.mark.parametrize("at", ["next", "present", "paired"])
def test_bridge_noise_enters_where_it_says(x64, at):
    # V = sum(h) in the slow network, 0 in the fast one, and fast = slow in turn: squares show which side was displaced.
    scene = make_scene("lq")
    hp: Any = SimpleNamespace(sigma=0.4, softmin_lambda=0.3, value_weight=0.0, terminal_weight=0.0)
    samples = 4000
    bridge = scalar_bridge(Affine(), BridgeNoise(at, samples, "mean"))  # type: ignore
    one, zero = ({"w": jnp.asarray(w), "c": jnp.asarray(0.0)} for w in (1.0, 0.0))
    h, a = np.asarray(scene.ctx.trace.h_LxBxD), np.asarray(scene.params.blocks["a"])
    loss = lambda fast, slow: float(  # noqa: E731
        bridge.loss(fast, EstState(fast, slow), scene.ctx, scene.env, hp, jax.random.key(0))[0]  # type: ignore
    )
    fast_only, slow_only = loss(one, zero), loss(zero, one)
    # ``paired`` compares value with value, noise for noise; the others compare with the mean over the noise.
    spread = {"next": (0, 0), "present": (0, 0), "paired": (0.16 * 12, 0.16 * np.mean((a.sum(2) ** 2).sum(1)))}[at]
    assert fast_only == pytest.approx(np.mean(h[:-1].sum(-1) ** 2) + spread[0], rel=0.05)
    assert slow_only == pytest.approx(np.mean(h[1:].sum(-1) ** 2) + spread[1], rel=0.05)


def test_state_bridge_loss_by_hand(x64):
    scene = make_scene("image")
    shift = SimpleNamespace(apply=lambda params, env, h, t, code, outputs: h)  # predicts that nothing more happens
    h = np.asarray(scene.ctx.trace.h_LxBxD)
    error = ((h - h[-1]) ** 2).sum(-1).mean()
    for how, scale in (("raw", 1.0), ("normalised", (h[-1] ** 2).sum(-1).mean())):
        loss, metrics = state_bridge(shift, how).loss({}, None, scene.ctx, scene.env, None, None)  # type: ignore
        assert loss == pytest.approx(error / scale) and metrics["state_error"] == loss


@pytest.mark.parametrize("kind", ["image", "lq"])
def test_state_bridge_with_the_true_tail_is_back_propagation(x64, kind):
    scene = make_scene(kind)

    def apply(params, env, h, t, code, outputs):
        states = []
        for layer in range(4):
            state = h[layer]
            for block in range(layer, 3):
                state = scene.network.block(jax.tree.map(lambda p: p[block], scene.params.blocks), state)  # noqa: B023
                state = state if scene.noise_LxBxD is None else state + scene.noise_LxBxD[block]
            states.append(state)
        return jnp.stack(states)

    bridge = state_bridge(SimpleNamespace(apply=apply))  # type: ignore
    found = bridge.credit(EstState({}, {}), scene.ctx, scene.env, None, None)
    assert relative(found, scene.delta_LxBxD) < 1e-10
    assert bridge.loss({}, None, scene.ctx, scene.env, None, None)[0] < 1e-20  # type: ignore
