"""All experiments at once: what there is, the study reproduced, and every table and figure anew from its rows.

python -m jcredit list
python -m jcredit reproduce --hours 8
python -m jcredit report --results-dir results --experiments DIR
python -m jcredit report --html
python -m jcredit report --check
python -m jcredit claims
python -m jcredit watch results
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from jcredit.config import ConfigError
from jcredit.files import FileError, check_writable, write_json, write_text
from jcredit.parts import brief, known
from jcredit.report.page import build
from jcredit.report.rows import Rows
from jcredit.study import findings, quotes, reproduce
from jcredit.study.command import Parser, add_cluster_options, folder
from jcredit.study.experiment import CLAIMS_NOTE, USER_ERRORS, Experiment, write_report
from jcredit.study.found import directories, found_in, sections
from jcredit.sweeps.cluster import dask_cluster
from jcredit.sweeps.run import Interrupted
from jcredit.sweeps.watch import follow

QUOTES = Path("docs/quotes.toml")
PAGE = "index.html"
FINDINGS = "findings"
"""Folder under the results with the figures of docs/findings.md."""
DRAWN_BY = "matplotlib.txt"
"""File under the results that says which version of Matplotlib drew the figures."""

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
    """What became of one directory of rows, or of one page."""

    where: str
    text: str
    failed: bool = False


def report(results_dir: Path, experiments: dict[str, Experiment]) -> Iterator[Outcome]:
    """Rebuilds table.md and figure.png wherever there are rows, from the rows alone.

    Raises:
      ConfigError: a results directory that does not exist.
    """
    found = False
    for directory in directories(results_dir):
        where, found = str(directory.relative_to(results_dir)), True
        try:
            yield Outcome(where, _rebuilt(directory, experiments, directory))
        except USER_ERRORS as error:
            yield Outcome(where, _said(error), failed=True)
    try:
        if drawn := findings.draw(results_dir, experiments, results_dir / FINDINGS):
            yield Outcome(FINDINGS, f"{len(drawn)} figures drawn")
    except USER_ERRORS as error:
        yield Outcome(FINDINGS, _said(error), failed=True)
    if found:
        write_text(results_dir / DRAWN_BY, _matplotlib() + "\n")


def _said(error: Exception) -> str:
    return f"error: {' '.join(str(error).split())}"


def _matplotlib() -> str:
    return importlib.import_module("matplotlib").__version__


def _rebuilt(directory: Path, experiments: dict[str, Experiment], into: Path) -> str:
    """Writes table and figure of a directory's rows into another one, or the same; what they were made of."""
    found = found_in(directory, experiments)
    if found.experiment is None:
        rows = Rows(found.rows)
        write_text(into / "table.md", rows.table())
        rows.plot(into / "figure.png", title=directory.parent.name)
    else:
        write_report(found.experiment, found.rows, into)
    return found.text


# --- the check --------------------------------------------------------------------------------------------------------


def check(results_dir: Path, experiments: dict[str, Experiment], quoted: Path | None) -> Iterator[Outcome]:
    """Makes everything anew in a folder of its own and compares: what differs is a failed outcome.

    Figures are compared, byte by byte, where the installed Matplotlib is the one that ``report`` noted; other versions
    draw other bytes.

    Args:
      results_dir: what is checked.
      experiments: all of them.
      quoted: the file of quoted numbers (None: none are checked).

    Raises:
      ConfigError: a results directory that does not exist, or a file of quoted numbers that cannot be read.
    """
    record = results_dir / DRAWN_BY
    drawn_by, here = record.read_text(encoding="utf-8").strip() if record.exists() else "?", _matplotlib()
    places = directories(results_dir)
    for directory in places:
        yield from _checked(directory, str(directory.relative_to(results_dir)), experiments, drawn_by == here)
    if drawn_by == here:
        yield from _findings_checked(results_dir, experiments)
    yield from _claims_checked(results_dir, experiments)
    yield from _page_checked(results_dir / PAGE, results_dir, experiments)
    texts = quotes.read_quotes(quoted) if quoted else []
    differing = list(quotes.differences(texts, results_dir, experiments))
    yield from (Outcome("quoted", text, failed=True) for text in differing)
    figures = "figures" if drawn_by == here else f"no figures (drawn by Matplotlib {drawn_by}, here is {here})"
    numbers = sum(len(quote.numbers) for quote in texts)
    yield Outcome("checked", f"{len(places)} tables, {figures}, {numbers} quoted numbers")


