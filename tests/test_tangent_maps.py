"""Sweeps, their starts, coarse maps and gates that see later states, against linear algebra."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import branch_weights_of, first_batch, make_scene, normal, randomised, relative, shapes_of, start, tiny

import jcredit as jc
from jcredit.config import credit_depth
from jcredit.estimators.linear_maps import (
    chain_map,
    coarse_ends,
    coarse_map,
    gate_map,
    make_map,
    mask_map,
    spans_map,
    sweeps_map,
)  # fmt: skip
from jcredit.estimators.tangents import directions, tangent_bridge
from jcredit.passes import NetworkEnv, branch_of, forward
from jcredit.tasks.classification import cross_entropy
from jcredit.training import make_run
from jcredit.types import Branch, Context, EstState, NetParams, Network, Shapes, Trace, adam

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(3)


def linear_network(depth: int, width: int) -> tuple[NetworkEnv, Context, Shapes, Any]:
    """h_{l+1} = h_l (I + A_l): its env, a context, its shapes, and delta_0 .. delta_L by matrix products."""
    a = 0.3 * normal(1, depth, width, width)
    branch = Branch(
        gates=lambda params, h: jnp.ones_like(h),
        random=lambda key, scale: {},
        zero=lambda key: {"u": normal(9, width, width), "v": jnp.zeros((width, width), a.dtype)},
        push=lambda w, m, h, v: ((v @ w["u"]) * m) @ w["v"],
        pull=lambda w, m, h, c: ((c @ w["v"].T) * m) @ w["u"].T,
    )
    network = Network(lambda key: None, None, lambda p, h: h + h @ p, lambda p, h: h @ p, branch=branch)  # type: ignore
    params = NetParams({}, a, normal(2, width, 3))
    h = [normal(4, 6, width)]
    for block in a:
        h.append(h[-1] + h[-1] @ block)
    trace = Trace(jnp.stack(h), h[-1] @ params.readout, None, jnp.ones((depth, 6, width)))
    delta = [normal(5, 6, width)]
    for block in a[::-1]:
        delta.append(delta[-1] + delta[-1] @ block.T)
    ctx = Context(trace, jnp.zeros(6, jnp.int32), normal(6, 6, 3), delta[0])
    return NetworkEnv(network, cross_entropy, params), ctx, Shapes(depth, width, 3, branch), np.stack(delta[::-1])


def between(a, first, end):
    """(I + A_first) .. (I + A_{end-1})."""
    product = np.eye(a.shape[-1])
    for layer in range(first, end):
        product = product @ (np.eye(a.shape[-1]) + np.asarray(a[layer]))
    return product


# --- coarse maps ------------------------------------------------------------------------------------------------------


def test_coarse_maps_span_powers_of_two_from_the_end():
    # Twelve blocks: 12 = 8 + 4, 11 = 8 + 2 + 1, ...: from h_L down the largest power first.
    np.testing.assert_array_equal(coarse_ends(12), [4, 2, 4, 4, 12, 6, 8, 8, 12, 10, 12, 12])
    for depth in range(1, 34):
        ends, longest = coarse_ends(depth), 0
        for layer in range(depth):
            spans, state = [], layer
            while state < depth:
                spans.append(int(ends[state] - state))
                state = int(ends[state])
            assert sum(spans) == depth - layer and spans == sorted(set(spans))
            assert all(span & (span - 1) == 0 for span in spans)
            longest = max(longest, len(spans))
        credit: Any = coarse_map().depth
        # No more steps than powers of two up to L; at L = 2^k - 1 the largest sum has them all.
        assert credit(depth) == longest <= int(np.log2(depth)) + 1
    assert credit(12) == 3 and credit(15) == 4


@pytest.mark.parametrize("depth", [1, 4, 6])
def test_coarse_maps_are_exact_on_a_linear_network(x64, depth):
    env, ctx, shapes, exact = linear_network(depth, 5)
    params, ends, first = coarse_map().init(KEY, shapes), coarse_ends(depth), 0
    for layer, end in enumerate(ends):  # the whole of a span's map in its first branch
        params["u"] = params["u"].at[first].set(between(env._params.blocks, layer, end) - np.eye(5))
        params["v"] = params["v"].at[first].set(np.eye(5))
        first += end - layer
    assert first == len(params["u"])
    found = coarse_map().pull(params, env, ctx.trace, ctx.delta_BxD)
    assert relative(found, exact) < 1e-12
    v = normal(7, depth, 6, 5)
    for layer, end in enumerate(ends):
        carried = v[layer] @ between(env._params.blocks, layer, end)
        assert relative(v[layer] + coarse_map().push(params, env, ctx.trace, v)[layer], carried) < 1e-12


@pytest.mark.parametrize("name", ["coarse", "sweeps from coarse", "gate later"])
def test_fitted_to_tangents_maps_of_a_linear_network_become_exact(x64, name):
    env, ctx, shapes, exact = linear_network(3, 4)
    tangent_map = {
        "coarse": coarse_map(),
        "sweeps from coarse": sweeps_map(1, "neumann", "coarse"),
        "gate later": gate_map(8, "later"),
    }[name]
    bridge, optimizer = tangent_bridge(tangent_map, 6, False, adam()), adam(1e-2, 0.0)
    state = bridge.init(KEY, shapes)

    def step(carry, key):
        params, moments = carry
        loss = lambda p: bridge.loss(EstState(p, {}), ctx, env, key)[0]  # type: ignore[misc]  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return (jax.tree.map(lambda p, u: p + u, params, updates), moments), value

    begin = (state.params, optimizer.init(state.params))
    with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
        (params, _), losses = jax.jit(lambda b: jax.lax.scan(step, b, jax.random.split(KEY, 1500)))(begin)
    assert losses[-1] < 1e-4 * losses[0]
    assert relative(bridge.credit(EstState(params, {}), ctx, env, KEY), exact) < 1e-2


def test_tangents_along_states_point_from_one_sample_to_another(x64):
    h = np.asarray(normal(7, 3, 6, 5))
    way = np.roll(h, 1, axis=1) - h  # the layers keep apart
    way /= np.sqrt((way**2).mean(-1, keepdims=True))
    noise, states, both = (directions(along, jnp.asarray(h), KEY) for along in ("noise", "states", "both"))
    assert relative(states, way) < 1e-5  # RMS + 1e-6
    np.testing.assert_array_equal(both, states + noise)
    np.testing.assert_array_equal(noise, jax.random.normal(KEY, h.shape, h.dtype))


def test_along_states_a_map_may_err_where_no_state_differs(x64):
    # Six states span five ways in nine dimensions: what a map does to the other four is no concern of its fit.
    env, ctx, _, _ = linear_network(3, 9)
    h = np.asarray(ctx.trace.h_KxBxD)[:-1]
    ways = np.linalg.svd(h - h.mean(1, keepdims=True))[2][:, :5]
    elsewhere = np.eye(9) - np.swapaxes(ways, 1, 2) @ ways
    a = np.asarray(env._params.blocks)
    maps = {"u": jnp.broadcast_to(jnp.eye(9), a.shape), "v": jnp.asarray(a + elsewhere @ normal(8, 3, 9, 9))}
    losses = {}
    for along in ("noise", "states", "both"):
        loss = tangent_bridge(chain_map(), 6, False, adam(), along).loss
        assert loss is not None
        losses[along] = float(loss(EstState(maps, {}), ctx, env, KEY)[0])
    assert losses["states"] < 1e-20 and min(losses["noise"], losses["both"]) > 1


@pytest.mark.parametrize("along", ["states", "both"])
@pytest.mark.parametrize(
    "factory", [jc.tangent_gate, jc.tangent_mask, jc.tangent_chain, jc.tangent_sweeps, jc.tangent_coarse]
)
def test_a_way_to_another_state_takes_two_samples(factory, along):
    with pytest.raises(jc.ConfigError, match=f"samples=1 with along='{along}': .* give at least 2"):
        factory(samples=1, along=along).build()


def test_the_mask_by_blocks_is_the_mask_of_a_dense_branch(x64):
    # Row l of the dense mask holds in columns j H .. (j+1) H what block j's branch has in terms of any branch.
    scene = make_scene("image")
    dense = randomised(jax.eval_shape(lambda: mask_map().init(KEY, shapes_of(scene))), 2)
    blocks = [(layer, j) for layer in range(3) for j in range(layer, 3)]
    own = {
        "u": jnp.stack([dense["u"][layer][:, 12 * j : 12 * j + 12] for layer, j in blocks]),
        "v": jnp.stack([dense["v"][layer][12 * j : 12 * j + 12] for layer, j in blocks]),
    }
    assert scene.network.branch is not None
    env = dataclasses.replace(
        scene.env, _network=scene.network._replace(branch=scene.network.branch._replace(dense=False))
    )
    shapes = shapes_of(scene)._replace(branch=env.branch)
    assert jax.tree.map(jnp.shape, mask_map().init(KEY, shapes)) == jax.tree.map(jnp.shape, own)
    trace, delta, v = scene.ctx.trace, scene.ctx.delta_BxD, normal(4, 3, 8, 12)
    for found, wanted in (
        (mask_map().push(own, env, trace, v), mask_map().push(dense, scene.env, trace, v)),
        (mask_map().pull(own, env, trace, delta), mask_map().pull(dense, scene.env, trace, delta)),
    ):
        assert relative(found, wanted) < 1e-12


def test_the_mask_of_a_dense_branch_takes_its_number_of_gates(x64):
    # D = 12 and H = 24: two equal halves of the gates are one branch twice, so half of its weights each is that branch.
    scene = make_scene("image")
    branch = scene.network.branch
    assert branch is not None
    twice = branch._replace(
        gates=lambda p, h: jnp.concatenate([branch.gates(p, h)] * 2, axis=-1),
        zero=lambda key: {"u": jnp.zeros((12, 24)), "v": jnp.zeros((24, 12))},
    )
    env = dataclasses.replace(scene.env, _network=scene.network._replace(branch=twice))
    wide = jax.eval_shape(lambda: mask_map().init(KEY, shapes_of(scene)._replace(branch=twice)))
    assert jax.tree.map(jnp.shape, wide) == {"u": (3, 12, 3 * 24), "v": (3, 3 * 24, 12)}
    one = randomised(jax.eval_shape(lambda: mask_map().init(KEY, shapes_of(scene))), 2)
    by_block = {"u": one["u"].reshape(3, 12, 3, 12), "v": one["v"].reshape(3, 3, 12, 12)}
    two = {
        "u": jnp.concatenate([by_block["u"]] * 2, axis=3).reshape(3, 12, 72),
        "v": 0.5 * jnp.concatenate([by_block["v"]] * 2, axis=2).reshape(3, 72, 12),
    }
    trace, delta = scene.ctx.trace, scene.ctx.delta_BxD
    doubled = trace._replace(gates_LxBxH=jnp.concatenate([trace.gates_LxBxH] * 2, axis=-1))
    assert relative(mask_map().pull(two, env, doubled, delta), mask_map().pull(one, scene.env, trace, delta)) < 1e-12


def test_spans_of_one_block_are_the_chain(x64):
    scene = make_scene("ladder")
    spans = spans_map(lambda depth: np.arange(1, depth + 1), "chain")
    found = spans.pull(branch_weights_of(scene), scene.env, scene.ctx.trace, scene.ctx.delta_BxD)
    assert relative(found, scene.delta_KxBxD) < 1e-10


def test_coarse_maps_need_a_branch():
    scene = make_scene("lq")
    with pytest.raises(jc.ConfigError, match="coarse map: the network has no branch"):
        coarse_map().init(KEY, shapes_of(scene))


# --- sweeps -----------------------------------------------------------------------------------------------------------


def branch_norms(scene):
    """The spectral norm of every block's branch at every sample (L, B)."""
    h = scene.ctx.trace.h_KxBxD[:-1]
    basis = jnp.broadcast_to(jnp.eye(12)[:, None, None], (12, 3, 8, 12))
    columns = jax.vmap(lambda v: scene.env.block_tangents(h, v) - v)(basis)  # (D, L, B, D)
    return np.linalg.norm(np.transpose(columns, (1, 2, 0, 3)), 2, axis=(-2, -1))


