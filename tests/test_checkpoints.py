"""A checkpoint gives back the same bits, and a kill at any instant leaves a complete one."""

import errno
import logging
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from helpers import same_bits

from jcredit.files import read_sealed, write_sealed
from jcredit.sweeps import checkpoints
from jcredit.sweeps.checkpoints import CheckpointError


class Inner(NamedTuple):
    count: jax.Array
    keys: jax.Array


class State(struct.PyTreeNode):
    params: dict
    inner: Inner
    nothing: None = None
    name: str = struct.field(pytree_node=False, default="static")


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    special = np.array([np.nan, np.inf, -0.0, 1e-45, *rng.normal(size=3)], np.float32)
    params = {
        "float32": jnp.asarray(special), "bfloat16": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16),
        "uint32": jnp.asarray([2**32 - 1, 0], jnp.uint32), "bool": jnp.asarray([True, False]),
        "empty": jnp.zeros((0, 3)), "a/b.c": jnp.asarray(2.5), "uint8": jnp.arange(4, dtype=jnp.uint8),
    }  # fmt: skip
    return State(params, Inner(jnp.asarray(seed, jnp.int32), jax.random.split(jax.random.key(seed), 3)))


@pytest.mark.parametrize("abstract", [False, True])
def test_every_dtype_comes_back_bit_for_bit(tmp_path, abstract):
    state = make_state(7)
    meta = {"epoch": 3, "curves": {"loss": [0.1, math.nan, np.float32(0.3)]}, "layout": {"seeds": np.arange(2)}}
    checkpoints.save(tmp_path / "run", state, meta)
    like = jax.eval_shape(lambda: make_state(0)) if abstract else make_state(0)
    found = checkpoints.restore(tmp_path / "run", like)
    assert found is not None
    restored, got = found
    assert isinstance(restored, State) and isinstance(restored.inner, Inner)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert same_bits(restored, state)
    assert all(isinstance(leaf, jax.Array) and len(leaf.devices()) == 1 for leaf in jax.tree.leaves(restored))
    assert jnp.array_equal(jax.random.bits(restored.inner.keys[1]), jax.random.bits(state.inner.keys[1]))
    assert (got["epoch"], got["layout"]) == (3, {"seeds": [0, 1]})
    assert got["curves"]["loss"][0] == 0.1 and math.isnan(got["curves"]["loss"][1])
    assert got["curves"]["loss"][2] == float(np.float32(0.3))


def test_another_generator_of_keys_comes_back(tmp_path):
    state = {"key": jax.random.key(1, impl="rbg")}
    checkpoints.save(tmp_path, state, {})
    restored, _ = checkpoints.restore(tmp_path, jax.eval_shape(lambda: state)) or pytest.fail("nothing restored")
    assert same_bits(restored, state)


def test_the_newest_replaces_the_older(tmp_path):
    assert checkpoints.restore(tmp_path / "run", make_state()) is None
    for epoch in range(3):
        checkpoints.save(tmp_path / "run", make_state(epoch), {"epoch": epoch})
        restored, meta = checkpoints.restore(tmp_path / "run", make_state()) or pytest.fail("nothing restored")
        assert (int(restored.inner.count), meta["epoch"]) == (epoch, epoch)
        assert len(list((tmp_path / "run").iterdir())) == min(epoch + 1, 2)  # one to go back to
    checkpoints.remove(tmp_path / "run")
    checkpoints.remove(tmp_path / "run")
    assert checkpoints.restore(tmp_path / "run", make_state()) is None
    assert not (tmp_path / "run").exists()


class Killed(BaseException):
    """Stands for the signal: nothing catches it."""


