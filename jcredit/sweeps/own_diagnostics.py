"""Diagnostics of the user's own, measured on every run of a sweep after its last epoch: a followup of plain functions.

def size(run, state, hp, data):  # -> a scalar, a vector over layers, or a dict of these
    return jnp.linalg.norm(state.params.readout["w"])

jc.sweep(configs, diagnostics={"size": size})
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcredit.config import Hparams
from jcredit.diagnostics import METRICS
from jcredit.files import OF_FOLLOWUPS
from jcredit.functions import Function
from jcredit.modules import as_in_its_file
from jcredit.numerics import float_type, in_full_precision
from jcredit.observing import OWN_METRICS
from jcredit.passes import depth_of
from jcredit.report.schema import RELATIVE_ERRORS, WEIGHED_ERRORS
from jcredit.settings import ConfigError, brief
from jcredit.sweeps.variants import Followup
from jcredit.training import Run
from jcredit.types import Array, Data, TrainState

REPORTED = frozenset((*OWN_METRICS, *METRICS, "h_rms", *RELATIVE_ERRORS, *WEIGHED_ERRORS))
"""Names that rows of some run have for something else."""
GIVE = "give a scalar, a vector over layers or a dict of these"


class Diagnostics(NamedTuple):
    """Settings of ``measured``: names, and the function of each."""

    names: tuple[str, ...]
    functions: tuple[Function, ...]


@functools.lru_cache(maxsize=256)
def _known(function: Callable) -> Function:
    """One for each function: an edit of its file between two sweeps is noticed.

    Raises:
      ConfigError: its file has been edited since it was imported, and would be read for its identity.
    """
    if inspect.isfunction(function) and not as_in_its_file(function):
        raise ConfigError(
            f"diagnostic {function.__qualname__}: {function.__code__.co_filename} was edited since it was imported;"
            " start again"
        )
    return Function("diagnostic", function)


def followup_of(diagnostics: Mapping[str, Callable]) -> Followup | None:
    """What measures some functions by name; None where there are none.

    Raises:
      ConfigError: what is none of these, a name that is no identifier or stands for something else in rows, or a
        function that does not take (run, state, hp, data).
    """
    if not isinstance(diagnostics, Mapping):
        raise ConfigError(f"diagnostics={brief(diagnostics)} must be functions by name, {{'size': size}}")
    for name, function in diagnostics.items():
        _check_name(name)
        if not inspect.isfunction(function):
            raise ConfigError(f"diagnostic {name!r}: {brief(function)} must be a function; wrap it in a def")
        try:
            inspect.signature(function).bind("run", "state", "hp", "data")
        except TypeError as error:
            raise ConfigError(f"diagnostic {name!r} must take (run, state, hp, data): {error}") from None
    known = tuple(_known(function) for function in diagnostics.values())
    for function in known:
        function.look_again()
    return Followup("diagnostics", measured, Diagnostics(tuple(diagnostics), known)) if known else None


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"diagnostic {brief(name)} must be named like a variable; rows and tables call it so")
    if name in REPORTED:
        raise ConfigError(f"diagnostic {name!r} is the name of another number in rows; call it otherwise")
    if name.startswith(OF_FOLLOWUPS):
        raise ConfigError(f"diagnostic {name!r}: {OF_FOLLOWUPS} begins what followups measure; call it otherwise")


def measured(run: Run, settings: Diagnostics) -> Callable[..., dict[str, dict[str, Array]]]:
    """All of them on one run.

    Returns:
      (state, hp, data) -> {"metrics": scalars, "layers": vectors of length L or L + 1}, the entries of a dict called
      ``<name>_<entry>``.  Functions are handed the state as it is found again where it was kept: without moments.
    """

    def measure(state: TrainState, hp: Hparams, data: Data) -> dict[str, dict[str, Array]]:
        scores = jax.eval_shape(run.diagnose, state, hp, data)
        terms = {name.removeprefix("test_") for name in scores["metrics"]}
        taken = REPORTED | terms | scores["metrics"].keys() | scores["layers"].keys()
        at_end: Any = state._replace(step=hp.total_steps.astype(state.step.dtype), opt_state=None, est_opt_state=None)
        found = (
            entry
            for name, function in zip(settings.names, settings.functions, strict=True)
            for entry in _entries(name, function(run, at_end, hp, data))
        )
        return _sorted(found, depth_of(state.params), taken)

    return in_full_precision(measure)


def _entries(name: str, found: Any) -> Iterator[tuple[str, Any]]:
    """What a diagnostic gives, by the names in rows."""
    if not isinstance(found, Mapping):
        yield name, found
        return
    for key, value in found.items():
        yield f"{name}_{key}", value


def _sorted(found: Iterable[tuple[str, Any]], depth: int, taken: Iterable[str]) -> dict[str, dict[str, Array]]:
    """Scalars and vectors apart, all of them floats.

    Raises:
      ConfigError: another shape or type, or a name that is taken already.
    """
    metrics, layers, taken = dict[str, Array](), dict[str, Array](), set(taken)
    for name, value in found:
        _check_name(name)
        if name in taken:
            raise ConfigError(f"diagnostic {name!r} is the name of another number in these rows; call it otherwise")
        taken.add(name)
        shape = getattr(value, "shape", () if isinstance(value, bool | int | float) else None)
        if shape not in ((), (depth,), (depth + 1,)):
            kind = f"a {type(value).__name__}" if shape is None else f"of shape {shape}"
            raise ConfigError(f"diagnostic {name!r} is {kind}; {GIVE}, of {depth} or {depth + 1} numbers here")
        number = jnp.asarray(value)
        if not (jnp.issubdtype(number.dtype, jnp.number) or number.dtype == bool) or jnp.iscomplexobj(number):
            raise ConfigError(f"diagnostic {name!r} is of type {number.dtype}; give real numbers")
        (layers if shape else metrics)[name] = number.astype(float_type())
    return {"metrics": metrics, "layers": layers}
