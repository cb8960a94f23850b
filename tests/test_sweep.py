"""Sweeps: rows, skipping, resuming to the same bits, divergence, layouts."""

import json
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import measured, small, sweep_into, variant

import jcredit as jc
from jcredit.report.rows import ResultsError, read_rows
from jcredit.sweeps import batch, program, run
from jcredit.sweeps.layout import Layout, choose_layout
from jcredit.sweeps.record import estimator_blew_up, first_bad_epoch
from jcredit.sweeps.run import Stopped
from jcredit.training import make_run

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")


# --- rows and resuming ------------------------------------------------------------------------------------------------


def test_a_row_per_run_with_finite_metrics_and_full_curves(tmp_path):
    rows = sweep_into(tmp_path, [variant(epochs=3), variant("slow", learning_rate=1e-4, epochs=3)])
    assert sorted((r["label"], r["seed"]) for r in rows) == [("dfa", 0), ("dfa", 1), ("slow", 0), ("slow", 1)]
    for row in rows:
        assert row["status"] == "ok" and row["epochs"] == 3 and row["timing"]["runs_in_program"] == 4
        assert len(row["curves"]["test_accuracy"]) == 3
        # Credit is scored at epochs 2 (diagnose_every) and 3 (the last).
        assert [v is not None for v in row["curves"]["gamma"]] == [False, True, True]
        assert all(math.isfinite(v) for v in row["metrics"].values())
        assert len(row["layers"]["gamma"]) == 2 and len(row["layers"]["h_rms"]) == 3
        assert row["metrics"]["test_accuracy"] == row["curves"]["test_accuracy"][-1]
        assert (row["schema"], row["method"]) == (2, "dfa") and row["config"]["credit"] == {"estimator": "dfa"}
    assert read_rows(tmp_path / "tiny/smoke/rows.jsonl") == rows


def test_finished_runs_are_skipped_and_only_the_missing_ones_run(tmp_path, monkeypatch):
    sweep_into(tmp_path, [variant()], seeds=(0,))
    before = (tmp_path / "tiny/smoke/rows.jsonl").read_text()
    trained = []
    real = batch.train
    monkeypatch.setattr(batch, "train", lambda group, *a: trained.extend(r.seed for r in group) or real(group, *a))
    rows = sweep_into(tmp_path, [variant()], seeds=(0, 1))
    assert trained == [1] and len(rows) == 2
    assert (tmp_path / "tiny/smoke/rows.jsonl").read_text().startswith(before)


def interrupted(path, variants, **options):
    """A sweep that is stopped by a signal while its first epoch is still being compiled, hence behind that epoch."""
    real = program._compile
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="epoch 1 of 3"):
        patch.setattr(program, "_compile", lambda *a: os.kill(os.getpid(), signal.SIGTERM) or real(*a))
        sweep_into(path, variants, **options)


def test_an_interrupted_sweep_resumes_to_the_same_bits(tmp_path, monkeypatch):
    variants = [variant("bridge", small(jc.scalar_bridge), warmup_ratio=0.5, epochs=3)]
    monkeypatch.setattr(run, "git_commit", lambda: "aaaaaaaaaaaa")
    whole = sweep_into(tmp_path / "whole", variants)
    interrupted(tmp_path / "cut", variants)
    assert not (tmp_path / "cut/tiny/smoke/rows.jsonl").exists()
    assert len(list((tmp_path / "cut/tiny/smoke/cache").glob("*/program.json"))) == 1
    monkeypatch.setattr(run, "git_commit", lambda: "bbbbbbbbbbbb")
    resumed = sweep_into(tmp_path / "cut", variants)
    assert [measured(r) for r in resumed] == [measured(r) for r in whole]
    assert not list((tmp_path / "cut/tiny/smoke/cache").glob("*"))
    # The code changed on the way: the rows name both.
    assert {r["git_commit"] for r in whole} == {"aaaaaaaaaaaa"}
    assert {r["git_commit"] for r in resumed} == {"aaaaaaaaaaaa, bbbbbbbbbbbb"}


def test_a_checkpoint_of_runs_that_others_have_finished_in_part_goes(tmp_path):
    line, cache = [variant(epochs=3)], tmp_path / "tiny/smoke/cache"
    interrupted(tmp_path, line, seeds=(0, 1, 2))
    sweep_into(tmp_path, line, (5,))
    sweep_into(tmp_path, line, (0, 1))
    assert len(list(cache.glob("*/checkpoint"))) == 1  # nothing of it was done when these began
    assert [row["seed"] for row in sweep_into(tmp_path, line, (0, 1, 2))] == [0, 1, 2]
    assert not list(cache.glob("*"))


