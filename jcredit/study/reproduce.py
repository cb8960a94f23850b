"""The study's runs in order of value per hour: what is left of them, and a walk through them that can stop anywhere.

The order is data, ``reproduce.toml`` beside the scripts.  Runs are shared between its items as between experiments: a
run that has a row anywhere under the results directory is not run again.
"""

from __future__ import annotations

import fnmatch
import math
import signal
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jcredit.config import ConfigError
from jcredit.files import one_line, write_json
from jcredit.report.lines import GRID
from jcredit.report.rows import finished, read_rows
from jcredit.report.tables import markdown
from jcredit.report.terminal import WIDTH
from jcredit.settings import known
from jcredit.study import experiment as study
from jcredit.study.experiment import USER_ERRORS, Experiment, grid_of, in_grid, preset_name, write_report
from jcredit.sweeps.batch import BatchError, take_what_is_left
from jcredit.sweeps.layout import keep_compiled_programs, use_all_cores
from jcredit.sweeps.record import rows_under
from jcredit.sweeps.run import Stopped, StopSignal, run_sweep
from jcredit.sweeps.variants import Folder, Variant, checked_seeds

LIST = "reproduce.toml"
LISTEN_SECONDS = 0.2
HOURS_NOTE = (
    "Hours: what the list says an item takes on two cores, times the share of its runs that have no row yet and that no"
    " item above it makes. Epochs of an interrupted program, kept in its checkpoint, are not taken off."
)

Keys = set[tuple[str, int]]
"""Runs by the key of their line and their seed."""


class Item(NamedTuple):
    """A part of the list: some lines of one experiment's grid.

    Attributes:
      name: what ``--only`` takes.
      experiment: whose grid it is.
      preset: the size of that grid.
      overrides: settings that differ from the preset; they give its rows a folder of their own.
      seeds: one run of each line per seed.
      grid: the whole grid.
      wanted: its lines that are to be run.
      hours: on two cores, for the runs that no item above it makes.
      why: what it is worth.
    """

    name: str
    experiment: Experiment
    preset: str
    overrides: Mapping[str, Any]
    seeds: tuple[int, ...]
    grid: list[Variant]
    wanted: list[Variant]
    hours: float
    why: str

    @property
    def keys(self) -> Keys:
        """Of its runs."""
        return {(variant.hash, seed) for variant in self.wanted for seed in self.seeds}

    def folder(self, results_dir: Path) -> Folder:
        """Where its rows go: the folder that the experiment's own command gives them."""
        return Folder(results_dir, self.experiment.name, preset_name(self.preset, self.overrides))


# --- the list ---------------------------------------------------------------------------------------------------------

_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "script": (str,), "hours": (int, float), "why": (str,), "preset": (str,), "seeds": (list,),
    "blocks": (list,), "lines": (list,), "overrides": (dict,),
}  # fmt: skip
_REQUIRED = ("name", "script", "hours", "why")