def elementary(norms_NxB):
    """e_0 .. e_N, the elementary symmetric polynomials of the norms of N branches, sample by sample."""
    e = [np.ones(norms_NxB.shape[1])] + [np.zeros(norms_NxB.shape[1])] * len(norms_NxB)
    for b in norms_NxB:
        e = [e[0]] + [e[k] + b * e[k - 1] for k in range(1, len(e))]
    return e


@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_what_neumann_sweeps_miss_is_bounded_by_the_norms_of_the_branches(x64, kind):
    # K sweeps hold every product of up to K branches; what is left is the longer ones, each at most the product of its
    # branches' norms: ||e_l|| <= sum_{k > K} e_k(b_l .. b_{L-1}) ||delta_L||.
    scene = make_scene(kind)
    trace, delta, weights = scene.ctx.trace, scene.ctx.delta_BxD, branch_weights_of(scene)
    norms, size = branch_norms(scene), np.linalg.norm(delta, axis=-1)
    for k in (1, 2):
        a = np.asarray(sweeps_map(k, "neumann").pull(weights, scene.env, trace, delta))
        error = np.linalg.norm(a - scene.delta_KxBxD, axis=-1)
        for layer in range(3):
            bound = sum(elementary(norms[layer:])[k + 1 :], np.zeros(8)) * size
            assert (error[layer] <= bound + 1e-12).all()
    # and each further sweep gains a power of the branches' size: at 1/100 of it the error of layer 0 is 100^-(K+1)
    small = {"u": weights["u"], "v": 1e-2 * weights["v"]}
    missed = lambda w, k: np.linalg.norm(  # noqa: E731
        sweeps_map(k, "neumann").pull(w, scene.env, trace, delta)[0] - chain_map().pull(w, scene.env, trace, delta)[0]
    )
    tiny_ = {"u": weights["u"], "v": 1e-3 * weights["v"]}
    for k in (1, 2):
        assert np.log10(missed(small, k) / missed(tiny_, k)) == pytest.approx(k + 1, abs=0.1)