def _checked(directory: Path, where: str, experiments: dict[str, Experiment], figures: bool) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory(prefix="jcredit-") as scratch:
        try:
            _rebuilt(directory, experiments, Path(scratch))
        except USER_ERRORS as error:
            yield Outcome(where, _said(error), failed=True)
            return
        for name in ("table.md", "figure.png") if figures else ("table.md",):
            if difference := _difference(directory / name, Path(scratch, name).read_bytes()):
                yield Outcome(where, difference, failed=True)


def _findings_checked(results_dir: Path, experiments: dict[str, Experiment]) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory(prefix="jcredit-") as scratch:
        try:
            drawn = findings.draw(results_dir, experiments, Path(scratch))
        except USER_ERRORS as error:
            yield Outcome(FINDINGS, _said(error), failed=True)
            return
        for path in drawn:
            if difference := _difference(results_dir / FINDINGS / path.name, path.read_bytes()):
                yield Outcome(FINDINGS, difference, failed=True)


def _difference(path: Path, expected: bytes) -> str:
    """How a file differs from what it should hold, in one line; empty if it does not."""
    if not path.exists():
        return f"{path.name} is missing; python -m jcredit report makes it"
    if (found := path.read_bytes()) == expected:
        return ""
    if path.suffix == ".png":
        return f"{path.name} is not what its rows give"
    old, new = found.decode(errors="replace").split("\n"), expected.decode().split("\n")
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    texts = (lines[same].strip() if same < len(lines) else "nothing" for lines in (old, new))
    return "{} line {}: has {!r}, its rows give {!r}".format(path.name, same + 1, *texts)


# --- claims -----------------------------------------------------------------------------------------------------------

LEDGER = ("CLAIMS.md", "claims.json")


def write_claims(results_dir: Path, experiments: dict[str, Experiment], into: Path) -> int:
    """Writes the verdict on every claim, made of the rows, and returns how many there are.

    Raises:
      ConfigError: this jcredit has no claims.
    """
    verdicts, text = _judged(results_dir, experiments)
    write_text(into / LEDGER[0], text)
    write_json(into / LEDGER[1], verdicts)
    return len(verdicts)


def _judged(results_dir: Path, experiments: dict[str, Experiment]) -> tuple[list[dict[str, Any]], str]:
    """The ledger as data and as markdown."""
    try:
        ledger: Any = importlib.import_module("jcredit.study.claims")
    except ModuleNotFoundError as error:
        if error.name != "jcredit.study.claims":
            raise
        raise ConfigError("jcredit.study.claims is not there: no claims to judge") from None
    verdicts = ledger.claims(results_dir, experiments)
    return ledger.to_json(verdicts), ledger.render_markdown(verdicts)


def _claims_checked(results_dir: Path, experiments: dict[str, Experiment]) -> Iterator[Outcome]:
    """Failed outcomes for the ledger's files, if any are there, that are not what the rows give."""
    there = [results_dir / name for name in LEDGER if (results_dir / name).exists()]
    if not there:
        return
    with tempfile.TemporaryDirectory(prefix="jcredit-") as scratch:
        try:
            write_claims(results_dir, experiments, Path(scratch))
        except USER_ERRORS as error:
            yield Outcome("claims", _said(error), failed=True)
            return
        for path in there:
            if difference := _difference(path, Path(scratch, path.name).read_bytes()):
                yield Outcome("claims", difference, failed=True)


