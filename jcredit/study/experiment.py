"""What an experiment is, and the command that each of them is.

A script under ``experiments/`` is a docstring, a grid, a table and a figure; ``main`` makes it a command.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from jcredit.config import ConfigError, change, credit_depth, described, paths_of, settings
from jcredit.files import one_line, write_json, write_text
from jcredit.report import plots, terminal
from jcredit.report.lines import GRID, placed
from jcredit.report.rows import Row, finished, read_rows, with_reference
from jcredit.report.tables import Column, Tables, TableSpec, markdown, tables_of, with_study
from jcredit.settings import known
from jcredit.study.command import overrides_of, parser_of
from jcredit.study.own import FIELDS, Own, own_part
from jcredit.sweeps import plan
from jcredit.sweeps.batch import BatchError, take_what_is_left
from jcredit.sweeps.cluster import ClusterError, dask_cluster
from jcredit.sweeps.engine import MENDABLE
from jcredit.sweeps.layout import keep_compiled_programs, use_all_cores, usual_width
from jcredit.sweeps.run import Stopped, plan_sweep, run_sweep
from jcredit.sweeps.variants import Folder, Variant, checked_seeds

USER_ERRORS = (*MENDABLE, ClusterError)
CLAIM = re.compile(r"\b[A-Z]{2}\d")
LONGEST_NAME = 150  # of a preset's folder, in bytes; file systems take 255
CLAIMS_NOTE = "What ids such as LD1 claim is in docs/method.md, section 10."


class Preset(NamedTuple):
    """A size of an experiment.

    Attributes:
      seeds: default seeds.
      variants: the grid.
      minutes: what it takes on two cores.
    """

    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    minutes: str


class Experiment(NamedTuple):
    """An experiment of the study.

    Attributes:
      name: its directory under the results, and its script.
      question: one line.
      phase: phase of the study, and the ids of its claims (docs/method.md 10).
      doc: the script's docstring, shown by ``--help``.
      presets: ``smoke``, ``quick`` and ``full``, and others by name.
      table: what its table shows.
      figure: (rows, path) -> None, writes the figure.
    """

    name: str
    question: str
    phase: str
    doc: str | None
    presets: Mapping[str, Preset]
    table: TableSpec
    figure: Callable[[Sequence[Row], Path], None]


# --- usual columns and figures ----------------------------------------------------------------------------------------


def credit_columns(*, accuracy: bool = True, nudge: bool = True) -> tuple[Column, ...]:
    """The usual columns: accuracy and its depth utility, Gamma, rho, nudge, RMS(h_L)."""
    learned = (
        Column("accuracy", "metrics.test_accuracy"),
        Column("depth utility", "metrics.test_accuracy", format="+.3f", paired_with="frozen"),
    )
    return (
        *(learned if accuracy else ()),
        Column("Gamma", "metrics.gamma"),
        Column("rho", "metrics.rho"),
        *((Column("nudge", "metrics.nudge", format="+.1e"),) if nudge else ()),
        Column("RMS(h_L)", "metrics.h_rms_last", format=".2f"),
    )


def trained_columns() -> dict[str, tuple[Column, ...]]:
    """Two tables of what trains online: accuracy beside that of BP, broadcast and frozen blocks; and the credit."""
    beside = {"above BP": "bp", "above broadcast": "broadcast", "depth utility": "frozen"}
    differences = (
        Column(title, "metrics.test_accuracy", format="+.3f", paired_with=control) for title, control in beside.items()
    )
    return {
        "accuracy": (Column("accuracy", "metrics.test_accuracy"), *differences),
        "credit": credit_columns(accuracy=False),
    }


def gain_columns(reference: str = "dfa", titles: tuple[str, str] = ("S1", "S2")) -> tuple[Column, ...]:
    """Gamma and rho above a reference line's at the same seed; above DFA's, the study's S1 and S2."""
    return tuple(
        Column(title, f"metrics.{name}", format="+.3f", paired_with=reference)
        for title, name in zip(titles, ("gamma", "rho"), strict=True)
    )


