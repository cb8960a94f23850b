"""Sweeps: rows, skipping, resuming to the same bits, divergence, layouts."""

import json
import math
import os
import signal
import threading

import jax
import pytest

from jcredit import results, sweep
from jcredit.config import Config
from jcredit.layout import Layout, choose_layout
from jcredit.rows import estimator_blew_up, first_bad_epoch
from jcredit.sweep import Interrupted, Place, Variant, run_sweep

TINY = dict(
    task="teacher", depth=2, width=16, hidden=16, train_size=128, test_size=64, batch_size=32, epochs=3,
    diagnostic_samples=32, diagnose_every=2,
)  # fmt: skip


def variant(label="dfa", **fields):
    return Variant(label, Config(**{**TINY, "method": "dfa", **fields}))


def sweep_into(path, variants, seeds=(0, 1), **options):
    return run_sweep(variants, seeds, Place(path, "tiny", "smoke"), progress=False, **options)


def measured(row):
    """What must not depend on how a run was scheduled."""
    return {k: row[k] for k in ("config_hash", "seed", "status", "epochs", "metrics", "layers", "curves", "flags")}


def test_a_row_per_run_with_finite_metrics_and_full_curves(tmp_path):
    rows = sweep_into(tmp_path, [variant(), variant("slow", learning_rate=1e-4)])
    assert sorted((r["label"], r["seed"]) for r in rows) == [("dfa", 0), ("dfa", 1), ("slow", 0), ("slow", 1)]
    for row in rows:
        assert row["status"] == "ok" and row["epochs"] == 3 and row["timing"]["runs_in_program"] == 4
        assert len(row["curves"]["test_accuracy"]) == 3
        # Credit is scored at epochs 2 (diagnose_every) and 3 (the last).
        assert [v is not None for v in row["curves"]["gamma"]] == [False, True, True]
        assert all(math.isfinite(v) for v in row["metrics"].values())
        assert len(row["layers"]["gamma"]) == 2 and len(row["layers"]["h_rms"]) == 3
        assert row["metrics"]["test_accuracy"] == row["curves"]["test_accuracy"][-1]


def test_finished_runs_are_skipped_and_only_the_missing_ones_run(tmp_path, monkeypatch):
    sweep_into(tmp_path, [variant()], seeds=(0,))
    before = (tmp_path / "tiny/smoke/rows.jsonl").read_text()
    trained = []
    real = sweep._train
    monkeypatch.setattr(sweep, "_train", lambda group, *a: trained.extend(r.seed for r in group) or real(group, *a))
    rows = sweep_into(tmp_path, [variant()], seeds=(0, 1))
    assert trained == [1] and len(rows) == 2
    assert (tmp_path / "tiny/smoke/rows.jsonl").read_text().startswith(before)


def test_an_interrupted_sweep_resumes_to_the_same_bits(tmp_path):
    variants = [variant("bridge", method="scalar_bridge", warmup_ratio=0.5)]
    whole = sweep_into(tmp_path / "whole", variants)
    # The signal arrives while the first epoch is still being compiled: the sweep stops behind that epoch.
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Interrupted, match="epoch 1 of 3"):
        sweep_into(tmp_path / "cut", variants)
    timer.join()
    assert not (tmp_path / "cut/tiny/smoke/rows.jsonl").exists()
    assert len(list((tmp_path / "cut/tiny/smoke/cache").glob("*/runs.json"))) == 1
    resumed = sweep_into(tmp_path / "cut", variants)
    assert [measured(r) for r in resumed] == [measured(r) for r in whole]
    assert not list((tmp_path / "cut/tiny/smoke/cache").glob("*"))


def test_a_resumed_run_keeps_the_layout_it_began_with(tmp_path):
    variants = [variant()]
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Interrupted):
        sweep_into(tmp_path, variants, seeds=(0, 1, 2), seeds_per_batch=None)
    timer.join()
    rows = sweep_into(tmp_path, variants, seeds=(0, 1, 2), seeds_per_batch=3)
    assert all(row["layout"] == choose_layout(3)._asdict() for row in rows)


def test_layouts_of_the_same_runs_give_the_same_bits(tmp_path):
    seeds = (3, 5, 8)
    chain = variant(method="tangent_chain", tangent_samples=8, normalise="rms", clip=1.0)
    together = sweep_into(tmp_path / "together", [chain], seeds)
    alone = [sweep_into(tmp_path / f"alone{s}", [chain], (s,))[0] for s in seeds]
    assert together[0]["layout"]["devices"] == min(3, jax.device_count())
    assert [measured(r) for r in together] == [measured(r) for r in alone]


def test_a_diverged_run_ends_its_row_and_the_sweep_goes_on(tmp_path):
    wild = variant("wild", optimizer="sgd", learning_rate=1e30)
    rows = sweep_into(tmp_path, [wild, variant()], seeds=(0,))
    by_label = {r["label"]: r for r in rows}
    assert by_label["wild"]["status"] == "diverged" and by_label["wild"]["epochs"] < 3
    assert by_label["wild"]["metrics"] == {} and by_label["dfa"]["status"] == "ok"
    strict = [json.loads(s, parse_constant=pytest.fail) for s in (tmp_path / "tiny/smoke/rows.jsonl").open()]
    assert len(strict) == 2


def test_blown_up_estimators_are_told_by_ten_times_their_own_minimum():
    assert not estimator_blew_up([12.0, 3.0, 29.9])
    assert estimator_blew_up([12.0, 3.0, 30.1])
    assert not estimator_blew_up([100.0, 1.0])  # falling is no divergence
    assert first_bad_epoch([1.0, math.nan], [1.0, 1.0]) == 2
    assert first_bad_epoch([1.0, 1.0], [math.inf, 1.0]) == 1
    assert first_bad_epoch([1.0], [0.0]) is None


def test_an_estimator_that_blows_up_is_flagged_in_its_row(tmp_path):
    # A slow copy that adds up what it sees instead of averaging it: V chases targets that run away.
    from jcredit.estimators import scalar_bridge
    from jcredit.types import EstState

    bridge = scalar_bridge()
    runaway = bridge._replace(
        update=lambda state, hp: EstState(state.params, jax.tree.map(lambda s: 1.5 * s, state.extra))
    )
    bad = Variant("runaway", Config(**TINY, method="scalar_bridge"), estimator=runaway)
    [row] = sweep_into(tmp_path, [bad], seeds=(0,))
    assert row["status"] == "diverged" or "estimator_diverged" in row["flags"]
    assert row["method"] == "runaway"


def test_own_estimators_are_keyed_by_their_label():
    plain = variant("mine")
    from jcredit.estimators import dfa

    assert plain._replace(estimator=dfa()).hash != plain.hash
    assert plain._replace(estimator=dfa()).hash != plain._replace(estimator=dfa(), label="other").hash


def test_foreign_rows_are_reported_and_left_alone(tmp_path):
    path = tmp_path / "tiny/smoke/rows.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("not a row\n")
    with pytest.raises(results.ResultsError, match=r"rows\.jsonl"):
        sweep_into(tmp_path, [variant()])
    assert path.read_text() == "not a row\n"


def test_layouts_fill_devices_and_pad():
    devices = jax.device_count()
    assert choose_layout(1) == Layout(min(devices, 2), 1)  # never the program of one device where there are more
    assert choose_layout(100).devices == devices
    assert choose_layout(2 * devices, 2) == Layout(devices, 2)
    assert Layout(4, 2).padded(9) == 16
