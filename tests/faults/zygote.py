"""Runs the command of sweep.py in forked children, and lets something happen to each at a moment of its own.

A server: it says the commit of its code, and then one answer on standard output for each request on standard input,
each a line of JSON.  It imports everything once and never touches a device, so that its children start at once, each
as a fresh process of its own.

Moments are counted by kind in each child: files that are opened for writing, renamed or removed (by what they belong
to), calls of ``fsync``, compilations and epochs.

A request may ask for a cluster: a Dask scheduler and workers, forked as well; then it is to these that things happen.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable

import dask
import jax
import orbax.checkpoint
import sweep
from distributed import Scheduler, Worker

from jcredit.sweeps import batch, program, run as sweeps_run
from jcredit.sweeps.record import git_commit

KINDS = ("compile", "epoch", "checkpoint", "kept network", "row", "rename", "fsync", "compile cache", "any file")
AT_WORK = ("starting", "compile", "epoch", "checkpoint", "kept network", "row", "compile cache", "between")
"""What a child was at when it ended; the last thing that began."""
PATIENCE = 300.0
"""Seconds after which the command of a cluster is not going to end."""
assert orbax.checkpoint.StandardCheckpointer  # imported once, here
COMMIT = git_commit()
"""Of the code that all children run, whatever is edited or committed meanwhile: rows are compared with it."""


class Board:
    """Counts of moments and what is under way, in memory that outlives the child."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 4 * (len(KINDS) + 1))

    def __getitem__(self, i: int) -> int:
        return struct.unpack_from("<I", self.memory, 4 * i)[0]

    def __setitem__(self, i: int, value: int) -> None:
        struct.pack_into("<I", self.memory, 4 * i, value)

    def at_work(self) -> str:
        return AT_WORK[self[len(KINDS)]]

    def begin(self, what: str) -> None:
        self[len(KINDS)] = AT_WORK.index(what)


