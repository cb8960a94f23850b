"""A sweep seen from outside: what its programs are at, how much is left, and curves, from files that are only read.

What is under way comes from ``status``, what is finished from rows, what was cut off from its checkpoint.  Files that
are replaced, gone or torn while they are read are left out until the next look.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jcredit.config import ConfigError
from jcredit.report.rows import Row, grouped
from jcredit.sweeps import status
from jcredit.sweeps.owners import IN_FLIGHT

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN = ("train_loss", "test_accuracy", "gamma", "rho", "estimator_loss")
"""Curves that are shown, where there are any."""
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 24


class CutOff(NamedTuple):
    """A program that nobody is at and that has a checkpoint to go on from.

    Attributes:
      where: <experiment>/<preset>, or that it trains networks for others to start from.
      runs: how many runs share it.
      saved: when the checkpoint was written, seconds since the epoch.
    """

    where: str
    runs: int
    saved: float


class View(NamedTuple):
    """One look at a results directory.

    Attributes:
      rows: the finished runs below what is watched.
      programs: status of each program under way, the longest first.
      sweeps: what each sweep under way has to do.
      now: seconds since the epoch.
      cut_off: what was interrupted or killed, and not begun again.
    """

    rows: list[Row]
    programs: list[dict[str, Any]]
    sweeps: list[dict[str, Any]]
    now: float
    cut_off: list[CutOff] = []  # noqa: RUF012


def look(directory: Path) -> View:
    """Reads what there is.

    Args:
      directory: a results directory, or <results-dir>/<experiment> or <results-dir>/<experiment>/<preset>.

    Raises:
      ConfigError: no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(f"results directory {str(directory)!r} does not exist; give the one that a sweep writes to")
    root = next((path for path in (directory, *directory.resolve().parents[:2]) if status.folder(path).is_dir()), None)
    named = dict(status.objects(root)) if root is not None else {}
    statuses = list(named.values())
    below = directory.resolve().relative_to(root.resolve()).as_posix() if root is not None else "."
    programs = [s for s in statuses if _has(s, "where", "labels", "runs", "epoch", "epochs", "curves", "updated")]
    mine = [s for s in programs if below == "." or f"{s['where']}/".startswith(f"{below}/")]
    return View(
        [row for path in sorted(directory.rglob("rows.jsonl")) for row in _rows(path)],
        sorted(mine, key=lambda s: s["began"]),
        [s for s in statuses if _has(s, "run_epochs", "done", "left", "updated")], time.time(),
        list(_cut_off(directory, {name for name, said in named.items() if _has(said) and status.alive(said)})),
    )  # fmt: skip


def _cut_off(directory: Path, under_way: Collection[str]) -> Iterator[CutOff]:
    """What has a checkpoint below a directory, as deep in it as it may lie, and nobody at it."""
    for above in ("cache", "*/cache", "*/*/cache", "cache/unfinished"):
        for path in sorted(directory.glob(f"{above}/*/program.json")):
            if path.parent.name in under_way or not IN_FLIGHT.fullmatch(path.parent.name):
                continue
            try:
                runs = len(json.loads(path.read_text(encoding="utf-8"))["runs"])
                saved = max(meta.stat().st_mtime for meta in path.parent.glob("checkpoint/*/meta.json"))
            except (OSError, ValueError, KeyError, TypeError):  # gone, torn, or nothing was saved
                continue
            *_, experiment, preset, cache, _, _ = path.resolve().parts
            yield CutOff(f"{experiment}/{preset}" if cache == "cache" else status.STARTS, runs, saved)


def _has(value: dict[str, Any], *names: str) -> bool:
    return all(name in value for name in (*names, "pid", "host", "began"))


def _rows(path: Path) -> list[Row]:
    """The lines that are rows; watching is no place to complain about others."""
    rows = []
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            row = json.loads(line) if line.strip() else None
            if isinstance(row, dict) and isinstance(row.get("curves"), dict) and "label" in row and "seed" in row:
                rows.append(row)
    except (OSError, ValueError):
        pass
    return rows


