"""Regression on arrays of one's own."""

import jax
import numpy as np
import pytest
from helpers import refused, tiny

import jcredit as jc
from jcredit.config import config_hash
from jcredit.passes import forward
from jcredit.report import plots
from jcredit.training import make_run


def my_numbers(outputs=(2,)):
    """Targets that are linear in the inputs."""
    random = np.random.default_rng(0)
    x = random.normal(3.0, 2.0, size=(96, 5))
    y = (x - 3) @ random.normal(size=(5, *outputs)) / 4
    return x[:64], y[:64], x[64:], y[64:]


def config_of(data, **changes):
    credit = changes.pop("credit", jc.bp())
    return tiny(credit, task=jc.tasks.regression(*data), network=jc.image_mlp(depth=2, width=16), **changes)


@pytest.mark.parametrize("outputs", [(), (1,), (3,)])
def test_the_loss_is_half_the_squared_error(outputs):
    data = my_numbers(outputs)
    config = config_of(data)
    run = make_run(config)
    hp = run.hparams(config)
    state, own = run.init(jax.random.key(0), hp), run.data(jax.random.key(0), hp)
    task, network, *_ = run.built(hp)
    y = np.asarray(forward(network, state.params, task.prepare(own.test_x), None).outputs_BxC, float)
    assert y.shape == (32, *(outputs or (1,)))
    found = run.evaluate(state, hp, own)
    assert set(found) == {"test_loss"}  # there is no accuracy
    expected = np.mean(np.sum((y - data[3].reshape(32, -1)) ** 2, axis=1)) / 2
    np.testing.assert_allclose(found["test_loss"], expected, rtol=1e-5)


def test_a_sweep_learns_it_and_its_table_and_figure_have_the_loss(tmp_path, monkeypatch):
    data = my_numbers()
    configs = {"bp": config_of(data, epochs=30, learning_rate=1e-2, batch_size=32)}
    rows = jc.sweep(configs, seeds=[0], results_dir=tmp_path, progress=False)
    assert rows[0]["metrics"]["test_loss"] < 0.1 * np.sum(data[3].var(axis=0)) / 2
    assert "loss" in rows.table() and "accuracy" not in rows.table()
    drawn = []
    monkeypatch.setattr(plots, "overview", lambda *args: drawn.append(args[3:]))
    rows.plot(tmp_path / "figure.png")
    assert drawn == [(("test_loss", "gamma"), "test_loss")]


def test_targets_are_part_of_a_runs_identity():
    x, y, x_test, y_test = my_numbers(())
    key = config_hash(config_of((x, y, x_test, y_test)))
    assert key == config_hash(config_of((x, y[:, None], x_test, y_test[:, None])))
    assert key != config_hash(config_of((x, -y, x_test, y_test)))
    assert key != config_hash(config_of((x, y, x_test, -y_test)))


@pytest.mark.parametrize(("size", "mean"), [(1e-3, 0.0), (1e3, 0.0), (1.0, 1e3)])
def test_targets_of_another_order_are_said(size, mean, caplog):
    x, y, x_test, y_test = my_numbers()
    jc.tasks.regression(x, y, x_test, y_test)
    assert not caplog.messages
    jc.tasks.regression(x, size * y + mean, x_test, size * y_test + mean)
    [said] = caplog.messages
    assert said.startswith(f"y has deviations up to {size * y.std(axis=0).max():.3g} about means up to ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y, u, v: (x, y[:5], u, v),
            r"y has shape \(5, 2\); give targets, one for each of the 64 samples of x",
        ),
        (lambda x, y, u, v: (x, y, u, v[:, :1]), "y_test has 1 numbers for each sample, and y has 2; give as many"),
        (lambda x, y, u, v: (x, y[..., None], u, v), r"y has targets of type float64 and shape \(64, 2, 1\); give num"),
        (lambda x, y, u, v: (x, y[:, :0], u, v), r"y has targets of .* shape \(64, 0\)"),
        (lambda x, y, u, v: (x, y.astype(str), u, v), "y has targets of type <U"),
        (lambda x, y, u, v: (x, y > 0, u, v), "y has targets of type bool"),
        (lambda x, y, u, v: (x, y + 0j, u, v), "y has targets of type complex128"),
        (lambda x, y, u, v: (x, np.where(y > 0, np.nan, y), u, v), "y holds values that are not finite in float32"),
        (lambda x, y, u, v: (x, y, u, v * 1e300), "y_test holds values that are not finite in float32"),
        (lambda x, y, u, v: (x, 0 * y + 2, u, v), "y: all 64 targets are alike"),
        (lambda x, y, u, v: (x, y, u[:, :3], v), r"x_test has shape \(32, 3\)"),
        (lambda x, y, u, v: (x, np.ma.masked_less(y, 0), u, v), "y is masked; fill or drop"),
    ],
)
def test_what_is_no_regression_is_refused(change, message):
    refused(lambda: jc.tasks.regression(*change(*my_numbers())), message)
