"""What a compiled program costs: FLOPs of its matrix products, its memory, and where its time goes.

XLA's own ``cost_analysis`` counts the body of a loop once, however often it runs; blocks are scanned here, so FLOPs are
taken from the text of the optimised program with every loop multiplied by its known trip count.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (\S+?)\[([\d,]*)\]\S* ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:body|calls|to_apply|condition)=%?([\w.\-]+)")
_TRIPS = re.compile(r"known_trip_count[^\d]*(\d+)")
_OPERAND = re.compile(r"%([\w.\-]+)")
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


def matmul_flops(compiled: Any) -> float:
    """Floating-point operations of all matrix products of a compiled program, 2 m n k each, loops multiplied out.

    Raises:
      ValueError: a loop that contains matrix products and whose trip count XLA does not know.
    """
    return flops_of_text(compiled.as_text())


def flops_of_text(text: str) -> float:
    """``matmul_flops`` of XLA's program text."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for raw in text.splitlines():
        line = raw.strip()
        if started := _COMPUTATION.match(line):
            current = bodies.setdefault(started[1], [])
            entry = started[1] if line.startswith("ENTRY") else entry
        elif line == "}":
            current = None
        elif current is not None:
            current.append(line)
    totals: dict[str, float] = {}

    def total(name: str) -> float:
        if name not in totals:
            totals[name] = _computation_flops(bodies.get(name, []), total)
        return totals[name]

    return total(entry)


def _computation_flops(lines: list[str], total) -> float:
    shapes: dict[str, list[int]] = {}
    flops = 0.0
    for line in lines:
        if not (found := _INSTRUCTION.match(line)):
            # Results that are tuples: of these only loops and calls matter.
            flops += _called_flops(line, total) if "=" in line else 0.0
            continue
        name, _, dims, op, rest = found.groups()
        shapes[name] = [int(d) for d in dims.split(",") if d]
        if op == "dot":
            flops += 2.0 * math.prod(shapes[name]) * _contracted(rest, shapes)
        else:
            flops += _called_flops(line, total)
    return flops


def _contracted(rest: str, shapes: dict[str, list[int]]) -> int:
    left = _OPERAND.search(rest)
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    if left is None or axes is None or left[1] not in shapes:
        raise ValueError(f"a matrix product without known operands: {rest}")
    return math.prod(shapes[left[1]][int(axis)] for axis in axes[1].split(",") if axis)


def _called_flops(line: str, total) -> float:
    inside = sum(total(name) for name in _CALLED.findall(line))
    if inside and " while(" in line:
        trips = _TRIPS.search(line)
        if trips is None:
            raise ValueError(f"a loop of unknown length: {line[:80]}")
        return inside * int(trips[1])
    return inside


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
