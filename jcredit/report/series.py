"""What figures draw of rows: curves over epochs, profiles over depth, their mean and range over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jcredit.report import stats
from jcredit.report.schema import Row, number_at

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
    """Epoch -> number of ``row["curves"][name]``; one entry more than epochs: it starts before training, at epoch 0.

    What a followup found for each of its step sizes, ``dl_*`` with an entry for each of its ``etas``, is over
    log10 eta; ``dl_*_eta*`` is over local steps.
    """
    length = len((row.get("curves") or {}).get(name) or [])
    sizes = (row.get("followup") or {}).get("etas") or []
    if name.startswith("dl_") and "_eta" not in name and len(sizes) == length:
        return dict(points_at(row, f"curves.{name}", [math.log10(eta) for eta in sizes]))
    first = 0 if length == row.get("epochs", length) + 1 else 1
    return dict(points_at(row, f"curves.{name}", [float(first + i) for i in range(length)]))


def profile_points(row: Row, name: str) -> dict[float, float]:
    """Depth l / L -> number of ``row["layers"][name]``.

    Scores of credit have an entry for each h_0..h_{L-1}, sizes of states one for each h_0..h_L; both start at l = 0.
    """
    layers = row.get("layers") or {}
    length = len(layers.get(name) or [])
    depth = len(layers.get("gamma") or []) or max(1, length - 1)
    first = 1 if name in OF_BLOCKS else 0
    return dict(points_at(row, f"layers.{name}", [(first + i) / depth for i in range(length)]))


def points_at(row: Row, path: str, xs: Sequence[float]) -> Iterator[tuple[float, float]]:
    """(abscissa, number) of every number that is there in a list at a dotted path."""
    for i, x in enumerate(xs):
        if (value := number_at(row, f"{path}.{i}")) is not None:
            yield x, value
