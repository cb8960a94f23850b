"""A Dask cluster as an executor: ``dask scheduler`` and its workers, or what dask-jobqueue and dask-kubernetes start.

Dask sends functions and their arguments by pickle, and its workers run what they are sent: whoever reaches a scheduler
can run code on its workers.  Only an address that the user names is connected to.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

CONNECT_SECONDS = 20


class ClusterError(ValueError):
    """There is no such cluster; the message has the address and the fix."""


class DaskCluster(Executor):
    """The workers of a Dask cluster; on its dashboard tasks bear the names of their batches."""

    def __init__(self, client: Any):
        self._client, self._executor = client, client.get_executor()

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """A future of ``fn(*args)`` on one of the workers; tried again on another if that one dies."""
        name = getattr(args[0], "name", fn.__name__) if args else fn.__name__
        return self._executor.submit(fn, *args, **kwargs, key=f"{name}-{uuid.uuid4().hex}", pure=False)

    @property
    def workers(self) -> int:
        """How many batches run at a time on the workers there are now; one if they are still to come."""
        return max(1, sum(self._client.nthreads().values()))


@contextmanager
def dask_cluster(address: str) -> Iterator[DaskCluster]:
    """The cluster of the scheduler at an address, for as long as the block runs.

    Args:
      address: such as ``tcp://host:8786``.

    Raises:
      ClusterError: Dask is not installed, or no scheduler answers there.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as error:
        raise ClusterError("--scheduler needs Dask: pip install 'jcredit[cluster]'") from error
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except Exception as error:  # whatever an address makes Dask's transports raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClusterError(
            f"--scheduler {address!r}: no scheduler answers there ({reason}); start one with `dask scheduler` and give"
            " the address that it prints, such as tcp://HOST:8786"
        ) from error
    with client:
        yield DaskCluster(client)