@pytest.mark.parametrize("relaxation", ["jacobi", "neumann"])
@pytest.mark.parametrize("begin", ["gate", "mask", "coarse"])
def test_sweeps_from_any_start_end_in_the_chain(x64, relaxation, begin):
    scene = make_scene("image")
    trace, delta = scene.ctx.trace, scene.ctx.delta_BxD
    maps = {k: sweeps_map(k, relaxation, begin, 8) for k in (1, 2, 3)}
    params = randomised(jax.eval_shape(lambda: maps[1].init(KEY, shapes_of(scene))), 2)
    a_start = np.asarray(make_map(begin, 8).pull(params["start"], scene.env, trace, delta))
    chained = np.asarray(chain_map().pull(params["maps"], scene.env, trace, delta))
    found = {k: np.asarray(m.pull(params, scene.env, trace, delta)) for k, m in maps.items()}
    assert relative(found[3], chained) < 1e-12 and relative(a_start[:3], chained[:3]) > 0.1
    # One sweep takes the start's error through one branch (neumann), or through one whole block (jacobi).
    error, pull = a_start - chained, jax.vmap(branch_of(scene.env, "test").pull)
    through = np.asarray(pull(params["maps"], trace.gates_LxBxH, trace.h_KxBxD[:-1], jnp.asarray(error[1:])))
    wanted = np.cumsum(through[::-1], axis=0)[::-1] if relaxation == "neumann" else error[1:] + through
    np.testing.assert_allclose((found[1] - chained)[:3], wanted, atol=1e-12)


