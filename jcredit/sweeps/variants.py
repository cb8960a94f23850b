"""What a run is: a line of a table and a seed, the network it starts with, and where its row goes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jcredit.checking import check_repeats
from jcredit.config import Config, change, config_hash, digest, paths_of
from jcredit.files import FileError, check_writable
from jcredit.functions import Function
from jcredit.parts import Description, Part
from jcredit.settings import LARGEST_INTEGER, ConfigError, as_python, brief, is_scalar

USUAL_EPOCHS = (1, 3, 20)
"""Epochs every network that others start from keeps, beside its last one."""

AUGMENTATION = ("crops", "flips")
"""Settings of a task in which a run may differ from the snapshot it starts from: they change no sample that is kept."""


class Snapshot(NamedTuple):
    """The network of a run at the end of one of its epochs, as a start for other runs of the same seed.

    Attributes:
      config: the configuration that trains it.
      epoch: from 1 to ``config.epochs``.
    """

    config: Config
    epoch: int

    @property
    def key(self) -> str:
        """What enters the key of a run that starts here."""
        return f"{config_hash(self.config)}@{self.epoch}"

    def overridden(self, changes: Mapping[str, Any]) -> Snapshot:
        """The same snapshot of a run with those of ``changes`` made that decide its network and its data.

        Args:
          changes: {name: value or text}, names as in ``config.change``; those found nowhere in the snapshot's task and
            network, and augmentation, are left out.
        """
        config = self.config
        for name, value in changes.items():
            for path in paths_of(config, name):
                if path.partition(".")[0] in ("task", "network") and path.rpartition(".")[2] not in AUGMENTATION:
                    config = change(config, path, value)
        return self._replace(config=config)

    def check(self, config: Config) -> None:
        """Raises ConfigError if a run of ``config`` cannot start here: another epoch, data or network than there is."""
        if not 1 <= self.epoch <= self.config.epochs:
            raise ConfigError(
                f"a snapshot at epoch {self.epoch} of a run of epochs={self.config.epochs} does not exist;"
                f" choose 1 to {self.config.epochs}"
            )
        for name in ("task", "network"):
            for path, own, theirs in _differences(name, getattr(config, name), getattr(self.config, name)):
                raise ConfigError(f"{path}={own!r} differs from the snapshot's {theirs!r}; set both to the same")


def _differences(path: str, own: Part, theirs: Part) -> Iterator[tuple[str, Any, Any]]:
    """(path, own value, the other's) of every setting but augmentation in which two parts differ."""
    if own.name != theirs.name:
        yield path, own, theirs
        return
    ours, others = own.described(), theirs.described()
    for name, value in ours.items():
        if name in AUGMENTATION or value == others.get(name):
            continue
        a, b = own.settings.get(name), theirs.settings.get(name)
        if isinstance(a, Part) and isinstance(b, Part):
            yield from _differences(f"{path}.{name}", a, b)
        else:
            yield f"{path}.{name}", value, others.get(name)


class Followup(NamedTuple):
    """Something measured on the states of finished runs, beside the usual scores.

    Attributes:
      name: what it is called in rows and keys.
      build: (run, settings) -> function of one run's (state, hp, data) -> {"metrics": scalars, "curves": vectors,
        "layers": vectors}, some of these.
      settings: a NamedTuple of plain values, parts and functions; they enter the key.
    """

    name: str
    build: Callable[..., Callable]
    settings: Any

    @property
    def functions(self) -> tuple[Function, ...]:
        """The functions among its settings: the user's own."""
        given = itertools.chain(*(value for value in self.settings._asdict().values() if isinstance(value, tuple)))
        return tuple(value for value in given if isinstance(value, Function))

    def check(self, run: Any) -> None:
        """Traces it on a run, so that samples it lacks are said before anything is trained.

        Raises:
          ConfigError: it cannot be measured on such a run, or its functions have numbers that come from no key.
        """
        key, hp = jax.random.key(0), run.hparams(run.config)
        state, data = jax.eval_shape(run.init, key, hp), jax.eval_shape(run.data, key, hp)
        measure = self.build(run, self.settings)
        jax.eval_shape(measure, state, hp, data)
        if self.functions:
            check_repeats(" or ".join(function.name for function in self.functions), measure, state, hp, data)

    def described(self, how: Description = "full") -> dict[str, Any]:
        """Plain JSON values that identify it; ``how`` as in ``Part.described``."""
        return {"name": self.name, **{name: _plain(value, how) for name, value in self.settings._asdict().items()}}


def _plain(value: Any, how: Description) -> Any:
    if isinstance(value, Part):
        return value.described(how)
    if isinstance(value, Function):
        return value.identity()
    return [_plain(inner, how) for inner in value] if isinstance(value, list | tuple) else value


class Variant(NamedTuple):
    """One line of a table: a configuration with a name.

    Attributes:
      label: its name, unique within its block.
      config: the configuration of all its runs.
      block: heading of the table block it belongs to.
      start: the snapshot whose network its runs begin with; trained first where nobody has kept it.
      keep: epochs after which its runs keep what they have learned, for runs that start there and for followups.
      followup: what is measured on its finished runs; such a run is trained only if nobody has kept it.
    """

    label: str
    config: Config
    block: str = ""
    start: Snapshot | None = None
    keep: tuple[int, ...] = ()
    followup: Followup | None = None

    @property
    def run_hash(self) -> str:
        """Key of what is trained: what the run reads, and where it starts."""
        own = config_hash(self.config)
        return own if self.start is None else digest([own, self.start.key])

    @property
    def hash(self) -> str:
        """Key of the line: what is trained, and what is measured on it."""
        return self.run_hash if self.followup is None else digest([self.run_hash, self.followup.described("key")])


class Request(NamedTuple):
    """One run that is wanted."""

    variant: Variant
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """(key of its line, seed): what its row is found by."""
        return self.variant.hash, self.seed

    @property
    def run_key(self) -> tuple[str, int]:
        """(key of what is trained, seed): what it leaves behind is found by."""
        return self.variant.run_hash, self.seed


def checked_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """Distinct whole numbers a key can be made of, numpy's and jax's among them.

    Raises:
      ConfigError: anything else, or none.
    """
    if not isinstance(seeds, Iterable) or is_scalar(seeds):
        several = f"range({seeds})" if isinstance(seeds, int) and seeds > 0 else "range(3)"
        raise ConfigError(f"seeds={brief(seeds)} must be several, such as {several}")
    found = tuple(map(as_python, seeds))
    for i, seed in enumerate(found):
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_INTEGER:
            raise ConfigError(f"seed {brief(seed)} must be a whole number from 0 to {LARGEST_INTEGER}")
        if seed in found[:i]:
            raise ConfigError(f"seed {seed} is given more than once; give every seed once")
    if not found:
        raise ConfigError("seeds: give at least one")
    return found


def labels_of(group: Iterable[Request]) -> list[str]:
    """The lines of a table that some runs belong to."""
    return list(dict.fromkeys(r.variant.label for r in group))


def snapshot_request(config: Config, seed: int, epochs: Iterable[int]) -> Request:
    """The run snapshots are taken of; beside ``epochs`` it keeps the usual ones, so that it is trained once for all."""
    usual = (*(epoch for epoch in USUAL_EPOCHS if epoch <= config.epochs), config.epochs)
    return Request(Variant("snapshot", config, keep=tuple(sorted({*usual, *epochs}))), seed)


class Folder(NamedTuple):
    """Where the rows of a sweep go."""

    results_dir: Path
    experiment: str
    preset: str

    @property
    def directory(self) -> Path:
        """<results-dir>/<experiment>/<preset>."""
        return Path(self.results_dir) / self.experiment / self.preset

    @property
    def rows(self) -> Path:
        """Its rows."""
        return self.directory / "rows.jsonl"

    def check(self) -> None:
        """Tries, before anything is compiled, whether rows can be written there and nowhere else.

        Raises:
          ConfigError: they cannot: a name with a path in it, a link that leads elsewhere, a place that takes no files.
        """
        for name in (self.experiment, self.preset):
            if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
                raise ConfigError(f"results folder {brief(name)} must be a plain name, without a path")
        try:
            root = Path(self.results_dir).resolve()
            for place in (self.directory, self.rows, self.unfinished, root / "cache"):
                if not place.resolve().is_relative_to(root):
                    raise ConfigError(f"{place} leads out of the results directory {root}, to {place.resolve()}; remove"
                                      " that link")  # fmt: skip
            check_writable(self.directory)
        except (FileError, OSError, RuntimeError) as error:
            raise ConfigError(f"results_dir={brief(str(self.results_dir))}: {error}") from error

    @property
    def unfinished(self) -> Path:
        """Checkpoints of its programs that were cut off."""
        return self.directory / "cache"
