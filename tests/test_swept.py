"""Swept numbers are free: each reaches the run, and none of them recompiles it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FACTORIES, TINY, counted, first_batch, same_bits, small, start, tiny

import jcredit as jc
from jcredit.config import PARTS, Hparams, hparams, parts_of, settings
from jcredit.training import make_run
from jcredit.types import Sizes

SETTINGS = [(factory, setting) for factory in FACTORIES for setting in factory.settings.values()]
OWN = list(settings().values())


def test_hparams_carry_every_swept_number():
    credit = jc.exact_terminal(of=jc.scalar_bridge(sigma=0.2, ema=0.5))
    config = jc.Config(
        task=jc.tasks.lq(process_noise=0.7), network=jc.ladder_mlp(alpha=0.3), credit=credit,
        rule=jc.target_shift(eta=0.9), learning_rate=0.4, rho_epsilon=0.8,
    )  # fmt: skip
    found = hparams(config, 17)
    assert float(found.total_steps) == 17 and float(found.learning_rate) == np.float32(0.4)
    inside = {name: float(value) for part in (found.task, found.network, found.rule) for name, value in part.items()}
    assert inside == pytest.approx({"process_noise": 0.7, "alpha": 0.3, "eta": 0.9})
    assert set(found.credit) == {"of"} and float(found.credit["of"]["sigma"]) == np.float32(0.2)
    assert set(found.credit["of"]) == {n for n, s in jc.scalar_bridge.settings.items() if s.swept}
    assert all(leaf.shape == () and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    assert set(Hparams._fields) == {*PARTS, "total_steps", *(s.name for s in OWN if s.swept)}


BRIDGE = tiny(
    small(jc.scalar_bridge, target="softmin", clip=0.0), rule=jc.target_shift(), optimizer="sgd",
    warmup_ratio=0.5, task=jc.tasks.teacher(classes=4, train_size=32, test_size=16),
)  # fmt: skip
LQ: dict[str, Any] = dict(
    task=jc.tasks.lq(state_size=16, outputs=4, test_size=16), network=jc.lq_dynamics(depth=2), steps_per_epoch=2
)
SWEEPS = {
    "fa": tiny(jc.fa(), network=jc.ladder_mlp(depth=2, width=16)),
    "state_bridge": tiny(small(jc.state_bridge)),
    "scalar_bridge": BRIDGE,
    "vector_field": tiny(small(jc.vector_field, epsilon=0.1), trains="nothing", **LQ),
    "linear_field": tiny(small(jc.linear_field, scheme="one_sided", epsilon=0.1)),
    "tangent_gate": tiny(small(jc.tangent_gate)),
    "tangent_mask": tiny(small(jc.tangent_mask)),
    "tangent_chain": tiny(small(jc.tangent_chain)),
    "tangent_sweeps": tiny(small(jc.tangent_sweeps)),
    "tangent_coarse": tiny(small(jc.tangent_coarse)),
    "weight_mirror": tiny(small(jc.weight_mirror)),
    "kolen_pollack": tiny(jc.kolen_pollack(), network=jc.image_mlp(depth=2, width=16)),
    "grape": tiny(small(jc.grape)),
    "local_heads": tiny(jc.local_heads()),
    "forward_gradient": tiny(small(jc.forward_gradient)),
    "wrapped": tiny(jc.exact_terminal(of=jc.unbiased_residual(of=jc.fa()))),
    "disturbed_bp": tiny(jc.disturbed_bp()),
}
VALUES = {"warmup_ratio": 0.0, "clip": 1e-3, "clamp": 1e-4, "ema": 0.5}


def swept_of(config):
    """Dotted paths of a configuration's swept numbers, those it reads."""
    inside = [
        f"{path}.{name}" for path, part in parts_of(config) for name, s in part.factory.settings.items() if s.swept
    ]
    own = [s.name for s in OWN if s.swept] if config is BRIDGE else []
    return inside + own


def two_steps(run, config):
    """(key, numbers) -> everything a run yields, from its start on; the warm-up, if any, ends between the two steps."""
    batches = jnp.arange(2 * config.batch_size).reshape(2, -1)

    def everything(key, hp):
        state, data = run.init(key, hp), run.data(key, hp)
        almost_half = state._replace(step=state.step + 3)
        after, metrics = jax.lax.scan(lambda s, index: run.step(s, hp, data, index), almost_half, batches)
        return after, metrics, run.diagnose(after, hp, data) if config is BRIDGE else {}

    return everything


