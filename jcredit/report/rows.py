"""``Rows``: the runs of a sweep in memory, as a table, a data frame or a figure.

What a single row is and how rows lie on disk is ``schema``, whose names can be imported from here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from jcredit.files import FileError, own_path
from jcredit.report import terminal
from jcredit.report.asked import asked, hint, matches, settings_of
from jcredit.report.latex import latex
from jcredit.report.lines import of_lines
from jcredit.report.schema import (
    SCHEMA,
    ResultsError,
    Row,
    append_rows,
    finished,
    grouped,
    number_at,
    read_rows,
    varied,
    with_reference,
)
from jcredit.report.series import epoch_points, layer_points
from jcredit.report.tables import Column, Tables, TableSpec, check_variant, markdown, tables_of, usual_columns

if TYPE_CHECKING:
    import pandas

__all__ = [
    "SCHEMA",
    "ResultsError",
    "Row",
    "Rows",
    "append_rows",
    "finished",
    "grouped",
    "number_at",
    "read_rows",
    "with_reference",
]

Per = Literal["run", "epoch", "layer"]
Format = Literal["markdown", "latex"]
_FORMATS: dict[str, Callable[[Tables], str]] = {"markdown": markdown, "latex": latex}
_LINE = ("label", "block", "seed", "status", "tier")
_PLACE = ("experiment", "preset", "config_hash")


class Rows(Sequence[Row]):
    """A sequence of rows, one per run, to which nothing is added; an interpreter shows them as a table in 100 columns.

    ``rows[0]`` is a row, ``rows[:3]`` and ``rows + other`` are ``Rows``.
    """

    def __init__(self, rows: Iterable[Row] = ()):
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        return Rows(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __add__(self, other: Iterable[Row]) -> Rows:
        return Rows((*self, *other))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]  # rows are dictionaries

    def __repr__(self) -> str:
        return self._shown(terminal.plain_text)

    def _repr_markdown_(self) -> str:
        return self._shown(markdown)

    def _shown(self, how: Callable[[Tables], str]) -> str:
        try:
            return how(tables_of(self._rows, self._spec())) if self else "no rows"
        except ResultsError as error:  # what cannot be one table must still be looked at
            return f"{len(self)} rows: {error}"

    @classmethod
    def read(cls, path: str | Path) -> Rows:
        """The rows on disk: those of a ``rows.jsonl``, or of all in a results folder, an experiment's or a preset's.

        What ``--fresh`` has made anew is in results folders of its own, ``fresh-1`` and on.

        A label whose configuration has changed since, of an estimator that was edited, has the rows of the latest sweep
        in a folder; the file keeps those of before.  Rows of an experiment's folder bear the labels, blocks and depths
        of its latest table, and a run that stands in two of its lines is there for each.

        Raises:
          ResultsError: no rows there, or some that cannot be read.
        """
        try:
            path = own_path(path)
        except FileError as error:
            raise ResultsError(str(error)) from None
        if path.is_file():
            return cls(read_rows(path))
        files = sorted(file for above in ("", "*/", "*/*/") for file in path.glob(f"{above}rows.jsonl"))
        if not files:
            begun = any(
                any(path.glob(f"{above}*/program.json"))
                for above in ("cache/", "*/cache/", "*/*/cache/", "cache/unfinished/")
            )
            unfinished = f"no run of the sweep there has finished; python -m jcredit watch {path} shows how far it is"
            hint = unfinished if begun else "give one, or a folder with results"
            raise ResultsError(f"{path}: no rows.jsonl there; {hint}")
        return cls(row for file in files for row in of_lines(file.parent, read_rows(file)))

    def where(self, **fields: Any) -> Rows:
        """The rows whose fields have these values; of a list (a range, a set, an array), any of its values.

        Args:
          **fields: ``label``, ``block``, ``seed``, ``status``, ``tier``, ``experiment`` (a sweep's name), ``preset``,
            ``config_hash``, or settings: ``learning_rate=1e-3``, ``sigma`` of any part, or by path,
            ``**{"credit.sigma": 0.1}``.  Parts go by their names: ``credit="dfa"``, those of a module of one's own
            with its name before theirs: ``"mine.field"``.  Fractions are alike where they agree to six digits.

        Raises:
          ResultsError: a field, or a value of one, that no row has (but a ``status`` may be nobody's); the message has
            the nearest one, or those that there are.
        """
        described = [(row, _line(row) | {name: row[name] for name in _PLACE} | settings_of(row)) for row in self]
        if not described:
            return self
        every = [values for _, values in described]
        chosen = {name: asked(name, wanted, every) for name, wanted in fields.items()}
        return Rows(row for row, values in described if all(matches(values, n, v) for n, v in chosen.items()))

    def table(
        self,
        spec: TableSpec | None = None,
        *,
        metrics: Sequence[str] | None = None,
        against: str | None = None,
        format: Format = "markdown",
    ) -> str:
        """A line per label, mean ± 95% interval over seeds, as a GitHub markdown table that also reads as plain text.

        Args:
          spec: what it shows; None: accuracy if there is any, depth utility if a line is called ``frozen``, Gamma, rho,
            RMS(h_L) and the loss.
          metrics: names of ``row["metrics"]`` to show instead, those of one's own estimators too.
          against: a line, such as ``bp``: behind each number (without ``metrics``: accuracy, Gamma, loss) stands how
            far it lies above that line's at the same seed, with the p of an exact sign-flip test.  Where a sweep varied
            settings, each line is compared with the ``bp`` of its own values.
          format: "latex" for the same lines as a booktabs tabular, with what markdown has around them as comments.

        Raises:
          ResultsError: no rows; another ``format``; a metric that none has, or none at all; a line that there is not;
            one label of one block stands for more than one configuration, or has a seed twice.
          TypeError: ``spec`` and one of the others are given.
        """
        if spec is not None and (metrics is not None or against is not None):
            raise TypeError("Rows.table takes spec, or metrics and against, not both")
        if not self:
            raise ResultsError("no rows to make a table of")
        if format not in _FORMATS:
            raise ResultsError(f"format={format!r} must be one of {', '.join(map(repr, _FORMATS))}")
        return _FORMATS[format](tables_of(self._rows, spec or self._spec(metrics, against)))

    def _spec(self, metrics: Sequence[str] | None = None, against: str | None = None) -> TableSpec:
        if against is None:
            return TableSpec(_title(self), usual_columns(self._rows) if metrics is None else self._columns(metrics))
        labels = list(dict.fromkeys(row["label"] for row in self))
        if not isinstance(against, str) or all(varied(row, against) is None for row in self):
            raise ResultsError(f"against={against!r} is none of the lines; {hint(str(against), labels)}")
        usual = [c for c in usual_columns(self._rows) if c.title in ("accuracy", "Gamma", "loss")]
        there = [c for c in usual if any(number_at(row, c.metric) is not None for row in self)]
        columns = there if metrics is None else self._columns(metrics)
        both = (
            (c, c._replace(title=f"{c.title} - {against}", format=f"+{c.format}", paired_with=against)) for c in columns
        )
        return TableSpec(_title(self), tuple(itertools.chain(*both)))

    def _columns(self, metrics: Sequence[str]) -> tuple[Column, ...]:
        names = sorted({name for row in self for name in row["metrics"]})
        chosen = [metrics] if isinstance(metrics, str) else list(metrics)
        if not chosen:
            raise ResultsError(f"metrics=[] shows nothing; the rows have {', '.join(names)}")
        for name in chosen:
            if name not in names:
                raise ResultsError(f"metric {name!r} is in none of {len(self)} rows; {hint(str(name), names)}")
            if "." in name:
                raise ResultsError(f"metric {name!r} cannot be a column: dots part paths; name it without")
        return tuple(Column(name, path := f"metrics.{name}", self._format(path)) for name in chosen)

    def _format(self, path: str) -> str:
        """Three decimals, but for numbers that have none of them."""
        numbers = [abs(value) for row in self if (value := number_at(row, path))]
        return ".3f" if not numbers or max(numbers) >= 0.01 else ".2e"

    def frame(self, per: Per = "run", *, constants: bool = False) -> pandas.DataFrame:
        """A pandas data frame with one line per run, or per epoch or layer of each.

        Its columns are label, block, seed, status and tier; every setting that has more than one value among the runs
        that have it, by path (``learning_rate``, ``credit.sigma``; a part by its name); and numbers, nan where there is
        none:

            run    every ``metrics.<name>``.
            epoch  ``epoch``, from 1 (from 0 where a number was taken before training), and every ``curves.<name>``.
            layer  ``layer`` l of the state h_l, and every ``layers.<name>``, as after the last epoch.

        Args:
          per: what a line is of.
          constants: whether settings that have the same value in all runs are columns too, for frames of several sweeps
            that are put together.

        Raises:
          ImportError: pandas is not installed.
          ResultsError: another ``per``.
        """
        if per not in _NUMBERS:
            raise ResultsError(f"per={per!r} must be one of {', '.join(map(repr, _NUMBERS))}")
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Rows.frame needs pandas: pip install 'jcredit[frames]'") from error
        settings = [settings_of(row) for row in self]
        varied = [
            path for path in _names(settings)
            if constants or _varies(values[path] for values in settings if path in values)
        ]  # fmt: skip
        lines, place = [], [] if per == "run" else [per]
        for row, values in zip(self, settings, strict=True):
            run = {**_line(row), **{path: values.get(path) for path in varied}}
            lines.extend({**run, **numbers} for numbers in _NUMBERS[per](row))
        numbers = [name for name in _names(lines) if name.startswith(("metrics.", "curves.", "layers."))]
        frame = pandas.DataFrame(lines, columns=[*_LINE, *varied, *place, *numbers])
        return frame.astype(dict.fromkeys(numbers, float))

    def plot(self, path: str | Path, title: str = "") -> None:
        """Writes the overview: accuracy and Gamma as bars with a dot per seed, and accuracy over epochs.

        In place of accuracy it has the loss where no row has one (a regression).

        Args:
          path: the file, whose name ends in .png, .pdf or .svg.
          title: its heading; "": experiment and preset, as in the table.

        Raises:
          ResultsError: as in ``table``.
          FileError: another kind of file, or one that cannot be written.
        """
        from jcredit.report import plots  # matplotlib loads where a figure is drawn

        if not self:
            raise ResultsError("no rows to make a figure of")
        for block, labels in grouped(self).items():
            for label, rows in labels.items():
                check_variant(block, label, rows)
        try:
            score = "test_accuracy" if any("test_accuracy" in row["metrics"] for row in self) else "test_loss"
            plots.overview(self._rows, path, title or _title(self), (score, "gamma"), score)
        except OSError as error:
            raise FileError(f"figure {str(path)!r} cannot be written ({error.strerror}); name another place") from error


def _title(rows: Rows) -> str:
    """Experiments and presets; a sweep's name alone, which has no preset."""
    places = ((row["experiment"], row["preset"]) for row in rows)
    return ", ".join(dict.fromkeys(name if preset == "sweep" else f"{name}/{preset}" for name, preset in places))


def _names(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of all mappings in order of first appearance."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _line(row: Row) -> dict[str, Any]:
    return {"block": "", "tier": None} | {name: row[name] for name in _LINE if name in row}


def _of_run(row: Row) -> list[dict[str, Any]]:
    return [{f"metrics.{name}": value for name, value in row["metrics"].items()}]


def _of_epochs(row: Row) -> list[dict[str, Any]]:
    return _by_place("epoch", "curves", {name: epoch_points(row, name) for name in row.get("curves") or {}})


def _of_layers(row: Row) -> list[dict[str, Any]]:
    return _by_place("layer", "layers", {name: layer_points(row, name) for name in row.get("layers") or {}})


def _by_place(place: str, field: str, points: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """A line for every epoch or layer that has any number: {name: {place: number}} turned over."""
    points = {name: numbers for name, numbers in points.items() if numbers}
    places = sorted({at for numbers in points.values() for at in numbers})
    return [{place: at, **{f"{field}.{name}": numbers.get(at) for name, numbers in points.items()}} for at in places]


_NUMBERS: dict[str, Callable[[Row], list[dict[str, Any]]]] = {"run": _of_run, "epoch": _of_epochs, "layer": _of_layers}


def _varies(values: Iterable[Any]) -> bool:
    return len({repr(value) for value in values}) > 1
