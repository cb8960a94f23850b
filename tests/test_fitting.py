"""What estimators fit: the truth has no loss, ignorance has a known one, and every term is checked by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import branch_weights_of, make_scene, randomised, relative, shapes_of

import jcredit as jc
from jcredit.estimators.linear_maps import chain_map, gate_map, mask_map
from jcredit.estimators.tangents import tangent_bridge
from jcredit.estimators.trunk import Trunk
from jcredit.passes import NetworkEnv
from jcredit.types import EstState, adam

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(0)


def loss_of(estimator, scene, env=None):
    """(params, extra) -> (loss, metrics), compiled."""
    return jax.jit(lambda params, extra: estimator.loss(EstState(params, extra), scene.ctx, env or scene.env, KEY))


@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_tangent_loss_is_zero_at_the_truth_and_one_per_layer_at_the_start(x64, kind):
    for (tangent_map, depth), along in itertools.product(
        ((chain_map(), 3), (mask_map(), 1)), ("noise", "states", "both")
    ):
        scene = make_scene(kind, depth=depth)
        weights = branch_weights_of(scene)
        fit = loss_of(tangent_bridge(tangent_map, 8, False, adam(), along), scene)
        loss, metrics = fit(weights, {})
        assert loss < 1e-20 and metrics["unexplained"] < 1e-20
        loss, metrics = fit({"u": weights["u"], "v": 0 * weights["v"]}, {})
        assert loss == pytest.approx(depth) and metrics["unexplained"] == pytest.approx(1)


def test_gate_loss_is_relative_to_the_tangent_itself(x64):
    # At the start the error of P_l u_l is u_L - u_l: the loss is sum_l ||u_L - u_l||^2 / ||u_l||^2, in one sweep.
    scene, swept = make_scene("image"), []

    class Recording(NetworkEnv):
        def tangents(self, h_LxBxD, u_BxD):
            swept.append(super().tangents(h_LxBxD, u_BxD))
            return swept[-1]

    params = gate_map(8).init(KEY, shapes_of(scene))
    fit = tangent_bridge(gate_map(8), 5, False, adam()).loss
    assert fit is not None
    loss, metrics = fit(EstState(params, {}), scene.ctx, Recording(scene.network, scene.loss, scene.params), KEY)
    (u,) = map(np.asarray, swept)
    assert u.shape == (4, 5, 12)  # five of the eight samples suffice
    assert loss == pytest.approx(sum(((u[3] - u[k]) ** 2).sum() / (u[k] ** 2).sum() for k in range(3)))
    assert metrics["unexplained"] == pytest.approx(1)


@pytest.mark.parametrize("tangent_map", [chain_map(), mask_map()], ids=["blocks alone", "one sweep"])
def test_along_states_tangents_begin_at_differences_of_states(tangent_map):
    scene, begun = make_scene("image"), []

    class Recording(NetworkEnv):
        def tangents(self, h_LxBxD, u_BxD):
            begun.append(u_BxD)
            return super().tangents(h_LxBxD, u_BxD)

        def block_tangents(self, h_LxBxD, v_LxBxD):
            begun.append(v_LxBxD)
            return super().block_tangents(h_LxBxD, v_LxBxD)

    params = randomised(jax.eval_shape(lambda: tangent_map.init(KEY, shapes_of(scene))), 2)
    fit = tangent_bridge(tangent_map, 5, False, adam(), "states").loss
    assert fit is not None
    fit(EstState(params, {}), scene.ctx, Recording(scene.network, scene.loss, scene.params), KEY)
    h = np.asarray(scene.ctx.trace.h_KxBxD)[:-1, :5]  # of the five that are measured, none beyond
    ways = h[:, [4, 0, 1, 2, 3]] - h
    ways /= np.sqrt((ways**2).mean(-1, keepdims=True))
    (v,) = begun
    assert relative(v, ways if tangent_map.ends is None else ways[0]) < 1e-4


@pytest.mark.parametrize("tangent_map", [chain_map(), gate_map(8)], ids=["blocks alone", "one sweep"])
def test_the_leading_samples_alone_are_measured(tangent_map):
    scene = make_scene("image")
    params = randomised(jax.eval_shape(lambda: tangent_map.init(KEY, shapes_of(scene))), 2)
    bridge = tangent_bridge(tangent_map, 5, False, adam())
    assert bridge.loss is not None
    fit = jax.jit(lambda ctx: bridge.loss(EstState(params, {}), ctx, scene.env, KEY)[0])

    def spoiled(first, end):
        h, _, _, gates = trace = scene.ctx.trace
        h, gates = (x.at[:, first:end].set(jnp.nan) for x in (h, gates))
        return scene.ctx._replace(trace=trace._replace(h_KxBxD=h, gates_LxBxH=gates))

    assert fit(spoiled(5, 8)) == fit(scene.ctx) > 0
    assert all(np.isnan(fit(spoiled(sample, sample + 1))) for sample in range(5))


# --- trunks of our own, of which everything is known ------------------------------------------------------------------


def as_trunk(apply, params=None):
    """A trunk of a test's own as a setting."""

    def own() -> Trunk:
        return Trunk(lambda key, shapes, outputs: (params, {}), lambda fixed, ctx: ctx.error_BxC, apply)

    return jc.trunk(own)()


