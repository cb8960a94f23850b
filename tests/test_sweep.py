"""Sweeps: rows, skipping, resuming to the same bits, divergence, layouts, and who a run is."""

import importlib
import json
import logging
import math
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small, sweep_into, tiny

import jcredit as jc
from jcredit.report.rows import ResultsError, read_rows
from jcredit.sweeps import batch, program, record, run
from jcredit.sweeps.layout import Layout, choose_layout
from jcredit.sweeps.record import estimator_blew_up, first_bad_epoch
from jcredit.sweeps.run import Interrupted
from jcredit.sweeps.variants import Variant
from jcredit.training import make_run

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")


def variant(label="dfa", credit=None, block="", **changes):
    return Variant(label, tiny(credit or jc.dfa(), **{"network.depth": 2, "diagnose_every": 2, **changes}), block)


def measured(row):
    """What must not depend on how a run was scheduled."""
    return {k: row[k] for k in ("config_hash", "seed", "status", "epochs", "metrics", "layers", "curves", "flags")}


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
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="epoch 1 of 3"):
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


def test_a_resumed_run_keeps_the_layout_it_began_with(tmp_path):
    interrupted(tmp_path, [variant(epochs=3)], seeds=(0, 1, 2), seeds_per_batch=None)
    rows = sweep_into(tmp_path, [variant(epochs=3)], seeds=(0, 1, 2), seeds_per_batch=3)
    assert all(row["layout"] == choose_layout(3)._asdict() for row in rows)


def test_a_run_resumed_where_there_are_fewer_devices_keeps_its_bits(tmp_path, monkeypatch, caplog):
    """As on a cluster of unequal machines.  From two devices to one it would not keep them, and starts afresh."""
    whole = sweep_into(tmp_path / "whole", [variant(epochs=3)], (0, 1, 2, 3))
    interrupted(tmp_path / "cut", [variant(epochs=3)], seeds=(0, 1, 2, 3))
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)  # of which two share four runs evenly
    resumed = sweep_into(tmp_path / "cut", [variant(epochs=3)], (0, 1, 2, 3))
    assert [measured(r) for r in resumed] == [measured(r) for r in whole]
    assert {r["layout"]["devices"] for r in whole} == {4} and {r["layout"]["devices"] for r in resumed} == {2}
    interrupted(tmp_path / "alone", [variant(epochs=3)], seeds=(0, 1))
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    rows = sweep_into(tmp_path / "alone", [variant(epochs=3)], (0, 1))
    assert "begun on 2 devices, whose bits 1 here would not keep; set aside as" in caplog.text
    fresh = sweep_into(tmp_path / "fresh", [variant(epochs=3)], (0, 1))
    assert [measured(r) for r in rows] == [measured(r) for r in fresh]
    assert {r["layout"]["devices"] for r in rows} == {1}


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
    assert first_bad_epoch([1.0, math.nan], [1.0, 1.0]) == 2
    assert first_bad_epoch([1.0, 1.0], [math.inf, 1.0]) == 1
    assert first_bad_epoch([1.0], [0.0]) is None


@jc.estimator
def runaway() -> jc.Estimator:
    """A slow copy that adds up what it sees instead of averaging it: V chases targets that run away."""
    grow = lambda state: jc.EstState(state.params, jax.tree.map(lambda s: 1.5 * s, state.extra))  # noqa: E731
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
            update=lambda state: jc.EstState(state.params, {"steps": state.extra["steps"] + 1}),
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


# --- who a run is -----------------------------------------------------------------------------------------------------


@jc.estimator
def turned(by: jc.Count = 1) -> jc.Estimator:
    """The broadcast, rolled over the hidden units."""
    credit = lambda state, ctx, env, key: jax.numpy.roll(jc.broadcast().build().credit(state, ctx, env, key), by, -1)  # noqa: E731
    return jc.broadcast().build()._replace(credit=credit)


