"""Snapshots: trained once and found again, a start for frozen runs; what is fitted is kept for followups of others."""

import functools
import json
import os
import shutil
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick, same_bits, small, sweep_into, tiny

import jcredit as jc
from jcredit.config import config_hash
from jcredit.files import read_sealed
from jcredit.settings import ConfigError
from jcredit.sweeps import program, run as sweeping, snapshots
from jcredit.sweeps.variants import Folder, Followup, Snapshot, Variant, snapshot_request
from jcredit.training import make_run

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")

NET = tiny(jc.bp(), **{"network.depth": 2})
START = Snapshot(NET, 2)
BRIDGE = {"bridge": small(jc.scalar_bridge)}
LINES = {"broadcast": jc.broadcast(), "dfa": jc.dfa(), **BRIDGE}


class Settings(NamedTuple):
    """Of the followup of these tests."""

    factor: float = 1.0
    rules: tuple = (jc.inner_product(),)


def norm_of_estimator(run, settings):
    def measure(state, hp, data):
        total = jnp.asarray(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state.est_state)), float)
        return {"metrics": {"size": settings.factor * total}, "curves": {"sizes": total[None]}}

    return measure


SIZE = Followup("size", norm_of_estimator, Settings())


def networks(results_dir, config, epochs):
    """The parameters after some epochs, trained where nobody has kept them."""
    sweep_into(results_dir, [snapshot_request(config, 3, epochs).variant], (3,), "networks")
    Folder(results_dir, "networks", "smoke").rows.unlink()  # what is kept counts, not that there is a row
    run = make_run(config)
    like = jax.eval_shape(run.init, jax.random.key(0), run.hparams(config)).params
    return {e: snapshots.load(results_dir, (config_hash(config), 3), e, "network", like) for e in epochs}


def fits(start, table, epochs=1, followup=None):
    base = start.config.replace(trains="nothing", epochs=epochs, nudge_eta=3e-3)
    return [
        Variant(label, base.replace(credit=credit), start=start, keep=(epochs,), followup=followup)
        for label, credit in table.items()
    ]


def swept_into(path, variants, name="fits"):
    return sweep_into(path, variants, (3,), name)


def test_a_snapshot_is_trained_once_and_found_again(tmp_path, compiled):
    first = networks(tmp_path, NET, (1, 2))
    again = networks(tmp_path, NET, (2, 1))
    assert len(compiled) == 1
    assert all(same_bits(first[epoch], again[epoch]) for epoch in (1, 2)) and not same_bits(first[1], first[2])
    assert not snapshots.unfinished(tmp_path).exists()  # no checkpoint of an unfinished run is left

    run = make_run(NET)  # the same epochs, by hand
    hp, key = run.hparams(NET), jax.random.key(3)
    state, data = run.init(key, hp), run.data(key, hp)
    state, _ = jax.jit(run.epoch)(state, hp, data)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), state.params, first[1])


def test_a_network_is_trained_again_only_for_an_epoch_it_did_not_keep(tmp_path, compiled):
    net = NET.replace(epochs=3)
    before = networks(tmp_path, net, (3,))
    networks(tmp_path, net, (1, 3))  # one of the usual epochs
    assert len(compiled) == 1
    after = networks(tmp_path, net, (2, 3))
    assert len(compiled) == 2 and same_bits(before[3], after[3]) and not same_bits(after[2], after[3])


def test_a_network_cut_off_past_an_epoch_that_is_wanted_only_now_is_trained_from_its_start(tmp_path, caplog):
    net, real = NET.replace(epochs=4), program._one_epoch
    with pytest.MonkeyPatch.context() as patch, pytest.raises(program.Stopped, match="epoch 3 of 4"):
        kill = lambda progress: progress.epoch == 2 and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        patch.setattr(program, "_one_epoch", lambda *args: kill(args[-1]) or real(*args))
        swept_into(tmp_path, fits(Snapshot(net, 4), {"dfa": jc.dfa()}))
    [row] = swept_into(tmp_path, fits(Snapshot(net, 2), {"dfa": jc.dfa()}))
    assert row["start"]["epoch"] == 2
    [warning] = caplog.messages
    assert "at epoch 3, past epoch 2, which others are to start from" in warning and "start afresh" in warning