def true_field(h_KxBxD, delta_KxBxD):
    """A field that knows delta_l at every state of the batch, whichever it is asked for and in whatever order."""

    def apply(params, env, h, t, code, outputs):
        layer = jnp.round(t * (delta_KxBxD.shape[0] - 1)).astype(int)
        distance = jnp.sum((h[..., None, :] - h_KxBxD[layer]) ** 2, axis=-1)  # to the batch's states at that layer
        known = jnp.min(distance, axis=-1, keepdims=True) == 0
        return jnp.where(known, delta_KxBxD[layer, jnp.argmin(distance, axis=-1)], jnp.nan)

    return as_trunk(apply, {})


@pytest.mark.parametrize("layers", ["one", "all"])
def test_field_loss_is_zero_at_the_truth_and_one_at_zero(x64, layers):
    scene = make_scene("image")
    how = dict(directions=2, layers=layers, scheme="jvp")
    h, delta = scene.ctx.trace.h_KxBxD, scene.delta_KxBxD
    true = jc.vector_field(trunk=true_field(h, delta), terminal_weight=0.5, **how).build()
    assert loss_of(true, scene)({}, {})[0] < 1e-20
    linear = jc.linear_field(form="chain", **how).build()
    assert loss_of(linear, scene)(branch_weights_of(scene), {})[0] < 1e-20
    zero = jc.vector_field(trunk=true_field(h, 0 * delta), terminal_weight=0.5, **how).build()
    loss, terms = loss_of(zero, scene)({}, {})
    assert terms["directional"] == pytest.approx(1) and terms["terminal_gradient"] == pytest.approx(1)
    assert loss == pytest.approx(1.5)


def test_the_true_field_does_not_fit_the_effects_of_other_samples(x64):
    scene = make_scene("image")
    true = true_field(scene.ctx.trace.h_KxBxD, scene.delta_KxBxD)
    field = jc.vector_field(2, "all", "jvp", shuffled=True, terminal_weight=0.5, trunk=true).build()
    loss, terms = loss_of(field, scene)({}, {})
    assert terms["directional"] > 0.1 and loss == pytest.approx(float(terms["directional"]))  # at h_L nothing moved


@pytest.mark.parametrize("layers", ["one", "all"])
def test_a_scaled_field_is_its_trunk_times_the_size_of_each_error_plus_delta_L(x64, layers):
    # A trunk that knows (delta_l - delta_L) / RMS(delta_L) of every sample: the truth, so the loss is zero.
    scene = make_scene("image")
    h, delta = np.asarray(scene.ctx.trace.h_KxBxD), np.asarray(scene.delta_KxBxD)
    size = np.sqrt((delta[-1:] ** 2).mean(-1, keepdims=True))
    lacking = true_field(jnp.asarray(h), jnp.asarray((delta - delta[-1:]) / size))
    field = jc.vector_field(2, layers, "jvp", scale="delta", skip=True, trunk=lacking).build()
    assert relative(field.credit(EstState({}, {}), scene.ctx, scene.env, KEY), delta) < 1e-12
    loss, terms = loss_of(field, scene)({}, {})
    assert loss < 1e-20 and terms["directional"] < 1e-20


def affine(w, c):
    return {"w": jnp.asarray(w), "c": jnp.asarray(c)}


def affine_trunk():
    """A value function V = w sum(h) + c t, whose every term can be written down."""

    def apply(params, env, h, t, code, outputs):
        value = params["w"] * jnp.sum(h, axis=-1) + params["c"] * jnp.broadcast_to(t, h.shape[:-1])
        return value[..., None]

    return as_trunk(apply, affine(0.5, 2.0))