def ratio_columns(references: Mapping[str, str]) -> tuple[Column, ...]:
    """Gamma, then rho, divided by reference lines' at the same seed.

    Args:
      references: {short name for the title: label}.
    """
    return tuple(
        Column(f"{title} / {short}", f"metrics.{name}", format=".2f", paired_with=label, ratio=True)
        for title, name in (("Gamma", "gamma"), ("rho", "rho"))
        for short, label in references.items()
    )


def default_figure(title: str, metrics: Sequence[str] = ("test_accuracy", "gamma"), curve: str = "test_accuracy"):
    """The usual figure: bars with a dot per seed, and curves over epochs."""
    return lambda rows, path: plots.overview(rows, path, title, metrics, curve)


def gains_figure(title: str):
    """S1 and S2 beside the accuracy: a dot for the difference to DFA at each seed."""
    gains = {"S1 (Gamma above DFA's)": "metrics.gamma", "S2 (rho above DFA's)": "metrics.rho"}

    def figure(rows: Sequence[Row], path: Path) -> None:
        for name, metric in gains.items():
            rows = [_marked(row, name[:2], name) for row in with_reference(rows, metric, "dfa", name)]
        plots.overview(rows, path, title, ("test_accuracy", *gains))

    return figure


def _marked(row: Row, title: str, name: str) -> Row:
    """The row with the study's figure of a paired column under the name of a metric."""
    study = row.get("study") or {}
    return {**row, "study": {**study, name: study.get(title)}}


# --- the grid that is asked for ---------------------------------------------------------------------------------------


def grid_of(
    experiment: Experiment, preset: str, overrides: Mapping[str, Any] | None = None, owns: Sequence[Own] = ()
) -> list[Variant]:
    """The grid of a preset with settings overridden, and a line in every block for each part of one's own.

    Args:
      experiment: the experiment.
      preset: its preset.
      overrides: {name as in ``config.change``: value}, set in every line that has it.
      owns: estimators and rules of one's own; see ``own_part``.

    Raises:
      ConfigError: an unknown preset, a setting that no line has or reads, a value that cannot run, or no such part.
    """
    known("preset", preset, list(experiment.presets))
    grid = list(experiment.presets[preset].variants)
    for name, value in (overrides or {}).items():
        if not any(paths_of(variant.config, name) for variant in grid):
            change(grid[0].config, name, value)  # says which names there are
    grid = [_overridden(variant, overrides or {}) for variant in grid]
    for own in owns:
        grid = _with_own(grid, own)
    for name in overrides or {}:
        if name in settings() and all(getattr(v.config.as_read, name) != getattr(v.config, name) for v in grid):
            raise ConfigError(f"{name}: no line of {experiment.name} reads it; leave it out")
    return grid


def _overridden(variant: Variant, overrides: Mapping[str, Any]) -> Variant:
    config, epochs = variant.config, variant.config.epochs
    for name, value in overrides.items():
        config = change(config, name, value) if paths_of(config, name) else config
    keep = tuple(config.epochs if epoch == epochs else epoch for epoch in variant.keep)
    return variant._replace(config=config, start=variant.start and variant.start.overridden(overrides), keep=keep)


def _with_own(grid: Sequence[Variant], own: Own) -> list[Variant]:
    """The grid with one more line at the end of every block, trained as the first of the longest runs there."""
    label, part = own_part(own)
    blocks: dict[str, list[Variant]] = {}
    for variant in grid:
        blocks.setdefault(variant.block, []).append(variant)
    for block, variants in blocks.items():
        if label in (variant.label for variant in variants):
            raise ConfigError(f"{own}: there is a line {label!r} already; name or set it otherwise")
        like = max(variants, key=lambda variant: variant.config.epochs)
        blocks[block] = [*variants, like._replace(label=label, config=like.config.replace(**{FIELDS[own.kind]: part}))]
    return [variant for variants in blocks.values() for variant in variants]


