"""One contract for every estimator, and what each of them computes against formulas.

The contract: credit of shape (L+1, B, D), finite, the same bits for the same key, compiled or not, each sample on its
own; nothing is promoted implicitly; new arrays compile nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CREDITS,
    OWN_LAYER_ONLY,
    VARIANTS,
    branch_weights_of,
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
    chain_map,
    dfa,
    fa,
    gate_map,
    make_estimator,
    mask_map,
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


# --- options ----------------------------------------------------------------------------------------------------------


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
