"""Diagnostics of the user's own in a sweep: measured on trained states, in rows by name, part of a run's identity."""

import importlib
import os
import pickle
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refused, small, tiny
from made_rows import line_of, without_times

import jcredit as jc
from jcredit.sweeps import program
from jcredit.sweeps.own_diagnostics import followup_of
from jcredit.sweeps.variants import Variant

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")

NET = {"network.depth": 2}
RATES = {"learning_rate": [1e-3, 3e-2]}


def cosine_to_gradient(run, state, hp, data):
    """Mean cosine of a_0 .. a_L and the gradient of the summed loss by the state it enters at, which is taken anew."""
    task, network, *_ = run.built(hp)
    ctx, a_KxBxD = run.credit(state, hp, task.prepare(data.test_x), data.test_y, jax.random.key(0))

    def loss_from(layer, h_BxD):
        for block in range(layer, len(a_KxBxD) - 1):
            h_BxD = network.block(jax.tree.map(lambda p: p[block], state.params.blocks), h_BxD)  # noqa: B023
        return jnp.sum(task.loss(network.readout(state.params.readout, h_BxD), data.test_y))

    h_KxBxD = ctx.trace.h_KxBxD
    delta = jnp.stack([jax.grad(loss_from, argnums=1)(layer, h) for layer, h in enumerate(h_KxBxD)])
    size = jnp.linalg.norm(a_KxBxD, axis=-1) * jnp.linalg.norm(delta, axis=-1)
    cosine_K = jnp.mean(jnp.sum(a_KxBxD * delta, axis=-1) / size, axis=1)
    return {"layers": cosine_K[:-1], "states": cosine_K, "mean": jnp.mean(cosine_K[:-1])}


def weights(run, state, hp, data):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves((state.params, state.est_state)))


def steps(run, state, hp, data):
    return state.step


def as_scalar(run, state, hp, data):
    return 1.0


def sweep(configs=None, seeds=(0, 1), vary=None, **options):
    return jc.sweep(configs or {"dfa": tiny(jc.dfa(), **NET)}, seeds, vary, progress=False, **options)


# --- values -----------------------------------------------------------------------------------------------------------


def test_the_cosine_by_ones_own_formula_is_gamma():
    # Their evaluation samples are all 16 that Gamma is scored on; float32 of sums over 16 samples.
    configs = {"dfa": tiny(jc.dfa(), **NET), "deep": tiny(jc.dfa()), "bp": tiny(jc.bp(), **NET)}
    rows = sweep(configs, vary=RATES, diagnostics={"own": cosine_to_gradient})
    assert len(rows) == 12
    for row in rows:
        depth = row["config"]["network"]["depth"]
        layers = row["layers"]
        assert row["metrics"]["own_mean"] == pytest.approx(row["metrics"]["gamma"], abs=1e-5)
        np.testing.assert_allclose(layers["own_layers"], layers["gamma"], atol=1e-5)
        assert len(layers["own_layers"]) == depth and len(layers["own_states"]) == depth + 1
        assert row["config"]["credit"] != {"estimator": "bp"} or row["metrics"]["own_mean"] == pytest.approx(
            1, abs=1e-5
        )
    assert len({row["metrics"]["own_mean"] for row in rows.where(credit="dfa")}) == 8  # seeds, rates and depths tell


def test_it_is_taken_after_the_last_epoch_of_what_training_by_hand_gives():
    config = tiny(jc.dfa(), **NET)
    [row] = sweep({"dfa": config}, [3], diagnostics={"weights": weights, "steps": steps})
    run, key = jc.make_run(config), jax.random.key(3)
    hp = run.hparams(config)
    data, state = run.data(key, hp), run.init(key, hp)
    for _ in range(config.epochs):
        state, _ = jax.jit(run.epoch)(state, hp, data)
    assert row["metrics"]["weights"] == pytest.approx(float(weights(run, state, hp, data)), rel=1e-4)
    assert row["metrics"]["steps"] == config.epochs * 32 // 8
    assert row["curves"].keys().isdisjoint({"weights", "steps"})


def test_seeds_side_by_side_are_those_alone():
    diagnostics = {"own": cosine_to_gradient, "weights": weights}
    together = sweep(seeds=range(3), diagnostics=diagnostics)
    for seed in range(3):
        [alone] = sweep(seeds=[seed], diagnostics=diagnostics)
        assert alone["metrics"] == together[seed]["metrics"] and alone["layers"] == together[seed]["layers"]


def test_tables_and_frames_have_them():
    pytest.importorskip("pandas")
    configs = {"dfa": tiny(jc.dfa(), **NET), "bp": tiny(jc.bp(), **NET)}
    rows = sweep(configs, diagnostics={"weights": weights, "own": cosine_to_gradient})
    mean = np.mean([row["metrics"]["weights"] for row in rows[:2]])
    assert float(line_of(rows.table(metrics=["weights"]), 4)[-1].split()[0]) == pytest.approx(mean, rel=0.01)
    assert line_of(rows.table(metrics=["weights"], against="bp"), 5)[-1] == "reference"
    frame = rows.frame()
    assert list(frame["metrics.weights"]) == [row["metrics"]["weights"] for row in rows]
    layers = rows.frame(per="layer")
    assert list(layers["layers.own_states"][:3]) == rows[0]["layers"]["own_states"]
    assert not [name for name in frame.columns if name.startswith("followup")]  # the same in all of them


