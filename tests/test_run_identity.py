"""Who a run is: its key, its row in another experiment, and the code that it is credited to."""

import importlib
import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys

import jax
import pytest
from helpers import measured, sweep_into, tiny, variant

import jcredit as jc
from jcredit.report.rows import read_rows
from jcredit.sweeps import program, record, run
from jcredit.sweeps.layout import Layout

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")


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
    assert [c.name for c in compiled] == [f"{__name__}.turned", f"{__name__}.halved"]
    assert [(r["block"], r["method"]) for r in rows] == [("A", f"{__name__}.turned"), ("B", f"{__name__}.halved")]
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
    one = record.git_commit(checkout)
    (checkout / "jcredit/__init__.py").write_text("changed = False\n")
    other = record.git_commit(checkout)
    assert one != other and {found[:13] for found in (one, other)} == {own + "+"}
    (checkout / "jcredit/new.py").write_text("")
    assert record.git_commit(checkout) not in (one, other)  # git's own diff knows no new files
    (checkout / "jcredit/new.py").unlink()
    (checkout / "jcredit/.#lock.py").symlink_to("nowhere")  # as editors leave them
    assert record.git_commit(checkout)[:13] == own + "+"
    (checkout / "jcredit/.#lock.py").unlink()
    assert record.git_commit(checkout) == other
    (checkout / "pyproject.toml").write_text('[project]\nname = "somebody"\n')
    assert record.git_commit(checkout) is None  # a copy of the package in somebody else's repository
    (checkout / "pyproject.toml").write_text('[project]\nname = "jcredit"\n')
    inside = checkout / "venv/site-packages"  # installed below a checkout that is not what runs
    (inside / "jcredit").mkdir(parents=True)
    assert record.git_commit(inside) is None
    (inside / "pyproject.toml").write_text('[project]\nname = "jcredit"\n')
    assert record.git_commit(inside) is None
    assert record.git_commit(tmp_path) is None  # no repository at all


def test_a_changed_tree_is_told_whatever_shows_its_changes(checkout, monkeypatch):
    own = record.git_commit(checkout)
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "true")
    (checkout / "jcredit/__init__.py").write_bytes(b"# \xff, not of UTF-8")
    assert record.git_commit(checkout)[:13] == own + "+"


def test_a_copy_that_is_not_installed_has_no_version(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert set(record.versions().values()) == {"unknown"}


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


def test_a_run_that_goes_on_elsewhere_names_both_places(tmp_path, monkeypatch, caplog):
    real, here = program._one_epoch, record.versions()
    with monkeypatch.context() as patch:
        patch.setattr(program, "_one_epoch", lambda *args: os.kill(os.getpid(), signal.SIGINT) or real(*args))
        with pytest.raises(program.Stopped):
            sweep_into(tmp_path, [variant(epochs=2)], (0,))
    monkeypatch.setattr(record, "versions", lambda: {**here, "jax": "99.0"})
    monkeypatch.setattr(record, "device", lambda: "gpu: another")
    [row] = sweep_into(tmp_path, [variant(epochs=2)], (0,))
    assert row["versions"] == {**here, "jax": f"{here['jax']}, 99.0"} and here["jcredit"]
    assert row["device"].startswith("cpu: ") and row["device"].endswith(", gpu: another")
    [warning] = caplog.messages
    assert f"begun with jax {here['jax']}, here 99.0, device cpu" in warning
    older = record.Progress(Layout(1, 1), None, versions={"gone": "1.0"})  # a package that is asked for no more
    assert older.begun_elsewhere() == "gone 1.0, here none"
    went_on = older.continued_by(None)
    assert went_on.versions["gone"] == "1.0, none" and went_on.begun_elsewhere() == ""


def test_a_row_says_that_it_was_run_in_float64(x64):
    rows = jc.sweep({"dfa": tiny(jc.dfa())}, [0], progress=False)
    assert rows[0]["numerics"] == {"enable_x64": True}
    assert "Run with enable_x64=True: dfa." in rows.table()
