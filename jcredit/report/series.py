"""What figures draw of rows: curves over epochs, profiles over depth, their mean and range over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from jcredit.files import OF_FOLLOWUPS
from jcredit.report import stats
from jcredit.report.schema import Row, number_at

Abscissa = TypeVar("Abscissa", bound=float)
OF_BLOCKS = ("weight_cosine",)
"""Profiles of the L blocks, each drawn at its output; those of states begin at h_0."""


class Series(NamedTuple):
    """Numbers of all seeds at one abscissa each: x, mean, minimum and maximum over seeds, all of one length."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def over_seeds(seeds: Sequence[Mapping[float, float]]) -> Series:
    """Collects {abscissa: number} of each seed into mean and range at every abscissa that any seed has."""
    xs = sorted({x for points in seeds for x in points})
    at = [[points[x] for points in seeds if x in points] for x in xs]
    return Series(xs, [stats.mean(v) for v in at], [min(v) for v in at], [max(v) for v in at])


def curve_points(row: Row, name: str) -> dict[float, float]:
    """Abscissa -> number of ``row["curves"][name]``: over epochs, or over what a followup went through.

    What a followup found for each of its step sizes, ``dl_*`` with an entry for each of its ``etas``, is over
    log10 eta; ``dl_*_eta*`` is over local steps.
    """
    length = len((row.get("curves") or {}).get(name) or [])
    sizes = (row.get("followup") or {}).get("etas") or []
    if name.startswith(OF_FOLLOWUPS) and "_eta" not in name and len(sizes) == length:
        return dict(points_at(row, f"curves.{name}", [math.log10(eta) for eta in sizes]))
    counted = range(1, length + 1) if name.startswith(OF_FOLLOWUPS) else _counted(row, length)  # steps begin at 1
    return dict(points_at(row, f"curves.{name}", [float(at) for at in counted]))


def epoch_points(row: Row, name: str) -> dict[int, float]:
    """Epoch -> number of ``row["curves"][name]``; nothing of what is over a followup's steps or step sizes."""
    curve = [] if name.startswith(OF_FOLLOWUPS) else (row.get("curves") or {}).get(name) or []
    return dict(points_at(row, f"curves.{name}", _counted(row, len(curve))))


def _counted(row: Row, length: int) -> range:
    """1, 2, ...; a list with one entry more than epochs starts before training, at epoch 0."""
    first = 0 if length == row.get("epochs", length) + 1 else 1
    return range(first, first + length)


def profile_points(row: Row, name: str) -> dict[float, float]:
    """Depth l / L -> number of ``row["layers"][name]``."""
    layers = row.get("layers") or {}
    depth = len(layers.get("gamma") or []) or max(1, len(layers.get(name) or []) - 1)
    return {layer / depth: number for layer, number in layer_points(row, name).items()}


def layer_points(row: Row, name: str) -> dict[int, float]:
    """Layer -> number of ``row["layers"][name]``.

    Scores of credit have an entry for each h_0..h_{L-1}, sizes of states one for each h_0..h_L; both start at l = 0.
    """
    length = len((row.get("layers") or {}).get(name) or [])
    first = 1 if name in OF_BLOCKS else 0
    return dict(points_at(row, f"layers.{name}", range(first, first + length)))


def points_at(row: Row, path: str, xs: Sequence[Abscissa]) -> Iterator[tuple[Abscissa, float]]:
    """(abscissa, number) of every number that is there in a list at a dotted path."""
    for i, x in enumerate(xs):
        if (value := number_at(row, f"{path}.{i}")) is not None:
            yield x, value
