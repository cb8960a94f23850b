"""An estimator of one's own: a few pure functions in one's own file, passed to the same shared step.

``learned_feedback`` is DFA with feedback that is learned: a_l = e_T M_l, one matrix per layer, fitted to measured
effects of perturbations.  Nothing is registered or subclassed; sweeps, diagnostics and controls work as on any other.
"""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from helpers import start, tiny

from jcredit.losses.perturbation import directional_loss, measure, random_layers
from jcredit.training import make_run
from jcredit.types import Estimator, EstState


def learned_feedback(directions: int = 4) -> Estimator:
    """Direct feedback a_l = e_T M_l, its matrices fitted by regression on directional derivatives of the loss."""

    def init(key, shapes):
        # Everything that is trained goes into ``params``; fixed things would go into ``extra``.
        feedback = 0.1 * jax.random.normal(key, (shapes.depth + 1, shapes.outputs, shapes.width))
        return EstState(params={"m": feedback}, extra={})

    def credit(state, ctx, env, hp, key):
        return jnp.einsum("bc,lcd->lbd", ctx.error_BxC, state.params["m"])  # a_0 .. a_L

    def loss(params, state, ctx, env, hp, key):
        layer_key, v_key = jax.random.split(key)
        probe = random_layers(layer_key, ctx)  # each sample at one layer of its own
        v_MxBxD = jax.random.normal(v_key, (directions, *probe.h_BxD.shape))
        g_MxB = measure(env, probe, v_MxBxD, "jvp", hp.epsilon)  # forward passes only
        a_BxD = jnp.einsum("bc,bcd->bd", probe.ctx.error_BxC, params["m"][probe.layer_B])
        directional = directional_loss(a_BxD, v_MxBxD, g_MxB)
        terminal = jnp.mean((ctx.error_BxC @ params["m"][-1] - ctx.delta_BxD) ** 2)
        return directional + hp.terminal_weight * terminal, {"directional": directional}

    return Estimator(init, credit, loss, tier="2: loss under perturbation")


def test_it_trains_in_the_shared_step_and_beats_dfa():
    config = tiny(train_size=256, batch_size=16, epochs=10, estimator_learning_rate=1e-2, test_size=64)
    gamma = {}
    for name, estimator in (("mine", learned_feedback()), ("dfa", None)):
        run = make_run(config if estimator else tiny(**{**vars(config), "method": "dfa"}), estimator=estimator)
        state, hp, data = start(run, config)
        epoch, curve = jax.jit(run.epoch), []
        for _ in range(config.epochs):
            state, metrics = epoch(state, hp, data)
            curve.append(metrics)
        assert curve[-1]["train_loss"] < curve[0]["train_loss"] - 0.1
        if estimator:
            assert run.tier == "2: loss under perturbation"
            assert curve[-1]["estimator_loss"] < 0.8 * curve[0]["estimator_loss"]
            assert set(curve[0]) == {"train_loss", "train_accuracy", "estimator_loss", "directional"}
        found = jax.jit(run.diagnose)(state, hp, data)
        gamma[name] = np.asarray(found["layers"]["gamma"])
    assert gamma["mine"].shape == (3,)
    assert (gamma["mine"] > gamma["dfa"] + 0.2).all()


def test_the_readme_shows_this_very_estimator():
    assert inspect.getsource(learned_feedback) in (Path(__file__).parent.parent / "README.md").read_text() + "\n"
