"""Sweeps whose rows are made up: what a script makes of rows is tried without training anything.

pytest_plugins = ["imagined"]
"""

import numpy as np
import pytest
from made_rows import make_row

from jcredit.config import described
from jcredit.report.rows import append_rows
from jcredit.study import experiment


@pytest.fixture
def imagined(monkeypatch):
    """Sweeps that write rows with made-up numbers: what is tested here is what becomes of them."""

    def sweep(variants, seeds, folder, *, there, **_):
        rows = [row_of(variant, seed, folder) for variant in variants for seed in seeds]
        assert not there
        append_rows(folder.rows, rows)
        return rows

    monkeypatch.setattr(experiment, "run_sweep", sweep)


def row_of(variant, seed, folder):
    depth = variant.config.network.settings["depth"]
    layers = np.random.default_rng([seed, int(variant.hash, 16)]).normal(size=depth).tolist()
    mean = float(np.mean(layers))
    scores = {name: scale * mean for name, scale in (("gamma", 1.0), ("rho", 0.5), ("test_accuracy", 0.1))}
    return make_row(
        variant.label, seed, variant.block, experiment=folder.experiment, preset=folder.preset,
        method=variant.config.credit.name, config=described(variant.config), config_hash=variant.hash, metrics=scores,
        layers={"gamma": layers}, curves={"test_accuracy": [0.1, scores["test_accuracy"]]},
    )  # fmt: skip
