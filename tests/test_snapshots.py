"""Snapshots: trained once and found again, a start for frozen runs; what is fitted is kept and measured by others."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick, same_bits, tiny

from jcredit import kept, sweep
from jcredit.config import Config, ConfigError, config_hash
from jcredit.kept import Snapshot
from jcredit.snapshots import FIXED, LEARNED, fits, snapshot
from jcredit.sweep import run_sweep
from jcredit.training import make_run
from jcredit.variants import Measure, Place, Variant

NET = tiny(depth=2, epochs=2, method="bp")
START = Snapshot(NET, 2)


class Settings(NamedTuple):
    """Of the measure of these tests."""

    factor: float = 1.0


def norm_of_estimator(run, settings):
    def measure(state, hp, data):
        total = jnp.asarray(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state.estimator)), float)
        return {"metrics": {"size": settings.factor * total}, "curves": {"sizes": total[None]}}

    return measure


@pytest.fixture
def trained(monkeypatch):
    """The tiers of the programs compiled for training from here on."""
    programs = []
    real = sweep._compile

    def compiled(run, *rest):
        programs.append(run.tier)
        return real(run, *rest)

    monkeypatch.setattr(sweep, "_compile", compiled)
    return programs


def sweep_into(path, variants, name="fits"):
    return run_sweep(variants, (3,), Place(path, name, "smoke"), progress=False)


def test_a_snapshot_is_trained_once_and_found_again(tmp_path, trained):
    first = snapshot(NET, 3, (1, 2), tmp_path, progress=False)
    again = snapshot(NET, 3, (2, 1), tmp_path, progress=False)
    assert len(trained) == 1
    assert all(same_bits(first[epoch], again[epoch]) for epoch in (1, 2)) and not same_bits(first[1], first[2])
    assert not list((tmp_path / "cache/snapshots/cache").glob("*"))  # no checkpoint of an unfinished run is left

    run = make_run(NET)  # the same epochs, by hand
    hp, key = run.hparams(NET), jax.random.key(3)
    state, data = run.init(key, hp), run.data(key, hp)
    state, _ = jax.jit(run.epoch)(state, hp, data)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), state.params, first[1])


def test_a_network_is_trained_again_only_for_an_epoch_it_did_not_keep(tmp_path, trained):
    net = dataclasses.replace(NET, epochs=3)
    [before] = snapshot(net, 3, (3,), tmp_path, progress=False).values()
    snapshot(net, 3, (1, 3), tmp_path, progress=False)  # one of the usual epochs
    assert len(trained) == 1
    after = snapshot(net, 3, (2, 3), tmp_path, progress=False)
    assert len(trained) == 2 and same_bits(before, after[3]) and not same_bits(after[2], after[3])


def test_an_epoch_the_run_does_not_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="epoch 3 of a run of epochs=2"):
        snapshot(NET, 3, (3,), tmp_path)
    with pytest.raises(ConfigError, match="choose 1 to 2"):
        sweep_into(tmp_path, [Variant("dfa", NET, start=Snapshot(NET, 5))])
    wide = dataclasses.replace(NET, width=32)
    with pytest.raises(ConfigError, match="width=16 differs from the snapshot's 32"):
        sweep_into(tmp_path, [Variant("dfa", NET, start=Snapshot(wide, 1))])


def test_keys_tell_starts_and_measures_apart():
    plain = Variant("dfa", tiny(method="dfa"))
    measure = Measure("size", norm_of_estimator, Settings())
    variants = [
        plain, plain._replace(start=START), plain._replace(start=Snapshot(NET, 1)),
        plain._replace(start=Snapshot(tiny(depth=2, epochs=2, learning_rate=0.1), 2)),
        plain._replace(start=START, measure=measure),
        plain._replace(start=START, measure=measure._replace(settings=Settings(2.0))),
    ]  # fmt: skip
    assert len({v.hash for v in variants}) == len(variants)
    assert len({v.run_hash for v in variants}) == 4
    assert plain.hash == config_hash(plain.config)
    assert plain._replace(keep=(1,)).hash == plain.hash  # keeping changes nothing


def test_frozen_parameters_do_not_move(tmp_path):
    [params] = snapshot(NET, 3, (2,), tmp_path, progress=False).values()
    [fit] = fits(START, LEARNED, epochs=1, only=("scalar_bridge eT",))
    run = make_run(fit.config)
    hp, key = run.hparams(fit.config), jax.random.key(3)
    before = run.init(key, hp)._replace(params=params)
    after, _ = quick(run.epoch)(before, hp, run.data(key, hp))
    assert same_bits(after.params, params)
    assert not same_bits(after.estimator.params, before.estimator.params)


def test_fits_start_at_the_snapshot_and_are_measured_without_training_again(tmp_path, trained):
    options = dict(epochs=2, only=("broadcast", "dfa", "scalar_bridge eT"))
    table = FIXED | LEARNED
    rows = sweep_into(tmp_path, fits(START, table, **options))
    assert len(trained) == 4  # the network, and three fits
    accuracy = kept.find(tmp_path, config_hash(NET), 3, 2)["history"][-1]["test_accuracy"]
    assert all(row["metrics"]["test_accuracy"] == accuracy for row in rows)
    assert all(set(row["curves"]["test_accuracy"]) == {accuracy} for row in rows)  # it never moves
    assert [row["epochs"] for row in rows] == [1, 1, 2]  # what learns nothing takes one epoch

    measure = Measure("size", norm_of_estimator, Settings())
    measured = sweep_into(tmp_path, fits(START, table, measure=measure, **options), "measured")
    assert len(trained) == 4
    for fit, row in zip(rows, measured, strict=True):
        assert row["metrics"].items() > fit["metrics"].items() and row["layers"] == fit["layers"]
        assert row["config_hash"] != fit["config_hash"] and row["start"] == fit["start"]
        assert row["measure"] == {"name": "size", "factor": 1.0}
        assert row["curves"]["sizes"] == [pytest.approx(row["metrics"]["size"])]
    sizes = [row["metrics"]["size"] for row in measured]
    assert sizes[0] == 0 and min(sizes[1:]) > 1  # the estimators' own states, not fresh ones of another method


def test_a_measure_trains_what_nobody_has_kept_and_keeps_it(tmp_path, trained):
    own = Snapshot(NET, 1)
    measure = Measure("size", norm_of_estimator, Settings())
    [row] = sweep_into(tmp_path, fits(own, LEARNED, epochs=1, measure=measure, only=("state_bridge eT",)), "measured")
    assert len(trained) == 2
    [fit] = sweep_into(tmp_path, fits(own, LEARNED, epochs=1, only=("state_bridge eT",)))
    assert len(trained) == 2 and fit["metrics"].items() < row["metrics"].items()
    assert row["start"]["config"] == dataclasses.asdict(NET) and row["start"]["epoch"] == 1


def test_overridden_fields_reach_the_network_of_a_snapshot():
    changed = START.overridden({"width": 32, "epochs": 7, "method": "dfa"})
    assert changed.config == dataclasses.replace(NET, width=32)
    assert isinstance(changed.config, Config) and changed.epoch == 2
