"""One contract for every estimator, and what each of them computes against formulas.

The contract: credit of shape (L+1, B, D), finite, the same bits for the same key, compiled or not, each sample on its
own; nothing is promoted implicitly; new arrays compile nothing.
"""

from typing import Any

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
    small,
    trunk,
)  # fmt: skip

import jcredit as jc
from jcredit.estimators.linear_maps import chain_map, gate_map, make_map, mask_map, sweeps_map
from jcredit.passes import branch_of
from jcredit.types import EstState, OracleContext

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(5)


def estimator_of(name) -> Any:
    return VARIANTS.get(name, jc.bp()).build()


def oracle_context(ctx, scene):
    return OracleContext(**ctx._asdict(), delta_KxBxD=scene.delta_KxBxD)


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bp", *CREDITS])
def test_contract(name):
    scene = make_scene("ladder" if name.endswith("chain") else "image")
    estimator = estimator_of(name)
    init = jax.jit(estimator.init, static_argnums=1)
    state = init(KEY, shapes_of(scene))
    assert same_bits(state, init(KEY, shapes_of(scene)))
    state = EstState(randomised(state.params, 11), state.extra)  # learned maps start at zero, which hides mistakes
    of = lambda ctx: oracle_context(ctx, scene) if name == "bp" else ctx  # noqa: E731
    credit = lambda state, ctx, key: estimator.credit(state, of(ctx), scene.env, key)  # noqa: E731
    compiled: Any = jax.jit(credit)

    a = compiled(state, scene.ctx, KEY)
    assert a.shape == (4, 8, 12) and a.dtype == jnp.float32
    assert np.isfinite(a).all() and a[-1].any()
    assert same_bits(a, compiled(state, scene.ctx, KEY))
    assert relative(credit(state, scene.ctx, KEY), a) < 1e-5

    # Sample 3 becomes another: the credit of all others stays as it was.
    x, target = scene.x_BxI.at[3].set(normal(12, 12)), scene.target_B.at[3].add(1) % 4
    other, rest = compiled(state, context_of(scene, x, target), KEY), np.arange(8) != 3
    np.testing.assert_array_equal(other[:, rest], a[:, rest])
    assert name == "bp" or (other[-1, 3] != a[-1, 3]).any()

    if name in OWN_LAYER_ONLY:
        for layer in range(3):
            trace = scene.ctx.trace._replace(h_KxBxD=scene.ctx.trace.h_KxBxD.at[layer].multiply(-1.5))
            moved = compiled(state, scene.ctx._replace(trace=trace), KEY)
            np.testing.assert_array_equal(np.delete(moved, layer, 0), np.delete(a, layer, 0))
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("name", ["bp", *VARIANTS])
def test_contract_of_learning(name):
    scene = make_scene("image")
    estimator = estimator_of(name)
    state = jax.eval_shape(lambda: estimator.init(KEY, shapes_of(scene)))
    updated = jax.eval_shape(lambda s, k: estimator.update(s, scene.ctx, scene.env, k), state, KEY)
    assert jax.tree.structure(updated) == jax.tree.structure(state)
    assert jax.tree.leaves(updated) == jax.tree.leaves(state)
    assert (estimator.loss is None) == (not jax.tree.leaves(state.params))
    if estimator.loss is not None:
        loss, metrics = jax.eval_shape(lambda s: estimator.loss(s, scene.ctx, scene.env, KEY), state)
        for value in (loss, *metrics.values()):
            assert value.shape == () and value.dtype == jnp.float32


def test_tiers_say_what_is_used():
    def tier(part):
        return part.build().tier

    assert tier(jc.bp()).startswith("oracle")
    for factory in (jc.dfa, jc.broadcast):
        assert tier(factory()).startswith("0") and "sequential" not in tier(factory())
    assert tier(jc.fa()).startswith("0") and tier(jc.fa()).endswith("sequential")
    assert tier(jc.state_bridge()).startswith("1") and tier(jc.scalar_bridge()).startswith("1")
    for at in ("present", "paired"):  # noise before a block is a measurement of that block
        assert tier(jc.scalar_bridge(noise_at=at)).startswith("3")
    assert tier(jc.vector_field()).startswith("2") and tier(jc.linear_field()).startswith("2")
    assert tier(jc.tangent_gate()).startswith("3") and "sequential" not in tier(jc.tangent_mask())
    assert tier(jc.tangent_chain()).startswith("3") and tier(jc.tangent_chain()).endswith("sequential")
    chain = jc.linear_field(form="chain")
    assert tier(chain).startswith("2") and tier(chain).endswith("sequential")
    # Measuring the loss on top is no longer tier 0 or 1.
    assert tier(jc.unbiased_residual(jc.dfa())).startswith("2")
    assert tier(jc.unbiased_residual(jc.fa())).endswith("sequential")
    # What is used beside the loss stays in sight.
    both = tier(jc.unbiased_residual(jc.tangent_gate()))
    assert both.startswith("3: loss under perturbation") and both.endswith("3: tangents")
    assert tier(jc.unbiased_residual(jc.bp())) == tier(jc.bp()) == "oracle: back-propagation"


