"""Who owns a batch: rows that nobody took, two processes at one batch, and whom one waits for."""

import threading
import time

import pytest
from batches import NET, batch_of, group_of, in_order, line
from helpers import sweep_into

import jcredit as jc
from jcredit.report.rows import append_rows, read_rows
from jcredit.sweeps import batch, owners, snapshots
from jcredit.sweeps.batch import BatchError, run_batch
from jcredit.sweeps.program import forget
from jcredit.sweeps.variants import snapshot_request

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")


def test_rows_that_nobody_took_are_found_and_not_made_again(tmp_path, compiled):
    with owners.present(tmp_path, "a sweep") as sweep:
        one = batch_of(tmp_path, group_of(line()), sweep.id)
        rows = run_batch(one)
        assert run_batch(one) == rows and len(compiled) == 1  # sent twice, as when a worker seemed dead
    # The sweep was killed before it wrote them.  Another command finds them, wherever the seeds stand in its own.
    assert in_order(sweep_into(tmp_path, [line()], (1, 0))) == in_order(rows) and len(compiled) == 1
    assert not list((tmp_path / "tiny/smoke/cache").iterdir())


def test_rows_that_nobody_took_count_for_a_sweep_of_other_seeds(tmp_path, compiled):
    with owners.present(tmp_path, "a sweep") as sweep:
        made = run_batch(batch_of(tmp_path, group_of(line()), sweep.id))
    found = sweep_into(tmp_path, [line()], (1, 2))
    assert [row["seed"] for row in found] == [1, 2] and found[0] == made[1] and len(compiled) == 2
    assert [row["seed"] for row in read_rows(tmp_path / "tiny/smoke/rows.jsonl")] == [0, 1, 2]
    assert not list((tmp_path / "tiny/smoke/cache").iterdir())


def test_rows_that_another_sweep_wrote_meanwhile_are_taken(tmp_path, compiled):
    with owners.present(tmp_path, "a sweep") as sweep:
        one = batch_of(tmp_path, group_of(line()), sweep.id)
        rows = run_batch(one)
        append_rows(one.folder.rows, rows)
        forget(one.group, one.unfinished)
        assert run_batch(one) == [] and len(compiled) == 1
        append_rows(one.folder.rows, rows, known="leave")
        assert read_rows(one.folder.rows) == rows


def test_two_processes_at_one_batch_train_it_once(tmp_path, pool, compiled):
    with owners.present(tmp_path, "a sweep") as sweep:
        one = batch_of(tmp_path, group_of(line()), sweep.id)
        first, second = (f.result() for f in [pool.submit(run_batch, one), pool.submit(run_batch, one)])
    assert first == second and len(first) == 2 and len(compiled) == 1


def test_two_sweeps_that_start_from_one_network_train_it_once(tmp_path, pool, monkeypatch):
    """They want other seeds beside it: their batches differ, and only the network's owner keeps them apart."""
    trained, real = [], batch.advance
    monkeypatch.setattr(
        batch, "advance", lambda group, *a: trained.append([r.seed for r in group]) or real(group, *a)
    )  # fmt: skip
    with owners.present(tmp_path, "a sweep") as sweep:
        batches = [
            batch_of(tmp_path, [snapshot_request(NET, seed, [2]) for seed in seeds], sweep.id, folder=False)
            for seeds in ((0, 1), (1, 2))
        ]
        assert [f.result() for f in [pool.submit(run_batch, b) for b in batches]] == [[], []]
    assert sorted(trained) in ([[0], [1, 2]], [[0, 1], [2]])
    assert all(snapshots.find(tmp_path, (line("", jc.bp()).run_hash, seed), 3) for seed in (0, 1, 2))
    assert not list(snapshots.unfinished(tmp_path).glob("*"))


def test_a_batch_waits_for_the_owner_of_a_network_and_says_whom_for(tmp_path, monkeypatch, compiled, caplog):
    monkeypatch.setattr(owners, "POLL_SECONDS", 0.01)
    request = snapshot_request(NET, 0, [2])
    name = owners.kept_name("{}-{}".format(*request.run_key))
    ends, owning = threading.Event(), threading.Event()

    def own():
        with owners.present(tmp_path, "somebody's batch") as me, owners.owned(tmp_path, me, [name]):
            owning.set()
            ends.wait()

    thread = threading.Thread(target=own)
    thread.start()
    owning.wait()
    trainer = threading.Thread(target=sweep_into, args=(tmp_path, [request.variant], (request.seed,)))
    trainer.start()
    while "waiting for somebody's batch on" not in caplog.text:
        time.sleep(0.01)
    assert not compiled
    ends.set()
    trainer.join()
    thread.join()
    assert len(compiled) == 1 and snapshots.has_kept(request, tmp_path)
    assert caplog.text.count("waiting for") == 1


def test_a_sweep_trains_its_other_lines_while_another_is_at_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "POLL_SECONDS", 0.01)
    lines, rows = [line(), line("bp", jc.bp())], tmp_path / "tiny/smoke/rows.jsonl"
    ends, owning = threading.Event(), threading.Event()

    def own():
        first = batch_of(tmp_path, group_of(lines[0]))
        names = batch.owned_by(first, first.group)
        with owners.present(tmp_path, "somebody's batch") as me, owners.owned(tmp_path, me, names):
            owning.set()
            ends.wait()

    thread, sweep = threading.Thread(target=own), threading.Thread(target=sweep_into, args=(tmp_path, lines, (0, 1)))
    thread.start()
    owning.wait()
    sweep.start()
    while not rows.exists() or len(read_rows(rows)) < 2:
        time.sleep(0.01)
    assert {row["label"] for row in read_rows(rows)} == {"bp"}
    ends.set()
    sweep.join()
    thread.join()
    assert [row["label"] for row in read_rows(rows)] == ["bp", "bp", "dfa", "dfa"]


def test_a_worker_that_does_not_see_the_results_says_so_and_writes_nothing(tmp_path):
    with pytest.raises(BatchError, match=r"elsewhere on .* file system that all workers share"):
        run_batch(batch_of(tmp_path / "elsewhere", group_of(line()), "0123456789ab"))
    assert not list(tmp_path.iterdir())