def test_a_diverged_run_has_none():
    config = tiny(jc.bp(), optimizer="sgd", learning_rate=1e30, **NET)
    [row] = sweep({"bad": config}, [0], diagnostics={"weights": weights, "own": cosine_to_gradient})
    assert row["status"] == "diverged" and row["metrics"] == {} and row["layers"] == {}


# --- identity ---------------------------------------------------------------------------------------------------------

OWN = """
FACTOR = 1.0

def first(run, state, hp, data):
    return FACTOR * state.params.readout["b"][0]

def last(run, state, hp, data):
    return FACTOR * state.params.readout["b"][-1]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module of a user."""
    name = f"users_diagnostics_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(name)
    del sys.modules[name]


def key_of(**diagnostics):
    return Variant("dfa", tiny(jc.dfa(), **NET), followup=followup_of(diagnostics)).hash


def test_a_key_has_the_code_and_the_names_of_what_is_measured(own, tmp_path):
    plain = key_of()
    keys = [plain, key_of(a=own.first), key_of(b=own.first), key_of(a=own.last), key_of(a=own.first, b=own.last)]
    assert len(set(keys)) == 5 and plain == Variant("dfa", tiny(jc.dfa(), **NET)).hash
    assert key_of(a=own.first) == keys[1]
    own.FACTOR = 2.0  # what it uses, too
    assert key_of(a=own.first) not in keys
    own.FACTOR = 1.0
    assert key_of(a=own.first) == keys[1]
    (tmp_path / f"{own.__name__}.py").write_text(OWN.replace("FACTOR *", "-FACTOR *"))
    assert key_of(a=own.first) == keys[1]  # edited, but not imported again: it is what it was
    assert key_of(a=importlib.reload(own).first) not in keys


def test_one_that_was_edited_between_its_import_and_the_first_sweep_is_refused(own, tmp_path):
    file = tmp_path / f"{own.__name__}.py"
    file.write_text(OWN.replace("FACTOR *", "-FACTOR *"))
    refused(lambda: key_of(a=own.first), "diagnostic first: .* was edited since it was imported; start again")
    file.write_text("# a line more\n" + OWN)
    assert key_of(a=own.first)


def test_a_changed_one_is_measured_anew_on_what_was_kept_and_an_unchanged_one_is_found(own, tmp_path, compiled):
    measure = lambda **diagnostics: sweep(results_dir=tmp_path / "runs", diagnostics=diagnostics)  # noqa: E731
    bare = sweep(results_dir=tmp_path / "runs")
    assert len(compiled) == 1
    once = measure(bias=own.first, weights=weights, own=cosine_to_gradient)
    assert len(compiled) == 2  # nobody had kept the networks
    assert all(b["metrics"].items() < o["metrics"].items() for b, o in zip(bare, once, strict=True))
    assert measure(bias=own.first, weights=weights, own=cosine_to_gradient) == once
    own.FACTOR = 2.0
    twice = measure(bias=own.first, weights=weights, own=cosine_to_gradient, steps=steps)
    assert len(compiled) == 2
    for before, after in zip(once, twice, strict=True):
        assert after["metrics"]["bias"] == 2 * before["metrics"]["bias"] != 0
        assert after["metrics"]["weights"] == before["metrics"]["weights"]  # the same state, bit for bit
        assert after["layers"] == before["layers"] and after["metrics"]["steps"] == 8
        assert after["followup"]["names"] == ["bias", "weights", "own", "steps"]
        assert after["followup"]["functions"][0]["diagnostic"] == f"{own.__name__}.first"
    assert sweep(results_dir=tmp_path / "runs") == bare  # those without any are still there


def test_an_interrupted_sweep_goes_on_to_the_same_rows(tmp_path, monkeypatch):
    configs = {"mine": tiny(small(jc.scalar_bridge), epochs=3, **NET), "dfa": tiny(jc.dfa(), **NET)}
    diagnostics = {"weights": weights, "own": cosine_to_gradient}
    whole = sweep(configs, results_dir=tmp_path / "whole", diagnostics=diagnostics)
    for cut_off in ("_one_epoch", "_followed_up"):  # in training; with everything kept, before there are rows
        cut, real = tmp_path / cut_off, getattr(program, cut_off)
        with monkeypatch.context() as patch, pytest.raises((jc.Interrupted, MemoryError)):
            if cut_off == "_one_epoch":
                patch.setattr(program, cut_off, lambda *a: os.kill(os.getpid(), signal.SIGINT) or real(*a))  # noqa: B023
            else:
                patch.setattr(program, cut_off, lambda *_: (_ for _ in ()).throw(MemoryError()))
            sweep(configs, results_dir=cut, diagnostics=diagnostics)
        rows = sweep(configs, results_dir=cut, diagnostics=diagnostics)
        numbers = lambda rows: [[row[k] for k in ("label", "seed", "metrics", "layers", "curves")] for row in rows]  # noqa: E731
        assert numbers(rows) == numbers(whole)