def chosen(grid: Sequence[Variant], methods: Sequence[str] | None) -> list[Variant]:
    """The lines whose label or estimator is named; all of them where nothing is.

    Raises:
      ConfigError: a name that is neither.
    """
    if methods is None:
        return list(grid)
    for name in methods:
        known("method", name, list(dict.fromkeys(n for v in grid for n in (v.label, v.config.credit.name))))
    return [v for v in grid if v.label in methods or v.config.credit.name in methods]


def preset_name(preset: str, overrides: Mapping[str, Any], owns: Sequence[Own] = ()) -> str:
    """Directory of a preset: what is changed is part of its name, so that the preset's own rows stay its own.

    A name too long for a folder ends in a digest of what it leaves out.
    """
    own = (re.sub(r"[^\w.=,()-]+", "", spec.replace(":", ".")) for _, spec in owns)
    changed = (f"{name}={value}".replace("/", "%2F").replace("\0", "%00") for name, value in overrides.items())
    name = "+".join([preset, *changed, *own]).encode()
    digest = f"~{hashlib.sha256(name).hexdigest()[:8]}" if len(name) > LONGEST_NAME else ""
    return name[:LONGEST_NAME].decode(errors="ignore") + digest


# --- table and figure -------------------------------------------------------------------------------------------------


def write_report(experiment: Experiment, rows: Sequence[Row], directory: Path) -> Tables:
    """Writes table.md and figure.png from rows alone, and returns what the table says."""
    tables = reported(experiment, rows)
    experiment.figure(with_study(rows, experiment.table), directory / "figure.png")
    write_text(directory / "table.md", markdown(tables))  # last: what has its table has its figure
    return tables


def reported(experiment: Experiment, rows: Sequence[Row]) -> Tables:
    """An experiment's tables of its rows; a note says where claims that are named can be read."""
    spec = experiment.table
    if any(CLAIM.search(note) for note in spec.notes):
        spec = spec._replace(notes=(*spec.notes, CLAIMS_NOTE))
    return tables_of(rows, spec)


def in_grid(rows: Sequence[Row], grid: Sequence[Variant]) -> list[Row]:
    """The rows that belong to a grid, in the grid's order, under its present labels and blocks, with its depths."""
    return placed(rows, [(variant.hash, _borne(variant)) for variant in grid])


def _borne(variant: Variant) -> dict[str, Any]:
    """What the rows of a line bear."""
    return {"label": variant.label, "block": variant.block, "depth": credit_depth(variant.config)}


# --- the command ------------------------------------------------------------------------------------------------------


def run(experiment: Experiment, argv: Sequence[str] | None = None) -> str:
    """Runs an experiment as its command line says, and returns its table as it is shown on the standard output.

    Raises:
      ConfigError, DataError, ResultsError, CheckpointError, ClusterError: with one line that names the value and the
        fix.
      BatchError, Stopped: with one line that ends in the command that goes on.
    """
    args, overrides = _arguments(experiment, argv)
    grid = grid_of(experiment, args.preset, overrides, args.own)
    wanted = chosen(grid, args.methods)
    if args.fresh:
        args.results_dir = _fresh(args.results_dir, only_named=args.plan)
    folder = Folder(args.results_dir, experiment.name, preset_name(args.preset, overrides, args.own))
    folder.check()
    _set_up(args)
    if not args.plan:
        take_what_is_left(folder)
    there = read_rows(folder.rows, folder.experiment, folder.preset)
    if args.plan:
        width = args.seeds_per_batch or (None if args.device_gib else usual_width())
        programs = plan_sweep(wanted, args.seeds, folder, data_dir=args.data_dir, there=there, width=width)
        return plan.describe(programs, _device(args))
    try:
        with nullcontext() if args.scheduler is None else dask_cluster(args.scheduler) as executor:
            found = run_sweep(
                wanted, args.seeds, folder, data_dir=args.data_dir, seeds_per_batch=args.seeds_per_batch,
                progress=not args.no_progress, there=there, executor=executor, batch_runs=args.batch_runs,
            )  # fmt: skip
    except (BatchError, Stopped) as error:
        error.args = (f"{error}: {_to_go_on(experiment, args, argv)}",)
        raise
    write_json(folder.directory / GRID, describe_sweep(experiment, args.preset, overrides, args.own, grid))
    new = [row for row in found if (row["config_hash"], row["seed"]) not in finished(there)]
    tables = write_report(experiment, in_grid([*there, *new], grid), folder.directory)
    again = "" if new else "; every run was there already, --fresh makes them anew in a folder of its own"
    return f"{terminal.shown(tables)}\nrows, table and figure: {folder.directory}{again}\n"


