"""Checkpoints of interrupted runs: a pytree of arrays through orbax, and a small dictionary beside it.

On disk: ``<directory>/<step>/state`` (orbax) and ``<directory>/<step>/meta.json``, which is written last and
atomically, so a step without it is an interrupted save and counts for nothing.  It carries a digest of itself and of
every file of the state, which are checked before anything is loaded; a damaged step is set aside.  The two newest steps
stay, so that there is one to go back to, and a kill at any instant leaves a complete one, if there was one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jcredit.files import FileError, cause, digest_of, read_sealed, set_aside, write_sealed

SCHEMA = 3
_one_at_a_time = threading.Lock()
"""Two savers of orbax in one process wait for, and remove, each other's temporary folders."""


def _is_not_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs every save and restore to absl, and the traceback of each failure that it raises as well."""
    return "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_is_not_orbax)  # others log there, too


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or used; the message names the directory and the fix."""


def save(directory: str | Path, state: Any, meta: dict[str, Any], owner: str = "") -> None:
    """Saves a state and its meta data and waits until both are on disk; of earlier checkpoints only the newest stays.

    Args:
      directory: belongs to this run's checkpoints alone; made if missing.
      state: pytree of arrays of any dtype, typed keys among them (NamedTuples, flax structs, dicts, ...).  Static
        fields are not saved.
      meta: JSON values and numpy or jax numbers and arrays (which come back as numbers and lists); nan is kept.
      owner: whose state it is; ``restore`` takes no other's.

    Raises:
      CheckpointError: the directory cannot be written.
    """
    directory = Path(directory).resolve()
    layout, packed = _layout(state), _packed(state)
    meta = json.loads(json.dumps(meta, default=_listed))
    older = _steps(directory)
    step = directory / f"{int(older[-1].name) + 1 if older else 0:06d}"
    try:
        for path in set(older) - set(_complete(directory)[-1:]):  # first, so that there are never more than two
            _delete_step(path)
        step.mkdir(parents=True)
        with _one_at_a_time, ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(step / "state", {"bytes": packed})
            checkpointer.wait_until_finished()
        files = _digests(step / "state")
        write_sealed(
            step / "meta.json", {"schema": SCHEMA, "owner": owner, "leaves": layout, "files": files, "meta": meta}
        )
    except (OSError, ValueError) as error:  # a full disk is a ValueError of tensorstore's
        raise CheckpointError(f"{directory}: cannot write ({cause(error)}); free space or use another place") from error


def restore(directory: str | Path, like: Any, owner: str = "") -> tuple[Any, dict[str, Any]] | None:
    """Restores the newest good checkpoint, bit for bit; damaged ones are named and set aside.

    Args:
      directory: as given to ``save``.
      like: a state of the same structure, shapes and dtypes, concrete or abstract (``jax.eval_shape``); static fields
        are taken from it.
      owner: as given to ``save``; another's checkpoint counts as damaged.

    Returns:
      (state, meta), the state's arrays on the default device; None if there is no good checkpoint.

    Raises:
      CheckpointError: the checkpoint is whole, and does not fit ``like`` or cannot be loaded.
      OSError: it cannot be read now; it stays where it is.
    """
    directory = Path(directory).resolve()
    for step in reversed(_complete(directory)):
        try:
            stored = _checked(step, owner)
        except FileNotFoundError:  # another process is removing it
            continue
        except FileError as error:
            set_aside(step, str(error), "the one before it is used, or the run starts afresh")
            continue
        _check_fit(directory, stored["leaves"], _layout(like))
        return _loaded(step, like, stored["leaves"]), stored["meta"]
    return None


def fault(directory: str | Path, owner: str = "") -> str | None:
    """What is wrong with the newest checkpoint, read but not loaded; None if it is good.  Sets nothing aside.

    Raises:
      OSError: it cannot be read now.
    """
    complete = _complete(Path(directory))
    if not complete:
        return f"{Path(directory).name} is missing"
    try:
        _checked(complete[-1], owner)
    except FileNotFoundError:
        return f"{Path(directory).name} is missing"
    except FileError as error:
        return f"{Path(directory).name}: {error}"
    return None


def remove(directory: str | Path) -> None:
    """Deletes a run's checkpoints; nothing happens if there are none."""
    directory = Path(directory)
    for step in _steps(directory):  # oldest first: a kill on the way cannot bring an older state back
        _delete_step(step)
    with contextlib.suppress(OSError):  # missing, or it holds files that are not ours
        directory.rmdir()


def _steps(directory: Path) -> list[Path]:
    """All step directories, complete or not, oldest first."""
    try:
        found = list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((p for p in found if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name))


def _complete(directory: Path) -> list[Path]:
    return [step for step in _steps(directory) if (step / "meta.json").exists()]


