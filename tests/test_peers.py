"""What others' methods compute, against their papers' formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    IMAGE_NETWORK,
    branch_weights_of,
    first_batch,
    make_scene,
    normal,
    randomised,
    refused,
    relative,
    shapes_of,
    start,
    tiny,
    white,
)  # fmt: skip

import jcredit as jc
from jcredit.numerics import cosine
from jcredit.passes import own_matrices_of
from jcredit.training import make_run
from jcredit.types import EstState, OracleContext

KEY = jax.random.key(2)


def gamma(a, delta):
    """Mean cosine over samples and hidden layers."""
    return float(jnp.mean(cosine(a[:-1], delta[:-1])))


# --- weight mirror and Kolen-Pollack ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_noise_mirrors_each_matrix(x64, strict, kind):
    # E[x^T (x W)] = W; of n draws each entry has a deviation of about ||w_column|| / sqrt(n).
    scene = make_scene(kind)
    found = jax.jit(lambda key: scene.env.mirrored(key, 20_000))(KEY)
    truth = branch_weights_of(scene)
    assert set(found) == ({"u", "v"} if kind == "image" else {"u"})
    for name, mirrored in found.items():
        expected = np.sqrt((12 + 1) / 20_000)  # ||x^T x / n - I|| per column, relative
        assert 0.5 < relative(mirrored, truth[name]) / expected < 1.5


@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_a_weight_mirror_steps_by_hebb_and_decay_and_comes_to_the_gradient(kind):
    scene, mirror = make_scene(kind), jc.weight_mirror(64, 0.05).build()
    state, loss = mirror.init(KEY, shapes_of(scene)), mirror.loss
    assert loss is not None

    def step(carry, key):
        params, moments = carry
        grads, terms = jax.grad(lambda p: loss(EstState(p, {}), scene.ctx, scene.env, key), has_aux=True)(params)
        updates, moments = mirror.optimizer.update(grads, moments, params)
        return (jax.tree.map(jnp.add, params, updates), moments), terms

    begin = (state.params, mirror.optimizer.init(state.params))
    (after, _), _ = jax.jit(step)(begin, KEY)
    for name, mirrored in scene.env.mirrored(KEY, 64).items():
        hebb = 0.95 * state.params[name] + 0.05 * mirrored
        assert relative(after[name], hebb) < 1e-5
    (params, _), terms = jax.jit(lambda b: jax.lax.scan(step, b, jax.random.split(KEY, 300)))(begin)
    credit = lambda p: mirror.credit(EstState(p, {}), scene.ctx, scene.env, KEY)  # noqa: E731
    assert gamma(credit(params), scene.delta_KxBxD) > 0.98 > gamma(credit(state.params), scene.delta_KxBxD)
    assert np.mean(terms["mirror_error"][-50:]) < 0.5  # of the noisy view itself; 1: as a mirror of zero
    assert relative(credit(branch_weights_of(scene)), scene.delta_KxBxD) < 1e-5


@pytest.mark.parametrize("lag", [0, 4])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("network", [IMAGE_NETWORK, jc.ladder_mlp(depth=3, width=16)], ids=["image", "ladder"])
def test_kolen_pollack_feedback_and_weights_converge_at_the_rate_of_the_decay(optimizer, network, lag):
    # W - B is multiplied by 1 - r w in every step, r falling with the cosine schedule: steps 0, 1, 2 of 8.  Of late
    # feedback it is what B will be, with all that it has yet to follow.
    config = tiny(
        jc.kolen_pollack(lag=lag), network=network, optimizer=optimizer, learning_rate=0.02, weight_decay=10.0,
        schedule="cosine",
    )  # fmt: skip
    run = make_run(config)
    state, hp, data = start(run, config)
    step, own = jax.jit(run.step), own_matrices_of(run.built(hp).network, "test")

    def apart(state) -> Any:
        weights = jax.vmap(own)(state.params.blocks)
        extra = state.est_state.extra
        feedback = jax.tree.map(jnp.add, extra["weights"], extra["behind"]) if lag else extra
        return {name: w - feedback[name] for name, w in weights.items()}

    first, before, keep = apart(state), state, 1.0
    for count in range(3):
        state, _ = step(state, hp, data, first_batch(config))
        keep *= 1 - 0.02 * 10.0 * 0.5 * (1 + np.cos(np.pi * count / 8))
        for name, difference in apart(state).items():
            assert relative(difference, keep * first[name]) < 1e-4
    now, then = (s.est_state.extra["weights"] if lag else s.est_state.extra for s in (state, before))
    assert jnp.max(jnp.abs(now["u"] - then["u"])) > 1e-3
    if "v" not in first:  # the way out of the ladder's activation is the identity
        np.testing.assert_array_equal(now["v"], np.broadcast_to(np.eye(16), (3, 16, 16)))


@pytest.mark.parametrize("maps", [jc.tangent_chain(), jc.tangent_sweeps(start="mask")], ids=["chain", "sweeps"])
@pytest.mark.parametrize("network", [IMAGE_NETWORK, jc.ladder_mlp(depth=3, width=16)], ids=["image", "ladder"])
def test_maps_that_follow_stay_with_the_weights_they_have_come_to(network, maps):
    # Begun at the weights, and fitted at a rate of next to nothing: they are the weights while these move.
    far = {}
    for follows in (True, False):
        credit = maps.replace(samples=8, learning_rate=1e-20, follows=follows)
        config = tiny(credit, network=network, learning_rate=0.02, weight_decay=1.0)
        run = make_run(config)
        state, hp, data = start(run, config)
        own = jax.vmap(own_matrices_of(run.built(hp).network, "test"))
        params = state.est_state.params
        here = {"maps": params["maps"] | own(state.params.blocks)} if "maps" in params else own(state.params.blocks)
        state = state._replace(est_state=EstState(params | here, {}))
        step = jax.jit(run.step)
        for _ in range(3):
            state, _ = step(state, hp, data, first_batch(config))
        copies = state.est_state.params.get("maps", state.est_state.params)
        far[follows] = [relative(copies[name], w) for name, w in own(state.params.blocks).items()]
    assert max(far[True]) < 1e-5 and min(far[False]) > 1e-2


UNFITTED = {"samples": 8, "learning_rate": 1e-20, "begins": "feedback"}


@pytest.mark.parametrize(
    ("maps", "peer"),
    [
        (jc.tangent_chain(**UNFITTED), jc.fa()),
        (jc.tangent_chain(**UNFITTED, follows=True), jc.kolen_pollack()),
        (jc.tangent_sweeps(2, **UNFITTED, follows=True), jc.kolen_pollack(sweeps=2)),
    ],
    ids=["fa", "kp", "kp in sweeps"],
)
def test_maps_that_begin_as_feedback_are_their_peer_but_for_the_fit(maps, peer):
    # Fitted at a rate of next to nothing, the maps move with the weights (Kolen-Pollack) or not at all (FA).
    networks = []
    for credit in (maps, peer):
        config = tiny(credit, learning_rate=0.02, weight_decay=1.0)
        run = make_run(config)
        state, hp, data = start(run, config)
        step = jax.jit(run.step)
        for _ in range(3):
            state, _ = step(state, hp, data, first_batch(config))
        networks.append(state.params)
    jax.tree.map(np.testing.assert_array_equal, *networks)


def test_late_feedback_takes_up_its_share_of_what_it_is_behind():
    config = tiny(jc.kolen_pollack(lag=4), learning_rate=0.02)  # nothing decays
    run = make_run(config)
    state, hp, data = start(run, config)
    step, own = jax.jit(run.step), own_matrices_of(run.built(hp).network, "test")
    weights_of = lambda state: jax.vmap(own)(state.params.blocks)["u"]  # noqa: E731
    feedback, weights = [state.est_state.extra["weights"]["u"]], [weights_of(state)]
    for _ in range(3):
        state, _ = step(state, hp, data, first_batch(config))
        feedback.append(state.est_state.extra["weights"]["u"])
        weights.append(weights_of(state))
    # A step of the weights comes at once by a fifth, one later by a fifth of the rest, and so on: late by 4 on average.
    shares = [1 - 0.8**n for n in (3, 2, 1)]
    due = sum(share * (b - a) for share, a, b in zip(shares, weights, weights[1:], strict=False))
    assert relative(feedback[3] - feedback[0], due) < 1e-4


def test_feedback_does_not_follow_blocks_that_stand_still():
    config = tiny(jc.kolen_pollack(), trains="readout", weight_decay=1.0)
    run = make_run(config)
    state, hp, data = start(run, config)
    after, _ = jax.jit(run.step)(state, hp, data, first_batch(config))
    np.testing.assert_array_equal(after.est_state.extra["u"], state.est_state.extra["u"])


@pytest.mark.parametrize("factory", [jc.weight_mirror, jc.kolen_pollack], ids=lambda factory: factory.name)
@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_copies_of_the_weights_in_sweeps_hold_all_products_of_so_many_blocks(x64, factory, kind):
    # With B = W the K-th sweep leaves of the gradient what passes through more than K blocks: none of it at K = L.
    scene = make_scene(kind)
    copies = branch_weights_of(scene)
    state = EstState(copies, copies)  # a mirror's are fitted, Kolen-Pollack's kept
    depth = scene.delta_KxBxD.shape[0] - 1
    errors = []
    for sweeps in range(1, depth + 1):
        estimator = factory(sweeps=sweeps).build()
        assert estimator.depth == sweeps and estimator.tier.endswith(
            ", 1 sweep" if sweeps == 1 else f", {sweeps} sweeps"
        )
        a_KxBxD = estimator.credit(state, scene.ctx, scene.env, KEY)
        assert relative(a_KxBxD[-1 - sweeps :], scene.delta_KxBxD[-1 - sweeps :]) < 1e-10
        errors.append(relative(a_KxBxD, scene.delta_KxBxD))
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-3 and errors[-1] < 1e-10


@pytest.mark.parametrize("credit", [jc.weight_mirror(), jc.kolen_pollack(), jc.kolen_pollack(sweeps=1)], ids=str)
def test_mirrors_say_what_a_network_lacks(credit):
    lq = shapes_of(make_scene("lq"))
    refused(lambda: credit.build().init(KEY, lq), f"{credit.name}: the network has no branch")
    branch = make_scene("image").network.branch
    assert branch is not None
    bare = lq._replace(branch=branch._replace(own=None))
    refused(lambda: credit.build().init(KEY, bare), f"{credit.name}: the network's branch does not say which matrices")
    for following in (jc.tangent_chain(follows=True), jc.tangent_sweeps(follows=True)):
        refused(
            lambda: following.build().init(KEY, bare),  # noqa: B023
            "maps that follow the weights: the network's branch does not say which matrices",
        )


# --- GrAPE ------------------------------------------------------------------------------------------------------------


def true_jacobians(scene):
    """d outputs / d h_l of the linear dynamics, (L, C, D)."""
    a, w = np.asarray(scene.params.blocks["a"]), np.asarray(scene.params.readout["w"])
    found = [w]
    for block in a[::-1]:
        found.append(block @ found[-1])
    return np.swapaxes(np.stack(found[:0:-1]), 1, 2)


def test_tangents_of_the_outputs_are_jacobian_products(x64, strict):
    scene = make_scene("image")
    layer, v = np.asarray([0, 0, 1, 1, 1, 2, 2, 2]), normal(1, 3, 8, 12)
    h = scene.ctx.trace.h_KxBxD[layer, np.arange(8)]
    found = scene.env.outputs_tangent(scene.ctx, layer, h, v)
    assert found.shape == (3, 8, 4)
    # The loss's derivative is the outputs' through e_T.
    wanted = scene.env.loss_tangent(scene.ctx, layer, h, v)
    np.testing.assert_allclose(jnp.sum(found * scene.ctx.error_BxC[None], -1), wanted, rtol=1e-9, atol=1e-12)


def test_grape_aligned_to_the_jacobian_of_linear_dynamics_is_back_propagation(x64, strict):
    scene, grape = make_scene("lq"), jc.grape(directions=500).build()
    jacobians = true_jacobians(scene)
    state = EstState({"b": jnp.asarray(jacobians)}, {})
    assert relative(grape.credit(state, scene.ctx, scene.env, KEY), scene.delta_KxBxD) < 1e-10
    assert grape.loss is not None
    loss = jax.jit(lambda b: grape.loss(EstState({"b": b}, {}), scene.ctx, scene.env, KEY))  # type: ignore[misc]
    total, terms = loss(jnp.asarray(jacobians))
    # N >= 2 x 500 tangents a layer: ||estimate||^2 is 1 + D / N or so of the Jacobian's, 1 - cos half of that excess.
    assert 0 < total < 3 * 0.5 * 2 * 12 / 1000 and terms["misalignment"] == pytest.approx(total / 3)
    assert loss(-3.0 * jnp.asarray(jacobians))[0] == pytest.approx(6 - total)  # directions only
    gradient = jax.grad(lambda b: loss(b)[0])(normal(3, *jacobians.shape))
    assert jnp.sum(gradient * normal(3, *jacobians.shape)) == pytest.approx(0, abs=1e-10)  # none along B itself


def test_grape_learns_its_direction_from_single_tangents():
    scene, grape = make_scene("lq"), jc.grape(learning_rate=0.01).build()
    assert grape.loss is not None

    def step(carry, key):
        params, moments = carry
        grads = jax.grad(lambda p: grape.loss(EstState(p, {}), scene.ctx, scene.env, key)[0])(params)  # type: ignore
        updates, moments = grape.optimizer.update(grads, moments, params)
        return (jax.tree.map(jnp.add, params, updates), moments), None

    state = grape.init(KEY, shapes_of(scene))
    begin = (state.params, grape.optimizer.init(state.params))
    (params, _), _ = jax.jit(lambda b: jax.lax.scan(step, b, jax.random.split(KEY, 1500)))(begin)
    score = lambda p: gamma(grape.credit(EstState(p, {}), scene.ctx, scene.env, KEY), scene.delta_KxBxD)  # noqa: E731
    assert score(params) > 0.95 and abs(score(state.params)) < 0.5


def test_grape_anchored_takes_the_gradient_when_it_is_due_and_is_an_oracle_then():
    scene, grape = make_scene("image"), jc.grape(anchor_every=3).build()
    assert grape.oracle and grape.tier.startswith("oracle") and not jc.grape().build().oracle
    state = grape.init(KEY, shapes_of(scene))
    ctx = OracleContext(**scene.ctx._asdict(), delta_KxBxD=scene.delta_KxBxD)
    exact = []
    for _ in range(7):
        a = grape.credit(state, ctx, scene.env, KEY)
        exact.append(np.array_equal(a, scene.delta_KxBxD))
        np.testing.assert_array_equal(a[-1], scene.ctx.delta_BxD)
        state = grape.update(state, ctx, scene.env, KEY)
    assert exact == [False, False, True, False, False, True, False]


# --- local losses and forward gradients -------------------------------------------------------------------------------


def heads_of(scene):
    params = randomised(jax.eval_shape(lambda: jc.local_heads().build().init(KEY, shapes_of(scene))).params, 2)
    return EstState(params, {})


def test_local_heads_by_formula(x64, strict):
    # a_l = LNJ_l[(softmax(LN(h_l) W_l + b_l) - onehot) W_l^T], and a_L = delta_L.
    scene, heads = make_scene("image"), jc.local_heads().build()
    state = heads_of(scene)
    a = heads.credit(state, scene.ctx, scene.env, KEY)
    for layer in range(3):
        h, w, b = scene.ctx.trace.h_KxBxD[layer], state.params["w"][layer], state.params["b"][layer]
        error = jax.nn.softmax(scene.network.normalise(h) @ w + b) - jax.nn.one_hot(scene.target_B, 4)
        wanted = jax.vjp(scene.network.normalise, h)[1](error @ w.T)[0]
        assert relative(a[layer], wanted) < 1e-10
    np.testing.assert_array_equal(a[-1], scene.ctx.delta_BxD)
    assert heads.loss is not None
    blank = EstState(jax.tree.map(jnp.zeros_like, state.params), {})
    loss, terms = heads.loss(blank, scene.ctx, scene.env, KEY)
    assert loss == pytest.approx(3 * np.log(4)) and terms["local_loss"] == pytest.approx(np.log(4))
    # Fitted at the states where they are used: each head's cross-entropy, in numpy.
    wanted = []
    for layer in range(3):
        h = np.asarray(white(scene.ctx.trace.h_KxBxD[layer]))
        outputs = h @ np.asarray(state.params["w"][layer]) + np.asarray(state.params["b"][layer])
        log_p = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
        wanted.append(-log_p[np.arange(8), np.asarray(scene.target_B)].mean())
    loss, terms = heads.loss(state, scene.ctx, scene.env, KEY)
    assert loss == pytest.approx(sum(wanted)) and terms["local_loss"] == pytest.approx(np.mean(wanted))


def test_local_heads_hear_of_no_other_layer(strict):
    scene, heads = make_scene("image"), jc.local_heads().build()
    state, h = heads_of(scene), scene.ctx.trace.h_KxBxD
    at = lambda h: heads.credit(state, scene.ctx._replace(trace=scene.ctx.trace._replace(h_KxBxD=h)), scene.env, KEY)  # noqa: E731
    for moved in range(4):
        changed = [not np.array_equal(x, y) for x, y in zip(at(h), at(h.at[moved].multiply(-1)), strict=True)]
        assert changed == [layer == moved for layer in range(3)] + [False]


@pytest.mark.parametrize("objective", ["local", "task"])
def test_the_mean_of_forward_gradients_is_the_gradient(strict, objective):
    # The relative error of a mean over n directions is sqrt((D + 1) / n), of one draw with M = 10 sqrt((D + 1) / 10).
    scene = make_scene("image")
    forward = jc.forward_gradient(objective, 10).build()
    state = heads_of(scene) if objective == "local" else EstState({}, {})
    exact = scene.delta_KxBxD
    if objective == "local":
        exact = jc.local_heads().build().credit(state, scene.ctx, scene.env, KEY)
    draw = jax.jit(lambda key: forward.credit(state, scene.ctx, scene.env, key))
    draws = np.stack([draw(jax.random.key(i)) for i in range(200)])
    np.testing.assert_array_equal(draws[0, -1], scene.ctx.delta_BxD)
    assert 0.5 < relative(draws.mean(0)[:-1], exact[:-1]) / np.sqrt(13 / 2000) < 1.5
    assert 0.5 < relative(draws[0, :-1], exact[:-1]) / np.sqrt(13 / 10) < 1.5


def test_a_forward_gradient_of_the_task_learns_nothing_and_one_of_heads_does():
    assert jc.forward_gradient("task").build().loss is None
    assert jc.forward_gradient("local").build().loss is jc.local_heads().build().loss