def test_a_resumed_run_keeps_the_layout_it_began_with(tmp_path):
    interrupted(tmp_path, [variant(epochs=3)], seeds=(0, 1, 2), seeds_per_batch=None)
    rows = sweep_into(tmp_path, [variant(epochs=3)], seeds=(0, 1, 2), seeds_per_batch=3)
    assert all(row["layout"] == choose_layout(3)._asdict() for row in rows)


@pytest.mark.parametrize("width", [1, 2])
def test_a_run_resumed_where_there_are_fewer_devices_keeps_its_bits(tmp_path, monkeypatch, caplog, width):
    """As on a cluster of unequal machines.  From two devices to one it would not keep them, and starts afresh."""
    lines, seeds, wide = [variant(epochs=3)], range(4 * width), {"seeds_per_batch": width}
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    whole = sweep_into(tmp_path / "whole", lines, seeds, **wide)
    interrupted(tmp_path / "cut", lines, seeds=seeds, **wide)
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)  # of which two share these runs evenly
    resumed = sweep_into(tmp_path / "cut", lines, seeds, **wide)
    assert [measured(r) for r in resumed] == [measured(r) for r in whole]
    assert {Layout(**r["layout"]) for r in whole} == {Layout(4, width)}
    assert {Layout(**r["layout"]) for r in resumed} == {Layout(2, width)}
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    interrupted(tmp_path / "alone", lines, seeds=seeds, **wide)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    rows = sweep_into(tmp_path / "alone", lines, seeds, **wide)
    assert "begun on 2 devices, whose bits 1 here would not keep; set aside as" in caplog.text
    fresh = sweep_into(tmp_path / "fresh", lines, seeds, **wide)
    assert [measured(r) for r in rows] == [measured(r) for r in fresh]
    assert {Layout(**r["layout"]) for r in rows} == {Layout(1, width)}


@pytest.mark.slow
def test_layouts_of_the_same_runs_give_the_same_bits(tmp_path):
    seeds = (3, 5, 8)
    chain = variant(credit=small(jc.tangent_chain), normalise="rms", clip=1.0)
    together = sweep_into(tmp_path / "together", [chain], seeds)
    alone = [sweep_into(tmp_path / f"alone{s}", [chain], (s,))[0] for s in seeds]
    assert together[0]["layout"]["devices"] == min(3, jax.device_count())
    assert [measured(r) for r in together] == [measured(r) for r in alone]


def test_a_diverged_run_ends_its_row_and_the_sweep_goes_on(tmp_path):
    wild = variant("wild", optimizer="sgd", learning_rate=1e30, epochs=3)
    rows = sweep_into(tmp_path, [wild, variant(epochs=3)], seeds=(0,))
    by_label = {r["label"]: r for r in rows}
    assert by_label["wild"]["status"] == "diverged" and by_label["wild"]["epochs"] < 3
    assert by_label["wild"]["metrics"] == {} and by_label["dfa"]["status"] == "ok"
    strict = [json.loads(s, parse_constant=pytest.fail) for s in (tmp_path / "tiny/smoke/rows.jsonl").open()]
    assert len(strict) == 2


def test_blown_up_estimators_are_told_by_ten_times_their_own_minimum():
    assert not estimator_blew_up([12.0, 3.0, 29.9])
    assert estimator_blew_up([12.0, 3.0, 30.1])
    assert not estimator_blew_up([100.0, 1.0])  # falling is no divergence
    assert not estimator_blew_up([-0.5, -0.6, -0.4])  # a negative cosine, say; ten times what is below 0 is nothing
    assert not estimator_blew_up([1.0, 0.0, 0.5])
    assert first_bad_epoch([1.0, math.nan], [1.0, 1.0]) == 2
    assert first_bad_epoch([1.0, 1.0], [math.inf, 1.0]) == 1
    assert first_bad_epoch([1.0], [0.0]) is None


@jc.estimator
def runaway() -> jc.Estimator:
    """A slow copy that adds up what it sees instead of averaging it: V chases targets that run away."""
    grow = lambda state, *seen: jc.EstState(state.params, jax.tree.map(lambda s: 1.5 * s, state.extra))  # noqa: E731
    return small(jc.scalar_bridge).build()._replace(update=grow)


