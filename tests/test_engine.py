"""Batches on an executor: what waits for what, the rows of one process, failures, stops."""

import contextlib
import functools
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
from batches import NET, batch_of, fit, in_order, line
from helpers import sweep_into

import jcredit as jc
from jcredit.functions import _named
from jcredit.report.rows import read_rows
from jcredit.sweeps import engine, owners, program
from jcredit.sweeps.batch import BatchError
from jcredit.sweeps.cluster import ClusterError, dask_cluster
from jcredit.sweeps.program import Stopped, in_flight
from jcredit.sweeps.variants import Folder, Request, Variant, snapshot_request

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")

SENT = """
import jax.numpy as jnp
import jcredit as jc

@jc.estimator
def turned() -> jc.Estimator:
    inner = jc.broadcast().build()
    return inner._replace(credit=lambda *args: jnp.roll(inner.credit(*args), {by}, -1))
"""
LINES = [line(), line("bp", jc.bp()), fit()]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_an_executor_gives_the_rows_of_one_process_and_leaves_only_them(tmp_path, pool):
    here = sweep_into(tmp_path / "here", LINES)
    there = sweep_into(tmp_path / "there", LINES, executor=pool)
    assert in_order(there) == in_order(here) and len(here) == 6
    assert in_order(read_rows(tmp_path / "there/tiny/smoke/rows.jsonl")) == in_order(here)
    assert not list((tmp_path / "there/tiny/smoke/cache").iterdir()) and not owners.living(tmp_path / "there")
    assert sweep_into(tmp_path / "there", LINES, executor=None) == there  # nothing is left to be made


def test_a_program_can_be_split_into_batches_of_the_same_bits(tmp_path, pool):
    whole = sweep_into(tmp_path / "whole", [line()], (0, 1, 2))
    split = sweep_into(tmp_path / "split", [line()], (0, 1, 2), executor=pool, batch_runs=2)
    assert sorted(row["timing"]["runs_in_program"] for row in split) == [1, 2, 2]
    numbers = lambda rows: {r["seed"]: [r[k] for k in ("metrics", "layers", "curves")] for r in rows}  # noqa: E731
    assert numbers(split) == numbers(whole)


def test_an_even_share_goes_to_each_worker_only_where_there_are_more_of_them_than_programs(tmp_path):
    programs = [engine.Program([Request(line(), seed) for seed in range(5)], None, Folder(tmp_path, "a", "b"), 1.0)]  # type: ignore
    session = program.Session(tmp_path, None, None, None, lambda: False)  # type: ignore
    sizes = lambda *args: [len(b.group) for b, _ in engine._batches(*args)]  # noqa: E731
    assert sizes(programs, session, "", None, None, 1) == [5]
    assert sizes(programs, session, "", None, None, 3) == [2, 2, 1]
    assert sizes(programs, session, "", None, 4, 3) == [4, 1]
    assert sizes(3 * programs, session, "", None, None, 3) == [5, 5, 5]
    # A program that was cut off keeps its composition: its checkpoint is of all of its runs.
    in_flight(programs[0].group, Folder(tmp_path, "a", "b").unfinished).mkdir(parents=True)
    assert sizes(programs, session, "", None, None, 3) == [5]


def test_a_batch_is_sent_as_names_and_numbers():
    sent = batch_of("results", [Request(v, 3) for v in LINES])
    text = pickle.dumps(sent)
    assert pickle.loads(text) == sent and len(text) < 4000 and b"<lambda>" not in text


def test_what_workers_cannot_find_is_refused_before_anything_runs(tmp_path, pool, compiled):
    @jc.estimator
    def hidden() -> jc.Estimator:
        return jc.broadcast().build()

    with pytest.raises(
        jc.ConfigError, match=r"hidden is defined in test_engine, inside something else.*top of a module"
    ):
        sweep_into(tmp_path, [line(), line("mine", hidden())], executor=pool)
    assert not compiled and not (tmp_path / "tiny").exists()
    sweep_into(tmp_path, [line("mine", hidden(), epochs=1)], (0,))  # here it runs


def test_a_part_that_a_worker_lacks_or_has_otherwise_is_named(tmp_path, monkeypatch):
    module = "sent_parts_of_a_test"
    (tmp_path / f"{module}.py").write_text(SENT.format(by=1))
    with pytest.raises(jc.ConfigError, match=rf"module '{module}' cannot be imported on .*PYTHONPATH"):
        _named("estimator", module, "turned", str(tmp_path / "gone"), "0123456789ab")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(jc.ConfigError, match=rf"turned of .*{module}.py on .* is not the one that was sent"):
        _named("estimator", module, "turned", str(tmp_path), "0123456789ab")  # another source
    factory = sys.modules.pop(module).turned
    assert _named("estimator", module, "turned", str(tmp_path), factory.source).source == factory.source


def test_an_executor_needs_a_folder_that_all_see(pool):
    with pytest.raises(jc.ConfigError, match="needs results_dir"):
        jc.sweep({"bp": NET}, [0], executor=pool)


# --- order, failures, stops -------------------------------------------------------------------------------------------


def test_batches_wait_for_those_they_start_from_and_for_no_others(tmp_path):
    network = batch_of(tmp_path, [snapshot_request(NET, 0, [2])], folder=False)
    other, fitted, same = (batch_of(tmp_path, [Request(v, 0)]) for v in (line(), fit(), Variant("bp", NET)))
    futures, log = {}, []

    def begin(b):
        log.append(("begin", b))
        futures[b.name] = Future()
        return futures[b.name]

    def ended(b, rows):
        log.append(("end", b))

    def work():
        for b in (other, network, same, fitted):
            while b.name not in futures:
                time.sleep(0.001)
            time.sleep(0.02)
            futures[b.name].set_result([])

    thread = threading.Thread(target=work)
    thread.start()
    engine.hand_out(
        [network, fitted, other, same], begin, ended, stopping=lambda: False, halt=set, persistent=True
    )  # fmt: skip
    thread.join()
    assert [b for what, b in log if what == "begin"][:2] == [network, other]
    for waiting in (fitted, same):  # same is the network's own run, as a line of the table
        assert log.index(("begin", waiting)) > log.index(("end", network))