def read_list(path: Path, experiments: Mapping[str, Experiment]) -> list[Item]:
    """The items of a list in its order.

    Raises:
      ConfigError: no such file, or an entry that names what there is not; with one line that names item and value.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("item", [])
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; it lists what to reproduce, and lies beside the scripts") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: not a list of items ({error})") from error
    items: list[Item] = []
    for i, entry in enumerate(entries if isinstance(entries, list) else [], 1):
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: item {i}: {entry!r} must be a table, [[item]]")
        where = f"{path}: item {entry.get('name', i)!r}"
        try:
            _check_fields(entry, _FIELDS, _REQUIRED)
            items.append(_item(entry, experiments))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if items[-1].name in [item.name for item in items[:-1]]:
            raise ConfigError(f"{where}: another item has this name")
    if not items:
        raise ConfigError(f"{path}: no [[item]] in it")
    return items


def _check_fields(entry: Any, fields: Mapping[str, tuple[type, ...]], required: Sequence[str]) -> None:
    for name, value in entry.items():
        known("field", name, list(fields))
        if not isinstance(value, fields[name]) or isinstance(value, bool):
            raise ConfigError(f"{name}={value!r} must be of type {' or '.join(kind.__name__ for kind in fields[name])}")
    if missing := [name for name in required if name not in entry]:
        raise ConfigError(f"{missing[0]} is missing")


def _item(entry: Mapping[str, Any], experiments: Mapping[str, Experiment]) -> Item:
    known("script", entry["script"], list(experiments))
    experiment, preset = experiments[entry["script"]], entry.get("preset", "full")
    if not 0 <= entry["hours"] < math.inf:
        raise ConfigError(f"hours={entry['hours']} must be a number from 0")
    overrides = entry.get("overrides", {})
    grid = grid_of(experiment, preset, overrides)
    seeds = checked_seeds(entry.get("seeds", experiment.presets[preset].seeds))
    wanted = _lines(_blocks(grid, entry.get("blocks")), entry.get("lines"))
    return Item(entry["name"], experiment, preset, overrides, seeds, grid, wanted, float(entry["hours"]), entry["why"])


def _blocks(grid: list[Variant], patterns: Sequence[str] | None) -> list[Variant]:
    """The lines of the blocks that match one of some patterns such as "L = 4" or "ladder*"; None: of all."""
    if patterns is None:
        return grid
    blocks = list(dict.fromkeys(variant.block for variant in grid))
    for pattern in patterns:
        if not fnmatch.filter(blocks, str(pattern)):
            known("block", pattern, blocks)
    return [v for v in grid if any(fnmatch.fnmatchcase(v.block, pattern) for pattern in patterns)]


def _lines(grid: list[Variant], names: Sequence[str] | None) -> list[Variant]:
    """The lines that have a name, "label" or "block | label"; None: all of them."""
    if names is None:
        return grid
    named = [(variant, (variant.label, f"{variant.block} | {variant.label}")) for variant in grid]
    for name in names:
        known("line", name, list(dict.fromkeys(known_as[" | " in str(name)] for _, known_as in named)))
    return [variant for variant, known_as in named if any(name in known_as for name in names)]


# --- what is left -----------------------------------------------------------------------------------------------------


class Left(NamedTuple):
    """What is left of an item.

    Attributes:
      item: the item.
      runs: how many it wants.
      done: how many of them have a row.
      hours: what the others take that no item above it makes.
    """

    item: Item
    runs: int
    done: int
    hours: float


def all_finished(results_dir: Path) -> Keys:
    """Runs that have a row anywhere under a results directory; unreadable files are named in a warning."""
    return finished(rows_under(results_dir))


def what_is_left(items: Sequence[Item], done: Keys, only: Sequence[str] | None = None) -> list[Left]:
    """What is left of all items, or of those that are named."""
    price: dict[tuple[str, int], float] = {}  # hours of a run, by the item that is the first to list it
    above: Keys = set()
    left = []
    for item in items:
        keys = item.keys
        own = keys - price.keys()
        price |= dict.fromkeys(own, item.hours / max(len(own), 1))
        if only is None or item.name in only:
            hours = math.fsum(price[key] for key in keys - done - above)
            left.append(Left(item, len(keys), len(keys & done), hours))
            above |= keys
    return left


def shown(left: Sequence[Left]) -> str:
    """The list as a table of text in 100 columns."""
    width = max(len(each.item.name) for each in left)
    lines = [f"{'item':<{width}}  {'runs done':>11}  hours left  why"]
    for each in left:
        line = f"{each.item.name:<{width}}  {_of(each):>11}  {each.hours:>10.2f}  "
        lines.append(textwrap.fill(each.item.why, WIDTH, initial_indent=line, subsequent_indent=" " * len(line)))
    return "\n".join([*lines, _total(left), textwrap.fill(HOURS_NOTE, WIDTH)])


def _of(left: Left) -> str:
    return f"{left.done} / {left.runs}"


def _total(left: Sequence[Left]) -> str:
    items, hours = sum(each.done < each.runs for each in left), sum(each.hours for each in left)
    return f"left: {items} of {len(left)} items, about {hours:.1f} hours on two cores"


# --- the walk ---------------------------------------------------------------------------------------------------------


def walk(
    items: Sequence[Item],
    results_dir: Path,
    *,
    hours: float | None = None,
    data_dir: Path | None = None,
    only: Sequence[str] | None = None,
    progress: bool = True,
    executor: Executor | None = None,
    batch_runs: int | None = None,
) -> bool:
    """Runs what is left, item after item, and prints what has become of each; whether none of them failed.

    An item that its settings, its data, its rows or a batch keep from running is named on stderr, and the walk goes on;
    where the system fails, as on a full disk, it ends.  However short the time, an epoch is made.

    Args:
      items: the list.
      results_dir: where rows are looked for and go.
      hours: the walk stops as an interrupt would once they are over (None: at the end).
      data_dir: folder with prepared image data.
      only: names of items (None: all).
      progress: whether to show progress bars.
      executor, batch_runs: as in ``run_sweep``.

    Raises:
      Stopped, KeyboardInterrupt: on SIGINT or SIGTERM, with a checkpoint if a program was running.
    """
    use_all_cores()
    keep_compiled_programs()
    mine = [item for item in items if only is None or item.name in only]
    good, ran = True, False
    with _alarm(hours) as alarm:
        for item in mine:
            if ran and alarm.is_over():
                break
            try:
                ran |= _run(
                    item, results_dir, data_dir=data_dir, progress=progress, executor=executor, batch_runs=batch_runs
                )
            except Stopped as error:
                if not alarm.rang:
                    raise
                _write(item, results_dir)
                print(f"{item.name}: {str(error).partition(';')[0]}, with a checkpoint")
                break
            except (*USER_ERRORS, BatchError) as error:
                print(f"{item.name}: error: {one_line(error)}", file=sys.stderr)
                good = False
    left = what_is_left(items, all_finished(results_dir), only)
    print(_total(left))
    if hours is not None and alarm.is_over() and any(each.done < each.runs for each in left):
        print(f"{hours:g} hours are over; the same command goes on from there")
    return good


def _run(item: Item, results_dir: Path, **how: Any) -> bool:
    """Runs what is left of an item as ``run_sweep`` does, and says so; whether anything was to be done."""
    folder = item.folder(results_dir)
    if take_what_is_left(folder):
        _write(item, results_dir)
    there = read_rows(folder.rows, folder.experiment, folder.preset)
    missing = item.keys - finished(there)
    if not missing:
        table, rows = folder.directory / "table.md", in_grid(there, item.grid)
        if not table.exists() or table.read_text(encoding="utf-8") != markdown(study.reported(item.experiment, rows)):
            _write(item, results_dir)  # something came between its last row and its table
        print(f"{item.name}: done, {len(item.keys)} runs")
        return False
    start, before = time.monotonic(), len(missing - all_finished(results_dir))
    print(f"{item.name}: {before} of {len(item.keys)} runs to make", flush=True)
    run_sweep(item.wanted, item.seeds, folder, there=there, **how)
    _write(item, results_dir)
    jax.clear_caches()  # programs of a whole study fill gigabytes
    print(f"{item.name}: done, {(time.monotonic() - start) / 3600:.2f} hours; {folder.directory}", flush=True)
    return True


def _write(item: Item, results_dir: Path) -> None:
    """Table, figure and description of what there is; of nothing, none."""
    folder = item.folder(results_dir)
    rows = in_grid(read_rows(folder.rows, folder.experiment, folder.preset), item.grid)
    if rows:
        described = study.describe_sweep(item.experiment, item.preset, item.overrides, [], item.grid)
        write_json(folder.directory / GRID, described)
        write_report(item.experiment, rows, folder.directory)


# --- the time limit ---------------------------------------------------------------------------------------------------


class Alarm:
    """The end of the time that was given.

    Attributes:
      rang: whether it has stopped a sweep.
    """

    def __init__(self, hours: float | None):
        self.rang = False
        self._end = math.inf if hours is None else time.monotonic() + 3600 * hours

    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._end

    def seconds(self) -> float | None:
        """Until then, a little more than nothing at least; None where there is no end."""
        return None if self._end == math.inf else max(self._end - time.monotonic(), 1e-3)


@contextmanager
def _alarm(hours: float | None) -> Iterator[Alarm]:
    """Sends the sweep that is under way when the time is up, or the next one that listens, the signal to stop."""
    alarm = Alarm(hours)
    if (seconds := alarm.seconds()) is None:
        yield alarm
        return

    def ring(number, frame):
        listening = signal.getsignal(signal.SIGTERM)
        if isinstance(listening, StopSignal) and listening.number is None:  # a sweep that nobody has stopped yet
            signal.setitimer(signal.ITIMER_REAL, 0)
            alarm.rang = True
            signal.raise_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, LISTEN_SECONDS)
    try:
        yield alarm
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