@jc.estimator
def halved() -> jc.Estimator:
    """Half the broadcast."""
    credit = lambda state, ctx, env, key: 0.5 * jc.broadcast().build().credit(state, ctx, env, key)  # noqa: E731
    return jc.broadcast().build()._replace(credit=credit)


def test_two_own_estimators_of_one_label_get_their_own_programs_and_numbers(tmp_path, compiled):
    lines = [variant("mine", turned(), "A", epochs=1), variant("mine", halved(), "B", epochs=1)]
    rows = sweep_into(tmp_path, lines, seeds=(0,))
    assert [c.name for c in compiled] == ["test_sweep.turned", "test_sweep.halved"]
    assert [(r["block"], r["method"]) for r in rows] == [("A", "test_sweep.turned"), ("B", "test_sweep.halved")]
    by_hand = [sweep_into(tmp_path / r["block"], [line], seeds=(0,)) for r, line in zip(rows, lines, strict=True)]
    assert [measured(r) for r in rows] == [measured(r) for [r] in by_hand]
    assert rows[0]["metrics"]["gamma"] != rows[1]["metrics"]["gamma"]


OWN = """
import jcredit as jc

FACTOR = {factor}

def scaled(a):
    return FACTOR * a

@jc.estimator
def own(rank: jc.Count = 4, sigma: jc.Positive = 0.1) -> jc.Estimator:
    inner = jc.broadcast().build()
    return inner._replace(credit=lambda *args: scaled(inner.credit(*args)))
"""


def test_editing_an_own_estimator_or_a_setting_of_it_changes_its_key(tmp_path, monkeypatch):
    file = tmp_path / "edited_estimator.py"
    file.write_text(OWN.format(factor=0.5))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "edited_estimator", None)
    del sys.modules["edited_estimator"]
    module = importlib.import_module("edited_estimator")
    key = lambda **settings: variant("mine", module.own(**settings)).hash  # noqa: E731
    first = [key(), key(rank=8), key(sigma=0.2)]
    assert len(set(first)) == 3 and key() == first[0]
    file.write_text(OWN.format(factor=0.125))
    module = importlib.reload(module)
    edited = key()
    assert edited not in first
    file.write_text(OWN.format(factor=0.5))
    module = importlib.reload(module)
    assert key() == first[0]


def test_lines_of_equal_keys_are_one_run_that_keeps_what_any_of_them_wants_kept(tmp_path, compiled):
    twice = [variant(epochs=1), variant("again", block="other", epochs=1)._replace(keep=(1,))]
    rows = sweep_into(tmp_path, twice, seeds=(0,))
    assert [(r["label"], r["block"]) for r in rows] == [("dfa", "")] and len(compiled) == 1
    assert len(list((tmp_path / "cache/snapshots").iterdir())) == 1


# --- the same run in two experiments ----------------------------------------------------------------------------------


def test_a_run_of_another_experiment_is_copied_and_marked(tmp_path, compiled, monkeypatch):
    monkeypatch.setattr(run, "git_commit", lambda: "aaaaaaaaaaaa")
    theirs = sweep_into(tmp_path, [variant("bp", jc.bp()), variant()], name="a")
    assert len(compiled) == 2
    monkeypatch.setattr(run, "git_commit", lambda: "bbbbbbbbbbbb")
    # Another name, another block, and a setting that no BP run reads: the same run all the same.
    ours = sweep_into(tmp_path, [variant("oracle", jc.bp(), "block", warmup_ratio=0.5)], name="b")
    assert len(compiled) == 2
    changed = ("experiment", "label", "block", "config", "from")
    for own, their in zip(ours, theirs[:2], strict=True):
        assert {k: v for k, v in own.items() if k not in changed} == {
            k: v for k, v in their.items() if k not in changed
        }
        assert [own[name] for name in ("experiment", "label", "block", "from")] == ["b", "oracle", "block", "a/smoke"]
        assert own["git_commit"] == "aaaaaaaaaaaa" and own["config"]["warmup_ratio"] == 0.5
    assert read_rows(tmp_path / "b/smoke/rows.jsonl", "b", "smoke") == ours
    # What is copied from a copy says where it was run; what is missing is run.
    last = sweep_into(tmp_path, [variant("bp", jc.bp())], (0, 1, 2), name="0")
    assert [r.get("from") for r in last] == ["a/smoke", "a/smoke", None] and len(compiled) == 3
    assert last[2]["git_commit"] == "bbbbbbbbbbbb"