def test_a_network_that_others_started_from_is_a_line_of_a_table_without_training(tmp_path, compiled, monkeypatch):
    monkeypatch.setattr(sweeping, "git_commit", lambda: "aaaaaaaaaaaa")
    swept_into(tmp_path, fits(START, {"dfa": jc.dfa()}))
    assert [credit.name for credit in compiled] == ["bp", "dfa"]
    monkeypatch.setattr(sweeping, "git_commit", lambda: "bbbbbbbbbbbb")
    [row] = swept_into(tmp_path, [Variant("bp", NET)], "table")
    assert len(compiled) == 2 and row["epochs"] == 2 and row["git_commit"] == "aaaaaaaaaaaa"
    [trained] = swept_into(tmp_path / "elsewhere", [Variant("bp", NET)], "table")
    assert [trained[k] for k in ("metrics", "layers", "curves")] == [row[k] for k in ("metrics", "layers", "curves")]


def test_a_start_that_does_not_exist_or_does_not_fit_is_refused(tmp_path):
    def refused(start, message, config=NET):
        with pytest.raises(ConfigError, match=message):
            swept_into(tmp_path, [Variant("dfa", config, start=start)])

    refused(Snapshot(NET, 5), "choose 1 to 2")
    refused(Snapshot(NET.replace(width=32), 1), "network.width=16 differs from the snapshot's 32")
    refused(Snapshot(NET.replace(train_size=64), 1), "task.train_size=32 differs from the snapshot's 64")
    refused(Snapshot(NET.replace(network=jc.image_mlp()), 1), r"network=ladder_mlp\(.*snapshot's image_mlp\(")
    images = jc.Config(task=jc.tasks.cifar10(crops=False))
    Snapshot(images, 1).check(jc.Config(task=jc.tasks.cifar10(flips=False)))
    with pytest.raises(ConfigError, match=r"task.evaluate_on='test' differs from the snapshot's 'validation'"):
        Snapshot(images.replace(evaluate_on="validation"), 1).check(images)
    assert not list(tmp_path.iterdir())


def test_a_start_on_arrays_or_with_a_teacher_is_compared_inside():
    def task(factor):
        x = factor * np.eye(4, dtype=np.float32)
        return jc.tasks.arrays(x, np.array([0, 1, 0, 1]), x, np.array([0, 1, 0, 1]))

    same = tiny(jc.bp(), task=task(1))
    Snapshot(same, 1).check(tiny(jc.dfa(), task=task(1)))
    with pytest.raises(ConfigError, match=r"task\.data='sha256:"):
        Snapshot(same, 1).check(tiny(jc.dfa(), task=task(2)))
    taught = NET.replace(task=jc.tasks.teacher(teacher_network=jc.ladder_mlp(depth=2)))
    with pytest.raises(ConfigError, match=r"task.teacher_network.depth=3 differs from the snapshot's 2"):
        Snapshot(taught, 1).check(taught.replace(**{"task.teacher_network.depth": 3}))


def test_keys_tell_starts_and_followups_apart():
    plain = Variant("dfa", tiny(jc.dfa()))
    variants = [
        plain, plain._replace(start=START), plain._replace(start=Snapshot(NET, 1)),
        plain._replace(start=Snapshot(NET.replace(learning_rate=0.1), 2)),
        plain._replace(start=START, followup=SIZE),
        plain._replace(start=START, followup=SIZE._replace(settings=Settings(2.0))),
        plain._replace(start=START, followup=SIZE._replace(settings=Settings(rules=(jc.target_shift(eta=0.2),)))),
    ]  # fmt: skip
    assert len({v.hash for v in variants}) == len(variants)
    assert len({v.run_hash for v in variants}) == 4
    assert plain.hash == config_hash(plain.config)
    assert plain._replace(keep=(1,)).hash == plain.hash  # keeping changes nothing


def test_frozen_parameters_do_not_move(tmp_path):
    [params] = networks(tmp_path, NET, (2,)).values()
    [fit] = fits(START, BRIDGE)
    run = make_run(fit.config)
    hp, key = run.hparams(fit.config), jax.random.key(3)
    before = run.init(key, hp)._replace(params=params)
    after, _ = quick(run.epoch)(before, hp, run.data(key, hp))
    assert same_bits(after.params, params)
    assert not same_bits(after.est_state.params, before.est_state.params)


