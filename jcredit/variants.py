"""What a run is: a line of a table, the seed, and where its row goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jcredit import results
from jcredit.config import Config, config_hash
from jcredit.kept import Snapshot
from jcredit.types import Estimator

USUAL_EPOCHS = (1, 3, 20)
"""Epochs every network that others start from keeps, beside its last one."""


class Measure(NamedTuple):
    """Something measured on the states of finished runs, beside the usual scores.

    Attributes:
      name: what it is called in rows and keys.
      build: (run, settings) -> function of one run's (state, hp, data) -> {"metrics": scalars, "curves": vectors}.
      settings: a NamedTuple of plain values; they enter the key.
    """

    name: str
    build: Callable[..., Callable]
    settings: Any


class Variant(NamedTuple):
    """One line of a table: a configuration with a name.

    Attributes:
      label: its name, unique within its block.
      config: the configuration of all its runs.
      block: heading of the table block it belongs to.
      estimator: an estimator of one's own in place of ``config.method``; it is known by its label.
      start: the snapshot whose network its runs begin with; trained first where nobody has kept it.
      keep: epochs after which its runs keep what they have learned, for runs that start there and for measures.
      measure: what is measured on its finished runs; such a run is trained only if nobody has kept it.
    """

    label: str
    config: Config
    block: str = ""
    estimator: Estimator | None = None
    start: Snapshot | None = None
    keep: tuple[int, ...] = ()
    measure: Measure | None = None

    @property
    def run_hash(self) -> str:
        """Key of what is trained; a start enters by its key, an estimator of one's own by its label."""
        own = [config_hash(self.config)]
        own += [] if self.estimator is None else [self.label]
        own += [] if self.start is None else [self.start.key]
        return own[0] if len(own) == 1 else hashlib.sha256(" ".join(own).encode()).hexdigest()[:12]

    @property
    def hash(self) -> str:
        """Key of the line: what is trained, and what is measured on it."""
        if self.measure is None:
            return self.run_hash
        text = f"{self.run_hash} {self.measure.name} {self.measure.settings!r}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Request(NamedTuple):
    """One run that is wanted."""

    variant: Variant
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """(configuration hash, seed)."""
        return self.variant.hash, self.seed


def snapshot_request(config: Config, seed: int, epochs: Iterable[int]) -> Request:
    """The run snapshots are taken of; beside ``epochs`` it keeps the usual ones, so that it is trained once for all."""
    usual = (*(epoch for epoch in USUAL_EPOCHS if epoch <= config.epochs), config.epochs)
    return Request(Variant("snapshot", config, keep=tuple(sorted({*usual, *epochs}))), seed)


class Place(NamedTuple):
    """Where the rows of a sweep go."""

    results_dir: Path
    experiment: str
    preset: str

    @property
    def directory(self) -> Path:
        """<results-dir>/<experiment>/<preset>."""
        return results.experiment_dir(self.results_dir, self.experiment, self.preset)

    @property
    def rows(self) -> Path:
        """The rows of this place."""
        return self.directory / "rows.jsonl"
