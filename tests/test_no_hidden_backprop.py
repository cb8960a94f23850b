"""No rule back-propagates from block to block: every one of them trains with a poisoned backward pass.

The poison is an identity on each block's input which lets forward mode and a block's own parameters' gradient through,
and raises where a reverse pass reaches it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    RULES,
    VARIANTS,
    HiddenBackprop,
    first_batch,
    image_network_task,
    make_scene,
    normal,
    poisoned,
    shapes_of,
    start,
    tiny,
)  # fmt: skip

from jcredit.estimators import broadcast
from jcredit.exploit import local_steps
from jcredit.losses.rules import make_rule
from jcredit.networks import forward_with_pulls, make_env
from jcredit.tasks.teacher import teacher_task
from jcredit.training import make_run
from jcredit.types import Context, Estimator, LocalRule, OracleContext


def poisoned_step(config, make_task=teacher_task, **kwargs):
    """One real training step, compiled and executed, through poisoned blocks."""
    run = make_run(config, task=poisoned(make_task(config)), **kwargs)
    state, hp, data = start(run, config)
    return state, jax.jit(run.step)(state, hp, data, first_batch(config))


# The rules, one after the other, along the variants: each is met by estimators of every kind.
@pytest.mark.parametrize(("name", "rule"), [(name, RULES[i % 3]) for i, name in enumerate(VARIANTS)])
def test_no_method_back_propagates(name, rule):
    config = tiny(**VARIANTS[name], rule=rule, optimizer="sgd")
    old, (new, metrics) = poisoned_step(
        config, image_network_task if name.startswith(("fa", "tangent")) else teacher_task
    )
    assert all(np.isfinite(value) for value in metrics.values())
    moved = not np.array_equal(old.params.embed["w"], new.params.embed["w"])
    assert moved == (name != "frozen")  # a real step: what is to be trained has moved


def test_back_propagation_is_caught():
    with pytest.raises(HiddenBackprop):
        poisoned_step(tiny(method="bp"))


def cheat_by_gradient(ctx, env):
    """The tail is forward passes only, but nothing keeps a user from differentiating it."""
    layers = jnp.arange(ctx.trace.h_LxBxD.shape[0])
    loss = lambda h, layer: jnp.sum(env.loss_at(ctx, jnp.full(h.shape[0], layer), h))  # noqa: E731
    return jax.vmap(jax.grad(loss))(ctx.trace.h_LxBxD, layers)


def cheat_by_next_states(ctx, env):
    h = ctx.trace.h_LxBxD
    back = jax.vjp(lambda s: env.next_states(ctx, s), h[:-1])[1](jnp.broadcast_to(ctx.delta_BxD[None], h[1:].shape))
    return h.at[:-1].set(back[0])


def cheat_by_transposed_tangents(ctx, env):
    h = ctx.trace.h_LxBxD[:-1]
    carry = lambda u: env.tangents(h, u)[-1]  # noqa: E731
    back = jax.linear_transpose(carry, ctx.delta_BxD)(ctx.delta_BxD)[0]
    return jnp.broadcast_to(back[None], ctx.trace.h_LxBxD.shape)


def cheat_by_block_tangents(ctx, env):
    h = ctx.trace.h_LxBxD
    back = jax.vjp(lambda v: env.block_tangents(h[:-1], v), h[:-1])[1](h[1:])[0]
    return h.at[:-1].set(back)


CHEATS = (cheat_by_gradient, cheat_by_next_states, cheat_by_transposed_tangents, cheat_by_block_tangents)


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheating_estimator_is_caught(cheat):
    estimator = broadcast()._replace(credit=lambda state, ctx, env, hp, key: cheat(ctx, env), tier="0: honest, surely")
    run = make_run(tiny(), task=teacher_task(tiny()), estimator=estimator)
    state, hp, data = start(run, tiny())
    jax.eval_shape(run.step, state, hp, data, first_batch(tiny()))  # without poison it would train
    with pytest.raises(HiddenBackprop):
        poisoned_step(tiny(), estimator=estimator)


def test_a_loss_that_back_propagates_is_caught():
    def loss(params, state, ctx, env, hp, key):
        moved = ctx.trace.h_LxBxD[0] + params["shift"]
        return jnp.mean(env.loss_at(ctx, jnp.zeros(moved.shape[0], jnp.int32), moved)), {}

    estimator = broadcast()._replace(
        init=lambda key, shapes: broadcast().init(key, shapes)._replace(params={"shift": jnp.zeros((1, shapes.width))}),
        loss=loss,
    )
    with pytest.raises(HiddenBackprop):
        poisoned_step(tiny(), estimator=estimator)


def test_a_rule_sees_states_and_a_credit_and_no_block():
    seen = []

    def recording(*args):
        seen.extend(jax.tree.leaves(args))
        return args[-1]

    poisoned_step(tiny(method="dfa"), rule=lambda hp: LocalRule(recording, recording))
    assert len(seen) == 12  # goal and signal, for the embedding and once for all blocks: h_l, h_{l+1}, a_{l+1}
    assert all(isinstance(x, jax.Array) and x.shape == (8, 16) for x in seen)


def test_a_pull_through_a_blocks_input_is_caught():
    scene = make_scene("image")
    network = poisoned(image_network_task(tiny())._replace(network=lambda hp: scene.network)).network(None)  # type: ignore
    own = lambda: forward_with_pulls(network, scene.params, scene.x_BxI)[1]  # noqa: E731
    back = lambda: forward_with_pulls(network, scene.params, scene.x_BxI, through_states=True)[1]  # noqa: E731
    a_LxBxD = scene.delta_LxBxD[1:]
    pull = lambda pulls: jax.vmap(lambda one, a: one(a))(pulls().blocks, a_LxBxD)  # noqa: E731
    (grads,) = pull(own)
    assert jax.tree.structure(grads) == jax.tree.structure(scene.params.blocks)
    with pytest.raises(HiddenBackprop):
        pull(back)


def test_the_poison_is_an_identity_for_what_is_allowed(x64):
    scene = make_scene("image")
    network = poisoned(image_network_task(tiny())._replace(network=lambda hp: scene.network)).network(None)  # type: ignore
    h, v, layers = scene.ctx.trace.h_LxBxD, normal(0, 2, 8, 12), jnp.asarray([0, 1, 2, 0, 1, 2, 0, 1])

    def answers(net):
        env, params = make_env(net, scene.loss, scene.params), jax.tree.map(lambda p: p[0], scene.params.blocks)
        return (
            env.loss_at(scene.ctx, layers, h[0]),
            env.loss_tangent(scene.ctx, layers, h[0], v),
            env.tangents(h[:-1], h[0]),
            env.block_tangents(h[:-1], h[1:]),
            jax.grad(lambda p: jnp.sum(net.block(p, h[0]) ** 2))(params),
        )

    ours, theirs = (jax.jit(lambda net=net: answers(net))() for net in (network, scene.network))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_handed_to_oracles_alone():
    assert "delta_LxBxD" not in Context._fields and "delta_LxBxD" in OracleContext._fields
    config, seen = tiny(), []

    def recording(tier):
        def credit(state, ctx, env, hp, key):
            seen.append(type(ctx))
            return jnp.zeros_like(ctx.trace.h_LxBxD)

        def loss(params, state, ctx, env, hp, key):
            seen.append(type(ctx))
            return jnp.sum(params["w"]), {}

        init = lambda key, shapes: broadcast().init(key, shapes)._replace(params={"w": jnp.ones(2)})  # noqa: E731
        return Estimator(init, credit, loss, tier)

    for tier, expected in (
        ("2: mine", {Context}),
        ("an oracle, not", {Context}),
        ("oracle: mine", {Context, OracleContext}),
    ):
        run = make_run(config, estimator=recording(tier))
        state, hp, data = start(run, config)
        seen.clear()
        jax.eval_shape(run.step, state, hp, data, first_batch(config))
        jax.eval_shape(run.diagnose, state, hp, data)
        assert len(seen) >= 4 and set(seen) == expected
        assert run.tier == tier
    for name, changes in VARIANTS.items():
        assert not make_run(tiny(**changes)).tier.startswith("oracle"), name
    assert make_run(tiny(method="bp")).tier.startswith("oracle")


def test_a_context_holds_nothing_that_comes_from_the_gradient(strict):
    # Its fields by name: the forward pass, the target, and what is local to the output layer.
    scene = make_scene("image")
    assert scene.ctx._fields == ("trace", "target_B", "error_BxC", "delta_BxD", "code_BxS")
    assert scene.ctx.trace._fields == ("h_LxBxD", "outputs_BxC", "noise_LxBxD")
    assert set(shapes_of(scene)._fields) == {"depth", "width", "outputs", "code", "gates", "branch_weights"}


@pytest.mark.parametrize("name", RULES)
def test_credit_asked_for_and_local_steps_do_not_back_propagate(name):
    config = tiny(method="vector_field")
    task = poisoned(image_network_task(config))
    run = make_run(config, task=task)
    state, hp, data = start(run, config)
    x, y = task.prepare(data.train_x[:8]), data.train_y[:8]
    ctx, a_LxBxD = jax.jit(run.credit)(state, hp, x, y, jax.random.key(0))
    walk = lambda h, a: local_steps(  # noqa: E731
        make_rule(name, 0.1), task.network(hp), state.params.blocks, h, a, steps=2, eta=0.1, mask_L=jnp.ones(3)
    )
    moved = jax.jit(walk)(ctx.trace.h_LxBxD, a_LxBxD)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved))
