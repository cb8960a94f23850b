"""What an experiment is, and the command line all of them share.

A script under ``experiments/`` is a docstring, a grid, a table and a figure; ``main`` makes it a command.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from jcredit import hosts, plan, plots, results
from jcredit.checkpoints import CheckpointError
from jcredit.config import Config, ConfigError, as_dict
from jcredit.layout import keep_compiled_programs, use_all_cores
from jcredit.sweep import Interrupted, Place, Variant, plan_sweep, run_sweep
from jcredit.tables import Column, TableSpec, render_table
from jcredit.tasks.image_data import DataError

USER_ERRORS = (ConfigError, DataError, results.ResultsError, CheckpointError, hosts.HostsError)


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
      phase: phase of the study, and the ids of its claims.
      doc: the script's docstring, shown by ``--help``.
      presets: ``smoke``, ``quick`` and ``full``.
      table: what its table shows.
      figure: (rows, path) -> None, writes the figure.
    """

    name: str
    question: str
    phase: str
    doc: str | None
    presets: Mapping[str, Preset]
    table: TableSpec
    figure: Callable[[Sequence[results.Row], Path], None]


def credit_columns(*, accuracy: bool = True) -> tuple[Column, ...]:
    """The columns every table has: accuracy and its depth utility, Gamma, rho, nudge, RMS(h_L)."""
    column = Column
    learned = (
        column("accuracy", "metrics.test_accuracy"),
        column("depth utility", "metrics.test_accuracy", format="+.3f", paired_with="frozen"),
    )
    return (
        *(learned if accuracy else ()),
        column("Gamma", "metrics.gamma"),
        column("rho", "metrics.rho"),
        column("nudge", "metrics.nudge", format="+.1e"),
        column("RMS(h_L)", "metrics.h_rms_last", format=".2f"),
    )


def gain_columns(reference: str = "dfa", titles: tuple[str, str] = ("S1", "S2")) -> tuple[Column, ...]:
    """Gamma and rho above a reference line's at the same seed; above DFA's, the study's S1 and S2."""
    return tuple(
        Column(title, f"metrics.{name}", format="+.3f", paired_with=reference)
        for title, name in zip(titles, ("gamma", "rho"), strict=True)
    )


# --- the command line -------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """One clear line per error; unknown options come with the nearest known one."""

    def error(self, message: str):
        """Exits with status 2 and one line."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            known = [s for action in self._actions for s in action.option_strings]
            near = difflib.get_close_matches(unknown.split()[0].split("=")[0], known, n=1)
            message = f"{message}; {f'did you mean {near[0]}?' if near else '--help lists all options'}"
        self.exit(2, f"{self.prog}: error: {message}\n")


def field_help() -> dict[str, str]:
    """The docstring below each field of ``Config``."""
    body = ast.parse(inspect.getsource(Config)).body[0].body  # type: ignore[attr-defined]
    pairs = itertools.pairwise(body)
    return {
        field.target.id: text.value.value  # type: ignore[attr-defined]
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text.lower() == "true"


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive whole number")
    return int(text)


def _count_or_auto(text: str) -> int | None:
    if text != "auto" and (not text.isdigit() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} must be auto or a positive whole number")
    return None if text == "auto" else int(text)


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to {2**31 - 1}")
    return int(text)


def _parser(experiment: Experiment) -> Parser:
    parser = Parser(
        prog=f"{experiment.name}.py", description=experiment.doc, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sizes = "; ".join(f"{name}: {p.minutes}" for name, p in experiment.presets.items())
    parser.add_argument("--preset", default="quick", metavar="NAME", help=f"size of the experiment ({sizes})")
    parser.add_argument("--seeds", type=_seed, nargs="+", metavar="N", help="seeds, in place of the preset's")
    parser.add_argument("--methods", nargs="+", metavar="LABEL", help="only these methods or table lines")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="where rows go")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="prepared image data (default: TFDS_DATA_DIR)")
    parser.add_argument(
        "--seeds-per-batch",
        type=_count_or_auto,
        metavar="auto|N",
        help="runs vmapped together on a device (default: auto)",
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument(
        "--no-compile-cache", action="store_true", help="compile anew (default: compiled programs are kept on disk)"
    )
    plan_ = parser.add_argument_group("plan", "what the sweep would take; defaults are this machine's")
    plan_.add_argument("--plan", action="store_true", help="print runs per device, bytes, FLOPs, time; run nothing")
    plan_.add_argument("--devices", type=_count, metavar="N", help="devices to plan for")
    plan_.add_argument("--device-gib", type=float, metavar="X", help="memory of a device to plan for")
    plan_.add_argument("--device-gflops", type=float, metavar="X", help="float32 matmul rate of a device to plan for")
    several = parser.add_argument_group("several processes", "each takes a share of the runs; process 0 writes")
    several.add_argument(
        "--distributed", action="store_true", help="join a group found through SLURM, MPI or a TPU pod"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, where nothing can be found")
    several.add_argument("--num-processes", type=_count, metavar="N", help="processes in the group")
    several.add_argument("--process-id", type=_seed, metavar="I", help="this process, from 0")
    fields = parser.add_argument_group("configuration", "set a field in every line of the grid")
    texts = field_help()
    for name, hint in get_type_hints(Config).items():
        flag = "--" + name.replace("_", "-")
        if hint is bool:
            kind: dict[str, Any] = {"type": _boolean, "metavar": "true|false"}
        elif get_origin(hint) is Literal:
            kind = {"metavar": "|".join(get_args(hint))}  # Config names the choices in its own error
        else:
            kind = {"type": hint, "metavar": "N" if hint is int else "X"}
        fields.add_argument(flag, dest=f"field_{name}", help=texts[name].replace("%", "%%"), **kind)
    return parser


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(known)}"
        raise ConfigError(f"{what} {value!r} is unknown; {hint}")


def select(
    experiment: Experiment,
    preset: str,
    methods: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[Variant]:
    """The grid of a preset with fields overridden, and of it the lines that are asked for.

    Raises:
      ConfigError: an unknown preset or method, or a field that cannot run.
    """
    _one_of("preset", preset, list(experiment.presets))
    variants = [
        v._replace(
            config=dataclasses.replace(v.config, **(overrides or {})),
            start=v.start and v.start.overridden(overrides or {}),
        )
        for v in experiment.presets[preset].variants
    ]
    if methods is None:
        return variants
    known = list(dict.fromkeys(name for v in variants for name in (v.label, v.config.method)))
    for name in methods:
        _one_of("method", name, known)
    return [v for v in variants if v.label in methods or v.config.method in methods]


def preset_name(preset: str, overrides: Mapping[str, Any]) -> str:
    """Directory of a preset: overridden fields are part of its name, so that the preset's own rows stay its own."""
    return "+".join([preset, *(f"{name}={value}" for name, value in overrides.items())])


