"""What runs have shown: their progress while they train, and the row of each finished one.

A row says what its numbers depend on: the code that trained it, versions, device and layout.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import math
import os
import subprocess
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jcredit.config import credit_depth, described
from jcredit.files import one_line, plain
from jcredit.numerics import unusual_numerics
from jcredit.report.schema import (
    ESTIMATOR_DIVERGED,
    SCHEMA,
    WORSE_THAN_NOTHING,
    ResultsError,
    Row,
    read_rows,
    worse_than_nothing,
)
from jcredit.sweeps.layout import Layout
from jcredit.sweeps.variants import Folder, Request, Variant
from jcredit.training import Run

BLOW_UP = 10.0
log = logging.getLogger("jcredit")


class Progress(NamedTuple):
    """How far runs of one program have come; the innermost lists have a value for each of them.

    Attributes:
      layout: how they lie on the hardware.
      git_commit: the code that trains them, or several where it changed in between; None outside jcredit's checkout.
      versions: of what their numbers depend on, and
      device: what they are trained on: the same, several where a run went on elsewhere; empty where that was not
        written down.
      history: for each epoch so far {metric: values}; scores of the credit only in some epochs.
      layers: the latest scores of the credit by layer, {name: values}.
      run_s: seconds they took so far, without compiling.
      initial: scores of the credit by layer before the first step.
      data: hash of the data that they are trained on (``Task.origin``); None where that was not written down.
    """

    layout: Layout
    git_commit: str | None
    history: tuple[dict[str, list[Any]], ...] = ()
    layers: dict[str, list[Any]] = {}  # noqa: RUF012
    run_s: float = 0.0
    initial: dict[str, list[Any]] = {}  # noqa: RUF012
    data: str | None = None
    versions: dict[str, str] = {}  # noqa: RUF012
    device: str = ""

    @property
    def epoch(self) -> int:
        """How many epochs they have run."""
        return len(self.history)

    def after(self, metrics: dict[str, list[Any]], layers: dict[str, list[Any]], seconds: float) -> Progress:
        """One epoch further; ``layers`` is empty where the credit was not scored."""
        history = (*self.history, metrics)
        return self._replace(history=history, layers=layers or self.layers, run_s=self.run_s + seconds)

    @classmethod
    def begun(cls, layout: Layout, git_commit: str | None, data: str) -> Progress:
        """That of runs that this process begins."""
        return cls(layout, git_commit, data=data, versions=versions(), device=device())

    def continued_by(self, git_commit: str | None) -> Progress:
        """The same where this code goes on with it in this process."""
        before, here = self.git_commit or "unknown", versions()
        commits = _and(before, git_commit or "unknown")
        both = {
            name: _and(self.versions.get(name, "unknown"), here.get(name, "none")) for name in {**self.versions, **here}
        }
        return self._replace(
            git_commit=self.git_commit if commits == before else commits,
            versions=both,
            device=_and(self.device or "unknown", device()),
        )

    def begun_elsewhere(self) -> str:
        """What of versions and device is another here than where they were last trained; empty where nothing is."""
        last = {name: value.split(", ")[-1] for name, value in {**self.versions, "device": self.device}.items()}
        here = {**versions(), "device": device()}
        return ", ".join(
            f"{name} {was}, here {here.get(name, 'none')}"
            for name, was in last.items()
            if was and was != here.get(name, "none")
        )

    def of_run(self, i: int) -> Progress:
        """That of one run alone."""
        pick = lambda values: {name: [value[i]] for name, value in values.items()}  # noqa: E731
        return self._replace(
            history=tuple(map(pick, self.history)), layers=pick(self.layers), initial=pick(self.initial)
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values; numbers that are not finite stay."""
        return {**self._asdict(), "layout": self.layout._asdict(), "history": list(self.history)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Progress:
        """What ``to_json`` gave.

        Raises:
          KeyError, TypeError: another value than that.
        """
        return cls(**{**value, "layout": Layout(**value["layout"]), "history": tuple(value["history"])})


def _and(before: str, now: str) -> str:
    """What there was, and what there is now if it is another than was last."""
    return before if before.split(", ")[-1] == now else f"{before}, {now}"


# --- divergence -------------------------------------------------------------------------------------------------------


def first_bad_epoch(*curves: Iterable[float]) -> int | None:
    """The first epoch (from 1) at which one of these curves is not finite: mean losses, the loss after the epoch."""
    for epoch, values in enumerate(zip(*curves, strict=True), 1):
        if not all(math.isfinite(v) for v in values):
            return epoch
    return None


def estimator_blew_up(losses: Sequence[float]) -> bool:
    """Whether an epoch-mean estimator loss ever exceeds ten times the smallest one before it, where that is above 0."""
    smallest = math.inf
    for loss in losses:
        if loss > BLOW_UP * smallest > 0:
            return True
        smallest = min(smallest, loss)
    return False


# --- rows -------------------------------------------------------------------------------------------------------------


def make_row(
    request: Request, run: Run, progress: Progress, folder: Folder,
    *, found: dict[str, Any], compile_s: float, runs_in_program: int,
) -> Row:  # fmt: skip
    """The row of one finished run.

    Args:
      request: which run.
      run: its functions.
      progress: of this run alone.
      folder: where the row goes.
      found: what its followup found: ``metrics``, ``curves`` and ``layers``.
      compile_s: seconds its program took to compile (0: it was not trained now).
      runs_in_program: how many runs shared that program.
    """
    variant, history = request.variant, progress.history
    names = sorted({name for entry in history for name in entry})
    curves: dict[str, list[Any]] = {
        name: [entry[name][0] if name in entry else None for entry in history] for name in names
    }
    est_losses = curves.get("estimator_loss", [0.0] * len(history))
    # An epoch's mean takes every step's loss along; what the last step did is seen by the evaluation after it.
    bad = first_bad_epoch(curves["train_loss"], est_losses, curves["test_loss"])
    flags = [ESTIMATOR_DIVERGED] if estimator_blew_up(est_losses[: (bad or len(history) + 1) - 1]) else []
    metrics = {name: c[-1] for name, c in curves.items()} | found.get("metrics", {}) if bad is None else {}
    config = described(variant.config)
    flags += [WORSE_THAN_NOTHING] if worse_than_nothing(metrics, config) else []
    return plain({
        "schema": SCHEMA, "experiment": folder.experiment, "preset": folder.preset,
        "method": variant.config.credit.name, "label": variant.label, "block": variant.block, "tier": run.tier,
        **({} if (depth := credit_depth(variant.config)) is None else {"depth": depth}),
        "config": config, "config_hash": variant.hash, "seed": request.seed, **_origin(variant),
        **({"data": progress.data} if progress.data else {}),
        **({"numerics": numerics} if (numerics := unusual_numerics()) else {}),
        "status": "ok" if bad is None else "diverged", "flags": flags, "epochs": bad or len(history),
        "metrics": metrics,
        "initial": {name: value[0] for name, value in progress.initial.items()},
        "layers": {n: v[0] for n, v in progress.layers.items()} | found.get("layers", {}) if bad is None else {},
        "curves": {name: curve[: bad or None] for name, curve in curves.items()} | found.get("curves", {}),
        "timing": {
            "compile_s": round(compile_s, 2), "run_s": round(progress.run_s, 2), "runs_in_program": runs_in_program,
        },
        "layout": progress.layout._asdict(), "versions": progress.versions, "git_commit": progress.git_commit,
        "device": progress.device,
    })  # fmt: skip


def _origin(variant: Variant) -> dict[str, Any]:
    """Where a run starts and what is measured on it, for its row."""
    origin: dict[str, Any] = {}
    if (start := variant.start) is not None:
        origin["start"] = {"key": start.key, "epoch": start.epoch, "config": described(start.config)}
    if variant.followup is not None:
        origin["followup"] = variant.followup.described()
    return origin


def rows_under(results_dir: Path, but: Path | None = None) -> list[Row]:
    """The rows of all experiments and presets, but those of one file; what cannot be read is named in one warning."""
    rows: list[Row] = []
    unread: list[ResultsError] = []
    for path in sorted(Path(results_dir).glob("*/*/rows.jsonl")):
        if path == but:
            continue
        try:
            rows += read_rows(path)
        except ResultsError as error:
            unread.append(error)
    if unread:
        others = f" (and {len(unread) - 1} more files)" if len(unread) > 1 else ""
        log.warning("rows of other experiments are not used: %s%s", one_line(unread[0]), others)
    return rows


def as_line(row: Row, variant: Variant) -> Row:
    """The row of a run under the name and the settings of a line that stands for it; the run may have had others."""
    return {**row, "label": variant.label, "block": variant.block, "config": settings_of(variant)}


def settings_of(variant: Variant) -> dict[str, Any]:
    """The configuration of a line as its rows have it."""
    return plain(described(variant.config))


def copied_row(row: Row, request: Request, folder: Folder) -> Row:
    """The row of the same run in another experiment, as a row of this one that says where it was run."""
    origin = row.get("from", f"{row['experiment']}/{row['preset']}")
    home = {"experiment": folder.experiment, "preset": folder.preset}
    return {**as_line(row, request.variant), **home, "from": origin}


# --- the code that ran, and what it ran on ---------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {name: version(name) for name in ("jcredit", "jax", "jaxlib", "flax", "optax", "numpy")}


def version(package: str) -> str:
    """Of an installed package; "unknown" of a copy on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def device() -> str:
    """Platform and kind of the first device."""
    first = jax.devices()[0]
    return f"{first.platform}: {first.device_kind}"


def git_commit(checkout: Path = Path(__file__).parents[2]) -> str | None:
    """The commit of jcredit's own checkout; where the work tree differs, with ``+`` and six digits of how behind it.

    New files count as changes, but for those that git ignores.

    Args:
      checkout: the folder that holds the package.

    Returns:
      None where that is no top of a repository with jcredit's pyproject: in somebody else's, or installed.
    """

    def git(*args: str) -> bytes:
        return subprocess.run(["git", *args], cwd=checkout, capture_output=True, check=True).stdout.strip()

    try:
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
        if project != "jcredit" or not Path(os.fsdecode(git("rev-parse", "--show-toplevel"))).samefile(checkout):
            return None
        plain = ("--binary", "--no-ext-diff", "--no-textconv", "--no-color")
        changed = git("diff", "HEAD", *plain, "--", "jcredit", "experiments")
        new = git("ls-files", "--others", "--exclude-standard", "-z", "--", "jcredit", "experiments").split(b"\0")
        for name in filter(None, new):
            changed += name
            with contextlib.suppress(OSError):  # a link to nowhere, a repository inside, or gone meanwhile
                changed += (checkout / os.fsdecode(name)).read_bytes()
        mark = f"+{hashlib.sha256(changed).hexdigest()[:6]}" if changed else ""
        return git("rev-parse", "--short=12", "HEAD").decode() + mark
    except (OSError, ValueError, KeyError, subprocess.CalledProcessError):
        return None