def test_workers_measure_what_one_process_does(own, tmp_path):
    diagnostics = {"bias": own.first, "weights": weights}
    here = sweep(results_dir=tmp_path / "here", diagnostics=diagnostics)
    with ThreadPoolExecutor(2) as pool:
        there = sweep(results_dir=tmp_path / "there", diagnostics=diagnostics, executor=pool, batch_runs=1)
        with pytest.raises(jc.ConfigError, match="inside something else, where other processes do not find it"):
            sweep(results_dir=tmp_path, diagnostics={"one": lambda run, state, hp, data: 1.0}, executor=pool)
    timeless = lambda rows: [{k: v for k, v in r.items() if k != "layout"} for r in without_times(rows)]  # noqa: E731
    assert timeless(there) == timeless(here)
    sent = pickle.dumps(followup_of({"bias": own.first}))
    assert len(sent) < 1000 and pickle.loads(sent).described() == followup_of({"bias": own.first}).described()


# --- what is refused --------------------------------------------------------------------------------------------------


def fits(value):
    return lambda run, state, hp, data: value


@pytest.mark.parametrize(
    ("diagnostics", "named"),
    [
        ([weights], r"diagnostics=\[.*\] must be functions by name"),
        ({"gamma": weights}, "diagnostic 'gamma' is the name of another number in rows; call it otherwise"),
        ({"test_accuracy": weights}, "diagnostic 'test_accuracy' is the name of another number"),
        ({"h_rms": weights}, "diagnostic 'h_rms' is the name"),
        ({"directional": weights}, "diagnostic 'directional' is the name"),  # of bp's rows, too: a flag reads it
        ({"mirror_error": weights}, "diagnostic 'mirror_error' is the name of another number in these rows"),
        ({"test_mirror_error": weights}, "diagnostic 'test_mirror_error' is the name of another number in these rows"),
        ({"dl_mine": weights}, "diagnostic 'dl_mine': dl_ begins what followups measure; call it otherwise"),
        ({"a b": weights}, "diagnostic 'a b' must be named like a variable"),
        ({"a.b": weights}, "diagnostic 'a.b' must be named like a variable"),
        ({3: weights}, "diagnostic 3 must be named like a variable"),
        ({"rho": fits({"deep": 1.0})}, "diagnostic 'rho' is the name"),
        ({"own": fits({"a b": 1.0})}, "diagnostic 'own_a b' must be named like a variable"),
        ({"credit": fits({"norm": 1.0})}, "diagnostic 'credit_norm' is the name"),
        ({"a_b": as_scalar, "a": fits({"b": 1.0})}, "diagnostic 'a_b' is the name of another number"),
        ({"own": jax.jit(weights, static_argnums=0)}, "diagnostic 'own': .* must be a function; wrap it in a def"),
        ({"own": lambda state: 1.0}, r"diagnostic 'own' must take \(run, state, hp, data\)"),
        ({"own": fits(np.zeros((2, 16)))}, r"diagnostic 'own' is of shape \(2, 16\); .* of 2 or 3 numbers here"),
        ({"own": fits(np.zeros(4))}, r"diagnostic 'own' is of shape \(4,\); give a scalar, a vector over layers"),
        ({"own": fits({"in": {"two": 1.0}})}, "diagnostic 'own_in' is a dict; give a scalar"),
        ({"own": fits([1.0, 2.0])}, "diagnostic 'own' is a list; give a scalar"),
        ({"own": fits(None)}, "diagnostic 'own' is a NoneType; give a scalar"),
        ({"own": fits(np.complex64(1j))}, "diagnostic 'own' is of type complex64; give real numbers"),
    ],
)  # fmt: skip
def test_what_rows_cannot_take_is_said_in_one_line_before_anything_is_trained(diagnostics, named, monkeypatch):
    monkeypatch.setattr(program, "_compile", lambda *_: pytest.fail("it was compiled"))
    configs = {"dfa": tiny(jc.dfa(), **NET), "mirror": tiny(small(jc.weight_mirror), **NET)}
    with pytest.raises(jc.ConfigError, match=named) as raised:
        sweep(configs, [0], diagnostics=diagnostics)
    assert "\n" not in str(raised.value)


def test_numbers_that_come_from_no_key_are_refused(monkeypatch):
    monkeypatch.setattr(program, "_compile", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(jc.ConfigError, match="<lambda> is another program when it is traced again"):
        sweep(diagnostics={"own": lambda run, state, hp, data: np.random.normal()})  # noqa: NPY002


def test_moments_of_the_optimisers_are_none(monkeypatch):
    monkeypatch.setattr(program, "_compile", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'mu'"):
        sweep(diagnostics={"own": lambda run, state, hp, data: state.opt_state.mu.readout["b"][0]})