@pytest.mark.parametrize("begin", ["mask", "coarse"])
def test_a_start_is_fitted_beside_the_maps_it_serves(x64, begin):
    scene = make_scene("image", depth=1)  # at one block the mask, the coarse map and the chain are one
    tangent_map, weights = sweeps_map(1, "neumann", begin), branch_weights_of(scene)
    zero = {"u": weights["u"], "v": 0 * weights["v"]}
    fit: Any = tangent_bridge(tangent_map, 8, False, adam()).loss
    for maps, first in ((weights, weights), (weights, zero), (zero, weights)):
        loss, terms = fit(EstState({"maps": maps, "start": first}, {}), scene.ctx, scene.env, KEY)
        missed = (float(maps is zero), float(first is zero))
        assert (terms["unexplained"], terms["start_unexplained"]) == pytest.approx(missed, abs=1e-12)
        assert loss == pytest.approx(sum(missed), abs=1e-12)


# --- gates that see later states --------------------------------------------------------------------------------------


def test_gates_that_see_later_states(x64):
    scene = make_scene("image")
    plain, later = gate_map(8), gate_map(8, "later")
    own, params = (m.init(KEY, shapes_of(scene)) for m in (plain, later))
    trace, delta, v = scene.ctx.trace, scene.ctx.delta_BxD, normal(5, 3, 8, 12)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), own, {k: params[k] for k in own}))
    assert not params["later"].any()  # as gates that see their own state alone, until they learn more
    params = randomised(params, 2)
    h, pull = trace.h_KxBxD, jax.jit(lambda h: later.pull(params, scene.env, trace._replace(h_KxBxD=h), delta))
    for moved in range(3):
        changed = [not np.array_equal(x, y) for x, y in zip(pull(h), pull(h.at[moved].multiply(-1)), strict=True)]
        assert changed == [layer <= moved for layer in range(3)] + [False]
    pushed, pulled = later.push(params, scene.env, trace, v), pull(h)[:3] - delta[None]
    np.testing.assert_allclose(jnp.sum(pushed * delta[None], -1), jnp.sum(v * pulled, -1), rtol=1e-10)
    # By formula at layer 1 of 3, which sees h_1 and h_2.
    p = {name: np.asarray(value) for name, value in params.items()}
    seen = np.asarray(scene.network.normalise(h.reshape(-1, 12))).reshape(4, 8, 12)
    gate = 1 / (1 + np.exp(-2 * (seen[1] @ p["g"][1] + p["c"][1] + seen[2] @ p["later"][2])))
    assert relative(pushed[1], ((np.asarray(v[1]) @ p["u"][1]) * gate) @ p["v"][1]) < 1e-12