def test_an_estimator_that_blows_up_is_flagged_in_its_row(tmp_path):
    [row] = sweep_into(tmp_path, [variant("mine", runaway(), epochs=6)], seeds=(0,))
    assert row["status"] == "diverged" or "estimator_diverged" in row["flags"]
    assert row["method"] == "test_sweep.runaway" and row["config"]["credit"]["source"]


@jc.estimator
def counting(late: float = 20.0, error: float = 0.5) -> jc.Estimator:
    """Its loss is 1, and another number from the fifth step on; its relative error is said to be ``error``."""

    def loss(state, ctx, env, key):
        level = jnp.where(state.extra["steps"] >= 4, late, 1.0)
        return level + 0.0 * jnp.sum(state.params["w"]), {"directional": jnp.asarray(error)}

    return (
        jc.broadcast()
        .build()
        ._replace(
            init=lambda key, shapes: jc.EstState({"w": jnp.ones(1)}, {"steps": jnp.zeros((), jnp.int32)}),
            loss=loss,
            update=lambda state, *seen: jc.EstState(state.params, {"steps": state.extra["steps"] + 1}),
        )
    )


def test_what_is_wrong_with_an_estimator_and_what_it_began_with_stand_in_its_row(tmp_path):
    lines = {"worse": counting(late=1.0, error=2.0), "grown": counting(), "sound": counting(late=9.0)}
    rows = sweep_into(tmp_path, [variant(label, part) for label, part in lines.items()], seeds=(3,))
    assert {row["label"]: row["flags"] for row in rows} == {
        "worse": ["worse_than_nothing"], "grown": ["estimator_diverged"], "sound": []
    }  # fmt: skip
    assert all(row["status"] == "ok" for row in rows)
    config = variant("sound", lines["sound"]).config
    run = make_run(config)
    key, hp = jax.random.key(3), run.hparams(config)
    layers = jax.jit(run.diagnose)(run.init(key, hp), hp, run.data(key, hp))["layers"]
    initial = next(row["initial"] for row in rows if row["label"] == "sound")
    assert set(initial) == set(layers)
    np.testing.assert_allclose(initial["gamma"], layers["gamma"], rtol=1e-4)
    assert not np.allclose(initial["gamma"], next(row["layers"]["gamma"] for row in rows if row["label"] == "sound"))


def test_runs_side_by_side_on_a_device_are_the_runs_they_are_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    apart = sweep_into(tmp_path / "apart", [variant()], range(5))
    wide = sweep_into(tmp_path / "wide", [variant()], range(5), seeds_per_batch=2)
    assert {tuple(row["layout"].items()) for row in wide} == {(("devices", 2), ("width", 2))}
    assert [row["seed"] for row in wide] == [row["seed"] for row in apart] == list(range(5))
    for one, other in zip(wide, apart, strict=True):
        for name in ("test_loss", "gamma", "rho", "weight_cosine"):
            assert one["metrics"][name] == pytest.approx(other["metrics"][name], rel=1e-3, abs=1e-4), name
    assert len({row["metrics"]["test_loss"] for row in wide}) == 5


def test_foreign_rows_are_reported_and_left_alone(tmp_path):
    path = tmp_path / "tiny/smoke/rows.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("not a row\n")
    with pytest.raises(ResultsError, match=r"rows\.jsonl"):
        sweep_into(tmp_path, [variant()])
    assert path.read_text() == "not a row\n"


def test_layouts_fill_devices_and_pad():
    devices = jax.device_count()
    assert choose_layout(1) == Layout(min(devices, 2), 1)  # never the program of one device where there are more
    assert choose_layout(100).devices == devices
    assert choose_layout(2 * devices, 2) == Layout(devices, 2)
    assert Layout(4, 2).padded(9) == 16


@jc.estimator
def narrow() -> jc.Estimator:
    """A credit of a wrong shape."""
    inner = jc.broadcast().build()
    return inner._replace(credit=lambda *args: inner.credit(*args)[1:])


def test_what_cannot_run_is_said_before_anything_runs(tmp_path, compiled):
    with pytest.raises(jc.ConfigError, match=r"narrow has shape \(2, 8, 16\), not \(3, 8, 16\)"):
        sweep_into(tmp_path, [variant(), variant("mine", narrow())])
    assert not compiled and not list(tmp_path.iterdir())