class Fate:
    """What happens to a child, and when: the k-th moment of a kind, and some seconds later."""

    def __init__(self, plan: dict, board: Board, roots: tuple[str, ...]):
        self.plan, self.board, self.roots = plan, board, roots

    def hit(self, kind: str, takes_space: bool = False) -> None:
        i = KINDS.index(kind)
        self.board[i] += 1
        due = self.board[i] - self.plan.get("k", 1)
        if self.plan.get("at") != kind or due < 0:
            return
        if "errno" in self.plan:  # every write from here on: a disk stays full
            if takes_space:
                raise OSError(self.plan["errno"], os.strerror(self.plan["errno"]))
        elif due == 0:
            self.act()

    def act(self) -> None:
        if "once" in self.plan:  # in the first of several processes that comes to it
            try:
                os.close(os.open(self.plan["once"], os.O_CREAT | os.O_EXCL | os.O_RDONLY))
            except FileExistsError:
                return
        if "vanish" in self.plan:
            shutil.rmtree(self.plan["vanish"], ignore_errors=True)
        elif self.plan.get("delay"):
            threading.Thread(target=self.kill_later, daemon=True).start()
        else:
            os.kill(os.getpid(), self.plan.get("signal", signal.SIGKILL))

    def kill_later(self) -> None:
        time.sleep(self.plan["delay"])
        os.kill(os.getpid(), self.plan.get("signal", signal.SIGKILL))

    def watch(self, event: str, args: tuple) -> None:
        """An audit hook: called before a file is touched, and may raise instead."""
        if event == "open":
            path, flags = args[0], args[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            path = args[1] if event == "os.rename" else args[0]
        else:
            return
        path = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if not path.startswith(self.roots):
            return
        if (kind := kind_of(path)) is not None:
            self.board.begin(kind)
            self.hit(kind)
        if event == "os.rename":
            self.hit("rename")
        self.hit("any file", takes_space=event in ("open", "os.mkdir"))

    def install(self) -> None:
        fsync, one_epoch = os.fsync, program._one_epoch

        def counted_fsync(fd):
            self.hit("fsync")
            fsync(fd)

        def counted_epoch(*args):
            self.board.begin("epoch")
            self.hit("epoch")
            result = one_epoch(*args)
            self.board.begin("between")
            return result

        def compiling(event, **_):
            if event == "/jax/compilation_cache/compile_requests_use_cache":
                self.board.begin("compile")
                self.hit("compile")

        os.fsync, program._one_epoch = counted_fsync, counted_epoch
        jax.monitoring.register_event_listener(compiling)
        sys.addaudithook(self.watch)


def kind_of(path: str) -> str | None:
    """What a file belongs to."""
    if "/xla/" in path:
        return "compile cache"
    if "rows.json" in path:
        return "row"
    if "/snapshots/" in path:
        return "kept network"
    return "checkpoint" if "/checkpoint" in path or "program.json" in path else None


def set_up(request: dict, plan: dict, board: Board) -> None:
    """What every child of a request does first."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["JCREDIT_CACHE"] = request["cache"]
    program.CHECKPOINT_SECONDS = 0.0  # after every epoch, so that there is something to kill
    sweeps_run.git_commit = batch._commit = lambda: COMMIT
    if "file_size" in plan:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan["file_size"],) * 2)
    Fate(plan, board, (request["results"], request["cache"])).install()


def fork(act: Callable[[], None], request: dict, plan: dict, board: Board) -> int:
    """The process id of a new child that does something and ends."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        set_up(request, plan, board)
        act()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(argv: list[str]) -> None:
    """The command itself."""
    sys.argv = ["tests/faults/sweep.py", *argv]
    sweep.main(sweep.EXPERIMENT)


def run(request: dict) -> dict:
    """Forks the children of one request and waits for them."""
    plan, boards = request["plan"], [Board() for _ in range(request["writers"])]
    start = time.monotonic()
    pids = [fork(lambda: command(request["argv"]), request, plan, board) for board in boards]
    if (seconds := plan.get("seconds")) is not None:  # by the clock
        while time.monotonic() - start < seconds and not has_ended(pids[0]):
            time.sleep(0.005)
        for pid in pids:
            os.kill(pid, plan.get("signal", signal.SIGKILL))
    return answer(start, [status_of(pid) for pid in pids], boards[:1])


def has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def answer(start: float, statuses: list[int], boards: list[Board], of: int = 0) -> dict:
    """What became of a request: what one child was at, and the moments of some together."""
    counts = {kind: sum(board[i] for board in boards) for i, kind in enumerate(KINDS)}
    at_work = boards[of].at_work()
    return {"statuses": statuses, "seconds": time.monotonic() - start, "at_work": at_work, "counts": counts}


# --- on a cluster -----------------------------------------------------------------------------------------------------


async def serve(make: Callable, said: int) -> None:
    """Runs a scheduler or a worker, and says its address once it is there."""
    async with make() as up:
        os.write(said, up.address.encode())
        await up.finished()


def run_on_cluster(request: dict) -> dict:
    """Forks a scheduler, workers and the command that uses them; the plan is the workers'.

    The statuses are the command's, and of each worker: 0 if it was alive when the command had ended.
    """
    start, boards = time.monotonic(), [Board() for _ in range(request["workers"])]
    servers: list[int] = []
    dask.config.set(temporary_directory=os.path.dirname(request["log"]))

    def server(make: Callable, plan: dict, board: Board) -> str:
        hear, say = os.pipe()
        servers.append(fork(lambda: asyncio.run(serve(make, say)), request, plan, board))
        os.close(say)
        with os.fdopen(hear) as pipe:  # until it has said that it is there
            return os.read(pipe.fileno(), 100).decode()

    try:
        address = server(lambda: Scheduler(host="127.0.0.1", dashboard_address="127.0.0.1:0"), {}, Board())
        for board in boards:
            server(lambda: Worker(address, nthreads=1, dashboard_address="127.0.0.1:0"), request["plan"], board)
        argv = [*request["argv"], "--scheduler", address]
        user = fork(lambda: command(argv), request, {}, Board())
        while not has_ended(user):
            if time.monotonic() - start > PATIENCE:
                os.kill(user, signal.SIGKILL)
            time.sleep(0.005)
        ended = [has_ended(pid) for pid in servers[1:]]
    finally:
        for pid in servers:
            os.kill(pid, signal.SIGKILL)
        statuses = [status_of(pid) for pid in servers]
    workers = [status if dead else 0 for status, dead in zip(statuses[1:], ended, strict=True)]
    return answer(start, [status_of(user), *workers], boards, of=ended.index(True) if any(ended) else 0)


if __name__ == "__main__":
    print(json.dumps(COMMIT), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps((run_on_cluster if asked["workers"] else run)(asked)), flush=True)
