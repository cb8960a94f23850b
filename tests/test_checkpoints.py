"""A checkpoint gives back the same bits, and a kill at any instant leaves a complete one."""

import json
import math
import shutil
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

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
    assert checkpoints.digest(restored) == checkpoints.digest(state)
    assert all(isinstance(leaf, jax.Array) and len(leaf.devices()) == 1 for leaf in jax.tree.leaves(restored))
    assert jnp.array_equal(jax.random.bits(restored.inner.keys[1]), jax.random.bits(state.inner.keys[1]))
    assert (got["epoch"], got["layout"]) == (3, {"seeds": [0, 1]})
    assert got["curves"]["loss"][0] == 0.1 and math.isnan(got["curves"]["loss"][1])
    assert got["curves"]["loss"][2] == float(np.float32(0.3))


def test_another_generator_of_keys_comes_back(tmp_path):
    state = {"key": jax.random.key(1, impl="rbg")}
    checkpoints.save(tmp_path, state, {})
    restored, _ = checkpoints.restore(tmp_path, jax.eval_shape(lambda: state)) or pytest.fail("nothing restored")
    assert checkpoints.digest(restored) == checkpoints.digest(state)


def test_the_newest_replaces_the_older(tmp_path):
    assert checkpoints.restore(tmp_path / "run", make_state()) is None
    for epoch in range(3):
        checkpoints.save(tmp_path / "run", make_state(epoch), {"epoch": epoch})
        restored, meta = checkpoints.restore(tmp_path / "run", make_state()) or pytest.fail("nothing restored")
        assert (int(restored.inner.count), meta["epoch"]) == (epoch, epoch)
        assert len(list((tmp_path / "run").iterdir())) == 1
    checkpoints.remove(tmp_path / "run")
    checkpoints.remove(tmp_path / "run")
    assert checkpoints.restore(tmp_path / "run", make_state()) is None
    assert not (tmp_path / "run").exists()


class Killed(BaseException):
    """Stands for the signal: nothing catches it."""


@pytest.mark.parametrize("moment", ["state", "meta", "delete"])
def test_a_kill_leaves_a_complete_checkpoint(tmp_path, monkeypatch, moment):
    checkpoints.save(tmp_path, make_state(1), {"epoch": 1})

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "state":
            patch.setattr(checkpoints, "_checkpointer", killed)
        elif moment == "meta":
            patch.setattr(checkpoints, "write_text", killed)
        else:
            patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            checkpoints.save(tmp_path, make_state(2), {"epoch": 2})
    survivor = 2 if moment == "delete" else 1
    restored, meta = checkpoints.restore(tmp_path, make_state()) or pytest.fail("nothing restored")
    assert meta == {"epoch": survivor}
    assert checkpoints.digest(restored) == checkpoints.digest(make_state(survivor))
    checkpoints.save(tmp_path, make_state(3), {"epoch": 3})  # what the kill left is cleared away
    assert len(list(tmp_path.iterdir())) == 1


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


def test_damage_is_named(tmp_path):
    like = {"w": jnp.ones((2, 3))}
    checkpoints.save(tmp_path, like, {})
    (step,) = tmp_path.iterdir()
    meta = (step / "meta.json").read_text()
    for text, message in (
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps({**json.loads(meta), "schema": 9}), "schema"),
    ):
        (step / "meta.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore(tmp_path, like)
    (step / "meta.json").write_text(meta)
    shutil.rmtree(step / "state")
    with pytest.raises(CheckpointError, match="state is damaged"):
        checkpoints.restore(tmp_path, like)


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


def test_digest_sees_every_bit_and_name():
    base = {"a": jnp.asarray([0.0, 1.0]), "k": jax.random.key(0)}
    assert checkpoints.digest(base) == checkpoints.digest(jax.tree.map(lambda x: x, base))
    others = (
        {**base, "a": jnp.asarray([-0.0, 1.0])},
        {**base, "a": jnp.asarray([[0.0, 1.0]])},
        {**base, "a": jnp.asarray([0.0, 1.0]).view(jnp.int32)},
        {"b": base["a"], "k": base["k"]},
        {**base, "k": jax.random.key(1)},
    )
    assert len({checkpoints.digest(tree) for tree in (base, *others)}) == 6