def write_report(experiment: Experiment, rows: Sequence[results.Row], directory: Path) -> str:
    """Writes table.md and figure.png from rows alone, and returns the table."""
    table = render_table(rows, experiment.table)
    results.write_text(directory / "table.md", table)
    experiment.figure(rows, directory / "figure.png")
    return table


def in_grid(rows: Sequence[results.Row], variants: Sequence[Variant]) -> list[results.Row]:
    """The rows that belong to a grid, in the grid's order, under its present labels and blocks."""
    found = []
    for variant in variants:
        mine = sorted((r for r in rows if r["config_hash"] == variant.hash), key=lambda r: r["seed"])
        found += [{**row, "label": variant.label, "block": variant.block} for row in mine]
    return found


def run(experiment: Experiment, argv: Sequence[str] | None = None) -> str:
    """Runs an experiment as its command line says, and returns its table.

    Raises:
      ConfigError, DataError, ResultsError, CheckpointError: with one line that names the value and the fix.
    """
    args = _parser(experiment).parse_args(argv)
    given = {name: getattr(args, f"field_{name}") for name in get_type_hints(Config)}
    overrides = {name: value for name, value in given.items() if value is not None}
    selected = select(experiment, args.preset, args.methods, overrides)
    variants = select(experiment, args.preset, None, overrides)
    seeds = args.seeds or experiment.presets[args.preset].seeds
    repeated = sorted({s for s in seeds if seeds.count(s) > 1}) if isinstance(seeds, list) else []
    if repeated:
        raise ConfigError(f"seed {repeated[0]} is given more than once; give every seed once")
    place = Place(args.results_dir, experiment.name, preset_name(args.preset, overrides))
    use_all_cores()
    if args.distributed or args.coordinator or args.num_processes or args.process_id is not None:
        hosts.join(args.coordinator, args.num_processes, args.process_id)
    if not args.no_compile_cache:
        keep_compiled_programs()
    before = len(in_grid(results.read_rows(place.rows, place.experiment, place.preset), variants))
    if args.plan:
        device = plan.this_device()
        memory = args.device_gib * 2**30 if args.device_gib else device.memory
        rate = args.device_gflops * 1e9 if args.device_gflops else device.flops
        device = plan.Device(memory, rate, args.devices or device.count)
        return plan.describe(plan_sweep(selected, seeds, place, data_dir=args.data_dir), device)
    run_sweep(
        selected, seeds, place,
        data_dir=args.data_dir, seeds_per_batch=args.seeds_per_batch, progress=not args.no_progress,
    )  # fmt: skip
    if not hosts.is_lead():
        return ""
    rows = in_grid(results.read_rows(place.rows), variants)
    again = "; every run was there already, --results-dir DIR starts afresh" if len(rows) == before else ""
    results.write_json(
        place.directory / "config.json",
        {
            "experiment": experiment.name, "preset": args.preset, "overrides": overrides,
            "variants": [
                {"label": v.label, "block": v.block, "config_hash": v.hash, "config": as_dict(v.config)}
                for v in variants
            ],
        },
    )  # fmt: skip
    table = write_report(experiment, rows, place.directory)
    return f"{table}\nrows, table and figure: {place.directory}{again}\n"


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """The command: prints the table; exits with 2 and one line on a user's error, with 130 if interrupted."""
    try:
        print(run(experiment, argv), end="")
    except USER_ERRORS as error:
        sys.exit(_say(experiment, error, 2))
    except (Interrupted, KeyboardInterrupt) as error:
        sys.exit(_say(experiment, error, 130))


def _say(experiment: Experiment, error: BaseException, status: int) -> int:
    text = " ".join(str(error).split()) or "interrupted"
    print(f"{experiment.name}.py: {'error: ' if status == 2 else ''}{text}", file=sys.stderr)
    return status


def default_figure(title: str, metrics: Sequence[str] = ("test_accuracy", "gamma"), curve: str = "test_accuracy"):
    """The usual figure: bars with a dot per seed, and curves over epochs."""
    return lambda rows, path: plots.overview(rows, path, title, metrics, curve)


def gains_figure(title: str, curve: str = "test_accuracy"):
    """S1 and S2 beside the accuracy: a dot for the difference to DFA at each seed."""
    gains = {"S1 (Gamma above DFA's)": "metrics.gamma", "S2 (rho above DFA's)": "metrics.rho"}

    def figure(rows: Sequence[results.Row], path: Path) -> None:
        for name, metric in gains.items():
            rows = results.with_reference(rows, metric, "dfa", name)
        plots.overview(rows, path, title, ("test_accuracy", *gains), curve)

    return figure
