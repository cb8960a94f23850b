"""No rule back-propagates from block to block: every one of them trains with a poisoned backward pass.

The poison is an identity on each block's input which lets forward mode and a block's own parameters' gradient through,
and raises where a reverse pass reaches it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    IMAGE_NETWORK,
    RULES,
    SIZES,
    TINY,
    VARIANTS,
    as_part,
    first_batch,
    make_scene,
    normal,
    shapes_of,
    small,
    start,
    tiny,
)  # fmt: skip

import jcredit as jc
from jcredit.passes import NetworkEnv, forward_with_pulls
from jcredit.study.exploit import local_steps
from jcredit.testing import HiddenBackprop, poisoned
from jcredit.training import make_run
from jcredit.types import Context, Estimator, LocalRule, OracleContext


def poisoned_step(config):
    """One real training step, compiled and executed, through poisoned blocks."""
    config = config.replace(network=poisoned(of=config.network))
    run = make_run(config)
    state, hp, data = start(run, config)
    return state, jax.jit(run.step)(state, hp, data, first_batch(config))


# The rules, one after the other, along the variants: each is met by estimators of every kind.
@pytest.mark.parametrize(("name", "rule"), [(name, list(RULES)[i % 3]) for i, name in enumerate(VARIANTS)])
def test_no_method_back_propagates(name, rule):
    network = IMAGE_NETWORK if name.startswith(("fa", "tangent")) else TINY.network
    config = tiny(VARIANTS[name], network=network, rule=RULES[rule], optimizer="sgd")
    if name == "scalar_bridge":
        config = config.replace(warmup_ratio=0.5)
    old, (new, metrics) = poisoned_step(config)
    assert all(np.isfinite(value) for value in metrics.values())
    moved = not np.array_equal(old.params.embed["w"], new.params.embed["w"])
    assert moved == (name != "frozen")  # a real step: what is to be trained has moved


def test_back_propagation_is_caught():
    with pytest.raises(HiddenBackprop):
        poisoned_step(tiny(jc.bp()))


def cheat_by_gradient(ctx, env):
    """The tail is forward passes only, but nothing keeps a user from differentiating it."""
    layers = jnp.arange(ctx.trace.h_KxBxD.shape[0])
    loss = lambda h, layer: jnp.sum(env.loss_at(ctx, jnp.full(h.shape[0], layer), h))  # noqa: E731
    return jax.vmap(jax.grad(loss))(ctx.trace.h_KxBxD, layers)


def cheat_by_next_states(ctx, env):
    h = ctx.trace.h_KxBxD
    back = jax.vjp(lambda s: env.next_states(ctx, s), h[:-1])[1](jnp.broadcast_to(ctx.delta_BxD[None], h[1:].shape))
    return h.at[:-1].set(back[0])


def cheat_by_transposed_tangents(ctx, env):
    h = ctx.trace.h_KxBxD[:-1]
    carry = lambda u: env.tangents(h, u)[-1]  # noqa: E731
    back = jax.linear_transpose(carry, ctx.delta_BxD)(ctx.delta_BxD)[0]
    return jnp.broadcast_to(back[None], ctx.trace.h_KxBxD.shape)


def cheat_by_block_tangents(ctx, env):
    h = ctx.trace.h_KxBxD
    back = jax.vjp(lambda v: env.block_tangents(h[:-1], v), h[:-1])[1](h[1:])[0]
    return h.at[:-1].set(back)


def cheat_by_gates(ctx, env):
    """Gates are made of a block's input and weights, read off the Env's object: their pull holds a transposed W1."""
    h = ctx.trace.h_KxBxD
    gates, pull = jax.vjp(lambda h: jax.vmap(env.branch.gates)(env._params.blocks, h), h[:-1])
    return h.at[:-1].set(pull(jnp.ones_like(gates))[0])


CHEATS = (
    cheat_by_gradient, cheat_by_next_states, cheat_by_transposed_tangents, cheat_by_block_tangents, cheat_by_gates,
)  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheating_estimator_is_caught(cheat):
    cheating = jc.broadcast().build()._replace(credit=lambda state, ctx, env, key: cheat(ctx, env))
    config = tiny(as_part(jc.estimator, cheating))
    run = make_run(config)
    key, hp = jax.random.key(0), run.hparams(config)
    state, data = jax.eval_shape(run.init, key, hp), jax.eval_shape(run.data, key, hp)
    jax.eval_shape(run.step, state, hp, data, first_batch(config))  # without poison it would train
    with pytest.raises(HiddenBackprop):
        poisoned_step(config)


def test_a_loss_that_back_propagates_is_caught():
    broadcast = jc.broadcast().build()

    def loss(state, ctx, env, key):
        moved = ctx.trace.h_KxBxD[0] + state.params["shift"]
        return jnp.mean(env.loss_at(ctx, jnp.zeros(moved.shape[0], jnp.int32), moved)), {}

    init = lambda key, shapes: jc.EstState({"shift": jnp.zeros((1, shapes.width))}, {})  # noqa: E731
    with pytest.raises(HiddenBackprop):
        poisoned_step(tiny(as_part(jc.estimator, broadcast._replace(init=init, loss=loss))))


def test_a_rule_sees_states_and_a_credit_and_no_block():
    seen = []

    def recording(*args):
        seen.extend(jax.tree.leaves(args))
        return args[-1]

    poisoned_step(tiny(jc.dfa(), rule=as_part(jc.rule, LocalRule(recording, recording))))
    assert len(seen) == 12  # goal and signal, for the embedding and once for all blocks: h_l, h_{l+1}, a_{l+1}
    assert all(isinstance(x, jax.Array) and x.shape == (8, 16) for x in seen)


def poisoned_like(network):
    """A network already built, poisoned."""
    return poisoned.function(SIZES, as_part(jc.network, network))


def test_a_pull_through_a_blocks_input_is_caught():
    scene = make_scene("image")
    network = poisoned_like(scene.network)

    def gradients(through_states):
        _, pulls = forward_with_pulls(network, scene.params, scene.x_BxI, through_states=through_states)
        return jax.vmap(lambda pull, a: pull(a))(pulls.blocks, scene.delta_KxBxD[1:])

    gradients = jax.jit(gradients, static_argnums=0)
    assert jax.tree.structure(gradients(False)[0]) == jax.tree.structure(scene.params.blocks)
    with pytest.raises(HiddenBackprop):
        gradients(True)


def test_the_poison_is_an_identity_for_what_is_allowed(x64):
    scene = make_scene("image")
    network = poisoned_like(scene.network)
    h, v, layers = scene.ctx.trace.h_KxBxD, normal(0, 2, 8, 12), jnp.asarray([0, 1, 2, 0, 1, 2, 0, 1])

    def answers(net):
        env, params = NetworkEnv(net, scene.loss, scene.params), jax.tree.map(lambda p: p[0], scene.params.blocks)
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


# --- the gradient is handed to oracles alone --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "oracle", "expected"),
    [
        ("2: mine", False, {Context}),
        ("an oracle, not", False, {Context}),
        ("oracle: so I say", False, {Context}),  # a name gives no permission
        ("0: surely", True, {Context, OracleContext}),  # the flag alone does; losses never see the gradient
    ],
)
def test_the_flag_alone_hands_out_the_gradient(tier, oracle, expected):
    assert "delta_KxBxD" not in Context._fields and "delta_KxBxD" in OracleContext._fields
    seen = []

    def credit(state, ctx, env, key):
        seen.append(type(ctx))
        return jnp.zeros_like(ctx.trace.h_KxBxD)

    def loss(state, ctx, env, key):
        assert type(ctx) is Context
        seen.append(type(ctx))
        return jnp.sum(state.params["w"]), {}

    init = lambda key, shapes: jc.EstState({"w": jnp.ones(2)}, {})  # noqa: E731
    recording = as_part(jc.estimator, Estimator(init, credit, loss, tier=tier, oracle=oracle))
    config = tiny(recording)
    for wrapped in (recording, jc.exact_terminal(of=recording), jc.unbiased_residual(of=recording)):
        run = make_run(config.replace(credit=wrapped))
        key, hp = jax.random.key(0), run.hparams(run.config)
        state, data = jax.eval_shape(run.init, key, hp), jax.eval_shape(run.data, key, hp)
        seen.clear()
        jax.eval_shape(run.step, state, hp, data, first_batch(config))
        jax.eval_shape(run.diagnose, state, hp, data)
        assert len(seen) >= 4 and set(seen) == expected
        assert tier in run.tier


def test_back_propagation_alone_is_an_oracle_of_ours():
    assert jc.bp().build().oracle
    for name, part in VARIANTS.items():
        assert not part.build().oracle and not part.build().tier.startswith("oracle"), name


def test_a_context_holds_nothing_that_comes_from_the_gradient(strict):
    # Its fields by name: the forward pass, the target, and what is local to the output layer.
    scene = make_scene("image")
    assert scene.ctx._fields == ("trace", "target_B", "error_BxC", "delta_BxD")
    assert scene.ctx.trace._fields == ("h_KxBxD", "outputs_BxC", "noise_LxBxD", "gates_LxBxH")
    assert set(shapes_of(scene)._fields) == {"depth", "width", "outputs", "branch"}


@pytest.mark.parametrize("name", RULES)
def test_credit_asked_for_and_local_steps_do_not_back_propagate(name):
    config = tiny(small(jc.vector_field), network=poisoned(of=IMAGE_NETWORK), rule=RULES[name])
    run = make_run(config)
    state, hp, data = start(run, config)
    task, network, _, rule = run.built(hp)
    x, y = task.prepare(data.train_x[:8]), data.train_y[:8]

    @jax.jit
    def walk(state):
        ctx, a_KxBxD = run.credit(state, hp, x, y, jax.random.key(0))
        h_KxBxD = ctx.trace.h_KxBxD
        return local_steps(rule, network, state.params.blocks, h_KxBxD, a_KxBxD, steps=2, eta=0.1, mask_L=jnp.ones(3))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(walk(state)))
