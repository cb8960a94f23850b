"""One contract for all parts, ours and anybody's: ``jcredit.testing``; and that each of its checks can fail."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ORACLES, VARIANTS, as_part, small_images

import jcredit as jc
from jcredit import estimators, testing
from jcredit.testing import CheckFailed, check_estimator, check_network, check_rule, check_task

ESTIMATORS = ORACLES | VARIANTS


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_keeps_the_contract(name):
    check_estimator(ESTIMATORS[name])


def test_every_estimator_is_among_them():
    covered = {part.name for whole in ESTIMATORS.values() for _, part in whole.walk("credit")}
    assert covered == set(estimators.__all__)


@pytest.mark.parametrize("rule", [jc.inner_product, jc.target_shift(eta=0.3), jc.cosine_rule], ids=str)
def test_every_rule_keeps_the_contract(rule):
    check_rule(rule)


@pytest.mark.parametrize(
    ("network", "task"),
    [
        (jc.image_mlp(depth=2, width=8), None),
        (jc.ladder_mlp(depth=2, width=8, alpha=0.6), None),
        (jc.lq_dynamics(depth=2), jc.tasks.teacher(classes=4, inputs=8, train_size=32, test_size=32)),
        (jc.image_cnn(depth=2, channels=3, patch=2), small_images(32, 6, 4, 2)),
        (jc.image_mixer(depth=2, channels=3, patch=2, token_hidden=5, channel_hidden=4), small_images(32, 6, 4, 2)),
    ],
    ids=["image_mlp", "ladder_mlp", "lq_dynamics", "image_cnn", "image_mixer"],
)
def test_every_network_keeps_the_contract(network, task):
    check_network(network, task=task)


def small_arrays(**changes):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 6)).astype(np.float32), np.arange(32) % 3
    return jc.tasks.arrays(**{"x": x, "y": y, "x_test": x, "y_test": y, **changes})


@pytest.mark.parametrize(
    ("task", "network"),
    [
        (jc.tasks.teacher(classes=4, inputs=8, train_size=32, test_size=32), jc.ladder_mlp(depth=2, width=8)),
        (jc.tasks.lq(state_size=8, outputs=3, test_size=32), jc.lq_dynamics(depth=2)),
        (small_arrays(), jc.image_mlp(depth=2, width=8)),
    ],
    ids=["teacher", "lq", "arrays"],
)
def test_every_task_keeps_the_contract(task, network):
    check_task(task, network=network)


# --- each check can fail ----------------------------------------------------------------------------------------------


def credit_of(function, **fields):
    """An estimator factory whose credit is ``function`` of its arguments."""

    @jc.estimator
    def mine():
        return jc.Estimator(lambda key, shapes: jc.EstState({}, {}), function, **fields)

    return mine


def fails(check, part, message):
    with pytest.raises(CheckFailed, match=message) as raised:
        check(part)
    assert "\n" not in str(raised.value)


def test_a_plain_function_is_told_to_decorate_its_factory():
    with pytest.raises(TypeError, match="unexpected keyword argument 'netwrk'"):
        check_estimator(jc.dfa, netwrk=1)  # type: ignore[call-arg]
    fails(check_estimator, lambda: None, "decorate its factory with @jc.estimator")
    fails(check_rule, jc.dfa(), "is no rule")


def test_shapes_and_types():
    fails(check_estimator, credit_of(lambda s, ctx, env, key: ctx.trace.h_KxBxD[1:]), r"shape \(3, 32, 16\), not \(4")
    nothing = credit_of(lambda s, ctx, env, key: None)
    fails(check_estimator, nothing, "mine has shape NoneType, not")
    crash = credit_of(lambda s, ctx, env, key: ctx.h)
    told = "mine does not run: AttributeError: 'Context' object has no attribute 'h'; it has .*trace"
    fails(check_estimator, crash, told + r".* \(test_contract.py, line \d+\)$")


def test_an_estimators_state():
    @jc.estimator
    def mine():
        return jc.broadcast().build()._replace(init=lambda key, shapes: {"w": jnp.zeros(3)})

    fails(check_estimator, mine, r"init returns a dict; return jc.EstState\(params=")


RETURNED = {
    "an array of shape (3,);": lambda w: w,
    "(an array of shape (), an array of shape ())": lambda w: (w[0], w[0]),
    "(an array of shape (3,), a dict)": lambda w: (w, {}),
}


@pytest.mark.parametrize("told", RETURNED)
def test_what_a_loss_returns(told):
    @jc.estimator
    def mine():
        init = lambda key, shapes: jc.EstState({"w": jnp.zeros(3)}, {})  # noqa: E731
        loss = lambda state, ctx, env, key: RETURNED[told](state.params["w"])  # noqa: E731
        return jc.broadcast().build()._replace(init=init, loss=loss)

    fails(check_estimator, mine, re.escape(f"its loss returns {told}"))


def test_what_is_not_finite():
    fails(check_estimator, credit_of(lambda s, ctx, env, key: ctx.trace.h_KxBxD / 0.0), "is not finite")


def test_a_reverse_pass_through_a_block():
    def cheating(state, ctx, env, key):
        h = ctx.trace.h_KxBxD
        layers = jnp.zeros(h.shape[1], jnp.int32)
        return h.at[0].set(jax.grad(lambda s: jnp.sum(env.loss_at(ctx, layers, s)))(h[0]))

    fails(check_estimator, credit_of(cheating), "back-propagates through a block")


def test_the_gradient_is_not_there_for_the_asking():
    fails(check_estimator, credit_of(lambda s, ctx, env, key: ctx.delta_KxBxD), "no attribute 'delta_KxBxD'")


def test_a_swept_number_read_as_a_python_value():
    @jc.estimator
    def mine(scale: jc.Positive = 1.0):
        return jc.dfa().build() if scale > 2 else jc.broadcast().build()

    fails(check_estimator, mine, "reads a traced number or array as a Python value; use .* line")
    in_numpy = lambda state, ctx, env, key: jnp.asarray(np.tanh(ctx.trace.h_KxBxD))  # noqa: E731
    fails(check_estimator, credit_of(in_numpy), "hands a traced array to numpy; use jax.numpy .* line")
    asks = lambda state, ctx, env, key: env.loss_tangents(ctx)  # noqa: E731
    fails(check_estimator, credit_of(asks), "'loss_tangents'.*; it has branch, output_loss, .*, loss_tangent, ")


def test_random_numbers_from_elsewhere_and_numbers_that_vmap_changes():
    calls = []

    @jc.estimator
    def mine():
        def credit(state, ctx, env, key):
            calls.append(1)
            return ctx.trace.h_KxBxD * len(calls)

        return jc.Estimator(lambda key, shapes: jc.EstState({}, {}), credit)

    fails(check_estimator, mine, "is another program when it is traced again")

    @jax.custom_batching.custom_vmap
    def doubled(h):
        return h

    doubled.def_vmap(lambda size, batched, h: (2 * h, batched[0]))
    fails(check_estimator, credit_of(lambda s, ctx, env, k: doubled(ctx.trace.h_KxBxD)), "other numbers under vmap")


def test_losses():
    def loss(state, ctx, env, key):
        return jnp.mean(ctx.delta_BxD), {}

    still = jc.Estimator(lambda k, s: jc.EstState({"w": jnp.ones(2)}, {}), jc.broadcast().build().credit, loss)

    @jc.estimator
    def mine():
        return still

    fails(check_estimator, mine, "does not depend on state.params")
    fails(check_estimator, as_part(jc.estimator, still._replace(loss=None)), "has no loss, so that nothing trains its")

    @jc.estimator
    def thief():
        return still._replace(loss=lambda s, ctx, env, key: (jnp.sum(s.params["w"]), {"test_accuracy": jnp.ones(())}))

    fails(check_estimator, thief, "returns a metric 'test_accuracy', which is a reported one")


def test_bits_that_change_from_call_to_call():
    drawn = np.random.default_rng(0)

    def credit(state, ctx, env, key):
        h = ctx.trace.h_KxBxD
        noise = jax.pure_callback(lambda: drawn.normal(size=h.shape).astype(h.dtype), h, vmap_method="sequential")
        return noise + ctx.delta_BxD[None]

    fails(check_estimator, credit_of(credit), "gives other bits when it is called again")


def test_a_loss_with_nothing_to_fit():
    nothing = jc.broadcast().build()._replace(loss=lambda state, ctx, env, key: (jnp.mean(ctx.delta_BxD), {}))

    @jc.estimator
    def mine():
        return nothing

    fails(check_estimator, mine, "its state.params hold nothing to train")


def test_a_signal_of_another_shape():
    @jc.rule
    def mine():
        return jc.LocalRule(lambda h, after, a: a, lambda h, after, goal: goal[:, :3])

    fails(check_rule, mine, r"signal has shape \(32, 3\) and type float32, not \(32, 16\) and float32")

    @jc.rule
    def half():
        return jc.LocalRule(lambda h, after, a: a, lambda h, after, goal: (goal / len(goal)).astype(jnp.float16))

    fails(check_rule, half, r"signal has .* type float16, not .* and float32")


NETWORKS = {
    "do not share their leading axis": lambda net: dict(
        init=lambda key: (p := net.init(key))._replace(blocks={**p.blocks, "more": jnp.zeros(5)})
    ),
    r"readout gives each sample an array of shape \(3,\), and the task has 4 outputs; take": lambda net: dict(
        readout=lambda p, h: net.readout(p, h)[:, :3]
    ),
    "init returns a dict; return jc.NetParams": lambda net: dict(init=lambda key: {"blocks": jnp.zeros(3)}),
    "states are of type bfloat16; a run's are float32, cast them in embed": lambda net: dict(
        embed=lambda p, x: net.embed(p, x).astype(jnp.bfloat16)
    ),
    r"a block turns states float32\(8,\) into float32\(7,\)": lambda net: dict(
        block=lambda p, h: net.block(p, h)[:, 1:]
    ),
    "does not run: ZeroDivisionError": lambda net: dict(branch=net.branch._replace(pull=lambda w, m, h, a: 1 / 0)),
    r"push and pull have shapes \(32, 3\) and \(32, 8\)": lambda net: dict(
        branch=net.branch._replace(push=lambda w, m, h, v: net.branch.push(w, m, h, v)[:, :3])
    ),
    "branch.zero gives weights whose branch is not zero": lambda net: dict(
        branch=net.branch._replace(zero=lambda key: net.branch.random(key, 1.0))
    ),
}


@pytest.mark.parametrize("told", NETWORKS)
def test_what_is_wrong_with_a_network(told):
    @jc.network
    def mine(sizes, /, depth: jc.Count = 2):
        inner = jc.image_mlp(depth=depth, width=8).build(sizes)
        return inner._replace(**NETWORKS[told](inner))

    fails(check_network, mine, told)


def test_credit_that_is_not_the_gradient(monkeypatch):
    monkeypatch.setattr(testing, "bp", jc.broadcast)
    fails(check_network, jc.image_mlp(depth=2, width=8), "is not the gradient of the whole network")


TASKS = {
    r"batch gives samples \(5,\), sizes say \(6,\)": lambda task: dict(
        batch=lambda data, index, key: (data.train_x[index][:, :5], data.train_y[index])
    ),
    r"prepare gives samples \(5,\), sizes say \(6,\)": lambda task: dict(prepare=lambda x: x[:, :5]),
    r"loss has shape \(\), not \(32,\): one number a sample": lambda task: dict(
        loss=lambda outputs, y: jnp.mean(task.loss(outputs, y))
    ),
    r"accuracy has shape \(\), not \(32,\): one number a sample": lambda task: dict(
        accuracy=lambda outputs, y: jnp.mean(task.accuracy(outputs, y))
    ),
    r"a sample's loss depends on the others of its batch; outputs have shape \(32, 3\)": lambda task: dict(
        loss=lambda outputs, y: jnp.abs(outputs[:, :1] - y[None, :]).mean(-1)
    ),
    "loss is not finite": lambda task: dict(loss=lambda outputs, y: task.loss(outputs, y) / 0.0),
    r"train_size=1000, but its data have \d+ training samples": lambda task: dict(train_size=1000),
    r"noise has shape \(1, 32, 8\), not \(2, 32, 8\)": lambda task: dict(
        noise=lambda key, shape: jnp.zeros((1, *shape[1:]))
    ),
}


@pytest.mark.parametrize("told", TASKS)
def test_what_is_wrong_with_a_task(told):
    @jc.task(jc.image_mlp(depth=2, width=8))
    def mine():
        inner = small_arrays().build(None)
        return inner._replace(**TASKS[told](inner))

    fails(check_task, mine, told)


def test_rules_networks_and_tasks():
    @jc.rule
    def total():
        return jc.LocalRule(lambda h, after, a: a, lambda h, after, goal: goal)

    fails(check_rule, total, "no mean over the batch")

    @jc.network
    def mixing(sizes, /, depth: jc.Count = 2):
        inner = jc.image_mlp(depth=depth, width=8).build(sizes)
        return inner._replace(block=lambda p, h: inner.block(p, h) + jnp.mean(h, axis=0, keepdims=True))

    fails(check_network, mixing, "mixes the samples of a batch")

    @jc.network
    def crooked(sizes, /, depth: jc.Count = 2):
        inner = jc.image_mlp(depth=depth, width=8).build(sizes)
        return inner._replace(branch=inner.branch._replace(pull=lambda w, m, h, a: inner.branch.push(w, m, h, a)))

    fails(check_network, crooked, "pull is not the transpose of branch.push")

    @jc.task(jc.image_mlp(depth=2, width=8))
    def wrong():
        inner = small_arrays().build(None)
        return inner._replace(sizes=inner.sizes._replace(outputs=2))

    fails(check_task, wrong, "labels run from 0 to 2, outputs are 2")