def test_the_oracle_flag_goes_through_wrappers():
    for wrapper in (jc.exact_terminal, jc.unbiased_residual):
        assert wrapper(jc.bp()).build().oracle and not wrapper(jc.dfa()).build().oracle
        assert not wrapper(jc.frozen()).build().trains_blocks and wrapper(jc.dfa()).build().trains_blocks
    mixed = jc.exact_at(of=jc.dfa()).build()
    assert jc.exact_at(of=jc.frozen()).build().trains_blocks  # by the gradient
    assert mixed.oracle and mixed.tier.startswith("oracle: ") and mixed.tier.endswith(jc.dfa().build().tier)


# --- conditioning codes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["eT", "deltaL", "eT_hL", "deltaL_hL", "none"])
def test_codes_by_formula(code):
    scene = make_scene("image")
    ctx, net = scene.ctx, trunk(code=code).build()
    error = jax.nn.softmax(ctx.trace.outputs_BxC) - jax.nn.one_hot(scene.target_B, 4)
    assert relative(ctx.error_BxC, error) < 1e-6
    assert relative(ctx.delta_BxD, scene.delta_KxBxD[-1]) < 1e-5
    params, fixed = net.init(KEY, shapes_of(scene), 5)
    pieces = [{"eT": error, "deltaL": scene.delta_KxBxD[-1], "none": error[:, :0]}[code.partition("_")[0]]]
    pieces += [ctx.trace.h_KxBxD[-1] @ fixed["projection"]] if code.endswith("hL") else []
    found = net.code(fixed, ctx)
    np.testing.assert_allclose(found, jnp.concatenate(pieces, axis=-1), rtol=1e-5, atol=1e-6)
    widths = {"eT": 4, "deltaL": 12, "eT_hL": 4 + 4, "deltaL_hL": 12 + 4, "none": 0}
    assert found.shape == (8, widths[code])
    assert params["params"]["Dense_0"]["kernel"].shape == (12 + 9 + found.shape[1], 16)


def test_the_projection_of_a_code_is_drawn_once_and_scaled_as_asked():
    shapes = shapes_of(make_scene("image"))._replace(width=100)
    drawn = {}
    for scale in ("unit", "fan_in"):
        net = trunk(code="eT_hL", projection_dim=50, projection_scale=scale).build()
        drawn[scale] = net.init(KEY, shapes, 1)[1]["projection"]
    assert drawn["unit"].shape == (100, 50)
    assert np.std(drawn["unit"]) == pytest.approx(1, rel=0.05)
    np.testing.assert_allclose(drawn["fan_in"], 0.1 * drawn["unit"], rtol=1e-6)


# --- random feedback --------------------------------------------------------------------------------------------------


def test_dfa_by_formula():
    scene, dfa = make_scene("image"), jc.dfa().build()
    state = dfa.init(jax.random.key(0), shapes_of(scene)._replace(width=400))
    assert state.extra.shape == (4, 4, 400) and not state.params
    assert np.std(state.extra) == pytest.approx(0.5, rel=0.05)  # N(0, 1/C), C = 4
    assert abs(np.corrcoef(np.reshape(state.extra, (4, -1))) - np.eye(4)).max() < 0.15  # a matrix for each layer
    state = dfa.init(jax.random.key(0), shapes_of(scene))
    expected = [scene.ctx.error_BxC @ state.extra[layer] for layer in range(4)]
    assert relative(dfa.credit(state, scene.ctx, scene.env, KEY), np.stack(expected)) < 1e-6