# --- the page ---------------------------------------------------------------------------------------------------------


def write_page(path: Path, results_dir: Path, experiments: dict[str, Experiment]) -> str:
    """Writes the results page, and returns what it was made of.

    Raises:
      ConfigError: the charts' package is not installed.
    """
    try:
        charts = build.bundle()
    except ImportError as error:
        raise ConfigError(str(error)) from None
    text, count = _page(results_dir, experiments, charts)
    write_text(path, text)
    return f"{count} directories of rows, {len(text.encode()) / 1e6:.1f} MB"


def _page(results_dir: Path, experiments: dict[str, Experiment], charts: build.Bundle) -> tuple[str, int]:
    found = sections(results_dir, experiments)
    judged = _judged(results_dir, experiments) if (results_dir / LEDGER[1]).exists() else ([], "")
    return build.page(found, judged[0], charts), len(found)


def _page_checked(path: Path, results_dir: Path, experiments: dict[str, Experiment]) -> Iterator[Outcome]:
    """A failed outcome if the page is there and not what the rows give, whichever version of the charts it contains."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    try:
        expected, _ = _page(results_dir, experiments, build.bundle_of(text))
    except USER_ERRORS as error:
        yield Outcome("page", _said(error), failed=True)
        return
    if difference := _difference(path, expected.encode()):
        yield Outcome("page", difference, failed=True)


# --- the command ------------------------------------------------------------------------------------------------------


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 <= hours < math.inf:
        raise argparse.ArgumentTypeError(f"{brief(text)} must be a number of hours from 0")
    return hours


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds from 0.1")
    return seconds


def _parser() -> Parser:
    parser = Parser(prog="python -m jcredit", description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|reproduce|report|claims|watch")
    listing = commands.add_parser("list", help="every experiment: question, phase, runs and minutes of each preset")
    reproducing = commands.add_parser(
        "reproduce", help="run the study, in order of value per hour; can be stopped and started at any time",
        description="Walks the items of reproduce.toml, which lies beside the scripts: resumes, shares runs between"
        " experiments, writes rows as programs finish, and says what is left.",
        epilog=reproduce.HOURS_NOTE,
    )  # fmt: skip
    rebuilding = commands.add_parser("report", help="rebuild every table.md and figure.png from the rows alone")
    judging = commands.add_parser("claims", help="judge every claim of the study by the rows: CLAIMS.md, claims.json")
    for command in (reproducing, rebuilding, judging):
        command.add_argument(
            "--results-dir", type=folder, default=Path("results"), metavar="DIR", help="where rows are"
        )
    for command in (listing, reproducing, rebuilding, judging):
        command.add_argument(
            "--experiments", type=folder, metavar="DIR", help="folder of the scripts (default: ./experiments)"
        )
    reproducing.add_argument(
        "--hours", type=_hours, metavar="H",
        help="stop after these, with a checkpoint; 0 shows the list and what is left (default: run to the end)",
    )  # fmt: skip
    reproducing.add_argument("--only", nargs="+", metavar="NAME", help="only these items of the list")
    reproducing.add_argument("--data-dir", type=folder, metavar="DIR", help="prepared image data")
    reproducing.add_argument("--no-progress", action="store_true", help="no progress bars")
    add_cluster_options(reproducing)
    rebuilding.add_argument(
        "--check", action="store_true",
        help="write nothing; compare tables, the ledger of claims, the results page and quoted numbers with what the"
        f" rows give, and figures too if {DRAWN_BY} under the results names the Matplotlib that is installed; exits"
        " with 2 and a line for each difference",
    )  # fmt: skip
    rebuilding.add_argument(
        "--html", type=folder, nargs="?", const=Path(), metavar="FILE",
        help=f"write the results page as well: one file with all tables and charts (default: {PAGE} under the results);"
        " needs jcredit[html]",
    )  # fmt: skip
    rebuilding.add_argument(
        "--quotes", type=folder, metavar="FILE", help=f"numbers that pages quote (default: {QUOTES}, if it is there)"
    )
    watching = commands.add_parser("watch", help="follow running sweeps from outside: how far, how long, curves")
    watching.add_argument("directory", type=folder, nargs="?", default=Path("results"), metavar="DIR", help="results")
    watching.add_argument("--once", action="store_true", help="show it one time")
    watching.add_argument("--seconds", type=_seconds, default=2.0, metavar="S", help="between looks (default: 2)")
    watching.add_argument(
        "--tensorboard", type=folder, metavar="DIR", help="also write the curves as event files into this empty folder"
    )
    return parser


def _reproduce(args: argparse.Namespace, experiments: dict[str, Experiment]) -> bool:
    """The command ``reproduce``; whether all went well."""
    items = reproduce.read_list((args.experiments or Path("experiments")) / reproduce.LIST, experiments)
    for name in args.only or ():
        known("item", name, [item.name for item in items])
    if args.hours == 0:
        done = reproduce.all_finished(args.results_dir)
        print(reproduce.shown(reproduce.what_is_left(items, done, args.only)))
        return True
    try:
        check_writable(args.results_dir)
    except FileError as error:
        raise ConfigError(f"--results-dir {brief(str(args.results_dir))}: {error}") from None
    with nullcontext() if args.scheduler is None else dask_cluster(args.scheduler) as executor:
        return reproduce.walk(
            items, args.results_dir, hours=args.hours, data_dir=args.data_dir, only=args.only,
            progress=not args.no_progress, executor=executor, batch_runs=args.batch_runs,
        )  # fmt: skip


def _report(args: argparse.Namespace, experiments: dict[str, Experiment]) -> bool:
    """The command ``report``; whether all went well."""
    if args.check:
        quoted = args.quotes or (QUOTES if QUOTES.exists() else None)
        outcomes = check(args.results_dir, experiments, quoted)
    else:
        outcomes = report(args.results_dir, experiments)
    good, none = True, True
    for outcome in outcomes:
        none, good = False, good and not outcome.failed
        print(f"{outcome.where}: {outcome.text}", file=sys.stderr if outcome.failed else sys.stdout)
    if none:
        print(f"no rows under {args.results_dir}")
    if args.html is not None and not args.check:
        path = args.results_dir / PAGE if args.html == Path() else args.html
        print(f"{path}: {write_page(path, args.results_dir, experiments)}")
    return good


def main(argv: Sequence[str] | None = None) -> None:
    """The command; exits with 2 if anything could not be read or differs, after doing all the rest; with 1 if
    the system failed."""
    args = _parser().parse_args(argv)
    good = True
    try:
        if args.command == "watch":
            follow(args.directory, once=args.once, seconds=args.seconds, tensorboard=args.tensorboard)
            return
        experiments = load_experiments(args.experiments)
        if args.command == "list":
            print("\n\n".join([*map(description, experiments.values()), CLAIMS_NOTE]))
        elif args.command == "reproduce":
            good = _reproduce(args, experiments)
        elif args.command == "report":
            good = _report(args, experiments)
        else:
            directories(args.results_dir)  # says that it does not exist
            count = write_claims(args.results_dir, experiments, args.results_dir)
            print(f"{count} claims: {args.results_dir / LEDGER[0]}")
    except USER_ERRORS as error:
        print(f"python -m jcredit: {_said(error)}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"python -m jcredit: {' '.join(str(error).split()) or 'interrupted'}", file=sys.stderr)
        sys.exit(128 + getattr(error, "signal", signal.SIGINT))
    except OSError as error:
        print(f"python -m jcredit: {_said(error)}; mend that and give the same command again", file=sys.stderr)
        sys.exit(1)
    if not good:
        sys.exit(2)


if __name__ == "__main__":
    main()
