"""One contract for every estimator, and what each of them computes against formulas.

The contract: credit of shape (L+1, B, D), finite, the same bits for the same key, compiled or not, each sample on its
own; nothing is promoted implicitly; new arrays compile nothing.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CREDITS,
    OWN_LAYER_ONLY,
    VARIANTS,
    context_of,
    make_scene,
    normal,
    randomised,
    relative,
    same_bits,
    shapes_of,
)  # fmt: skip

from jcredit.config import hparams
from jcredit.estimators import (
    BridgeNoise,
    Measurement,
    chain_map,
    dfa,
    fa,
    gate_map,
    make_estimator,
    mask_map,
    scalar_bridge,
    state_bridge,
    tangent_bridge,
    vector_field,
    with_unbiased_residual,
)  # fmt: skip
from jcredit.estimators.linear_maps import make_map
from jcredit.types import EstState, OracleContext

pytestmark = pytest.mark.usefixtures("strict")


def oracle_context(ctx, delta_LxBxD):
    return OracleContext(*ctx, delta_LxBxD)


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bp", *CREDITS])
def test_contract(name):
    changes = VARIANTS.get(name, dict(method=name))
    scene = make_scene("ladder" if name.endswith("chain") else "image", **changes)
    estimator, hp, key = make_estimator(scene.config), hparams(scene.config, 10), jax.random.key(5)
    state = estimator.init(key, shapes_of(scene))
    assert same_bits(state, estimator.init(key, shapes_of(scene)))
    state = EstState(randomised(state.params, 11), state.extra)  # learned maps start at zero, which hides mistakes
    of = lambda ctx: oracle_context(ctx, scene.delta_LxBxD) if name == "bp" else ctx  # noqa: E731
    credit = lambda state, ctx, key: estimator.credit(state, of(ctx), scene.env, hp, key)  # noqa: E731
    compiled = jax.jit(credit)

    a = compiled(state, scene.ctx, key)
    assert a.shape == (4, 8, 12) and a.dtype == jnp.float32
    assert np.isfinite(a).all() and a[-1].any()
    assert same_bits(a, compiled(state, scene.ctx, key))
    assert relative(credit(state, scene.ctx, key), a) < 1e-5

    # Sample 3 becomes another: the credit of all others stays as it was.
    x, target = scene.x_BxI.at[3].set(normal(12, 12)), scene.target_B.at[3].add(1) % 4
    arrays = scene.params, scene.projection_DxP, x, target, scene.noise_LxBxD
    other_ctx = context_of(scene.config, scene.network, scene.loss, *arrays)
    other, rest = compiled(state, other_ctx, key), np.arange(8) != 3
    np.testing.assert_array_equal(other[:, rest], a[:, rest])
    assert name == "bp" or (other[-1, 3] != a[-1, 3]).any()

    if name in OWN_LAYER_ONLY:
        for layer in range(3):
            trace = scene.ctx.trace._replace(h_LxBxD=scene.ctx.trace.h_LxBxD.at[layer].multiply(-1.5))
            moved = compiled(state, scene.ctx._replace(trace=trace), key)
            np.testing.assert_array_equal(np.delete(moved, layer, 0), np.delete(a, layer, 0))
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("name", ["bp", *VARIANTS])
def test_contract_of_learning(name):
    scene = make_scene("image", **VARIANTS.get(name, dict(method=name)))
    estimator, hp, key = make_estimator(scene.config), hparams(scene.config, 10), jax.random.key(5)
    state = jax.eval_shape(lambda: estimator.init(key, shapes_of(scene)))
    updated = jax.eval_shape(lambda s: estimator.update(s, hp), state)
    assert jax.tree.structure(updated) == jax.tree.structure(state)
    assert jax.tree.leaves(updated) == jax.tree.leaves(state)
    assert (estimator.loss is None) == (not jax.tree.leaves(state.params))
    if estimator.loss is not None:
        loss, metrics = jax.eval_shape(lambda s: estimator.loss(s.params, s, scene.ctx, scene.env, hp, key), state)
        for value in (loss, *metrics.values()):
            assert value.shape == () and value.dtype == jnp.float32


def test_tiers_say_what_is_used():
    def tier(**changes):
        return make_estimator(make_scene("image", **changes).config).tier

    assert tier(method="bp").startswith("oracle")
    for method in ("dfa", "broadcast"):
        assert tier(method=method).startswith("0") and "sequential" not in tier(method=method)
    assert tier(method="fa").startswith("0") and tier(method="fa").endswith("sequential")
    assert tier(method="state_bridge").startswith("1") and tier(method="scalar_bridge").startswith("1")
    assert tier(method="vector_field").startswith("2")
    assert tier(method="tangent_gate").startswith("3") and "sequential" not in tier(method="tangent_mask")
    assert tier(method="tangent_chain").startswith("3") and tier(method="tangent_chain").endswith("sequential")
    assert tier(method="tangent_chain", tangent_target="scalar").startswith("2")
    assert tier(method="tangent_chain", tangent_target="scalar").endswith("sequential")
    # Measuring the loss on top is no longer tier 0 or 1.
    assert tier(method="dfa", residual_directions=2).startswith("2")
    assert tier(method="fa", residual_directions=2).endswith("sequential")
    assert tier(method="tangent_gate", residual_directions=2).startswith("3")
    assert tier(method="bp", residual_directions=2).startswith("oracle")


# --- conditioning codes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["eT", "deltaL", "eT_hL", "deltaL_hL"])
def test_codes_by_formula(code):
    scene = make_scene("image", code=code)
    ctx = scene.ctx
    error = jax.nn.softmax(ctx.trace.outputs_BxC) - jax.nn.one_hot(scene.target_B, 4)
    assert relative(ctx.error_BxC, error) < 1e-6
    assert relative(ctx.delta_BxD, scene.delta_LxBxD[-1]) < 1e-5
    pieces = [error if code.startswith("eT") else scene.delta_LxBxD[-1]]
    pieces += [ctx.trace.h_LxBxD[-1] @ scene.projection_DxP] if code.endswith("hL") else []
    assert relative(ctx.code_BxS, jnp.concatenate(pieces, axis=-1)) < 1e-5
    assert ctx.code_BxS.shape == (8, shapes_of(scene).code)


# --- random feedback --------------------------------------------------------------------------------------------------


def test_dfa_by_formula():
    scene = make_scene("image")
    state = dfa().init(jax.random.key(0), shapes_of(scene)._replace(width=400))
    assert state.extra.shape == (4, 4, 400) and not state.params
    assert np.std(state.extra) == pytest.approx(0.5, rel=0.05)  # N(0, 1/C), C = 4
    assert abs(np.corrcoef(np.reshape(state.extra, (4, -1))) - np.eye(4)).max() < 0.15  # a matrix for each layer
    state = dfa().init(jax.random.key(0), shapes_of(scene))
    expected = [scene.ctx.error_BxC @ state.extra[layer] for layer in range(4)]
    assert relative(dfa().credit(state, scene.ctx, scene.env, None, None), np.stack(expected)) < 1e-6


def branch_weights_of(scene):
    """U = W1 and V = W2 of every block: what a learned map is to find."""
    blocks = scene.params.blocks
    if scene.config.depth and "inner" in blocks:
        return blocks["inner"]["w"], blocks["outer"]["w"]
    return blocks["w"], jnp.broadcast_to(jnp.eye(12, dtype=blocks["w"].dtype)[None], blocks["w"].shape)


def test_fa_starts_at_the_scale_of_the_initial_weights():
    for kind, std in (("image", 12**-0.5 / 3**0.5), ("ladder", 12**-0.5)):
        scene = make_scene(kind)
        u, v = fa(2.0).init(jax.random.key(0), shapes_of(scene)).extra
        assert u.shape == v.shape == (3, 12, 12)
        assert np.std(u) == pytest.approx(2 * std, rel=0.15)
        assert not np.array_equal(u[0], u[1])
        if kind == "image":
            assert np.std(v) == pytest.approx(2 * std, rel=0.15)
            assert abs(np.corrcoef(np.ravel(u), np.ravel(v))[0, 1]) < 0.2
        else:  # the way out of the activation is the identity
            np.testing.assert_array_equal(v, np.broadcast_to(np.eye(12), v.shape))


@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_fa_and_chain_with_the_true_weights_are_back_propagation(x64, kind):
    scene = make_scene(kind)
    u, v = branch_weights_of(scene)
    found = fa().credit(EstState({}, (u, v)), scene.ctx, scene.env, None, None)
    assert relative(found, scene.delta_LxBxD) < 1e-10
    pulled = chain_map().pull({"u": u, "v": v}, scene.env, scene.ctx.trace.h_LxBxD[:-1], scene.ctx.delta_BxD)
    assert relative(pulled, scene.delta_LxBxD) < 1e-10


# --- linear maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gate", "mask", "chain"])
def test_maps_start_as_the_broadcast(form):
    scene = make_scene("image")
    params = make_map(form, 8).init(jax.random.key(0), shapes_of(scene))
    assert np.std(params["u"]) == pytest.approx(12**-0.5, rel=0.15) and not params["v"].any()
    rank = {"gate": 8, "mask": 36, "chain": 12}[form]
    assert params["u"].shape == (3, 12, rank) and params["v"].shape == (3, rank, 12)
    h = scene.ctx.trace.h_LxBxD[:-1]
    a = make_map(form, 8).pull(params, scene.env, h, scene.ctx.delta_BxD)
    np.testing.assert_array_equal(a, np.broadcast_to(scene.ctx.delta_BxD, (4, 8, 12)))
    np.testing.assert_array_equal(make_map(form, 8).push(params, scene.env, h, normal(3, 3, 8, 12)), 0)


@pytest.mark.parametrize("kind", ["image", "ladder"])
@pytest.mark.parametrize("form", ["gate", "mask", "chain"])
def test_push_and_pull_are_adjoint(x64, kind, form):
    # <P_l v, delta_L> = <v, P_l^T delta_L> for every sample, with nothing zero anywhere
    scene = make_scene(kind)
    tangent_map = make_map(form, 8)
    params = randomised(jax.eval_shape(lambda: tangent_map.init(jax.random.key(0), shapes_of(scene))), 2)
    h, delta, v = scene.ctx.trace.h_LxBxD[:-1], normal(4, 8, 12), normal(5, 3, 8, 12)
    a = tangent_map.pull(params, scene.env, h, delta)
    np.testing.assert_array_equal(a[-1], delta)
    for layer in range(3):
        if tangent_map.chained:
            carried = v[layer]
            for block in range(layer, 3):
                carried = carried + tangent_map.push(params, scene.env, h, jnp.stack([carried] * 3))[block]
        else:
            carried = v[layer] + tangent_map.push(params, scene.env, h, v)[layer]
        left, right = jnp.sum(carried * delta, -1), jnp.sum(v[layer] * a[layer], -1)
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)
        assert relative(a[layer], delta) > 0.1


def test_gate_map_by_formula(x64):
    # P v = v + ((v U) * g) V with g = sigmoid(2 (LN(h) G + c)), sample by sample
    scene = make_scene("image")
    params = randomised(jax.eval_shape(lambda: gate_map(8).init(jax.random.key(0), shapes_of(scene))), 2)
    h, v = scene.ctx.trace.h_LxBxD[1], normal(5, 3, 8, 12)
    found = gate_map(8).push(params, scene.env, scene.ctx.trace.h_LxBxD[:-1], v)[1]
    p = {name: np.asarray(value[1]) for name, value in params.items()}
    gate = 1 / (1 + np.exp(-2 * (np.asarray(scene.network.normalise(h)) @ p["g"] + p["c"][0])))
    for sample in range(8):
        matrix = p["u"] @ np.diag(gate[sample]) @ p["v"]
        assert relative(found[sample], np.asarray(v[1, sample]) @ matrix) < 1e-10


@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_mask_with_the_true_weights_of_one_block_is_back_propagation(x64, kind):
    scene = make_scene(kind, depth=1)
    u, v = branch_weights_of(scene)
    h = scene.ctx.trace.h_LxBxD[:-1]
    a = mask_map().pull({"u": u, "v": v}, scene.env, h, scene.ctx.delta_BxD)
    assert relative(a, scene.delta_LxBxD) < 1e-10


def test_mask_takes_the_gates_of_its_own_and_later_blocks_alone(x64):
    scene = make_scene("image")
    params = randomised(jax.eval_shape(lambda: mask_map().init(jax.random.key(0), shapes_of(scene))), 2)
    pull = lambda h: mask_map().pull(params, scene.env, h, scene.ctx.delta_BxD)  # noqa: E731
    h = scene.ctx.trace.h_LxBxD[:-1]
    for moved in range(3):
        changed = [not np.array_equal(x, y) for x, y in zip(pull(h), pull(h.at[moved].multiply(-1)), strict=True)]
        assert changed == [layer <= moved for layer in range(3)] + [False]


def test_unknown_maps_are_refused():
    with pytest.raises(ValueError, match="form='path' is unknown; choose one of gate, mask, chain"):
        make_map("path", 8)


# --- fitting: the truth has no loss, and ignorance has a known one ----------------------------------------------------


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


def test_options_that_replace_or_correct_a_credit():
    scene = make_scene("image", method="vector_field", exact_terminal=True)
    exact, hp = make_estimator(scene.config), hparams(scene.config, 1)
    plain = make_estimator(make_scene("image", method="vector_field").config)
    state = exact.init(jax.random.key(0), shapes_of(scene))
    ours, theirs = (e.credit(state, scene.ctx, scene.env, hp, jax.random.key(0)) for e in (exact, plain))
    np.testing.assert_array_equal(ours[:-1], theirs[:-1])
    np.testing.assert_array_equal(ours[-1], scene.ctx.delta_BxD)
    assert not np.array_equal(theirs[-1], scene.ctx.delta_BxD)
    corrected = with_unbiased_residual(plain, 3)
    credit = jax.jit(lambda key: corrected.credit(state, scene.ctx, scene.env, hp, key))
    once, again, other = (credit(jax.random.key(i)) for i in (0, 0, 1))
    assert same_bits(once, again) and not np.array_equal(once[:-1], other[:-1])  # fresh directions with each key