@pytest.mark.parametrize("moment", ["state", "meta", "delete"])
def test_a_kill_leaves_a_complete_checkpoint(tmp_path, monkeypatch, moment):
    for epoch in (0, 1):
        checkpoints.save(tmp_path, make_state(epoch), {"epoch": epoch})

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "state":
            patch.setattr(checkpoints.ocp, "StandardCheckpointer", killed)
        elif moment == "meta":
            patch.setattr(checkpoints, "write_sealed", killed)
        else:
            patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            checkpoints.save(tmp_path, make_state(2), {"epoch": 2})
    restored, meta = checkpoints.restore(tmp_path, make_state()) or pytest.fail("nothing restored")
    assert meta == {"epoch": 1}
    assert same_bits(restored, make_state(1))
    checkpoints.save(tmp_path, make_state(3), {"epoch": 3})  # what the kill left is cleared away
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}, r"leaves differ \(\['b'\]\)"),
        ({"v": jnp.zeros((2, 3))}, r"leaves differ \(\['v'\], \['w'\]\)"),
        ({"w": jnp.zeros((3, 2))}, r"\['w'\] is float32\[2, 3\], wanted float32\[3, 2\]"),
        ({"w": jnp.zeros((2, 3), jnp.int32)}, r"wanted int32\[2, 3\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, like, message):
    checkpoints.save(tmp_path, {"w": jnp.ones((2, 3))}, {})
    with pytest.raises(CheckpointError, match=message) as raised:
        checkpoints.restore(tmp_path, like)
    assert str(tmp_path) in str(raised.value) and "delete it" in str(raised.value)


def aside(folder):
    return [path for path in folder.rglob("*") if ".damaged-" in path.name]


def array_file(step):
    """The largest file of a state: where its arrays are."""
    return max((path for path in (step / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


DAMAGE = {
    "no JSON": (lambda step: (step / "meta.json").write_text("{"), "meta.json: not readable as JSON"),
    "deep": (lambda step: (step / "meta.json").write_text("[" * 10**5), "meta.json: not readable as JSON"),
    "no digest": (lambda step: (step / "meta.json").write_text('{"schema": 1}'), "meta.json: it has no digest"),
    "empty": (lambda step: (step / "meta.json").write_bytes(b""), "meta.json: not readable as JSON"),
    "a number of meta": (
        lambda step: replace(step / "meta.json", '"epoch": 2', '"epoch": 3'), "its content does not have its digest",
    ),
    "a newer schema": (
        lambda step: write_sealed(step / "meta.json", read_sealed(step / "meta.json") | {"schema": 9}), "schema is 9",
    ),
    "no state": (lambda step: shutil.rmtree(step / "state"), "is missing"),
    "truncated": (lambda step: array_file(step).write_bytes(array_file(step).read_bytes()[:-1]), "its digest"),
    "emptied": (lambda step: array_file(step).write_bytes(b""), "its digest"),
    "a flipped bit": (lambda step: flip(array_file(step), 12345), "its digest"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_set_aside_and_the_one_before_is_used(tmp_path, caplog, damage):
    for epoch in (1, 2):
        checkpoints.save(tmp_path, make_state(epoch), {"epoch": epoch})
    newest = max(tmp_path.iterdir())
    act, message = DAMAGE[damage]
    act(newest)
    restored, meta = checkpoints.restore(tmp_path, make_state()) or pytest.fail("nothing restored")
    assert meta == {"epoch": 1} and same_bits(restored, make_state(1))
    [warning] = caplog.messages
    [kept] = aside(tmp_path)
    assert message in warning and str(newest) in warning and kept.name in warning and "\n" not in warning
    shutil.rmtree(tmp_path / "000000")
    assert checkpoints.restore(tmp_path, make_state()) is None  # nothing good is left: the run starts afresh


def test_what_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, make_state(1), {"epoch": 1})

    def busy(*args, **how):
        raise OSError(errno.EMFILE, "Too many open files")

    for home, name in ((Path, "read_text"), (checkpoints, "digest_of")):
        for ask in (lambda: checkpoints.restore(tmp_path, make_state()), lambda: checkpoints.fault(tmp_path)):
            with monkeypatch.context() as patch, pytest.raises(OSError, match="Too many open files"):
                patch.setattr(home, name, busy)
                ask()

    def cannot(*args, **how):
        raise ValueError("RESOURCE_EXHAUSTED: Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.ocp.StandardCheckpointer, "restore", cannot)
        with pytest.raises(CheckpointError, match=r"Too many open files\); try again, or delete it"):
            checkpoints.restore(tmp_path, make_state())
    assert not aside(tmp_path) and checkpoints.restore(tmp_path, make_state())[1] == {"epoch": 1}


def test_two_who_remove_one_checkpoint_do_not_stumble(tmp_path, monkeypatch):
    checkpoints.save(tmp_path / "run", make_state(1), {})
    real = shutil.rmtree

    def beaten(path, *args, **how):
        real(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(shutil, "rmtree", beaten)
    checkpoints.remove(tmp_path / "run")
    checkpoints.remove(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_every_flipped_bit_of_every_file_shows(tmp_path):
    state = {"w": jnp.arange(6.0).reshape(2, 3)}
    checkpoints.save(tmp_path / "whole", state, {"loss": [0.5, math.nan]})
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    rng = np.random.default_rng(0)
    assert checkpoints.fault(tmp_path / "whole") is None
    for file in files:
        for bit in rng.integers(0, 8 * (tmp_path / "whole" / file).stat().st_size, 12):
            shutil.copytree(tmp_path / "whole", tmp_path / "copy")
            flip(tmp_path / "copy" / file, int(bit))
            assert checkpoints.fault(tmp_path / "copy") is not None, (file, bit)
            shutil.rmtree(tmp_path / "copy")


def test_another_runs_checkpoint_is_not_taken(tmp_path, caplog):
    checkpoints.save(tmp_path / "own", make_state(1), {}, owner="mine")
    checkpoints.save(tmp_path / "other", make_state(2), {}, owner="yours")
    shutil.copytree(tmp_path / "other/000000", tmp_path / "own/000001")
    restored, _ = checkpoints.restore(tmp_path / "own", make_state(), owner="mine") or pytest.fail("nothing restored")
    assert same_bits(restored, make_state(1))
    assert "the state of 'yours', not of 'mine'" in caplog.text


def test_a_python_number_is_no_state(tmp_path):
    with pytest.raises(CheckpointError, match=r"\['epoch'\] is 3, no array"):
        checkpoints.save(tmp_path / "run", {"epoch": 3}, {})
    assert not (tmp_path / "run").exists()


def test_a_small_state_is_restored_at_once(tmp_path):
    state = make_state()
    checkpoints.save(tmp_path, state, {})
    checkpoints.restore(tmp_path, state)
    start = time.perf_counter()
    checkpoints.restore(tmp_path, state)
    assert time.perf_counter() - start < 1.0


def test_several_threads_save_at_once(tmp_path):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: checkpoints.save(tmp_path / str(i), make_state(i), {"epoch": i}), range(8)))
    for i in range(8):
        restored, meta = checkpoints.restore(tmp_path / str(i), make_state()) or pytest.fail("nothing restored")
        assert same_bits(restored, make_state(i)) and meta == {"epoch": i}


def test_orbax_is_silent_and_others_who_log_to_absl_are_heard(tmp_path, caplog):
    logger = logging.getLogger("absl")
    with caplog.at_level(logging.DEBUG, "absl"):
        checkpoints.save(tmp_path, make_state(), {})
        checkpoints.restore(tmp_path, make_state())
        logger.error("heard")
    assert caplog.messages == ["heard"]