def test_rows_that_cannot_be_read_are_no_help_and_no_harm(tmp_path, compiled, caplog):
    rows = sweep_into(tmp_path, [variant(epochs=1)], (0,), name="a")
    for name, text in (("torn", '{"schema": 2'), ("old", json.dumps({**rows[0], "schema": 1}))):
        (tmp_path / name / "smoke").mkdir(parents=True)
        (tmp_path / name / "smoke/rows.jsonl").write_text(text)
    with caplog.at_level(logging.WARNING, "jcredit"):
        [row] = sweep_into(tmp_path, [variant(epochs=1)], (0,), name="b")
    assert row["from"] == "a/smoke" and len(compiled) == 1
    [warning] = caplog.messages
    assert "old/smoke/rows.jsonl" in warning and "1 more file" in warning and "\n" not in warning


def test_every_file_of_rows_is_read_once(tmp_path, monkeypatch):
    for name in "ab":
        sweep_into(tmp_path, [variant(epochs=1)], (0,), name=name)
    read = []
    for module in (run, record):
        monkeypatch.setattr(module, "read_rows", lambda path, *a: read.append(path) or read_rows(path, *a))
    sweep_into(tmp_path, [variant(epochs=1)], (0, 1), name="b")
    assert sorted(read) == [tmp_path / name / "smoke/rows.jsonl" for name in "ab"]
    read.clear()
    there = read_rows(tmp_path / "b/smoke/rows.jsonl")
    assert sweep_into(tmp_path, [variant(epochs=1)], (0, 1), name="b", there=there) == there and not read


# --- the code that ran ------------------------------------------------------------------------------------------------


def git(folder, *args):
    import subprocess

    own = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *own, *args], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like jcredit's own checkout, with one commit."""
    folder = tmp_path / "checkout"
    (folder / "jcredit").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "jcredit"\n')
    (folder / "jcredit/__init__.py").write_text("")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_only_a_commit_of_jcredit_itself_is_told(checkout, tmp_path):
    own = record.git_commit(checkout)
    assert own is not None and len(own) == 12
    (checkout / "jcredit/__init__.py").write_text("changed = True\n")
    assert record.git_commit(checkout) == own + "+"
    (checkout / "pyproject.toml").write_text('[project]\nname = "somebody"\n')
    assert record.git_commit(checkout) is None  # a copy of the package in somebody else's repository
    (checkout / "pyproject.toml").write_text('[project]\nname = "jcredit"\n')
    inside = checkout / "venv/site-packages"  # installed below a checkout that is not what runs
    (inside / "jcredit").mkdir(parents=True)
    assert record.git_commit(inside) is None
    (inside / "pyproject.toml").write_text('[project]\nname = "jcredit"\n')
    assert record.git_commit(inside) is None
    assert record.git_commit(tmp_path) is None  # no repository at all


def test_a_commit_made_during_a_sweep_is_not_credited_with_its_runs(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "git_commit", lambda: record.git_commit(checkout))
    before, real = record.git_commit(checkout), program._compile

    def compile_and_commit(*args):
        git(checkout, "commit", "-q", "--allow-empty", "-m", "while it runs")
        return real(*args)

    monkeypatch.setattr(program, "_compile", compile_and_commit)
    rows = sweep_into(tmp_path, [variant(epochs=1), variant("bp", jc.bp(), epochs=1)], (0,))
    assert [row["git_commit"] for row in rows] == [before, before]
    assert record.git_commit(checkout) != before
