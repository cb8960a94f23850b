"""Two workers of a Dask cluster, each a process: the bits of one process, whatever is killed on the way.

Nothing hangs on which process is faster: workers are held at an epoch, where all of them have a checkpoint, until the
test has done what it wants done there.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jcredit.report.rows import read_rows
from jcredit.sweeps import owners

pytest.importorskip("distributed", reason="needs the extra: pip install 'jcredit[cluster]'")
pytestmark = pytest.mark.slow

PATIENCE = 240
"""Seconds after which something is not going to happen, on a machine that does much else."""
EPOCHS, HELD_AT = 6, 3
SCRIPT = Path(__file__).parent.parent / "experiments/synth_ladder.py"
SWEEP = f"""
import contextlib, sys
import jcredit as jc
from jcredit.sweeps import program
from jcredit.sweeps.batch import BatchError
from jcredit.sweeps.cluster import dask_cluster
from jcredit.sweeps.layout import use_all_cores
from jcredit.sweeps.run import run_sweep
from jcredit.sweeps.variants import Folder, Snapshot, Variant
from their_parts import turned

address, results, workers, *labels = sys.argv[1:]
use_all_cores()
base = jc.Config(
    task=jc.tasks.teacher(classes=4, train_size=64, test_size=16), network=jc.ladder_mlp(depth=2, width=8),
    batch_size=8, epochs={EPOCHS}, diagnostic_samples=16, diagnose_every=50,
)
fit = base.replace(credit=jc.dfa(), trains="nothing", epochs=2)
lines = [
    Variant("bp", base), Variant("dfa", base.replace(credit=jc.dfa())),
    Variant("own", base.replace(credit=turned(by=2))), Variant("fit", fit, start=Snapshot(base, 3)),
]
lines = [line for line in lines if line.label in labels]
if address != "none":
    program.CHECKPOINT_SECONDS = 0.0  # after every epoch
with dask_cluster(address) if address != "none" else contextlib.nullcontext() as executor:
    if executor is not None:  # how many there are decides how programs are split
        int(workers) and executor._client.wait_for_workers(int(workers))
    try:
        run_sweep(lines, [0, 1], Folder(results, "tiny", "smoke"), progress=False, executor=executor)
    except BatchError as error:
        sys.exit(f"BatchError: {{error}}")
"""
ITEM = f"""
[[item]]
name = "two-lines"
script = "synth_ladder"
preset = "smoke"
overrides = {{epochs = {EPOCHS}}}
seeds = [0, 1]
lines = ["alpha = 1, L = 2 | frozen", "alpha = 1, L = 2 | scalar_bridge"]
hours = 0.1
why = "each of two workers has one"
"""
WATCHED = f"""
import json, os, pathlib, time
from jcredit.sweeps import program
here, one_epoch = pathlib.Path(__file__).parent, program._one_epoch

def watched(group, compiled, state, hp, data, progress):
    runs = [[request.variant.label, request.seed] for request in group]
    if progress.epoch == {HELD_AT} and (here / "hold").exists():
        (here / f"held-{{os.getpid()}}").touch()
        while (here / "hold").exists():
            time.sleep(0.01)
    with (here / "epochs.jsonl").open("a") as file:
        file.write(json.dumps([os.getpid(), runs, progress.epoch]) + chr(10))
    return one_epoch(group, compiled, state, hp, data, progress)

program._one_epoch = watched
"""
"""What workers import first, as ``watched``."""
THEIR_PARTS = '''"""A user's own estimator, in a folder that no worker knows."""
import jax.numpy as jnp
import jcredit as jc

@jc.estimator
def turned(by: jc.Count = 1) -> jc.Estimator:
    inner = jc.broadcast().build()
    return inner._replace(credit=lambda *args: jnp.roll(inner.credit(*args), by, -1))
