"""The command line of an experiment: options of the run, and one for each setting that its grid has."""

from __future__ import annotations

import argparse
import errno
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jcredit.config import PARTS, Config, ConfigError, parts_of, paths_of, settings
from jcredit.parts import Part
from jcredit.settings import LARGEST_INTEGER, Setting, brief, nearest
from jcredit.study.own import Own

SHOWN_VALUES = 5


class Parser(argparse.ArgumentParser):
    """One clear line per error; unknown options come with the nearest known one."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # argparse takes -1e3 and -inf for options and then does not name them; here they are values, which are judged.
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf|nan)", re.IGNORECASE)

    def error(self, message: str):
        """Exits with status 2 and one line."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            known = {s.lstrip("-"): s for action in self._actions for s in action.option_strings}
            asked = (unknown.split() or [""])[0].split("=")[0].lstrip("-")
            near = nearest(asked, known) or nearest(asked.rpartition(".")[2], known)  # --sigma, in Python credit.sigma
            message = f"unrecognized arguments: {brief(unknown)[1:-1] if unknown else repr(unknown)}"
            message = f"{message}; {f'did you mean {known[near]}?' if near else '--help lists all options'}"
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


# --- what texts stand for ---------------------------------------------------------------------------------------------


def _whole(text: str, least: int, wanted: str) -> int:
    """A whole number from ``least`` to 2^31 - 1, written in plain digits."""
    digits = text.lstrip("0") or "0"
    if not (text.isascii() and text.isdigit()) or len(digits) > 10 or not least <= int(digits) <= LARGEST_INTEGER:
        raise argparse.ArgumentTypeError(f"{brief(text)} must be {wanted} to {LARGEST_INTEGER}")
    return int(digits)


def _count(text: str) -> int:
    return _whole(text, 1, "a positive whole number, 1")


def _count_or_auto(text: str) -> int | None:
    return None if text == "auto" else _whole(text, 1, "auto or a positive whole number, 1")


def _seed(text: str) -> int:
    if "," in text:
        raise argparse.ArgumentTypeError(f"{brief(text)} must be whole numbers with spaces between: 0 1 2")
    return _whole(text, 0, "a whole number from 0")


def number(text: str, least: float, wanted: str, most: float = sys.float_info.max) -> float:
    """A number from ``least`` to ``most``; ``wanted`` says so in an error."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{brief(text)} must be a number {wanted}")
    return value


def _rate(text: str) -> float:
    """What a device has: a number a plan can divide by."""
    return number(text, 1e-6, "from 1e-6 to 1e12", 1e12)


def folder(text: str) -> Path:
    """A folder as it is named; no name, or one that no file system takes, is refused."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{brief(text)} must be the name of a folder; . is the current one")
    try:
        os.stat(text)
    except OSError as error:  # what is not there, or is not a folder, is for its user to say
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise argparse.ArgumentTypeError(f"{brief(text)}: {error.strerror}; name another") from None
    return Path(text)


# --- options for settings ---------------------------------------------------------------------------------------------


class Option(NamedTuple):
    """An option for the settings of one name.

    Attributes:
      name: a field of ``Config``, a setting's name, or ``credit.<setting>`` and the like where that alone says too
        little; what ``config.change`` takes.
      group: heading under which it is listed.
      settings: the settings it stands for; more than one where several parts declare this name.
      owners: names of the parts that have it; none for a field of ``Config``.
    """

    name: str
    group: str
    settings: tuple[Setting, ...]
    owners: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """As it is typed."""
        return "--" + self.name.replace("_", "-")

    def parsed(self, text: str) -> Any:
        """The value a text stands for; argparse's error otherwise."""
        errors = []
        for setting in self.settings:
            try:
                return setting.parsed(text)
            except ConfigError as error:
                errors.append(error)
        raise argparse.ArgumentTypeError(str(errors[0]))

    def help(self, configs: Iterable[Config]) -> str:
        """Documentation, who else has it, and in brackets what the lines of a grid have."""
        found = dict.fromkeys(
            shown(value_at(config, path)) for config in configs for path in paths_of(config, self.name)
        )
        values = list(found)[:SHOWN_VALUES] + ["..."] * (len(found) > SHOWN_VALUES)
        text = f"{self.settings[0].doc.rstrip('.')}{' (' + ', '.join(self.owners) + ')' if self.owners[1:] else ''}"
        return f"{text} [{', '.join(values)}]".replace("%", "%%") if values else text.replace("%", "%%")