def test_fits_start_at_the_snapshot_and_are_followed_up_without_training_again(tmp_path, compiled):
    rows = swept_into(tmp_path, fits(START, LINES))
    assert len(compiled) == 4  # the network, and three fits
    last = snapshots.find(tmp_path, (config_hash(NET), 3), 2)
    assert last is not None and last.epoch == 2
    accuracy = last.history[-1]["test_accuracy"][0]
    assert all(set(row["curves"]["test_accuracy"]) == {accuracy} for row in rows)  # it never moves

    measured = swept_into(tmp_path, fits(START, LINES, followup=SIZE), "measured")
    assert len(compiled) == 4
    for fit, row in zip(rows, measured, strict=True):
        assert row["metrics"].items() > fit["metrics"].items() and row["layers"] == fit["layers"]
        assert row["config_hash"] != fit["config_hash"] and row["start"] == fit["start"]
        assert row["followup"] == {"name": "size", "factor": 1.0, "rules": [{"rule": "inner_product"}]}
        assert row["curves"]["sizes"] == [pytest.approx(row["metrics"]["size"])]
    sizes = [row["metrics"]["size"] for row in measured]
    assert sizes[0] == 0 and min(sizes[1:]) > 1  # the estimators' own states, not fresh ones of another line


def test_a_followup_trains_what_nobody_has_kept_and_keeps_it(tmp_path, compiled):
    own = Snapshot(NET, 1)
    [row] = swept_into(tmp_path, fits(own, BRIDGE, followup=SIZE), "measured")
    assert len(compiled) == 2
    [fit] = swept_into(tmp_path, fits(own, BRIDGE))
    assert len(compiled) == 2 and fit["metrics"].items() < row["metrics"].items()
    assert row["start"]["config"]["credit"] == {"estimator": "bp"} and row["start"]["epoch"] == 1


def test_a_run_with_several_followups_is_trained_once(tmp_path, compiled):
    twice = SIZE._replace(settings=Settings(2.0))
    bare = [variant._replace(keep=()) for variant in fits(START, BRIDGE)]
    lines = [*bare, *fits(START, BRIDGE, followup=SIZE), *fits(START, BRIDGE, followup=twice)]
    rows = swept_into(tmp_path, lines)
    assert [credit.name for credit in compiled] == ["bp", "scalar_bridge"]
    assert "size" not in rows[0]["metrics"] and rows[2]["metrics"]["size"] == 2 * rows[1]["metrics"]["size"]


def test_a_line_that_others_start_from_is_trained_once(tmp_path, compiled):
    slow = Variant("slow", NET.replace(learning_rate=1e-4))
    rows = swept_into(tmp_path, [Variant("bp", NET), slow, *fits(START, {"dfa": jc.dfa()})])
    assert [credit.name for credit in compiled] == ["bp", "bp", "dfa"]  # the network; the slow one; the fit
    by_label = {row["label"]: row for row in rows}
    assert by_label["slow"]["timing"]["runs_in_program"] == 1
    accuracy = by_label["bp"]["metrics"]["test_accuracy"]
    assert by_label["dfa"]["metrics"]["test_accuracy"] == accuracy


def test_overridden_settings_reach_the_network_and_the_data_of_a_snapshot():
    changed = START.overridden({"width": 32, "epochs": 7, "train_size": "64", "credit.sigma": 0.1, "learning_rate": 1})
    assert changed.config == NET.replace(**{"network.width": 32, "task.train_size": 64}) and changed.epoch == 2
    images = Snapshot(NET.replace(task=jc.tasks.cifar10(), network=jc.image_mlp()), 2)
    assert images.overridden({"crops": False}) == images


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def as_before_digests(kept):
    meta = kept / "meta.json"
    meta.write_text(json.dumps(read_sealed(meta)["progress"]))


DAMAGE = {
    "no JSON": (lambda kept: (kept / "meta.json").write_text("{"), "meta.json: not readable"),
    "no meta": (lambda kept: (kept / "meta.json").unlink(), "meta.json is missing"),
    "before digests": (as_before_digests, "meta.json: it has no digest"),
    "a flipped bit": (lambda kept: flip_a_bit(largest_file(kept / "network")), "does not have its digest"),
    "no arrays": (lambda kept: shutil.rmtree(kept / "network"), "network is missing"),
    "another epoch": (
        lambda kept: shutil.rmtree(kept) or shutil.copytree(kept.with_name(f"{kept.name[:-1]}1"), kept), "kept, not",
    ),
}  # fmt: skip


def test_damage_is_named_and_set_aside_and_the_network_trained_again(tmp_path, compiled, caplog):
    before = networks(tmp_path, NET, (2,))
    kept = snapshots.directory(tmp_path, (config_hash(NET), 3), 2)
    for act, message in DAMAGE.values():
        caplog.clear()
        act(kept)
        again = networks(tmp_path, NET, (2,))
        assert same_bits(again[2], before[2])
        [warning] = caplog.messages
        assert message in warning and "trained again" in warning and "\n" not in warning
    assert len(list(kept.parent.glob("*.damaged-*"))) == len(DAMAGE) and len(compiled) == 1 + len(DAMAGE)