def test_what_others_are_at_comes_last_and_keeps_no_worker_waiting(tmp_path):
    taken, mine, also = (
        batch_of(tmp_path, [Request(v, 0)]) for v in (line(), line("fa", jc.fa()), line("bp", jc.bp()))
    )
    busy, log, asked = {taken.name}, [], []

    def begin(b):
        log.append(b)
        future = Future()
        if b is not also:
            future.set_result([])
        else:  # as long as one of this sweep's own runs, the batch of others waits here and not on a worker
            threading.Timer(2 * engine.POLL_SECONDS, future.set_result, [[]]).start()
        return future

    def free(b):
        asked.append(b)
        return b.name not in busy

    hand_out = functools.partial(
        engine.hand_out, begin=begin, take=lambda *_: None, stopping=lambda: False, halt=set, free=free
    )
    hand_out([taken, mine, also], persistent=True)
    assert log == [mine, also, taken] and asked.count(taken) > 3  # when nothing else is left it is begun all the same
    log.clear()
    hand_out([mine, taken], persistent=False)
    assert log == [mine, taken]
    log.clear()
    busy.clear()
    hand_out([taken, mine], persistent=False)
    assert log == [taken, mine]


def test_a_batch_that_fails_is_named_while_others_finish_and_what_starts_from_it_waits(
    tmp_path, pool, monkeypatch, caplog
):
    real, out_of_memory = program._compile, True

    def compile(one, *args):
        if one.config.credit.name == "bp" and out_of_memory:
            raise MemoryError("out of memory\nsecond line")
        return real(one, *args)

    monkeypatch.setattr(program, "_compile", compile)
    with pytest.raises(
        BatchError, match=r"snapshots: snapshot, 2 runs, .*: MemoryError: out of memory.*; 1 batches"
    ) as raised:
        sweep_into(tmp_path, [line(), fit()], executor=pool)
    assert "\n" not in str(raised.value) and "the same command goes on" in str(raised.value)
    assert "the other batches go on" in caplog.text
    assert {r["label"] for r in read_rows(tmp_path / "tiny/smoke/rows.jsonl")} == {"dfa"}
    out_of_memory = False
    assert len(sweep_into(tmp_path, [line(), fit()], executor=pool)) == 4


def test_a_pool_that_is_broken_when_it_is_handed_a_batch_is_one_line(tmp_path):
    def begin(batch):
        raise BrokenProcessPool("a child process terminated abruptly")

    with pytest.raises(BatchError, match=r"the pool that ran the batches, was lost .*abruptly.*; finished runs have"):
        engine.hand_out(
            [batch_of(tmp_path, [Request(line(), 0)])], begin, lambda *_: None, stopping=lambda: False, halt=set,
            persistent=False,
        )  # fmt: skip


def test_what_is_the_users_to_mend_is_said_as_it_is_and_other_errors_name_their_batch(tmp_path, pool, monkeypatch):
    for error, raised, said in (
        (ValueError("numpy's own"), BatchError, r"^batch .*dfa.*: ValueError: numpy's own.*; finished runs have their"),
        (jc.ConfigError("width=0 must be positive"), jc.ConfigError, r"^width=0 must be positive$"),
    ):
        monkeypatch.setattr(program, "_compile", lambda *args, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(raised, match=said):
            sweep_into(tmp_path, [line()], executor=pool)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_takes_back_what_has_not_begun_and_leaves_checkpoints_of_the_rest(tmp_path, pool, monkeypatch, number):
    lines = [line(), line("bp", jc.bp()), line("fa", jc.fa()), line("broadcast", jc.broadcast())]
    whole, real = sweep_into(tmp_path / "whole", lines), program._one_epoch
    signals, both = [number], threading.Barrier(2)

    def epoch(*args):
        both.wait(240)
        with contextlib.suppress(IndexError):  # one of the two threads sends it
            os.kill(os.getpid(), signals.pop())
        while not list(owners.registry(tmp_path / "cut").glob("*.stop")):
            time.sleep(0.005)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(program, "_one_epoch", epoch)
        with pytest.raises(Stopped, match=r"stopped; 2 of 4 batches had not begun; the same command goes on") as raised:
            sweep_into(tmp_path / "cut", lines, executor=pool)
    assert raised.value.signal == number
    assert len(list((tmp_path / "cut/tiny/smoke/cache").glob("*/checkpoint/*/meta.json"))) == 2
    assert not list(owners.registry(tmp_path / "cut").iterdir())
    assert in_order(sweep_into(tmp_path / "cut", lines, executor=pool)) == in_order(whole)


# --- a Dask cluster that is not there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "tcp://127.0.0.1:99999", ""])
def test_a_scheduler_that_does_not_answer_is_one_line(address, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("jcredit.sweeps.cluster.CONNECT_SECONDS", 0.5)
    with pytest.raises(ClusterError, match="--scheduler") as raised, dask_cluster(address):
        pytest.fail("connected")
    assert repr(address) in str(raised.value) and "dask scheduler" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r"pip install 'jcredit\[cluster\]'"), dask_cluster("tcp://127.0.0.1:1"):
        pytest.fail("connected")
