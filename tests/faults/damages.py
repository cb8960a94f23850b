"""Damaged files: each named, set aside, never used; the previous good one, or the start, takes its place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import Undisturbed, Workshop, rows_file, set_aside

from jcredit.files import sealed
from jcredit.sweeps.compiled import set_damaged_aside

BYTES = ("a flipped bit", "truncated", "emptied", "foreign")
LATER = "of a later schema"


def damage(path: Path, how: str, rng: np.random.Generator) -> None:
    """Damages a file in place; a later schema takes sealed JSON."""
    data = bytearray(path.read_bytes())
    if how == LATER:
        values = [json.loads(line) for line in data.decode().splitlines()]
        later = [json.dumps(sealed({**value, "schema": value["schema"] + 1})) for value in values]
        data = "".join(f"{line}\n" for line in later).encode()
    elif how == "a flipped bit":
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    elif how == "truncated":
        del data[int(rng.integers(len(data))) :]
    else:
        data = bytearray() if how == "emptied" else bytearray(rng.bytes(len(data)))
    path.write_bytes(data)


def files_of(folder: Path, how: str = "") -> list[Path]:
    """All files with content below a folder that was not set aside; for a later schema those that say theirs."""
    found = (path for path in folder.rglob("meta.json" if how == LATER else "*") if path.is_file())
    there = (path for path in found if path.stat().st_size)
    return sorted(path for path in there if ".damaged-" not in str(path.relative_to(folder)))


def one_of(found: list[Path], rng: np.random.Generator) -> Path:
    """A seeded one."""
    return found[int(rng.integers(len(found)))]


def goes_on_without(
    shop: Workshop, reference: Undisturbed, results: Path, damaged: Path, below: Path, *said: str
) -> None:
    """The command names a damaged file, sets it aside, and makes the same rows.

    Args:
      shop: where.
      reference: the same lines, undisturbed.
      results: where the command goes on.
      damaged: the file.
      below: where it is set aside.
      said: what the command says.

    Raises:
      AssertionError: it does not.
    """
    again = shop.command(results, reference.lines)
    assert again.status == 0 and all(text in again.text for text in ("set aside", *said)), (damaged, again.text)
    assert set_aside(below), damaged
    reference.check(results)


# Each damages one file; AssertionError: what is wrong was not named and set aside, or the rows are others.


def checkpoint(shop: Workshop, reference: Undisturbed, results: Path, how: str, rng: np.random.Generator) -> None:
    """Kills a sweep that has checkpoints, damages a file of the newest one, and goes on."""
    stopped = shop.command(results, reference.lines, at="epoch", k=3)  # two epochs are saved
    assert stopped.status == -9, stopped.text
    steps = sorted(results.rglob("checkpoint/[0-9]*/meta.json"))
    assert len(steps) == 2, steps
    newest = steps[-1].parent
    damage(victim := one_of(files_of(newest, how), rng), how, rng)
    goes_on_without(shop, reference, results, victim, results, newest.name)


def kept_network(shop: Workshop, reference: Undisturbed, results: Path, how: str, rng: np.random.Generator) -> None:
    """Damages a file of a kept network of finished runs whose rows are gone, and asks for these runs again."""
    shutil.copytree(reference.results, results)
    rows_file(results).unlink()
    kept = sorted((results / "cache/snapshots").glob("*-2"))  # the start, or the fits
    damage(victim := one_of(files_of(one_of(kept, rng), how), rng), how, rng)
    goes_on_without(shop, reference, results, victim, results, "trained again")


def rows(shop: Workshop, reference: Undisturbed, results: Path, how: str, rng: np.random.Generator) -> None:
    """Damages the rows of a finished sweep: refused in one line that names the file, which is left as it is."""
    shutil.copytree(reference.results, results)
    path, whole = rows_file(results), rows_file(reference.results).read_bytes()
    damage(path, how, rng)
    # A row without a digest is one of before there were any: a flip in the name of the digest hits no number.
    while how == "a flipped bit" and path.read_bytes().count(b'"sha256": "') < whole.count(b'"sha256": "'):
        path.write_bytes(whole)
        damage(path, how, rng)
    before = path.read_bytes()
    again = shop.command(results, reference.lines)
    if again.status == 0:  # cut between two lines; one without rows is a file that nobody has written yet
        assert how in ("emptied", "truncated"), again.text
        reference.check(results)
        return
    said = [line for line in again.text.splitlines() if str(path) in line]
    assert again.status == 2 and len(said) == 1 and "Traceback" not in again.text, again.text
    assert path.read_bytes() == before


def compiled_program(shop: Workshop, reference: Undisturbed, results: Path, how: str, rng: np.random.Generator) -> None:
    """Damages an entry of the cache of compiled programs, old enough to be whole, and runs all lines anew."""
    cache = shop.cache / "xla"
    entries = [path for path in files_of(cache) if path.name.endswith("-cache")]
    for path in entries:
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    victim = one_of(entries, rng)
    if rng.random() < 0.5:  # in half of the cases its digest is known
        set_damaged_aside(cache)
    before = set(set_aside(cache))
    damage(victim, how, rng)
    goes_on_without(shop, reference, results, victim, cache, victim.name)
    assert [path.name.partition(".damaged-")[0] for path in set(set_aside(cache)) - before] == [victim.name]


class Corruption(NamedTuple):
    """A kind of file: what damages it, the lines of the sweep that leave it, and the ways to do so."""

    act: Callable[..., None]
    lines: tuple[str, ...]
    ways: tuple[str, ...]


CORRUPTIONS = {
    "checkpoint": Corruption(checkpoint, ("dfa",), (*BYTES, LATER)),
    "kept network": Corruption(kept_network, ("fit", "fit measured"), (*BYTES, LATER)),
    "rows": Corruption(rows, ("dfa",), (*BYTES, LATER)),
    "compiled program": Corruption(compiled_program, ("dfa",), BYTES),
}
DAMAGES = [(what, how) for how in (*BYTES, LATER) for what, kind in CORRUPTIONS.items() if how in kind.ways]
"""What is damaged, and how."""
