"""Two workers of a Dask cluster, each a process: the bits of one process, whatever is killed on the way."""

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
pytestmark = [pytest.mark.slow, pytest.mark.faults]  # processes are killed here: pytest -m faults

PATIENCE = 240
"""Seconds after which something is not going to happen."""
EPOCHS = 30
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

address, results, *labels = sys.argv[1:]
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
    try:
        run_sweep(lines, [0, 1], Folder(results, "tiny", "smoke"), progress=False, executor=executor)
    except BatchError as error:
        sys.exit(f"BatchError: {{error}}")
"""
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
        (folder / "theirs").mkdir()
        (folder / "elsewhere").mkdir()
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
        code = "from distributed.cli.dask_worker import main; main()"
        options = ("--nthreads", 1, "--no-nanny", "--no-dashboard")
        self.workers.append(self.start("-c", code, self.address, *options, cwd="elsewhere", stdout=log, stderr=log))
        return self.workers[-1]

    def sweep(self, results, *labels, address=None):
        return self.start(
            "sweep.py", address or self.address, self.folder / results, *labels, stderr=subprocess.PIPE
        )  # fmt: skip

    def owners(self, results="results"):
        """Batches that are being trained."""
        if not owners.registry(self.folder / results).exists():
            return []
        return [owner for owner in owners.living(self.folder / results) if owner.names]

    def epochs_kept(self):
        """How many epochs each in-flight checkpoint has, by its folder's name."""
        found = {}
        for path in sorted((self.folder / "results/tiny/smoke/cache").glob("*/checkpoint/*/meta.json")):
            try:
                found[path.parts[-4]] = len(json.loads(path.read_text())["meta"]["history"])
            except FileNotFoundError:  # the next one has taken its place
                continue
        return found

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
    sweep, took_part = cluster.sweep("results", "bp", "dfa", "own", "fit"), set()
    soon(lambda: took_part.update(o.pid for o in cluster.owners()) or sweep.poll() is not None)
    ends(sweep)
    assert rows_in(cluster.folder / "results") == expected("bp", "dfa", "own", "fit")
    assert took_part == workers
    assert not list((cluster.folder / "results/tiny/smoke/cache").iterdir()) and not cluster.owners()


def test_a_killed_workers_batch_goes_on_in_another_from_its_checkpoint(cluster, expected):
    cluster.worker(), cluster.worker()
    sweep = cluster.sweep("results", "dfa")  # one program: a share of its runs for each worker
    soon(lambda: len(cluster.epochs_kept()) == 2 and min(cluster.epochs_kept().values()) > 2)
    first, other = cluster.owners()
    os.kill(first.pid, signal.SIGKILL)
    folder = first.names[0].rpartition("/")[2]
    killed_at, seen = cluster.epochs_kept()[folder], set()
    soon(lambda: [o for o in cluster.owners() if o.names == first.names and o.pid == other.pid])
    soon(lambda: seen.add(cluster.epochs_kept().get(folder)) or sweep.poll() is not None)
    ends(sweep)
    seen.discard(None)
    assert killed_at <= min(seen) and max(seen) > killed_at  # never from the start again
    assert rows_in(cluster.folder / "results") == expected("dfa")


def test_a_lost_scheduler_is_said_and_the_same_command_goes_on(cluster, expected):
    cluster.worker(), cluster.worker()
    sweep = cluster.sweep("results", "dfa", "own")
    soon(lambda: max(cluster.epochs_kept().values(), default=0) > 3)
    cluster.all[0].kill()
    message = ends(sweep, status=1).strip().splitlines()[-1]
    assert message.startswith("BatchError: the scheduler") and "the same command goes on" in message
    cluster.scheduler()
    cluster.worker(), cluster.worker()
    ends(cluster.sweep("results", "dfa", "own"))
    assert rows_in(cluster.folder / "results") == expected("dfa", "own")
    assert not list((cluster.folder / "results/tiny/smoke/cache").iterdir())


def test_a_worker_that_joins_late_gets_work(cluster, expected):
    early = cluster.worker()
    sweep = cluster.sweep("results", "bp", "dfa", "own")
    soon(lambda: cluster.owners())
    late = cluster.worker()
    took_part = set()
    soon(lambda: took_part.update(o.pid for o in cluster.owners()) or sweep.poll() is not None)
    ends(sweep)
    assert took_part == {early.pid, late.pid}
    assert rows_in(cluster.folder / "results") == expected("bp", "dfa", "own")


def test_a_killed_sweeps_batch_is_finished_by_its_worker_and_taken_by_the_next_one(cluster, expected):
    cluster.worker()
    sweep = cluster.sweep("results", "dfa")
    soon(lambda: max(cluster.epochs_kept().values(), default=0) > 2)
    sweep.kill()
    soon(lambda: not cluster.owners())
    [finished] = (cluster.folder / "results/tiny/smoke/cache").glob("*/rows.json")
    made = json.loads(finished.read_text())["rows"]
    ends(cluster.sweep("results", "dfa", address="none"))
    assert read_rows(cluster.folder / "results/tiny/smoke/rows.jsonl") == made  # their times too: taken, not made
    assert rows_in(cluster.folder / "results") == expected("dfa") and not finished.parent.exists()


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
