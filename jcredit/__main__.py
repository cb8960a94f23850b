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
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from jcredit.config import ConfigError
from jcredit.files import FileError, check_writable, one_line
from jcredit.settings import brief, known
from jcredit.study import reproduce
from jcredit.study.command import Parser, add_cluster_options, folder, number
from jcredit.study.experiment import CLAIMS_NOTE, USER_ERRORS, Experiment
from jcredit.study.found import directories
from jcredit.study.rebuilding import DRAWN_BY, LEDGER, PAGE, check, report, said, write_claims, write_page
from jcredit.study.scripts import description, load_experiments
from jcredit.sweeps.cluster import dask_cluster
from jcredit.sweeps.record import version
from jcredit.sweeps.run import Stopped
from jcredit.sweeps.watch import follow

QUOTES, RESULTS = Path("docs/quotes.toml"), Path("results")


def _hours(text: str) -> float:
    return number(text, 0, "of hours from 0")


def _seconds(text: str) -> float:
    return number(text, 0.1, "of seconds from 0.1")


def _parser() -> Parser:
    parser = Parser(prog="python -m jcredit", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--version", action="version", version=f"jcredit {version('jcredit')}", help="the version, and nothing else"
    )
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
            "--results-dir", type=folder, default=RESULTS, metavar="DIR", help="where rows are (default: results)"
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
    data = "prepared image data (default: TFDS_DATA_DIR)"
    reproducing.add_argument("--data-dir", type=folder, metavar="DIR", help=data)
    reproducing.add_argument("--no-progress", action="store_true", help="no progress bars")
    add_cluster_options(reproducing)
    extent = rebuilding.add_mutually_exclusive_group()
    extent.add_argument(
        "--only", nargs="+", metavar="NAME",
        help="rebuild just the tables and figures of these experiments (toy_lq) or presets (toy_lq/quick)",
    )  # fmt: skip
    extent.add_argument(
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
        "--quotes",
        type=folder,
        metavar="FILE",
        help=f"numbers that pages quote (default: {QUOTES}, if it is there, for the rows in {RESULTS})",
    )
    watching = commands.add_parser("watch", help="follow running sweeps from outside: how far, how long, curves")
    watching.add_argument(
        "directory", type=folder, nargs="?", default=Path("results"), metavar="DIR", help="default: results"
    )
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
        # No page quotes the rows of another folder.
        of_the_pages = args.results_dir.resolve() == RESULTS.resolve() and QUOTES.exists()
        quoted = args.quotes or (QUOTES if of_the_pages else None)
        outcomes = check(args.results_dir, experiments, quoted)
    else:
        outcomes = report(args.results_dir, experiments, args.only)
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
    parser = _parser()
    args, good = parser.parse_args(argv), True
    if args.command == "report" and args.check and args.html is not None:
        parser.error("report --check writes nothing; leave --html out")
    if args.command == "report" and args.quotes is not None and not args.check:
        parser.error("report --quotes is read by --check; give that too")
    try:
        if args.command == "watch":
            follow(args.directory, once=args.once, seconds=args.seconds, tensorboard=args.tensorboard)
            return
        experiments = load_experiments(args.experiments, needed=args.command != "report")
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
        print(f"python -m jcredit: {said(error)}", file=sys.stderr)
        sys.exit(2)
    except (Stopped, KeyboardInterrupt) as error:
        print(f"python -m jcredit: {one_line(error) or 'interrupted'}", file=sys.stderr)
        sys.exit(128 + getattr(error, "signal", signal.SIGINT))
    except OSError as error:
        print(f"python -m jcredit: {said(error)}; mend that and give the same command again", file=sys.stderr)
        sys.exit(1)
    if not good:
        sys.exit(2)


if __name__ == "__main__":
    main()
