"""All experiments at once: what there is, and every table and figure anew from its rows.

python -m jcredit list
python -m jcredit report --results-dir results --experiments DIR
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jcredit.config import ConfigError
from jcredit.report.rows import read_rows
from jcredit.study.command import Parser
from jcredit.study.experiment import CLAIMS_NOTE, USER_ERRORS, Experiment, grid_of, in_grid, write_report

# --- finding experiments ----------------------------------------------------------------------------------------------


def load_experiment(script: Path) -> Experiment:
    """The ``EXPERIMENT`` of a script.

    Raises:
      ConfigError: the script cannot be imported or defines none.
    """
    name = f"jcredit_experiment_{script.stem}"
    spec = importlib.util.spec_from_file_location(name, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of a script look their module up
    try:
        spec.loader.exec_module(module)
        return module.EXPERIMENT
    except Exception as error:
        raise ConfigError(f"{script}: not a script with an EXPERIMENT ({type(error).__name__}: {error})") from error


def load_experiments(folder: Path | None) -> dict[str, Experiment]:
    """The experiments of all scripts that lie in a folder, by name.

    Args:
      folder: the folder (None: ``experiments`` in the current directory).

    Raises:
      ConfigError: no scripts there, or one that defines no experiment.
    """
    folder = folder or Path.cwd() / "experiments"
    scripts = sorted(folder.glob("*.py"))
    if not scripts:
        raise ConfigError(f"no experiments in {folder}; name the folder of their scripts with --experiments DIR")
    found = [load_experiment(script) for script in scripts]
    return {experiment.name: experiment for experiment in found}


# --- list -------------------------------------------------------------------------------------------------------------


def description(experiment: Experiment) -> str:
    """Name, question, phase, and the runs and minutes of each preset."""
    lines = [f"{experiment.name}  (phase {experiment.phase})", f"  {experiment.question}"]
    for name, preset in experiment.presets.items():
        variants, seeds = len(preset.variants), len(preset.seeds)
        runs = f"{variants * seeds} runs ({variants} configurations x {seeds} seed{'s' * (seeds > 1)})"
        lines.append(f"    {name:<6} {runs:<40} {preset.minutes}")
    return "\n".join(lines)


# --- report -----------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of one directory of rows."""

    directory: Path
    text: str
    failed: bool = False


def report(results_dir: Path, experiments: dict[str, Experiment]) -> Iterator[Outcome]:
    """Rebuilds table.md and figure.png wherever there are rows, from the rows alone.

    Raises:
      ConfigError: a results directory that does not exist.
    """
    if not results_dir.is_dir():
        raise ConfigError(f"results directory {results_dir} does not exist; give one with --results-dir DIR")
    for path in sorted(results_dir.glob("*/*/rows.jsonl")):
        try:
            yield Outcome(path.parent, _rebuild(path.parent, experiments))
        except USER_ERRORS as error:
            yield Outcome(path.parent, f"error: {' '.join(str(error).split())}", failed=True)


def _rebuild(directory: Path, experiments: dict[str, Experiment]) -> str:
    experiment = experiments.get(directory.parent.name)
    if experiment is None:
        raise ConfigError(f"no script has an experiment called {directory.parent.name!r}; left as it is")
    grid = grid_of(experiment, *_described(directory))
    rows = read_rows(directory / "rows.jsonl", experiment.name, directory.name)
    mine = in_grid(rows, grid)
    strangers = len(rows) - len({(row["config_hash"], row["seed"]) for row in mine})
    if not mine:
        raise ConfigError(
            f"none of its {len(rows)} rows belongs to the present grid, which has changed since; left as it is"
        )
    write_report(experiment, mine, directory)
    missing = sum(v.hash not in {row["config_hash"] for row in mine} for v in grid)
    return f"rebuilt from {len(rows) - strangers} rows" + "".join((
        f"; {strangers} rows do not belong to the present grid and are left out" if strangers else "",
        f"; {missing} of {len(grid)} configurations have no rows yet" if missing else "",
    ))  # fmt: skip


def _described(directory: Path) -> tuple[str, dict[str, Any], list[str]]:
    """Preset, overridden settings and own estimators of a directory's config.json; a sweep under way has none yet."""
    path = directory / "config.json"
    if not path.exists() and "+" not in directory.name:
        return directory.name, {}, []
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        return described["preset"], described["overrides"], described.get("estimators", [])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: missing or torn ({type(error).__name__}), so its preset is not known; run the experiment again"
        ) from error


# --- the command ------------------------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(prog="python -m jcredit", description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|report")
    listing = commands.add_parser("list", help="every experiment: question, phase, runs and minutes of each preset")
    rebuilding = commands.add_parser("report", help="rebuild every table.md and figure.png from the rows alone")
    rebuilding.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="where rows are")
    for command in (listing, rebuilding):
        command.add_argument(
            "--experiments", type=Path, metavar="DIR", help="folder of the scripts (default: ./experiments)"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command; exits with 2 if anything could not be read, after doing all the rest."""
    args = _parser().parse_args(argv)
    try:
        experiments = load_experiments(args.experiments)
        if args.command == "list":
            print("\n\n".join([*map(description, experiments.values()), CLAIMS_NOTE]))
            return
        outcomes = []
        for outcome in report(args.results_dir, experiments):
            outcomes.append(outcome)
            where = outcome.directory.relative_to(args.results_dir)
            print(f"{where}: {outcome.text}", file=sys.stderr if outcome.failed else sys.stdout)
    except USER_ERRORS as error:
        print(f"python -m jcredit: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    if not outcomes:
        print(f"no rows under {args.results_dir}")
    if any(outcome.failed for outcome in outcomes):
        sys.exit(2)


if __name__ == "__main__":
    main()