def _arguments(experiment: Experiment, argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """What the command line says, and the settings it overrides."""
    presets = experiment.presets
    parser = parser_of(
        experiment.name, experiment.doc, {name: preset.minutes for name, preset in presets.items()},
        {name: [variant.config for variant in preset.variants] for name, preset in presets.items()},
    )  # fmt: skip
    args = parser.parse_args(argv)
    known("preset", args.preset, list(presets))
    args.seeds = checked_seeds(args.seeds or presets[args.preset].seeds)
    return args, overrides_of(args)


def _fresh(results_dir: Path, only_named: bool) -> Path:
    """The first folder ``fresh-N`` below the usual one that there is not yet; made, unless it is only to be named.

    Raises:
      ConfigError: it cannot be made.
    """
    for folder in (results_dir / f"fresh-{n}" for n in itertools.count(1)):
        try:
            if not only_named:
                folder.mkdir(parents=True)
            if not only_named or not folder.exists():
                return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"--results-dir {results_dir}: {error.strerror}; name a folder you can write to"
            ) from None
    raise AssertionError


def _to_go_on(experiment: Experiment, args: argparse.Namespace, argv: Sequence[str] | None) -> str:
    """The command that goes on with this one."""
    script, *given = sys.argv if argv is None else [f"{experiment.name}.py", *argv]
    if args.fresh:  # the last --results-dir counts
        given = [*(text for text in given if text != "--fresh"), "--results-dir", str(args.results_dir)]
    return shlex.join(["python", script, *given])


def _set_up(args: argparse.Namespace) -> None:
    """Devices and the cache of compiled programs; before the first use of a device."""
    use_all_cores()
    if not args.no_compile_cache:
        keep_compiled_programs()


def _device(args: argparse.Namespace) -> plan.Device:
    """What is planned for: this machine's devices, but for what is given."""
    device = plan.this_device()
    return plan.Device(
        args.device_gib * 2**30 if args.device_gib else device.memory,
        args.device_gflops * 1e9 if args.device_gflops else device.flops,
        args.devices or device.count,
    )


def describe_sweep(
    experiment: Experiment, preset: str, overrides: Mapping[str, Any], owns: Sequence[Own], grid: Sequence[Variant]
) -> dict[str, Any]:
    """What a directory holds, for readers of its rows and for ``python -m jcredit report``."""
    lines = [{**_borne(v), "config_hash": v.hash, "config": described(v.config)} for v in grid]
    return {
        "experiment": experiment.name, "preset": preset, "overrides": overrides, "own": owns,
        "variants": lines,
    }  # fmt: skip


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """The command: prints the table; exits with one line and 2 on a user's error, 1 if batches or the system failed,
    130 or 143 if it was interrupted or terminated.
    """
    try:
        print(run(experiment, argv), end="")
    except USER_ERRORS as error:
        sys.exit(_say(experiment, error, 2))
    except BatchError as error:
        sys.exit(_say(experiment, error, 1))
    except Stopped as error:
        sys.exit(_say(experiment, error, 128 + error.signal))
    except KeyboardInterrupt as error:
        sys.exit(_say(experiment, error, 128 + signal.SIGINT))
    except OSError as error:
        sys.exit(_say(experiment, OSError(f"{error}; mend that and give the same command again"), 1))


def _say(experiment: Experiment, error: BaseException, status: int) -> int:
    text = one_line(error) or "interrupted"
    print(f"{experiment.name}.py: {'error: ' if status < 128 else ''}{text}", file=sys.stderr)
    return status
