"""Several processes, on one machine or many: who takes which runs, and how their rows come together.

Runs never need each other, so each process trains its own share on its own devices; only rows travel, once per program.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


class HostsError(RuntimeError):
    """The processes of a sweep cannot find each other; the message names what was given and the fix."""


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of one sweep.  Must come before the first use of a device.

    Args:
      coordinator: host:port of process 0; None detects everything (SLURM, Open MPI, TPU pods).
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      HostsError: arguments that do not belong together, nothing to detect, or no answer from the coordinator.
    """
    given = (coordinator, processes, process)
    if any(v is None for v in given) and any(v is not None for v in given):
        raise HostsError("--coordinator, --num-processes and --process-id go together; give all three, or none")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise HostsError(f"--process-id {process} must lie between 0 and --num-processes - 1 = {processes - 1}")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HostsError(
            f"--distributed found no group of processes ({reason}); give --coordinator HOST:PORT --num-processes N"
            " --process-id I"
        ) from error


def is_lead() -> bool:
    """Whether this process writes rows and tables."""
    return jax.process_index() == 0


def shares(groups: Sequence[Sequence[T]], processes: int) -> list[list[list[T]]]:
    """Splits every group of runs over the processes, as evenly as it goes.

    Returns:
      For each group, what each process takes (possibly nothing).  The process that takes one run more rotates.
    """
    waves = []
    for turn, group in enumerate(groups):
        parts = [list(group[i::processes]) for i in range(processes)]
        waves.append([parts[(i - turn) % processes] for i in range(processes)])
    return waves


def gather(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all processes, on every process; waits for all of them."""
    if jax.process_count() == 1:
        return rows
    text = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray([text.size], np.int32))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [row for size, data in zip(sizes, everyone, strict=True) for row in json.loads(data[:size].tobytes())]
