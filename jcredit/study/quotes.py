"""Numbers that pages quote, tied to the rows they come from: ``docs/quotes.toml``, checked by ``report --check``.

    [[quote]]
    text = "Fed raw, the same gradient reaches {}%"   # as on the page, {} for each number; line breaks do not matter
    experiment = "cifar10"
    block = "jcredit's rule: raw credit"
    label = "bp"
    metric = "test_accuracy"
    format = ".1f"
    scale = 100

A text with several numbers has ``numbers = [{ label = "bp" }, ...]``, one for each ``{}``, each with the fields in
which it differs.  A number is the mean over the rows of its line, above the line ``minus`` at the same seed where that
is given, and must stand on the page as it is formatted; a zero before the point may be left out.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jcredit.config import ConfigError
from jcredit.files import one_line
from jcredit.report import stats
from jcredit.report.rows import ResultsError, Row, number_at, read_rows, with_reference
from jcredit.settings import known
from jcredit.study.experiment import Experiment, grid_of, in_grid

NUMBER = r"([-+]?\d[\d,]*\.?\d*|[-+]?\.\d+)"
MINUS = "above its reference"


class Quoted(NamedTuple):
    """Where a number comes from: fields of an entry.

    Attributes:
      experiment: name of the experiment.
      label: the line of its table.
      metric: dotted path into the row, or the name of a metric alone.
      preset: whose rows.
      block: heading of the line's block.
      minus: label of the line that is subtracted at the same seed, or "block | label" of one of any block.
      seeds: over which the mean is taken; none: the preset's.
      scale: factor.
      format: as in ``format``.
      half: the half width of the 95% interval in place of the mean.
    """

    experiment: str = ""
    label: str = ""
    metric: str = ""
    preset: str = "quick"
    block: str = ""
    minus: str = ""
    seeds: list[int] = []  # noqa: RUF012
    scale: float = 1.0
    format: str = ".2f"
    half: bool = False


class Quote(NamedTuple):
    """A piece of text on a page, with a ``{}`` for each number."""

    page: Path
    text: str
    numbers: tuple[Quoted, ...]


# --- the list ---------------------------------------------------------------------------------------------------------


def read_quotes(path: Path) -> list[Quote]:
    """The quotes of a file; a ``page`` is a path from the folder above that file's, README.md unless given.

    Raises:
      ConfigError: no such file, or an entry that cannot be read; with one line that names it.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("quote", [])
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; give the file of quoted numbers with --quotes FILE") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not a list of quotes ({error})") from error
    quotes = []
    for i, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: quote {i}: {entry!r} must be a table, [[quote]]")
        try:
            quotes.append(_quote(entry, path.absolute().parent.parent))
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{path}: quote {i} ({entry.get('text', 'without text')!r}): {error}") from None
    return quotes


def _quote(entry: dict[str, Any], folder: Path) -> Quote:
    common = dict(entry)
    page, text, numbers = common.pop("page", "README.md"), common.pop("text", ""), common.pop("numbers", [{}])
    found = tuple(_number(common | own) for own in numbers)
    if text.count("{}") != len(found):
        raise ConfigError(f"{text.count('{}')} places {{}} for {len(found)} numbers")
    return Quote(folder / page, text, found)


def _number(fields: dict[str, Any]) -> Quoted:
    for name, value in fields.items():
        known("field", name, list(Quoted._fields))
        kinds = (int, float) if name == "scale" else type(getattr(Quoted(), name))
        if not isinstance(value, kinds):
            raise ConfigError(f"{name}={value!r} is of the wrong type")
    number = Quoted(**fields)
    if missing := [name for name in ("experiment", "label", "metric") if not getattr(number, name)]:
        raise ConfigError(f"{missing[0]} is missing")
    try:
        format(1.0, number.format)
    except ValueError as error:
        raise ConfigError(f"format={number.format!r}: {error}") from None
    return number._replace(metric=number.metric if "." in number.metric else f"metrics.{number.metric}")


# --- the check --------------------------------------------------------------------------------------------------------


