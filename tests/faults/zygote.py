"""Runs the command of sweep.py in forked children, and lets something happen to each at a moment of its own.

A server: one request as a line of JSON on standard input, one answer on standard output.  It imports everything once
and never touches a device, so that its children start at once, each as a fresh process of its own.

Moments are counted by kind in each child: files that are opened for writing, renamed or removed (by what they belong
to), calls of ``fsync``, compilations and epochs.
"""

from __future__ import annotations

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

import jax
import orbax.checkpoint
import sweep

from jcredit.study import experiment
from jcredit.sweeps import program

KINDS = ("compile", "epoch", "checkpoint", "kept network", "row", "rename", "fsync", "compile cache", "any file")
AT_WORK = ("starting", "compile", "epoch", "checkpoint", "kept network", "row", "compile cache", "between")
"""What a child was at when it ended; the last thing that began."""
assert orbax.checkpoint.StandardCheckpointer  # imported once, here


class Board:
    """Counts of moments and what is under way, in memory that outlives the child."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 4 * (len(KINDS) + 1))

    def __getitem__(self, i: int) -> int:
        return struct.unpack_from("<I", self.memory, 4 * i)[0]

    def __setitem__(self, i: int, value: int) -> None:
        struct.pack_into("<I", self.memory, 4 * i, value)

    def counts(self) -> dict[str, int]:
        return {kind: self[i] for i, kind in enumerate(KINDS)}

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


def child(request: dict, board: Board) -> None:
    """The command, in a process of its own; never returns."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["JCREDIT_CACHE"] = request["cache"]
    program.CHECKPOINT_SECONDS = 0.0  # after every epoch, so that there is something to kill
    keep_compiled = experiment.keep_compiled_programs

    def keep_all_compiled():
        keep_compiled()
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    experiment.keep_compiled_programs = keep_all_compiled
    if "file_size" in request["plan"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["plan"]["file_size"],) * 2)
    Fate(request["plan"], board, (request["results"], request["cache"])).install()
    status = 1
    try:
        sys.argv = ["tests/faults/sweep.py", *request["argv"]]
        sweep.main(sweep.EXPERIMENT)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(request: dict) -> dict:
    """Forks the children of one request and waits for them."""
    boards = [Board() for _ in range(request.get("writers", 1))]
    start, pids = time.monotonic(), []
    for board in boards:
        if not (pid := os.fork()):
            child(request, board)
        pids.append(pid)
    if (seconds := request["plan"].get("seconds")) is not None:  # by the clock
        while (
            time.monotonic() - start < seconds
            and os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.005)
        for pid in pids:
            os.kill(pid, request["plan"].get("signal", signal.SIGKILL))
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return {
        "statuses": statuses, "seconds": time.monotonic() - start, "at_work": boards[0].at_work(),
        "counts": boards[0].counts(),
    }  # fmt: skip


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
