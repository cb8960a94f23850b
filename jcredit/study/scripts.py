"""Experiments as their scripts define them: loaded from a folder, and described in a few lines."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from jcredit.config import ConfigError
from jcredit.study.experiment import Experiment


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


def load_experiments(folder: Path | None, *, needed: bool = True) -> dict[str, Experiment]:
    """The experiments of all scripts that lie in a folder, by name.

    Args:
      folder: the folder (None: ``experiments`` in the current directory).
      needed: whether there must be scripts in the folder that is looked in where none is named.

    Raises:
      ConfigError: no scripts there, or one that defines no experiment.
    """
    named, folder = folder is not None, folder or Path.cwd() / "experiments"
    scripts = sorted(folder.glob("*.py"))
    if not scripts and (needed or named):
        raise ConfigError(f"no experiments in {folder}; name the folder of their scripts with --experiments DIR")
    found = [load_experiment(script) for script in scripts]
    return {experiment.name: experiment for experiment in found}


def description(experiment: Experiment) -> str:
    """Name, question, phase, and the runs and minutes of each preset."""
    lines = [f"{experiment.name}  (phase {experiment.phase})", f"  {experiment.question}"]
    for name, preset in experiment.presets.items():
        variants, seeds = len(preset.variants), len(preset.seeds)
        runs = f"{variants * seeds} runs ({variants} configurations x {seeds} seed{'s' * (seeds > 1)})"
        lines.append(f"    {name:<6} {runs:<40} {preset.minutes}")
    return "\n".join(lines)