# --- what is printed, and what may not happen -------------------------------------------------------------------------


def test_the_sequential_depth_of_every_credit():
    def depth(credit, blocks=12):
        return credit_depth(jc.Config(credit=credit, network=jc.image_mlp(depth=blocks)))

    assert [depth(c) for c in (jc.bp(), jc.fa(), jc.tangent_chain())] == [12, 12, 12]
    assert depth(jc.bp(), 4) == 4 and depth(jc.frozen()) == 0
    direct = (jc.dfa(), jc.broadcast(), jc.state_bridge(), jc.scalar_bridge(), jc.vector_field(), jc.tangent_gate())
    assert {depth(credit) for credit in (*direct, jc.tangent_mask(), jc.linear_field())} == {1}
    assert [depth(jc.tangent_sweeps(k)) for k in (1, 2, 3)] == [1, 2, 3]
    assert depth(jc.tangent_sweeps(1, start="mask")) == 2 and depth(jc.tangent_sweeps(2, start="gate")) == 3
    assert depth(jc.tangent_coarse()) == 3 and depth(jc.tangent_coarse(), 15) == 4
    assert depth(jc.tangent_sweeps(1, start="coarse")) == 4 and depth(jc.linear_field("chain")) == 12
    assert [depth(c) for c in (jc.weight_mirror(), jc.kolen_pollack(), jc.grape(anchor_every=9))] == [12, 12, 12]
    local = (jc.local_heads(), jc.forward_gradient(), jc.forward_gradient("task"))
    assert {depth(credit) for credit in (jc.grape(), *local)} == {1}
    # The residual is measured beside the forward pass, and added when the credit is there.
    assert depth(jc.unbiased_residual(of=jc.tangent_chain())) == 13
    assert depth(jc.exact_terminal(of=jc.bp())) == 12
    assert [depth(jc.exact_at(of=of)) for of in (jc.dfa(), jc.unbiased_residual(jc.tangent_chain()))] == [12, 13]
    assert credit_depth(jc.Config(credit=jc.bp(), network=jc.testing.poisoned(of=jc.image_mlp(depth=5)))) == 5

    @jc.estimator
    def mine():
        return jc.broadcast().build()._replace(depth=None)

    assert depth(mine()) is None and depth(jc.unbiased_residual(of=mine())) is None

    @jc.network
    def nameless(sizes, /):
        return jc.image_mlp(depth=2, width=8).build(sizes)

    assert credit_depth(jc.Config(credit=jc.bp(), network=nameless())) is None
    assert credit_depth(jc.Config(credit=jc.dfa(), network=nameless())) == 1


@pytest.mark.parametrize(
    "credit", [jc.tangent_coarse(4), jc.tangent_sweeps(1, samples=4, start="mask"), jc.linear_field("coarse")], ids=str
)
def test_a_fit_never_enters_the_network(credit):
    # The step's credit is made before the fit: another step size of the fit leaves the network's step bit for bit.
    with jax.numpy_dtype_promotion("standard"):
        config = tiny(credit, network=jc.image_mlp(depth=3, width=16))
        run = make_run(config)
        state, hp, data = start(run, config)
        step = jax.jit(run.step)
        slow, fast = (
            step(
                state, hp._replace(credit={**hp.credit, "learning_rate": jnp.asarray(rate)}), data, first_batch(config)
            )[0]
            for rate in (1e-4, 1.0)
        )
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))  # noqa: E731
    assert same(slow.params, fast.params) and not same(slow.params, state.params)
    assert not same(slow.est_state.params, fast.est_state.params)


def test_forward_is_what_the_linear_network_does(x64):
    env, ctx, _, _ = linear_network(3, 4)
    network = env._network._replace(embed=lambda p, x: x)
    assert relative(forward(network, env._params, ctx.trace.h_KxBxD[0]).h_KxBxD, ctx.trace.h_KxBxD) < 1e-12
