"""Small lines and their batches, for tests of what hands batches out and of who owns one."""

from helpers import tiny
from made_rows import without_times

import jcredit as jc
from jcredit.numerics import numerics
from jcredit.sweeps.batch import Batch
from jcredit.sweeps.variants import Folder, Request, Snapshot, Variant

SMALL = {"network.depth": 2, "epochs": 3, "diagnose_every": 2}
NET = tiny(jc.bp(), **SMALL)


def line(label="dfa", credit=None, **changes):
    return Variant(label, tiny(credit or jc.dfa(), **{**SMALL, **changes}))


def fit(label="fit"):
    return Variant(label, NET.replace(credit=jc.broadcast(), trains="nothing", epochs=1), start=Snapshot(NET, 2))


def batch_of(path, group, sweep="", folder=True):
    folder = Folder(path, "tiny", "smoke") if folder else None
    return Batch(tuple(group), path, folder, None, None, 60.0, sweep, numerics(), False)


def in_order(rows):
    return sorted(without_times(rows), key=lambda row: (row["label"], row["seed"], str(row)))


def group_of(variant, seeds=(0, 1)):
    return [Request(variant, seed) for seed in seeds]