def shown(value: Any) -> str:
    """A setting's value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def value_at(config: Config, path: str) -> Any:
    """The value of the setting at a path."""
    head, *inner = path.split(".")
    value = getattr(config, head)
    for name in inner:
        value = value.settings[name]
    return value


def options_of(configs: Sequence[Config]) -> Iterator[Option]:
    """An option for each setting that a text can stand for: of ``Config`` itself, then of the parts in a grid."""
    for name, setting in settings().items():
        if name not in PARTS:
            yield Option(name, "how it is trained and measured", (setting,))
    found: dict[tuple[str, str], dict[str, tuple[Setting, Part]]] = {}
    for config in dict.fromkeys(configs):
        for path, part in parts_of(config):
            for setting in part.factory.settings.values():
                if setting.choices or setting.type in (bool, int, float, str):
                    same = found.setdefault((setting.name, path.partition(".")[0]), {})
                    same.setdefault(part.name, (setting, part))
    heads = {name: [head for other, head in found if other == name] for name, _ in found}
    for (name, head), owners in found.items():
        alone = name not in settings() and len(heads[name]) == 1
        first = next(iter(owners.values()))[1]
        yield Option(
            name if alone else f"{head}.{name}",
            f"credit of {first.name}" if first.kind == "estimator" else f"{first.kind} {first.name}",
            tuple(setting for setting, _ in owners.values()),
            tuple(owners),
        )


# --- the parser -------------------------------------------------------------------------------------------------------


def parser_of(name: str, doc: str | None, minutes: Mapping[str, str], grids: Mapping[str, Sequence[Config]]) -> Parser:
    """The parser of an experiment's command line.

    Args:
      name: of its script.
      doc: what ``--help`` says about it.
      minutes: {preset: what it takes}.
      grids: {preset: its configurations}.
    """
    parser = Parser(
        prog=f"{name}.py", usage="%(prog)s [options]", description=doc, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_run_options(parser.add_argument_group("run"), minutes)
    _add_plan_options(parser.add_argument_group("plan", "what the sweep would take; defaults are this machine's"))
    add_cluster_options(parser.add_argument_group("a cluster", "experiments/SCALING.md says how to start one"))
    usual = grids.get("quick", next(iter(grids.values())))
    groups: dict[str, Any] = {}
    for option in options_of([config for grid in grids.values() for config in grid]):
        group = groups.get(option.group)
        if group is None:
            about = "set in every line that has it; in brackets: what the lines of preset quick have"
            group = groups[option.group] = parser.add_argument_group(option.group, None if groups else about)
        group.add_argument(
            option.flag, dest=f"setting {option.name}", type=option.parsed, metavar=option.settings[0].metavar,
            help=option.help(usual),
        )  # fmt: skip
    return parser


def _add_run_options(group: Any, minutes: Mapping[str, str]) -> None:
    sizes = "; ".join(f"{name}: {text}" for name, text in minutes.items())
    add: Callable[..., Any] = group.add_argument
    add("--preset", default="quick", metavar="NAME", help=f"size of the experiment (default: quick; {sizes})")
    add("--seeds", type=_seed, nargs="+", metavar="N", help="seeds, in place of the preset's")
    add("--methods", nargs="+", metavar="LABEL", help="only these estimators or table lines (a wrong one lists them)")
    add(
        "--estimator",
        dest="own",
        type=partial(Own, "estimator"),
        action="append",
        default=[],
        metavar="MODULE:FACTORY",
        help="an estimator of your own as one more line of every block, trained as its first line is (its longest,"
        " where they differ); with settings: \"MODULE:FACTORY(rank=8, how='x')\"; can be given again",
    )
    add(
        "--rule",
        dest="own",
        type=partial(Own, "rule"),
        action="append",
        metavar="MODULE:FACTORY",
        help="the same for a local rule of your own: as that first line, with its credit, but for the rule",
    )
    add(
        "--results-dir",
        type=folder,
        default=Path("results"),
        metavar="DIR",
        help="where rows go (default: results, which holds the committed ones)",
    )
    add("--fresh", action="store_true", help="start over, in a new folder DIR/fresh-N of its own; nothing is deleted")
    add("--data-dir", type=folder, metavar="DIR", help="prepared image data (default: TFDS_DATA_DIR)")
    add(
        "--seeds-per-batch",
        type=_count_or_auto,
        metavar="auto|N",
        help="runs vmapped together on a device (default: auto)",
    )
    add("--no-progress", action="store_true", help="no progress bar")
    add("--no-compile-cache", action="store_true", help="compile anew (default: compiled programs are kept on disk)")


def _add_plan_options(group: Any) -> None:
    add: Callable[..., Any] = group.add_argument
    add("--plan", action="store_true", help="print runs per device, bytes, FLOPs, time; run nothing")
    add("--devices", type=_count, metavar="N", help="devices to plan for")
    add("--device-gib", type=_rate, metavar="X", help="memory of a device to plan for")
    add("--device-gflops", type=_rate, metavar="X", help="float32 matmul rate of a device to plan for")


def add_cluster_options(group: Any) -> None:
    """Adds ``--scheduler`` and ``--batch-runs`` to a parser or a group of its options."""
    add: Callable[..., Any] = group.add_argument
    add(
        "--scheduler",
        metavar="ADDRESS",
        help="run on the workers of the Dask cluster whose scheduler has this address, such as tcp://HOST:8786; they"
        " must see --results-dir",
    )
    add(
        "--batch-runs",
        type=_count_or_auto,
        metavar="auto|N",
        help="runs of one program that a worker takes at once, at most (default: auto, all of them; an even share where"
        " there are more workers than programs)",
    )


def overrides_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, {name as ``config.change`` takes it: value}."""
    given = (
        (name.removeprefix("setting "), value) for name, value in vars(args).items() if name.startswith("setting ")
    )
    return {name: value for name, value in given if value is not None}