@pytest.mark.parametrize("kind", ["image", "lq"])  # with and without process noise
@pytest.mark.parametrize("at", ["next", "present", "paired"])
@pytest.mark.parametrize(("target", "terminal_scale"), [("mean", "relative"), ("softmin", "relative"), ("mean", "raw")])
def test_scalar_bridge_terms_by_hand(x64, kind, at, target, terminal_scale):
    scene = make_scene(kind)
    h = np.asarray(scene.ctx.trace.h_KxBxD)
    bridge = jc.scalar_bridge(
        noise_at=at, noise_samples=4, target=target, sigma=0.0, softmin_lambda=0.3, ema=0.75, value_weight=3.0,
        terminal_weight=5.0, terminal_scale=terminal_scale, trunk=affine_trunk(),
    ).build()  # fmt: skip
    extra = {"slow": affine(0.1, 1.0), "fixed": {}}
    loss, terms = loss_of(bridge, scene)(affine(0.5, 2.0), extra)
    times = np.arange(4)[:, None] / 3
    value, slow = (w * h.sum(-1) + c * times for w, c in ((0.5, 2.0), (0.1, 1.0)))
    # Without noise all K next values are the same, in whichever place it would have entered.
    assert terms["consistency"] == pytest.approx(np.mean((value[:-1] - slow[1:]) ** 2))
    task_loss = np.asarray(scene.loss(scene.ctx.trace.outputs_BxC, scene.target_B))
    assert terms["terminal_value"] == pytest.approx(np.mean((value[-1] - task_loss) ** 2))
    delta = np.asarray(scene.ctx.delta_BxD)
    assert terms["terminal_gradient"] == pytest.approx(((0.5 - delta) ** 2).sum() / (delta**2).sum())
    assert terms["terminal_gradient_raw"] == pytest.approx(((0.5 - delta) ** 2).sum(-1).mean())
    terminal = terms["terminal_gradient" if terminal_scale == "relative" else "terminal_gradient_raw"]
    parts = 3 * terms["terminal_value"] + terms["consistency"] + 5 * terminal
    assert loss == pytest.approx(float(parts))
    state = EstState(affine(0.5, 2.0), extra)
    np.testing.assert_allclose(bridge.credit(state, scene.ctx, scene.env, KEY), np.full((4, 8, 12), 0.5))
    slow_after = bridge.update(state, scene.ctx, scene.env, KEY).extra["slow"]  # 3/4 of the old and 1/4 of the new
    assert slow_after["w"] == pytest.approx(0.75 * 0.1 + 0.25 * 0.5)
    assert slow_after["c"] == pytest.approx(0.75 * 1.0 + 0.25 * 2.0)


@pytest.mark.parametrize("at", ["next", "present", "paired"])
def test_bridge_noise_enters_where_it_says(x64, at):
    # V = sum(h) in the slow network and 0 in the fast one, and the reverse: each displaced value adds its variance.
    scene = make_scene("lq")
    blocks = {"a": 2 * scene.params.blocks["a"]}  # twice the dynamics, so that a displacement before a block shows
    env = NetworkEnv(scene.network, scene.loss, scene.params._replace(blocks=blocks))
    bridge = jc.scalar_bridge(
        noise_at=at, noise_samples=2, sigma=1.0, value_weight=0.0, terminal_weight=0.0, trunk=affine_trunk()
    ).build()

    @jax.jit
    def mean_loss(fast, slow):
        once = lambda key: bridge.loss(EstState(fast, {"slow": slow, "fixed": {}}), scene.ctx, env, key)[0]  # noqa: E731
        return jnp.mean(jax.vmap(once)(jax.random.split(KEY, 4000)))

    h, a = np.asarray(scene.ctx.trace.h_KxBxD), np.asarray(blocks["a"])
    behind = h[:-1] @ a + np.asarray(scene.noise_LxBxD)
    here, there = 12, np.mean((a.sum(2) ** 2).sum(1))  # the variances of sum(xi) and of sum(xi A_l)
    fast, slow = {  # ``paired`` compares value with value, noise for noise; the others with the mean of two
        "next": ((h[:-1], 0), (h[1:], here / 2)),
        "present": ((h[:-1], 0), (behind, there / 2)),
        "paired": ((h[:-1], here), (behind, there)),
    }[at]
    one, zero = affine(1.0, 0.0), affine(0.0, 0.0)
    for found, (states, variance) in ((mean_loss(one, zero), fast), (mean_loss(zero, one), slow)):
        assert float(found) == pytest.approx(np.mean(states.sum(-1) ** 2) + variance, rel=0.03)


def test_state_bridge_loss_by_hand(x64):
    scene = make_scene("image")
    shift = as_trunk(lambda params, env, h, t, code, outputs: h)  # predicts that nothing more happens
    h = np.asarray(scene.ctx.trace.h_KxBxD)
    error, size = ((h - h[-1]) ** 2).sum(-1).mean(), (h[-1] ** 2).sum(-1).mean()
    for how, scale in (("raw", 1.0), ("normalised", size)):
        loss, metrics = loss_of(jc.state_bridge(state_loss=how, trunk=shift).build(), scene)({}, {})
        assert loss == pytest.approx(error / scale)
        assert metrics["state_error"] == pytest.approx(error / size)  # told alike in either case


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

    bridge = jc.state_bridge(trunk=as_trunk(apply, {})).build()
    found = jax.jit(lambda ctx: bridge.credit(EstState({}, {}), ctx, scene.env, KEY))(scene.ctx)
    assert relative(found, scene.delta_KxBxD) < 1e-10
    assert loss_of(bridge, scene)({}, {})[0] < 1e-20