def test_fa_starts_at_the_scale_of_the_initial_weights():
    for kind, std in (("image", 12**-0.5 / 3**0.5), ("ladder", 12**-0.5)):
        scene = make_scene(kind)
        weights = jc.fa(scale=2.0).build().init(jax.random.key(0), shapes_of(scene)).extra
        u, v = weights["u"], weights["v"]
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

    @jax.jit
    def credits(weights, ctx):
        found = jc.fa().build().credit(EstState({}, weights), ctx, scene.env, KEY)
        return found, chain_map().pull(weights, scene.env, ctx.trace, ctx.delta_BxD)

    found, pulled = credits(branch_weights_of(scene), scene.ctx)
    assert relative(found, scene.delta_KxBxD) < 1e-10
    assert relative(pulled, scene.delta_KxBxD) < 1e-10


@pytest.mark.parametrize("kind", ["image", "ladder"])
@pytest.mark.parametrize("relaxation", ["jacobi", "neumann"])
def test_sweeps_with_the_true_weights_become_back_propagation_in_as_many_as_there_are_blocks_above(
    x64, kind, relaxation
):
    scene = make_scene(kind)
    trace, delta, weights = scene.ctx.trace, scene.ctx.delta_BxD, branch_weights_of(scene)
    found = {k: np.asarray(sweeps_map(k, relaxation).pull(weights, scene.env, trace, delta)) for k in (1, 2, 3, 5)}
    exact, chained = np.asarray(scene.delta_KxBxD), chain_map().pull(weights, scene.env, trace, delta)
    assert relative(found[3], exact) < 1e-10 and relative(found[3], chained) < 1e-12
    assert relative(found[5], exact) < 1e-10  # more sweeps change nothing
    for k in (1, 2):
        assert relative(found[k][3 - k :], exact[3 - k :]) < 1e-10
    errors = [np.linalg.norm(found[k][0] - exact[0]) for k in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_sweeps_by_hand(x64):
    # F_j^T at h_j: one sweep is (I + F_0^T) delta_L (jacobi), or (I + F_0^T + F_1^T + F_2^T) delta_L (neumann), and
    # two of the latter add every ordered pair of branches
    scene = make_scene("image")
    trace, delta, weights = scene.ctx.trace, scene.ctx.delta_BxD, branch_weights_of(scene)
    h, m = trace.h_KxBxD, trace.gates_LxBxH
    branch = branch_of(scene.env, "test")
    f = [lambda a, j=j: branch.pull(jax.tree.map(lambda w: w[j], weights), m[j], h[j], a) for j in range(3)]
    at_0 = lambda k, how: sweeps_map(k, how).pull(weights, scene.env, trace, delta)[0]  # noqa: E731
    first = delta + f[0](delta) + f[1](delta) + f[2](delta)
    np.testing.assert_allclose(at_0(1, "jacobi"), delta + f[0](delta), rtol=1e-9)
    np.testing.assert_allclose(at_0(2, "jacobi"), (g := delta + f[1](delta)) + f[0](g), rtol=1e-9)
    np.testing.assert_allclose(at_0(1, "neumann"), first, rtol=1e-9)
    pairs = f[0](f[1](delta)) + f[0](f[2](delta)) + f[1](f[2](delta))
    np.testing.assert_allclose(at_0(2, "neumann"), first + pairs, rtol=1e-9)


# --- linear maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gate", "mask", "chain"])
def test_maps_start_as_the_broadcast(form):
    scene = make_scene("image")
    params = make_map(form, 8).init(jax.random.key(0), shapes_of(scene))
    assert np.std(params["u"]) == pytest.approx(12**-0.5, rel=0.15) and not params["v"].any()
    rank = {"gate": 8, "mask": 36, "chain": 12}[form]
    assert params["u"].shape == (3, 12, rank) and params["v"].shape == (3, rank, 12)
    trace = scene.ctx.trace
    a = make_map(form, 8).pull(params, scene.env, trace, scene.ctx.delta_BxD)
    np.testing.assert_array_equal(a, np.broadcast_to(scene.ctx.delta_BxD, (4, 8, 12)))
    np.testing.assert_array_equal(make_map(form, 8).push(params, scene.env, trace, normal(3, 3, 8, 12)), 0)


@pytest.mark.parametrize("kind", ["image", "ladder"])
@pytest.mark.parametrize("form", ["gate", "mask", "chain"])
def test_push_and_pull_are_adjoint(x64, kind, form):
    # <P_l v, delta_L> = <v, P_l^T delta_L> for every sample, with nothing zero anywhere
    scene = make_scene(kind)
    tangent_map = make_map(form, 8)
    params = randomised(jax.eval_shape(lambda: tangent_map.init(jax.random.key(0), shapes_of(scene))), 2)
    trace, delta, v = scene.ctx.trace, normal(4, 8, 12), np.asarray(normal(5, 3, 8, 12))
    push = jax.jit(lambda v: tangent_map.push(params, scene.env, trace, v))
    a = np.asarray(jax.jit(lambda delta: tangent_map.pull(params, scene.env, trace, delta))(delta))
    np.testing.assert_array_equal(a[-1], delta)
    for layer in range(3):
        if tangent_map.ends is None:
            carried = v[layer]
            for block in range(layer, 3):
                carried = carried + np.asarray(push(np.stack([carried] * 3)))[block]
        else:
            carried = v[layer] + np.asarray(push(v))[layer]
        left, right = np.sum(carried * np.asarray(delta), -1), np.sum(v[layer] * a[layer], -1)
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)
        assert relative(a[layer], delta) > 0.1


