"""Who owns what in a results directory: one living owner each, whatever process; what the dead left is removed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jcredit import files
from jcredit.sweeps import owners

HOLD = """
import sys, time
from jcredit import files
from jcredit.sweeps import owners
with owners.present(sys.argv[1], "a batch", "of a sweep") as me, owners.owned(sys.argv[1], me, sys.argv[2:]):
    with files.replacing(sys.argv[1] + "/rows.jsonl") as file:
        print(me.id, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that owns some names and is writing a file; it lives until the test ends."""
    started = []

    def start(*names):
        process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, *names], stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


class TooLong(Exception):
    """Raised in place of waiting for ever."""


def give_up(other):
    raise TooLong(str(other))


def test_a_name_has_one_owner_until_its_process_is_killed(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(owners, "POLL_SECONDS", 0.01)
    process, id = holder("a", "b")
    [other] = owners.living(tmp_path)
    assert (other.id, other.pid, other.names, other.sweep) == (id, process.pid, ("a", "b"), "of a sweep")
    with owners.present(tmp_path, "mine") as me:
        with pytest.raises(TooLong, match=rf"a batch on .*, process {process.pid}, since 20"):
            with owners.owned(tmp_path, me, ["c", "b"], give_up):
                pytest.fail("owned by two")
        with owners.owned(tmp_path, me, ["c"], give_up):  # a claim that failed has taken nothing
            assert {o.names for o in owners.living(tmp_path)} == {("a", "b"), ("c",)}
        waited = []
        with owners.owned(tmp_path, me, ["b"], lambda o: waited.append(o) or os.kill(o.pid, signal.SIGKILL)):
            assert waited and {o.id for o in waited} == {id}
            process.wait()
            assert [o.id for o in owners.living(tmp_path)] == [me.id]
    assert not owners.living(tmp_path) and not list(owners.registry(tmp_path).iterdir())


def test_threads_of_one_process_own_nothing_together(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "POLL_SECONDS", 0.001)
    inside, most = [], []

    def work(i):
        for _ in range(5):
            with owners.present(tmp_path, f"thread {i}") as me, owners.owned(tmp_path, me, ["x", f"own {i}"]):
                inside.append(i)
                time.sleep(0.002)
                most.append(len(inside))
                inside.remove(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


def test_what_a_living_process_writes_stays_and_what_a_killed_one_left_goes(tmp_path, holder):
    process, _ = holder("kept abc-3", owners.in_flight_name(tmp_path, tmp_path / "x/y/cache/0123456789ab"))
    cache, kept = tmp_path / "x/y/cache", tmp_path / "cache/snapshots"
    living, dead, resumable, finished = ("0123456789ab", "123456789abc", "23456789abcd", "3456789abcde")
    for name in (living, dead, resumable, finished, "somebody's"):
        (cache / name / "checkpoint/000001").mkdir(parents=True)
    (cache / resumable / "checkpoint/000001/meta.json").touch()
    (cache / finished / "rows.json").touch()
    for name in (".abc-3-20.12345678.tmp", ".abc-4-20.12345678.tmp", "abc-4-20"):
        (kept / name / "network").mkdir(parents=True)
    (tmp_path / "x/y/.table.md.12345678.tmp").touch()
    (tmp_path / "x/y/.rows.jsonl.lock").touch()
    [written] = tmp_path.glob(".rows.jsonl.*.tmp")
    files.remove_leftovers(tmp_path)
    owners.remove_remains(tmp_path, [cache])
    assert written.exists()
    assert sorted(p.name for p in cache.iterdir()) == [living, resumable, finished, "somebody's"]
    assert sorted(p.name for p in kept.iterdir()) == [".abc-3-20.12345678.tmp", "abc-4-20"]
    assert [p.name for p in (tmp_path / "x/y").iterdir() if not p.is_dir()] == [".rows.jsonl.lock"]

    process.kill()
    process.wait()
    files.remove_leftovers(tmp_path)
    owners.remove_remains(tmp_path, [cache])
    assert not written.exists()
    assert sorted(p.name for p in cache.iterdir()) == [resumable, finished, "somebody's"]
    assert [p.name for p in kept.iterdir()] == ["abc-4-20"]


def test_a_sweep_asks_its_own_batches_to_stop_and_that_is_forgotten_with_it(tmp_path):
    with owners.present(tmp_path, "a sweep") as sweep, owners.present(tmp_path, "another") as other:
        owners.ask_to_stop(tmp_path, sweep.id)
        assert owners.asked_to_stop(tmp_path, sweep.id) and not owners.asked_to_stop(tmp_path, other.id)
    assert not owners.asked_to_stop(tmp_path, sweep.id)


def test_a_batch_that_outlives_the_sweep_which_asked_it_to_stop_still_hears_that(tmp_path):
    with contextlib.ExitStack() as outlives:
        with owners.present(tmp_path, "a sweep") as sweep:
            me = outlives.enter_context(owners.present(tmp_path, "a batch", sweep.id))
            owners.ask_to_stop(tmp_path, sweep.id)
        assert owners.asked_to_stop(tmp_path, me.sweep) and owners.living(tmp_path) == [me]
    assert not list(owners.registry(tmp_path).iterdir())


def test_a_full_disk_leaves_no_owner_that_others_stumble_over(tmp_path, monkeypatch):
    real = owners._write

    def torn(path, owner):
        path.write_text("")
        raise OSError(28, "No space left on device")

    with owners.present(tmp_path, "a batch") as me:
        monkeypatch.setattr(owners, "_write", torn)
        with pytest.raises(OSError, match="No space"), owners.present(tmp_path, "another"):
            pytest.fail("present")
        with pytest.raises(OSError, match="No space"), owners.owned(tmp_path, me, ["a"], give_up):
            pytest.fail("owned")
        monkeypatch.setattr(owners, "_write", real)
        assert owners.living(tmp_path) == []  # alive, and it owns nothing
        with owners.present(tmp_path, "a third") as third, owners.owned(tmp_path, third, ["a"], give_up):
            assert [owner.what for owner in owners.living(tmp_path)] == ["a third"]
    assert not list(owners.registry(tmp_path).iterdir())


def test_a_file_that_is_cleared_away_before_it_is_locked_is_begun_again(tmp_path, monkeypatch):
    real, cleared = files.fcntl.flock, []

    def clear_first(file, how):
        if not cleared:
            cleared.extend(path.unlink() or path for path in tmp_path.glob(".*.tmp"))
        return real(file, how)

    monkeypatch.setattr(files.fcntl, "flock", clear_first)
    files.write_text(tmp_path / "a.txt", "whole")
    assert len(cleared) == 1 and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"
