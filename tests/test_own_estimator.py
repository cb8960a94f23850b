"""An estimator of one's own: a few pure functions in one's own file, given to the same shared step as any other.

``learned_feedback`` is DFA with feedback that is learned: a_l = e_T M_l, one matrix per layer, fitted to measured
effects of perturbations.  Nothing is registered or subclassed; sweeps, diagnostics and controls work as on any other.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from helpers import as_part, start, tiny

import jcredit as jc


@jc.estimator
def learned_feedback(
    directions: jc.Count = 4, terminal_weight: jc.NonNegative = 1.0, learning_rate: jc.Positive = 1e-3
) -> jc.Estimator:
    """Direct feedback a_l = e_T M_l, its matrices fitted by regression on directional derivatives of the loss.

    Args:
      directions: perturbations of a sample in each step.
      terminal_weight: weight of the error of a_L, which is known exactly.
      learning_rate: Adam's step size for the matrices.
    """

    def init(key, shapes):
        # Everything that is trained goes into ``params``; fixed things would go into ``extra``.
        feedback = 0.1 * jax.random.normal(key, (shapes.depth + 1, shapes.outputs, shapes.width))
        return jc.EstState(params={"m": feedback}, extra={})

    def credit(state, ctx, env, key):
        return jnp.einsum("bc,kcd->kbd", ctx.error_BxC, state.params["m"])  # a_0 .. a_L

    def loss(state, ctx, env, key):
        layer_key, v_key = jax.random.split(key)
        probe = jc.random_layers(layer_key, ctx)  # each sample at one layer of its own
        v_MxBxD = jax.random.normal(v_key, (directions, *probe.h_BxD.shape))
        g_MxB = jc.measure(env, probe, v_MxBxD)  # forward passes only
        a_BxD = jnp.einsum("bc,bcd->bd", probe.ctx.error_BxC, state.params["m"][probe.layer_B])
        directional = jc.directional_loss(a_BxD, v_MxBxD, g_MxB)
        terminal = jnp.mean((ctx.error_BxC @ state.params["m"][-1] - ctx.delta_BxD) ** 2)
        return directional + terminal_weight * terminal, {"directional": directional}

    return jc.Estimator(init, credit, loss, optimizer=jc.adam(learning_rate), tier="2: loss under perturbation")


@jc.estimator
def peeking(scale: jc.Positive = 1.0, oracle: bool = False) -> jc.Estimator:
    """Back-propagates through the forward passes that it is given.

    Args:
      scale: of the credit.
      oracle: whether it says so.
    """

    def credit(state, ctx, env, key):
        layers = jnp.arange(ctx.trace.h_KxBxD.shape[0])
        loss = lambda h, layer: jnp.sum(env.loss_at(ctx, jnp.full(h.shape[0], layer), h))  # noqa: E731
        return scale * jax.vmap(jax.grad(loss))(ctx.trace.h_KxBxD, layers)

    return jc.broadcast().build()._replace(credit=credit, oracle=oracle)


@pytest.mark.parametrize("trains", ["network", "readout", "nothing"])
def test_a_sweep_refuses_one_that_back_propagates_and_does_not_say_so(trains):
    with pytest.raises(jc.ConfigError, match=r"peeking back-propagates through a block; .* oracle=True"):
        jc.sweep({"dfa": tiny(jc.dfa()), "peeking": tiny(peeking(), trains=trains)}, seeds=[0], progress=False)
    [row] = jc.sweep({"peeking": tiny(peeking(oracle=True), trains=trains)}, seeds=[0], progress=False)
    assert row["metrics"]["gamma"] == pytest.approx(1, abs=1e-5)


def test_one_can_be_looked_into_with_jit_off():
    seen = []

    @jc.estimator
    def watched() -> jc.Estimator:
        inner = learned_feedback().build()

        def credit(state, ctx, env, key):
            a_KxBxD = inner.credit(state, ctx, env, key)
            seen.append(a_KxBxD)
            return a_KxBxD

        return inner._replace(credit=credit)

    config = tiny(watched())
    run = jc.make_run(config)
    state, hp, data = start(run, config)
    index = jnp.arange(config.batch_size)
    with jax.disable_jit():
        after, metrics = run.step(state, hp, data, index)
    assert np.asarray(seen[-1]).shape == (4, 8, 16)  # numbers to print, no tracers
    compiled, wanted = jax.jit(run.step)(state, hp, data, index)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-6), metrics, wanted))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-3), after.params, compiled.params))


SETTINGS = dict(train_size=256, batch_size=16, epochs=10, test_size=64)


@functools.cache
def trained(credit):
    """(tier, metrics of every epoch, Gamma of every layer) of a run of ten epochs."""
    config = tiny(credit, **SETTINGS)
    run = jc.make_run(config)
    state, hp, data = start(run, config)
    epoch, curve = jax.jit(run.epoch), []
    for _ in range(config.epochs):
        state, metrics = epoch(state, hp, data)
        curve.append(metrics)
    return run.tier, curve, np.asarray(jax.jit(run.diagnose)(state, hp, data)["layers"]["gamma"])


def test_it_trains_in_the_shared_step_and_beats_dfa():
    tier, curve, gamma = trained(learned_feedback(learning_rate=1e-2))
    _, dfa_curve, dfa_gamma = trained(jc.dfa())
    for losses in (curve, dfa_curve):
        assert losses[-1]["train_loss"] < losses[0]["train_loss"] - 0.1
    assert tier == "2: loss under perturbation"
    assert curve[-1]["estimator_loss"] < 0.8 * curve[0]["estimator_loss"]
    assert set(curve[0]) == {"train_loss", "train_accuracy", "train_h_rms", "estimator_loss", "directional"}
    assert gamma.shape == (3,)
    assert (gamma > dfa_gamma + 0.2).all()


@jc.estimator
def watching() -> jc.Estimator:
    """The broadcast, which learns nothing and keeps what it has seen: steps, the sum of losses, a sum of noise."""

    def update(state, ctx, env, key):
        loss = jnp.mean(env.readout_loss(ctx.trace.h_KxBxD[-1], ctx.target_B))
        seen = {"steps": jnp.ones(()), "loss": loss, "noise": jax.random.normal(key)}
        return state._replace(extra=jax.tree.map(jnp.add, state.extra, seen))

    nothing = {name: jnp.zeros(()) for name in ("steps", "loss", "noise")}
    return jc.broadcast().build()._replace(init=lambda key, shapes: jc.EstState({}, nothing), update=update)


@pytest.mark.parametrize("trains", ["network", "nothing"])
def test_what_an_estimator_keeps_of_the_batches_it_has_seen(trains):
    jc.testing.check_estimator(watching())
    config = tiny(watching(), trains=trains, batch_size=8)
    run = jc.make_run(config)
    state, hp, data = start(run, config)
    once, metrics = jax.jit(run.epoch)(state, hp, data)
    assert once.est_state.extra["steps"] == run.steps_per_epoch == 4
    # An epoch's training loss is the mean of its steps', each before its update.
    assert np.isclose(once.est_state.extra["loss"] / 4, metrics["train_loss"], rtol=1e-5)
    twice, _ = jax.jit(run.epoch)(once, hp, data)
    added = twice.est_state.extra["noise"] - once.est_state.extra["noise"]
    assert abs(added - once.est_state.extra["noise"]) > 1e-3  # every step draws anew


def steady(optimizer) -> jc.Part:
    """An estimator that fits a number to 1, with some optimizer."""
    loss = lambda state, ctx, env, key: (jnp.sum((state.params["w"] - 1) ** 2), {})  # noqa: E731
    init = lambda key, shapes: jc.EstState({"w": jnp.zeros(2)}, {})  # noqa: E731
    return as_part(jc.estimator, jc.broadcast().build()._replace(init=init, loss=loss, optimizer=optimizer))


def test_optimizers_that_begin_at_zero_gather_gradients_or_ask_for_the_loss():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 100)
    for optimizer in (
        optax.adam(schedule),
        optax.MultiSteps(optax.adam(1e-2), 4),
        optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
    ):
        jc.testing.check_estimator(steady(optimizer))


@pytest.mark.parametrize("trains", ["network", "nothing"])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_estimator_takes_as_many_steps_as_it_is_given(steps, trains):
    # Gradient descent at 1/4 on ||w - 1||^2 halves w - 1 in every step.
    config = tiny(steady(optax.sgd(0.25)), trains=trains, estimator_steps=steps)
    run = jc.make_run(config)
    state, hp, data = start(run, config)
    after, metrics = jax.jit(run.step)(state, hp, data, jnp.arange(config.batch_size))
    np.testing.assert_array_equal(after.est_state.params["w"], 1 - 0.5**steps)
    assert metrics["estimator_loss"] == pytest.approx(np.mean([2 * 0.25**n for n in range(steps)]))
    once = jc.make_run(single := config.replace(estimator_steps=1))
    same, _ = jax.jit(once.step)(*start(once, single), jnp.arange(config.batch_size))
    jax.tree.map(np.testing.assert_array_equal, after.params, same.params)  # the network takes one


def test_every_step_of_an_estimator_draws_anew():
    drawn = lambda state, ctx, env, key: (jax.random.normal(key) * jnp.sum(state.params["w"]), {})  # noqa: E731
    part = as_part(jc.estimator, steady(optax.sgd(1.0)).build()._replace(loss=drawn))
    for steps in (1, 2):
        config = tiny(part, estimator_steps=steps)
        run = jc.make_run(config)
        state, hp, data = start(run, config)
        keys = [jax.random.split(jax.random.fold_in(state.key, 0), 4)[3]]  # of the step's four the estimator's
        keys = keys if steps == 1 else list(jax.random.split(keys[0], steps))
        after, _ = jax.jit(run.step)(state, hp, data, jnp.arange(config.batch_size))
        np.testing.assert_allclose(after.est_state.params["w"], -sum(jax.random.normal(k) for k in keys), rtol=1e-5)


def credit_of(credit) -> jc.Part:
    return as_part(jc.estimator, jc.broadcast().build()._replace(credit=credit))


def test_what_an_estimator_raises_in_a_sweep_is_told_with_its_line():
    wrong = credit_of(lambda state, ctx, env, key: ctx.delta_KxBxD)
    with pytest.raises(AttributeError, match="delta_KxBxD") as caught:
        jc.sweep({"good": tiny(jc.dfa()), "my line": tiny(wrong)}, seeds=[0], progress=False)
    assert any("in line 'my line', with credit=helpers.as_part.<locals>.own" in x for x in caught.value.__notes__)


def test_the_check_finds_a_batch_size_that_was_written_down():
    noise = jnp.ones((4, 32, 16))
    with pytest.raises(jc.testing.CheckFailed, match="ncompatible shapes"):
        jc.testing.check_estimator(credit_of(lambda state, ctx, env, key: ctx.delta_BxD[None] + noise))


def test_fewer_samples_than_a_runs_are_refused():
    config = tiny(jc.broadcast())
    run = jc.make_run(config)
    state, hp, data = start(run, config)
    fewer = data._replace(train_x=data.train_x[:8], train_y=data.train_y[:8])
    with pytest.raises(jc.ConfigError, match="data have 8 training samples, and this run's have 32"):
        run.epoch(state, hp, fewer)


def test_its_settings_are_as_ours():
    part = learned_feedback(directions=8)
    assert part.settings == {"directions": 8, "terminal_weight": 1.0, "learning_rate": 1e-3}
    swept = {name for name, setting in learned_feedback.settings.items() if setting.swept}
    assert swept == {"terminal_weight", "learning_rate"}
    assert learned_feedback.settings["directions"].doc == "perturbations of a sample in each step."
    assert part.name == "test_own_estimator.learned_feedback" and len(part.described()["source"]) == 12


def test_the_check_finds_numbers_that_come_from_no_key():
    rng = np.random.default_rng(0)
    broadcast = jc.broadcast().build()
    noisy = broadcast._replace(credit=lambda *given: broadcast.credit(*given) + np.float32(rng.normal()))
    with pytest.raises(jc.testing.CheckFailed, match="is another program when it is traced again: it draws from numpy"):
        jc.testing.check_estimator(as_part(jc.estimator, noisy))


def test_the_check_says_where_a_network_is_not_finite():
    mlp = jc.ladder_mlp(depth=2, width=8).build(jc.Sizes((8,), 2))
    wrong = mlp._replace(block=lambda p, h: h + jnp.sqrt(h))
    with pytest.raises(jc.testing.CheckFailed, match=r"state \['h'\] is not finite"):
        jc.testing.check_network(as_part(jc.network, wrong), task=jc.tasks.teacher(inputs=8, classes=2))