def test_gate_map_by_formula(x64):
    # P v = v + ((v U) * g) V with g = sigmoid(2 (LN(h) G + c)), sample by sample
    scene = make_scene("image")
    params = randomised(jax.eval_shape(lambda: gate_map(8).init(jax.random.key(0), shapes_of(scene))), 2)
    h, v = scene.ctx.trace.h_KxBxD[1], normal(5, 3, 8, 12)
    found = gate_map(8).push(params, scene.env, scene.ctx.trace, v)[1]
    p = {name: np.asarray(value[1]) for name, value in params.items()}
    gate = 1 / (1 + np.exp(-2 * (np.asarray(scene.network.normalise(h)) @ p["g"] + p["c"][0])))
    for sample in range(8):
        matrix = p["u"] @ np.diag(gate[sample]) @ p["v"]
        assert relative(found[sample], np.asarray(v[1, sample]) @ matrix) < 1e-10


@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_mask_with_the_true_weights_of_one_block_is_back_propagation(x64, kind):
    scene = make_scene(kind, depth=1)
    pull = jax.jit(lambda w: mask_map().pull(w, scene.env, scene.ctx.trace, scene.ctx.delta_BxD))
    a = pull(branch_weights_of(scene))
    assert relative(a, scene.delta_KxBxD) < 1e-10


def test_mask_takes_the_gates_of_its_own_and_later_blocks_alone(x64):
    scene = make_scene("image")
    params = randomised(jax.eval_shape(lambda: mask_map().init(jax.random.key(0), shapes_of(scene))), 2)
    pull = jax.jit(lambda m: mask_map().pull(params, scene.env, trace._replace(gates_LxBxH=m), scene.ctx.delta_BxD))
    trace, m = scene.ctx.trace, scene.ctx.trace.gates_LxBxH
    for moved in range(3):
        changed = [not np.array_equal(x, y) for x, y in zip(pull(m), pull(m.at[moved].multiply(-1)), strict=True)]
        assert changed == [layer <= moved for layer in range(3)] + [False]


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_that_replace_or_correct_a_credit():
    scene, field = make_scene("image"), small(jc.vector_field)
    exact, plain = jc.exact_terminal(of=field).build(), field.build()
    state = exact.init(jax.random.key(0), shapes_of(scene))
    ours, theirs = (e.credit(state, scene.ctx, scene.env, jax.random.key(0)) for e in (exact, plain))
    np.testing.assert_array_equal(ours[:-1], theirs[:-1])
    np.testing.assert_array_equal(ours[-1], scene.ctx.delta_BxD)
    assert not np.array_equal(theirs[-1], scene.ctx.delta_BxD)
    seen, delta_KxBxD = oracle_context(scene.ctx, scene), scene.delta_KxBxD
    below, above = (
        jc.exact_at(of=field, layers=layers).build().credit(state, seen, scene.env, jax.random.key(0))
        for layers in ("embedding", "blocks")
    )
    np.testing.assert_array_equal(below, jnp.concatenate([delta_KxBxD[:1], theirs[1:]]))
    np.testing.assert_array_equal(above, jnp.concatenate([theirs[:1], delta_KxBxD[1:]]))
    corrected = jc.unbiased_residual(of=field, directions=3).build()
    credit = jax.jit(lambda key: corrected.credit(state, scene.ctx, scene.env, key))
    once, again, other = (credit(jax.random.key(i)) for i in (0, 0, 1))
    assert same_bits(once, again) and not np.array_equal(once[:-1], other[:-1])  # fresh directions with each key