'''


def soon(found):
    """The first true value that ``found`` gives."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.02)
    pytest.fail("it did not happen")


class Cluster:
    """Processes of a cluster and its user, below one folder."""

    def __init__(self, folder):
        self.folder, self.workers, self.all = folder, [], []
        for name in ("theirs", "elsewhere", "watched"):
            (folder / name).mkdir()
        (folder / "watched/watched.py").write_text(WATCHED)
        (folder / "theirs/their_parts.py").write_text(THEIR_PARTS)
        (folder / "theirs/sweep.py").write_text(SWEEP)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"

    def start(self, *command, cwd="theirs", **options):
        environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JCREDIT_CACHE": str(self.folder / "cache")}
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=self.folder / cwd, env=environment, text=True, **options
        )  # fmt: skip
        self.all.append(process)
        return process

    def scheduler(self):
        host, port = self.address.removeprefix("tcp://").split(":")
        log = (self.folder / "scheduler.log").open("a")
        code = "from distributed.cli.dask_scheduler import main; main()"
        return self.start("-c", code, "--host", host, "--port", port, "--no-dashboard", stdout=log, stderr=log)

    def worker(self):
        log = (self.folder / f"worker{len(self.workers)}.log").open("a")
        code = (
            f"import sys; sys.path.insert(0, {str(self.folder / 'watched')!r}); import watched;"
            " from distributed.cli.dask_worker import main; main()"
        )
        options = ("--nthreads", 1, "--no-nanny", "--no-dashboard")
        self.workers.append(self.start("-c", code, self.address, *options, cwd="elsewhere", stdout=log, stderr=log))
        return self.workers[-1]

    def sweep(self, results, *labels, address=None):
        """A sweep that begins when all workers are there."""
        to = address or self.address
        return self.start(
            "sweep.py", to, self.folder / results, len(self.workers), *labels, stderr=subprocess.PIPE
        )  # fmt: skip

    def hold(self):
        """From now on, workers wait before they go beyond epoch HELD_AT."""
        (self.folder / "watched/hold").touch()

    def held(self, sweep, count):
        """Waits until so many workers are held, and returns the owners of their batches by process id."""

        def found():
            assert sweep.poll() is None, f"it has ended: {sweep.communicate()[1]}"
            return len(list((self.folder / "watched").glob("held-*"))) == count

        soon(found)
        return {owner.pid: owner for owner in self.owners()}

    def release(self):
        """Held workers go on."""
        (self.folder / "watched/hold").unlink()

    def epochs(self):
        """The epochs that each worker has trained of each batch: {(process id, seeds of labels): epochs}."""
        found = {}
        for line in (self.folder / "watched/epochs.jsonl").read_text().splitlines():
            pid, runs, epoch = json.loads(line)
            found.setdefault((pid, tuple(map(tuple, runs))), []).append(epoch)
        return found

    def owners(self, results="results"):
        """Batches that are being trained."""
        if not owners.registry(self.folder / results).exists():
            return []
        return [owner for owner in owners.living(self.folder / results) if owner.names]

    def stop(self):
        for process in self.all:
            process.kill()
        for process in self.all:
            process.communicate()


def ends(process, status=0):
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, err
    return err


def rows_in(folder):
    """Rows by line and seed, without times, and without the commit, which changes if the tree is edited meanwhile."""
    [path] = folder.glob("*/*/rows.jsonl")
    left_out = ("timing", "git_commit")
    return {
        (r["block"], r["label"], r["seed"]): {k: v for k, v in r.items() if k not in left_out} for r in read_rows(path)
    }


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    cluster.scheduler()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The rows of one process that nobody disturbs."""
    alone = Cluster(tmp_path_factory.mktemp("alone"))
    ends(alone.sweep("results", "bp", "dfa", "own", "fit", address="none"))
    rows = rows_in(alone.folder / "results")
    assert len(rows) == 8
    return lambda *labels: {key: row for key, row in rows.items() if key[1] in labels}


def test_two_workers_give_the_rows_of_one_process(cluster, expected):
    """With a network that others start from, and an estimator of the user's own."""
    workers = {cluster.worker().pid, cluster.worker().pid}
    cluster.hold()
    sweep = cluster.sweep("results", "bp", "dfa", "own", "fit")
    assert cluster.held(sweep, 2).keys() == workers
    cluster.release()
    ends(sweep)
    assert rows_in(cluster.folder / "results") == expected("bp", "dfa", "own", "fit")
    assert not list((cluster.folder / "results/tiny/smoke/cache").iterdir()) and not cluster.owners()


def test_a_killed_workers_batch_goes_on_in_another_from_its_checkpoint(cluster, expected):
    killed, other = cluster.worker(), cluster.worker()
    cluster.hold()
    sweep = cluster.sweep("results", "dfa")  # one program: a share of its runs for each worker
    assert len(set(cluster.held(sweep, 2)[killed.pid].names)) == 1
    killed.kill()
    killed.wait()
    [still] = cluster.owners()
    assert still.pid == other.pid
    cluster.release()
    ends(sweep)
    [(its, first), *_] = [(runs, epochs) for (pid, runs), epochs in cluster.epochs().items() if pid == killed.pid]
    assert first == list(range(HELD_AT))
    [theirs] = {runs for pid, runs in cluster.epochs() if pid == other.pid} - {its}
    assert cluster.epochs() == {
        (killed.pid, its): first, (other.pid, theirs): list(range(EPOCHS)),
        (other.pid, its): list(range(HELD_AT, EPOCHS)),  # never from the start again
    }  # fmt: skip
    assert rows_in(cluster.folder / "results") == expected("dfa")


def test_a_lost_scheduler_is_said_and_the_same_command_goes_on(cluster, expected):
    cluster.worker(), cluster.worker()
    cluster.hold()
    sweep = cluster.sweep("results", "dfa", "own")
    cluster.held(sweep, 2)
    cluster.all[0].kill()
    message = ends(sweep, status=1).strip().splitlines()[-1]
    assert message.startswith("BatchError: the scheduler") and "the same command goes on" in message
    cluster.release()
    cluster.scheduler()
    cluster.workers.clear()
    cluster.worker(), cluster.worker()
    ends(cluster.sweep("results", "dfa", "own"))
    assert rows_in(cluster.folder / "results") == expected("dfa", "own")
    assert not list((cluster.folder / "results/tiny/smoke/cache").iterdir())


def test_a_worker_that_joins_late_gets_work(cluster, expected):
    cluster.hold()
    sweep = cluster.sweep("results", "bp", "dfa", "own")
    soon(lambda: owners.registry(cluster.folder / "results").exists() and owners.living(cluster.folder / "results"))
    early = cluster.worker()  # there was none when batches were made
    assert cluster.held(sweep, 1).keys() == {early.pid}
    late = cluster.worker()
    assert cluster.held(sweep, 2).keys() == {early.pid, late.pid}
    cluster.release()
    ends(sweep)
    assert rows_in(cluster.folder / "results") == expected("bp", "dfa", "own")


def test_the_list_of_reproduce_runs_on_it(cluster):
    """An item with two seeds of two lines, each line a program and each seed a batch."""
    listed = cluster.folder / "theirs/experiments"
    listed.mkdir()
    (listed / SCRIPT.name).write_text(SCRIPT.read_text())
    (listed / "reproduce.toml").write_text(ITEM)
    command = ["-m", "jcredit", "reproduce", "--no-progress", "--results-dir"]
    workers = {cluster.worker().pid, cluster.worker().pid}
    cluster.hold()
    at = ("--scheduler", cluster.address, "--batch-runs", 1)
    run = cluster.start(*command, cluster.folder / "results", *at, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    held = cluster.held(run, 2)
    assert held.keys() == workers and all(", 1 run, " in owner.what for owner in held.values())
    cluster.release()
    ends(run)
    ends(cluster.start(*command, cluster.folder / "alone", stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    found = rows_in(cluster.folder / "results")
    assert found == rows_in(cluster.folder / "alone") and len(found) == 4


@pytest.mark.faults
def test_a_killed_sweeps_batch_is_finished_by_its_worker_and_taken_by_the_next_one(cluster, expected):
    cluster.worker()
    cluster.hold()
    sweep = cluster.sweep("results", "dfa")
    cluster.held(sweep, 1)
    sweep.kill()
    cluster.release()
    soon(lambda: not cluster.owners())
    [finished] = (cluster.folder / "results/tiny/smoke/cache").glob("*/rows.json")
    made = json.loads(finished.read_text())["rows"]
    ends(cluster.sweep("results", "dfa", address="none"))
    assert read_rows(cluster.folder / "results/tiny/smoke/rows.jsonl") == made  # their times too: taken, not made
    assert rows_in(cluster.folder / "results") == expected("dfa") and not finished.parent.exists()


@pytest.mark.faults
def test_a_terminated_command_prints_the_one_that_goes_on(cluster, tmp_path):
    arguments = ["--preset", "smoke", "--methods", "frozen", "bp", "--no-progress", "--fresh", "--results-dir"]
    cluster.worker()
    at = ("--scheduler", cluster.address)
    run = cluster.start(SCRIPT, *arguments, tmp_path / "results", *at, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    soon(lambda: cluster.owners("results/fresh-1"))
    run.send_signal(signal.SIGTERM)
    command = ends(run, 128 + signal.SIGTERM).strip().splitlines()[-1].partition("goes on from there: ")[2]
    assert shlex.split(command)[:2] == ["python", str(SCRIPT)] and "--fresh" not in command
    ends(cluster.start(*shlex.split(command)[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    ends(cluster.start(SCRIPT, *arguments, tmp_path / "alone", stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    found = rows_in(tmp_path / "results/fresh-1")
    assert found == rows_in(tmp_path / "alone/fresh-1") and len(found) > 1