def differences(quotes: list[Quote], results_dir: Path, experiments: Mapping[str, Experiment]) -> Iterator[str]:
    """A line for every number on a page that is not its rows', has no rows yet, or is not there at all."""
    pages: dict[Path, str | None] = {}
    rows: dict[tuple[str, str], list[Row]] = {}
    for quote in quotes:
        if quote.page not in pages:
            pages[quote.page] = _flowed(quote.page.read_text(encoding="utf-8")) if quote.page.is_file() else None
        where = f"{quote.page.name}, {quote.text!r}"
        on_page = pages[quote.page]
        if on_page is None:
            yield f"{where}: there is no page {quote.page}"
            continue
        pattern = NUMBER.join(re.escape(piece) for piece in _flowed(quote.text).split("{}"))
        found = re.findall(f"(?<![\\d.]){pattern}" if pattern.startswith(NUMBER) else pattern, on_page)
        if len(found) != 1:
            yield f"{where}: the page has this {len(found) or 'no'} times; quote it as it stands, once"
            continue
        shown = found[0] if isinstance(found[0], tuple) else (found[0],)
        for text, number in zip(shown, quote.numbers, strict=True):
            line = f"{number.experiment}/{number.preset}, {f'{number.block}, ' * bool(number.block)}{number.label}"
            try:
                expected = _formatted(number, results_dir, experiments, rows)
            except (ConfigError, ResultsError) as error:
                yield f"{where}: {text} cannot be checked, {line}: {one_line(error)}"
                continue
            if _bare(text) != _bare(expected):
                yield f"{where}: {text} on the page, {expected} in the rows ({line}, {number.metric})"


def _flowed(text: str) -> str:
    """The text with all white space as single blanks; at its ends it stays."""
    return re.sub(r"\s+", " ", text)


def _bare(text: str) -> str:
    """A number without commas and without a zero before its point."""
    return re.sub(r"^([-+]?)0+\.", r"\1.", text.replace(",", ""))


def _formatted(
    number: Quoted,
    results_dir: Path,
    experiments: Mapping[str, Experiment],
    cache: dict[tuple[str, str], list[Row]],
) -> str:
    """A number as its rows have it.

    Raises:
      ConfigError: no such experiment, preset, block or line.
      ResultsError: rows that are missing or cannot be read.
    """
    known("experiment", number.experiment, list(experiments))
    experiment = experiments[number.experiment]
    grid = grid_of(experiment, number.preset)
    known("block", number.block, list(dict.fromkeys(v.block for v in grid)))
    known("label", number.label, [v.label for v in grid if v.block == number.block])
    place = (number.experiment, number.preset)
    if place not in cache:
        cache[place] = in_grid(read_rows(results_dir.joinpath(*place, "rows.jsonl"), *place), grid)
    rows, metric = cache[place], number.metric
    block, elsewhere, label = number.minus.rpartition(" | ")
    if number.minus:
        known("label", label, [v.label for v in grid if not elsewhere or v.block == block])
    if number.minus and not elsewhere:
        rows, metric = with_reference(rows, metric, label, MINUS), f"metrics.{MINUS}"
    values = _at_seeds(rows, number.block, number.label, metric)
    if elsewhere:
        other = _at_seeds(rows, block, label, metric)
        pairs = {seed: (value, other.get(seed)) for seed, value in values.items()}
        values = {seed: None if x is None or y is None else x - y for seed, (x, y) in pairs.items()}
    seeds = number.seeds or experiment.presets[number.preset].seeds
    if missing := [str(seed) for seed in seeds if seed not in values]:
        raise ResultsError(f"no rows yet for seed{'s' * (len(missing) > 1)} {', '.join(missing)}")
    present = [value for seed in seeds if (value := values[seed]) is not None]
    if len(present) < len(seeds):
        raise ResultsError(f"{len(seeds) - len(present)} of {len(seeds)} rows have no {number.metric}")
    if number.half and len(present) < 2:
        raise ResultsError("one seed has no interval")
    low, high = stats.interval95(present) if number.half else (0.0, 2 * stats.mean(present))
    return f"{number.scale * (high - low) / 2:{number.format}}"


def _at_seeds(rows: list[Row], block: str, label: str, metric: str) -> dict[int, float | None]:
    """A number of a line at each seed that has a row."""
    return {row["seed"]: number_at(row, metric) for row in rows if (row["block"], row["label"]) == (block, label)}