# --- what is said -----------------------------------------------------------------------------------------------------


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "?"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def sparkline(values: Sequence[float | None], width: int = WIDTH) -> str:
    """A curve as a line of blocks from its smallest to its largest value; the latest of each stretch counts."""
    if len(values) > width:
        values = [values[(i + 1) * len(values) // width - 1] for i in range(width)]
    numbers = [v for v in values if v is not None]
    if not numbers:
        return ""
    low, span = min(numbers), max(numbers) - min(numbers)
    steps = (0 if v is None or not span else round((v - low) / span * (len(BLOCKS) - 1)) for v in values)
    return "".join(" " if v is None else BLOCKS[step] for v, step in zip(values, steps, strict=True))


def render(view: View) -> RenderableType:
    """The view as tables."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text  # labels may hold brackets, which are markup

    parts: list[Any] = [Text(_headline(view, sweep)) for sweep in view.sweeps] or ["no sweep is under way"]
    if view.programs:
        table = Table("program", "runs", "epoch", "updated", "curves", title="under way", title_justify="left")
        for program in view.programs:
            table.add_row(*map(Text, _cells(program, view.now)))
        parts.append(table)
    if view.cut_off:
        table = Table("cut off", "runs", "saved", title="the same command goes on from", title_justify="left")
        for left in view.cut_off:
            table.add_row(Text(left.where), str(left.runs), f"{duration(view.now - left.saved)} ago")
        parts.append(table)
    if view.rows:
        table = Table("finished", "runs", "latest", title="finished", title_justify="left")
        for block, labels in grouped(view.rows).items():
            for label, rows in labels.items():
                name = f"{block} | {label}" if block else label
                table.add_row(Text(name), str(len(rows)), Text(_latest(rows[-1]["curves"])))
        parts.append(table)
    return Group(*parts)


def _headline(view: View, sweep: dict[str, Any]) -> str:
    done = sweep["done"]
    where = f"{sweep['runs']} runs on {sweep['host']}, process {sweep['pid']}"
    if not status.alive(sweep):
        at = f"{where}: ended without a word at {done} of {sweep['run_epochs']} run-epochs"
        return f"{at}; start it again to go on from what it saved"
    left = sweep["left"] and max(sweep["left"] - (view.now - sweep["updated"]), 0.0)
    ran, left = duration(view.now - sweep["began"]), duration(left)
    return f"{where}: {done} of {sweep['run_epochs']} run-epochs after {ran}; about {left} left"


def _cells(program: dict[str, Any], now: float) -> tuple[str, ...]:
    name = f"{program['where']}: {', '.join(program['labels'])}"
    when = f"{duration(now - program['updated'])} ago" if status.alive(program) else "its process ended"
    at = f"{program['epoch']}/{program['epochs']}" if program["epoch"] else "compiling"
    return name, str(program["runs"]), at, when, _latest(program["curves"])


def _latest(curves: dict[str, Sequence[float | None]]) -> str:
    """A line for each curve that is shown: its name, its course and its last number."""
    lines = []
    for name in SHOWN:
        numbers = [v for v in curves.get(name, ()) if v is not None]
        if numbers:
            lines.append(f"{name:<14} {sparkline(curves[name]):<{WIDTH}} {numbers[-1]:.4g}")
    return "\n".join(lines)


# --- TensorBoard ------------------------------------------------------------------------------------------------------


class EventFiles:
    """Curves as TensorBoard's event files: of each finished run, and the mean of each program under way."""

    def __init__(self, directory: Path):
        """Makes the folder.

        Raises:
          ConfigError: tensorboardX is not installed, or the folder holds something.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ConfigError("--tensorboard needs tensorboardX: pip install 'jcredit[tensorboard]'") from error
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigError(f"--tensorboard {str(directory)!r} holds something already; give an empty or new folder")
        self._directory, self._writer, self._written = Path(directory), SummaryWriter, {}

    def add(self, view: View) -> None:
        """Adds all epochs that are not there yet."""
        for row in view.rows:
            name = "/".join((row.get("block") or "", row["label"], f"seed {row['seed']}")).lstrip("/")
            self._add(f"{row.get('experiment', '')}/{row.get('preset', '')}/{name}", row["curves"])
        for program in view.programs:
            self._add(f"under way/{program['where']}/{', '.join(program['labels'])}", program["curves"])

    def _add(self, run: str, curves: dict[str, Sequence[float | None]]) -> None:
        written = self._written.get(run, 0)
        epochs = max((len(values) for values in curves.values()), default=0)
        if epochs <= written:
            return
        # Named by the second otherwise: two within one would be one file.
        with self._writer(str(self._directory / _folder_name(run)), filename_suffix=f".{written}") as writer:
            for name, values in curves.items():
                for epoch, value in enumerate(values[written:], written + 1):
                    if isinstance(value, int | float):
                        writer.add_scalar(name, value, epoch)
        self._written[run] = epochs


def _folder_name(run: str) -> str:
    """A run's path of folders, without characters that mean something to a shell or a file system."""
    plain = ("".join(c if c.isalnum() or c in " .,=-+()_" else "_" for c in part) for part in run.split("/"))
    return "/".join(part.strip(".") or "_" for part in plain)


# --- the command ------------------------------------------------------------------------------------------------------


def follow(directory: Path, *, once: bool = False, seconds: float = 2.0, tensorboard: Path | None = None) -> None:
    """Shows a results directory in the terminal until it is interrupted; into a file, whenever there is something new.

    Args:
      directory: as in ``look``.
      once: show it one time, and return.
      seconds: between looks.
      tensorboard: an empty folder for event files of the curves.

    Raises:
      ConfigError: no such directory, or a package that is missing.
    """
    from rich.console import Console
    from rich.live import Live

    view, events = look(directory), EventFiles(tensorboard) if tensorboard is not None else None
    console, said = Console(), None
    with Live(console=console, auto_refresh=False) if console.is_terminal and not once else nullcontext() as live:
        while True:
            if events is not None:
                events.add(view)
            if live is not None:
                live.update(render(view), refresh=True)
            elif (new := _without_ages(view)) != said:
                console.print(render(view))
                said = new
            if once:
                return
            time.sleep(seconds)
            view = look(directory)


def _without_ages(view: View) -> Any:
    """What of a view is news when it changes."""
    programs = [(p["where"], p["labels"], p["epoch"], status.alive(p)) for p in view.programs]
    sweeps = [(sweep["host"], sweep["pid"], status.alive(sweep)) for sweep in view.sweeps]
    return len(view.rows), programs, sweeps, [left.where for left in view.cut_off]
