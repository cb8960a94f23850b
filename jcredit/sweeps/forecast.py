"""How long a sweep still takes: its programs differ in cost, so their epochs are weighed by it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm


class Work(NamedTuple):
    """What a program has to do.

    Attributes:
      run_epochs: epochs of all its runs.
      flops: of one epoch of one run; only ratios between programs matter.
    """

    run_epochs: int
    flops: float


class Forecast:
    """Seconds left, from the first measured epoch on.

    A program that has run goes on at its own pace, another takes as long per FLOP as those that have, and each that is
    still to be compiled takes the mean time of those that have been.
    """

    def __init__(self, work: Mapping[Any, Work], at_once: int = 1):
        """Nothing is done yet.

        Args:
          work: of each program, by a name that can be hashed.
          at_once: how many programs run side by side.
        """
        self._left = {name: own.run_epochs for name, own in work.items()}
        self._flops = {name: max(own.flops, 1.0) for name, own in work.items()}
        self._measured: dict[Any, tuple[int, float]] = {}  # run-epochs and the seconds they took
        self._compiled: dict[Any, float] = {}
        self._at_once = at_once

    def compiled(self, name: Any, seconds: float) -> None:
        """A program has been compiled, in so many seconds."""
        self._compiled[name] = seconds

    def done(self, name: Any, run_epochs: int, seconds: float | None = None) -> None:
        """Run-epochs of a program are done; None: they were found, and say nothing of its pace."""
        self._left[name] = max(self._left[name] - run_epochs, 0)
        if seconds is not None:
            before, spent = self._measured.get(name, (0, 0.0))
            self._measured[name] = before + run_epochs, spent + seconds

    def run_epochs_left(self) -> int:
        """Of all programs."""
        return sum(self._left.values())

    def left(self) -> float | None:
        """Seconds; None before the first measured epoch of a sweep that is not at its end."""
        open_ = {name: left for name, left in self._left.items() if left}
        if not open_:
            return 0.0
        flops = sum(epochs * self._flops[name] for name, (epochs, _) in self._measured.items())
        if not flops:
            return None
        pace = sum(seconds for _, seconds in self._measured.values()) / flops
        training = sum(left * self._of_one(name, pace) for name, left in open_.items())
        compiling = sum(name not in self._compiled and name not in self._measured for name in open_)
        mean = sum(self._compiled.values()) / len(self._compiled) if self._compiled else 0.0
        return (training + compiling * mean) / min(self._at_once, len(open_))

    def _of_one(self, name: Any, pace: float) -> float:
        epochs, seconds = self._measured.get(name, (0, 0.0))
        return seconds / epochs if epochs else self._flops[name] * pace


LOG_SECONDS = 30.0
"""Between the lines of a bar that is written to a file."""


def redraws(file: TextIO) -> bool:
    """Whether what is written to a file can be drawn over: it is a terminal, or a notebook's."""
    return file.isatty() or "ipykernel" in sys.modules


class Bar(tqdm):
    """A progress bar that counts run-epochs and forecasts the time left; it forecasts where it is not shown, too.

    Where its output is neither a terminal nor a notebook, it writes a line now and then instead of one that is drawn
    over and over.
    """

    FORMAT = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} run-epochs, {elapsed} gone, {left} left{postfix}"

    def __init__(
        self, work: Mapping[Any, Work], *, at_once: int = 1, tell: Callable[[Forecast], Any] | None = None, **shown
    ):
        """A bar at its start.

        Args:
          work: of each program, by a name that can be hashed.
          at_once: how many programs run side by side.
          tell: called with the forecast whenever it has changed.
          **shown: what ``tqdm`` takes.
        """
        self.forecast, self._tell = Forecast(work, at_once), tell or (lambda forecast: None)
        self._forecast_at = 0.0
        total = sum(own.run_epochs for own in work.values())
        if not redraws(shown.get("file") or sys.stderr):
            shown = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS, **shown}
        super().__init__(total=total, unit="run-epoch", bar_format=self.FORMAT, dynamic_ncols=True, **shown)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """A function that shows the bar's text in place of the one before, or on a line of its own."""
        return tqdm.status_printer(file) if redraws(file) else lambda text: print(text, file=file, flush=True)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What ``FORMAT`` may name: tqdm's, and the time left, which goes down between epochs."""
        found, left = super().format_dict, self.forecast.left()
        if left is not None:
            left = max(left - max(found["elapsed"] - self._forecast_at, 0.0), 0.0)
        return dict(found) | {"left": "?" if left is None else self.format_interval(left)}

    def at(self, name: str) -> None:
        """Says what is being done now, in place of what was said of the thing before."""
        self.set_postfix_str("", refresh=False)
        self.set_description(name)

    def stopping(self) -> None:
        """Says on a line of its own that the sweep has been told to stop, which it does at the end of an epoch."""
        if not self.disable:
            self.write("stopping after the epoch under way; once more, and it stops at once", file=self.fp)

    def compiled(self, name: Any, seconds: float) -> None:
        """A program has been compiled, in so many seconds."""
        self.forecast.compiled(name, seconds)

    def done(self, name: Any, run_epochs: int, seconds: float | None = None) -> None:
        """Run-epochs of a program are done, in so many seconds; None: they were found."""
        self.forecast.done(name, run_epochs, seconds)
        self._tell(self.forecast)
        if not self.disable:
            self._forecast_at = super().format_dict["elapsed"]
            self.update(run_epochs)
