"""What a program costs: FLOPs of its matrix products, its memory, and where its time goes.

XLA's own ``cost_analysis`` counts the body of a loop once, however often it runs; blocks are scanned here, so FLOPs are
counted in the traced program.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters import partial_eval

_ORIGIN = re.compile(r"%([\w.\-]+) = .*metadata=\{[^}\n]*op_name=\"([^\"]*)\"")
_CONTAINERS = ("while", "call", "conditional")


class Memory(NamedTuple):
    """Bytes of a compiled program: what it is given, what it needs beside that, and its results."""

    arguments: int
    temporary: int
    results: int


def memory_of(compiled: Any) -> Memory:
    """Reads the memory analysis of a compiled program; donated results take no further bytes."""
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(found.argument_size_in_bytes, found.temp_size_in_bytes, results)


def matmul_flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of all matrix products and convolutions of a function, 2 m n k each.

    Counted before any compiler has seen it, on whatever backend, without what no result needs; what is done twice to
    the same numbers counts once, as a compiler merges it; scans are multiplied out, of branches the dearest counts, and
    a loop of unknown length counts once.

    Args:
      function: jit-able.
      *args: its arguments, or their shapes.
    """
    return flops_of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def flops_of_jaxpr(jaxpr: Any) -> float:
    """``matmul_flops`` of what ``jax.make_jaxpr`` gives."""
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    total, number_of, numbers_after = 0.0, {}, {}

    def number(atom: Any) -> Any:
        """Equal for equal values."""
        return str(atom) if isinstance(atom, Literal) else number_of.setdefault(atom, len(number_of))

    for equation in needed.eqns:
        same = (equation.primitive, *map(number, equation.invars), str(equation.params))
        if same in numbers_after:
            number_of |= zip(equation.outvars, numbers_after[same], strict=True)
        else:
            numbers_after[same] = [number(out) for out in equation.outvars]
            total += _flops_of_equation(equation)
    return total


def _flops_of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, [out] = equation.invars[0].aval.shape, equation.outvars
        return 2.0 * math.prod(out.aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, [out] = equation.invars[1].aval.shape, equation.outvars
        return 2.0 * math.prod(out.aval.shape) * math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    values = jax.tree.leaves(list(params.values()), is_leaf=lambda value: isinstance(value, Jaxpr | ClosedJaxpr))
    inside = [
        flops_of_jaxpr(value.jaxpr if isinstance(value, ClosedJaxpr) else value)
        for value in values
        if isinstance(value, Jaxpr | ClosedJaxpr)
    ]
    if name == "cond":
        return max(inside)
    return sum(inside) * (params["length"] if name == "scan" else 1)


def time_by_scope(compiled: Any, call: Callable[[], Any], scopes: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """Seconds one call of a compiled program spends in each named scope, from XLA's own trace of every operation.

    Args:
      compiled: the program.
      call: runs it once and waits for it.
      scopes: the parts to tell apart, each a list of names of ``jax.named_scope``: an operation belongs to the first
        part all of whose names it bears, or to ``other``.

    Returns:
      For each part [seconds in matrix products, seconds in everything else], fused operations counted where they end,
      operations that two parts share in one of them.  Products are told by the names XLA gives them on CPU.
    """
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            call()
        (found,) = Path(directory).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(found)).planes
        events = [(e.name, e.duration_ns * 1e-9) for plane in planes for line in plane.lines for e in line.events]
    text = compiled.as_text()
    known, origin = set(re.findall(r"%([\w.\-]+) = ", text)), dict(_ORIGIN.findall(text))
    spent = {" ".join(names): [0.0, 0.0] for names in [*scopes, ["other"]]}
    for name, seconds in events:
        if name not in known or name.split(".")[0] in _CONTAINERS:  # not an operation, or only others' sum
            continue
        path = re.findall(r"\w+", origin.get(name, ""))
        part = next((names for names in scopes if set(names) <= set(path)), ["other"])
        products = name.startswith(("dot", "ynn_fusion"))
        spent[" ".join(part)][0 if products else 1] += seconds
    return spent