def _digests(folder: Path) -> dict[str, str]:
    """{relative path: SHA-256} of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_of(path) for path in files}


def _checked(step: Path, owner: str) -> dict[str, Any]:
    """The content of a step's meta.json, every file of its state having been checked.

    Raises:
      FileError: it is damaged, another's, or of another schema; the message says which file.
      FileNotFoundError: it has no meta.json any more.
      OSError: it cannot be read now.
    """
    try:
        stored = read_sealed(step / "meta.json")
    except FileError as error:
        raise FileError(f"meta.json: {error}") from error
    if stored.get("schema") != SCHEMA:
        raise FileError(f"meta.json: schema is {stored.get('schema')!r}, not {SCHEMA}")
    if stored["owner"] != owner:
        raise FileError(f"meta.json: the state of {stored['owner']!r}, not of {owner!r}")
    try:
        found = _digests(step / "state")
    except FileNotFoundError as error:  # another process sets it aside, or removes it
        raise FileError(f"state: {Path(error.filename).name} is missing") from error
    for name, digest in stored["files"].items():
        if found.get(name) != digest:
            raise FileError(f"state/{name} {'does not have its digest' if name in found else 'is missing'}")
    return stored


def _loaded(step: Path, like: Any, saved: list[dict[str, Any]]) -> Any:
    """The state of a step that has been checked.

    Raises:
      CheckpointError: orbax cannot make an array of it.
    """
    leaves, treedef = jax.tree.flatten(like)
    hosted = [jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x for x in leaves]
    ends = np.cumsum([math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in hosted])
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            packed = checkpointer.restore(step / "state", {"bytes": np.empty(ends[-1], np.uint8)})["bytes"]
    except (ValueError, KeyError, TypeError) as error:  # too many open files is a ValueError of tensorstore's
        raise CheckpointError(
            f"{step}: what was saved is there, but cannot be loaded ({cause(error)}); try again, or delete it to start"
            " afresh"
        ) from error
    arrays = [
        piece.copy().view(x.dtype).reshape(x.shape)  # a copy is aligned
        for piece, x in zip(np.split(packed, ends[:-1]), hosted, strict=True)
    ]
    keys = [leaf.get("impl") for leaf in saved]
    restored = [
        jax.random.wrap_key_data(jnp.asarray(x), impl=impl) if impl else jnp.asarray(x)
        for x, impl in zip(arrays, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, restored)


def _delete_step(step: Path) -> None:
    (step / "meta.json").unlink(missing_ok=True)  # first, so that a half-deleted step never looks complete
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):  # another process deletes it, too
            shutil.rmtree(step)
        if not step.exists():
            return
    shutil.rmtree(step)


# Orbax is handed one array, the bytes of all leaves: what is stored is then independent of devices and of the state's
# Python classes, and the structure is checked here, with a message that names the leaf.  Of several arrays, those that
# are still being written when one cannot be would each print a traceback from a thread that nobody can reach.


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _packed(state: Any) -> np.ndarray:
    return np.concatenate([np.ascontiguousarray(_host(x)).reshape(-1).view(np.uint8) for x in jax.tree.leaves(state)])


def _layout(tree: Any) -> list[dict[str, Any]]:
    """Path, shape and dtype of every leaf, and the generator of typed keys."""
    described = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "dtype"):
            raise CheckpointError(f"leaf {jax.tree_util.keystr(path)} is {leaf!r}, no array; wrap it in jnp.asarray")
        entry = {"path": jax.tree_util.keystr(path), "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        if _is_key(leaf) and isinstance(leaf, jax.Array):
            entry["impl"] = str(jax.random.key_impl(leaf))
        described.append(entry)
    return described


def _check_fit(directory: Path, saved: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Raises CheckpointError for the first leaf that differs."""
    if [leaf["path"] for leaf in saved] != [leaf["path"] for leaf in wanted]:
        differing = sorted({leaf["path"] for leaf in saved} ^ {leaf["path"] for leaf in wanted})
        detail = f"leaves differ ({', '.join(differing[:3]) or 'in order'})"
    else:
        unequal = [
            f"{s['path']} is {s['dtype']}{s['shape']}, wanted {w['dtype']}{w['shape']}"
            for s, w in zip(saved, wanted, strict=True)
            if (s["shape"], s["dtype"]) != (w["shape"], w["dtype"])
        ]
        if not unequal:
            return
        detail = unequal[0]
    raise CheckpointError(f"{directory}: the checkpoint does not fit this run: {detail}; delete it to start afresh")


def _listed(value: Any) -> Any:
    """Numpy and jax values in ``meta`` as numbers and lists."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(f"meta holds {value!r} of type {type(value).__name__}; give numbers, text, lists or dicts")