@pytest.mark.parametrize("name", SWEEPS)
def test_a_swept_number_recompiles_nothing_and_changes_the_run(name):
    config = SWEEPS[name]
    run, key = make_run(config), jax.random.key(0)
    program, traces = counted(two_steps(run, config))
    reference = program(key, run.hparams(config))
    for path in swept_of(config):
        changed = config.replace(**{path: VALUES.get(path.rpartition(".")[2], 0.37)})
        assert not same_bits(program(key, run.hparams(changed)), reference), f"{path} does not reach the run"
    assert program(key, run.hparams(config.replace(epochs=9))) is not None
    assert len(traces) == 1 and program._cache_size() == 1


def test_every_swept_setting_is_swept_above():
    met = {(part.factory.name, path.rpartition(".")[2]) for config in SWEEPS.values() for path in swept_of(config)
           for where, part in parts_of(config) if path.rpartition(".")[0] == where}  # fmt: skip
    assert met == {(factory.name, setting.name) for factory, setting in SETTINGS if setting.swept}


def test_numbers_of_the_config_are_not_baked_in():
    # A run built for other numbers, given these, is the run of these.
    numbers = {"learning_rate": 0.05, "sigma": 0.3, "eta": 0.7, "terminal_weight": 0.2, "alpha": 0.4}
    asked = BRIDGE.replace(**numbers)
    out = []
    for built in (asked, BRIDGE):
        run = make_run(built)
        state, hp, data = start(run, asked)
        out.append(jax.jit(run.step)(state, hp, data, first_batch(asked)))
    assert same_bits(*out)


def test_the_teacher_has_its_sizes():
    run = make_run(tiny())
    data = jax.jit(lambda key: run.data(key, run.hparams(tiny())))(jax.random.key(0))
    assert data.train_x.shape == (32, 128) and data.test_x.shape == (16, 128)
    assert data.train_y.dtype == jnp.int32 and set(np.unique(data.train_y)) <= set(range(4))
    assert len(np.unique(data.train_y)) > 1
    assert not run.shared_data


CORNERS = jc.tasks.arrays(np.zeros((32, 2)), np.arange(32) % 2, np.zeros((8, 2)), np.arange(8) % 2)


@jc.task(jc.image_mlp(depth=1, width=8))
def blurred(sigma: jc.NonNegative = 0.0, stored: bool = True) -> jc.Task:
    """Stored samples that hang on a swept number, or a task that reads it elsewhere."""
    x, y = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(32, 2), np.arange(32, dtype=np.int32) % 2
    return CORNERS.build(None)._replace(data=jc.Data(x + sigma if stored else x, y, x[:8], y[:8]))


def test_stored_samples_that_hang_on_a_swept_number_are_each_runs_own():
    config = jc.Config(blurred(), batch_size=16, epochs=1, diagnostic_samples=8)
    together = jc.sweep({"bp": config}, [0, 1], {"sigma": [0.0, 3.0]}, progress=False)
    alone = jc.sweep({"bp": config.replace(sigma=3.0)}, [0, 1], progress=False)
    first, second, own = ([row["metrics"]["test_loss"] for row in rows] for rows in (together[:2], together[2:], alone))
    assert second == own != first
    for task in (CORNERS, blurred(stored=False)):
        assert make_run(jc.Config(task, batch_size=16)).shared_data, "samples that hang on no number are stored once"
    assert not make_run(config).shared_data


def test_labels_are_what_a_teacher_of_ones_own_key_says(x64):
    linear = jc.ladder_mlp(depth=1, width=6, alpha=0.0)
    config = tiny(task=TINY.task.replace(teacher_network=linear), network=jc.ladder_mlp(depth=2, width=16))
    run = make_run(config)
    made = jax.jit(lambda key: run.data(key, run.hparams(config)))

    def labels(seed, x):
        teacher_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))[0]
        params = jax.tree.map(np.asarray, linear.build(Sizes((128,), 4)).init(teacher_key))
        h = np.asarray(x) @ params.embed["w"] + params.embed["b"]
        centred = h - h.mean(1, keepdims=True)
        h = (
            h
            + centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) @ params.blocks["w"][0]
            + params.blocks["b"][0]
        )
        return (h @ params.readout["w"] + params.readout["b"]).argmax(1)

    data = made(jax.random.key(3))
    np.testing.assert_array_equal(data.train_y, labels(3, data.train_x))
    np.testing.assert_array_equal(data.test_y, labels(3, data.test_x))
    assert (labels(4, data.train_x) != np.asarray(data.train_y)).any()  # another seed has another teacher
    assert len(np.unique(np.concatenate([data.train_x, data.test_x]), axis=0)) == 32 + 16
