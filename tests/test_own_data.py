"""What a user's own parts can get wrong without an error: stale samples, numbers from no key, samples that mix."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refused, tiny

import jcredit as jc
from jcredit.report.rows import read_rows

X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)


def squares(outputs_BxC, target_B):
    return (outputs_BxC[:, 0] - target_B) ** 2


def task_on(y, loss=squares):
    data = jc.Data(X[:16], y[:16], X[16:], y[16:])
    batch = lambda data, index_B, key: (data.train_x[index_B], data.train_y[index_B])  # noqa: E731
    return jc.Task(jc.Sizes((5,), 1), loss, None, data, batch, lambda x: x, 16)


@jc.task(jc.image_mlp(depth=1, width=8))
def of_a_file() -> jc.Task:
    """Targets from a file of the working directory."""
    return task_on(np.load("y.npy"))


@jc.task(jc.image_mlp(depth=1, width=8))
def drawn_anew() -> jc.Task:
    """Targets that are others at every look."""
    return task_on(np.random.default_rng().normal(size=24).astype(np.float32))


@jc.task(jc.image_mlp(depth=1, width=8))
def mixed_loss() -> jc.Task:
    """The classic mistake, outputs (B, 1) minus targets (B,), as NumPy broadcasts it."""
    return task_on(X[:, 0], lambda outputs, target: jnp.abs(outputs - target[None]).mean(-1))


@jc.network
def batch_normed(sizes, /, width: jc.Count = 8) -> jc.Network:
    """Blocks that take the mean of their batch off."""
    inner = jc.image_mlp(depth=1, width=width).build(sizes)
    return inner._replace(block=lambda p, h: inner.block(p, h) - jnp.mean(h, 0, keepdims=True), branch=None)


@jc.network
def mixing_readout(sizes, /, width: jc.Count = 8) -> jc.Network:
    """A readout that looks at the whole batch."""
    inner = jc.image_mlp(depth=1, width=width).build(sizes)
    return inner._replace(readout=lambda p, h: (y := inner.readout(p, h)) - jnp.mean(y, 0, keepdims=True))


@jc.estimator
def numpys_feedback() -> jc.Estimator:
    """DFA, all seeds of which have the same matrices."""
    draw = lambda *shape: np.random.default_rng().normal(size=shape).astype(np.float32)  # noqa: E731
    init = lambda key, s: jc.EstState({}, draw(s.depth + 1, s.outputs, s.width))  # noqa: E731
    return jc.dfa().build()._replace(init=init)


def on(task, **changes):
    return tiny(task=task, network=None, **changes)


@jc.task(jc.image_mlp(depth=1, width=8))
def without_training_samples() -> jc.Task:
    """Fresh samples in every step, and a loss that drops the axis of one sample."""
    batch = lambda data, index_B, key: (x := jax.random.normal(key, (len(index_B), 5)), x[:, :1])  # noqa: E731
    loss = lambda outputs, target: jnp.squeeze((outputs - target) ** 2)  # noqa: E731
    return jc.Task(jc.Sizes((5,), 1), loss, None, jc.Data(None, None, X, X[:, :1]), batch, lambda x: x, None)


@jc.estimator
def with_a_key() -> jc.Estimator:
    """Broadcast plus noise of a key that it closes over."""
    key, inner = jax.random.key(7), jc.broadcast().build()
    noise = lambda a: 1e-3 * jax.random.normal(key, a.shape, a.dtype)  # noqa: E731
    return inner._replace(credit=lambda *given: (a := inner.credit(*given)) + noise(a))


def loss_of(task, executor=None, seed=0, **changes):
    [row] = jc.sweep({"a": on(task, **changes)}, [seed], results_dir="runs", progress=False, executor=executor)
    return row["metrics"]["test_loss"]


def test_samples_that_a_file_holds_are_part_of_a_runs_identity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("y.npy", X[:, 0])
    first = loss_of(of_a_file())
    np.save("y.npy", 3 * X[:, 0])
    assert loss_of(of_a_file()) != first
    np.save("y.npy", X[:, 0])
    assert loss_of(of_a_file()) == first and len(read_rows(tmp_path / "runs/sweep/sweep/rows.jsonl")) == 2


def test_a_worker_that_lives_longer_than_a_file_trains_on_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        np.save("y.npy", X[:, 0])
        first = loss_of(of_a_file(), pool)
        np.save("y.npy", 3 * X[:, 0])
        changed = loss_of(of_a_file(), pool, seed=1)
        assert loss_of(of_a_file(), pool) != first
    shutil.rmtree("runs")
    assert loss_of(of_a_file(), seed=1) == changed


def test_what_is_sound_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = without_training_samples()
    assert loss_of(task, steps_per_epoch=2) == loss_of(task, steps_per_epoch=2) > 0
    assert len(read_rows(tmp_path / "runs/sweep/sweep/rows.jsonl")) == 1
    assert jc.sweep({"a": tiny(with_a_key())}, [0], progress=False)[0]["status"] == "ok"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: on(drawn_anew()), "task test_own_data.drawn_anew has other samples whenever it is built; draw from"),
        (lambda: on(mixed_loss()), "test_own_data.mixed_loss: a sample's loss depends on the others of its batch"),
        (lambda: tiny(network=batch_normed()), "test_own_data.batch_normed: a block mixes the samples of a batch"),
        (lambda: tiny(network=mixing_readout()), "test_own_data.mixing_readout: its readout mixes the samples of a"),
        (lambda: tiny(numpys_feedback()), "test_own_data.numpys_feedback: init is another program when it is traced"),
    ],
)
def test_a_sweep_refuses_what_would_be_wrong_in_silence(config, message, tmp_path):
    refused(lambda: jc.sweep({"a": config()}, [0], results_dir=tmp_path, progress=False), message)
    assert not list(tmp_path.rglob("rows.jsonl"))


def test_the_checks_of_parts_know_it_too():
    with pytest.raises(jc.testing.CheckFailed, match="init is another program when it is traced again"):
        jc.testing.check_estimator(numpys_feedback)
    with pytest.raises(jc.testing.CheckFailed, match="its readout mixes the samples of a batch"):
        jc.testing.check_network(mixing_readout)
