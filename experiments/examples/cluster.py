"""A sweep on a cluster: any ``concurrent.futures`` executor will do; here Dask's, with two workers on this machine.

    python experiments/examples/cluster.py tcp://SCHEDULER:8786 /shared/results

With the address of a scheduler, the workers that joined it (``dask worker``, dask-jobqueue, dask-kubernetes ...) run
the programs; all of them must see the results directory.  A program whose worker died goes on from its checkpoint on
the next one, and calling the sweep again runs only what has no row yet.
"""

import sys
import tempfile

from distributed import Client, LocalCluster

import jcredit as jc

BASE = jc.Config(
    task=jc.tasks.teacher(train_size=1024, test_size=256),
    network=jc.image_mlp(depth=2, width=16),
    epochs=3,
    batch_size=64,
)
CREDITS = {"bp": jc.bp(), "dfa": jc.dfa(), "broadcast": jc.broadcast()}


def main(address: str | None = None, results_dir: str | None = None) -> None:
    """Runs three kinds of credit at two learning rates and four seeds, and prints their table."""
    if address and not results_dir:
        sys.exit("cluster.py: name the folder that all workers see: cluster.py tcp://SCHEDULER:8786 /shared/results")
    cluster = None if address else LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    with tempfile.TemporaryDirectory() as scratch, Client(address or cluster) as client:
        rows = jc.sweep(
            {label: BASE.replace(credit=credit) for label, credit in CREDITS.items()},
            seeds=range(4),
            vary={"learning_rate": [1e-3, 3e-3]},
            results_dir=results_dir or scratch,
            executor=client.get_executor(),
            batch_runs=4,  # else a program is one batch, however many workers there are
        )
        print(rows.table())
    if cluster is not None:
        cluster.close()


if __name__ == "__main__":  # workers import this file
    main(*sys.argv[1:])
