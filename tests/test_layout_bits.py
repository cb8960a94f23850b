"""How runs are laid on hardware does not change them: mapped or sharded, a run gives the bits it gives alone."""

import jax
import jax.numpy as jnp
import pytest
from helpers import easy_data, first_batch, image_network_task, optimised_jit, relative, same_bits, tiny
from jax.sharding import Mesh, PartitionSpec

from jcredit.layout import Layout, choose_layout, over_runs, place
from jcredit.training import make_run

RUNS, DEVICES = 16, 8
CONFIGS = {
    "tangent_mask": tiny(method="tangent_mask", depth=2),
    "tangent_chain": tiny(method="tangent_chain", depth=2, warmup_ratio=0.25, clip=1.0, normalise="rms"),
}


def stacked(config, count=RUNS):
    """(run, states, hps, data) of runs with seeds and learning rates of their own; data are shared."""
    run = make_run(config, task=image_network_task(config))
    hp = run.hparams(config)
    rates = config.learning_rate * (1 + jnp.arange(count, dtype=hp.alpha.dtype))
    hps = jax.tree.map(lambda leaf: jnp.full(count, leaf), hp).replace(learning_rate=rates)
    alone = [run.init(key, hp) for key in jax.random.split(jax.random.key(0), count)]
    return run, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone), hps, easy_data(config)


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def mapped_by_hand(run, states, hps, data):
    mesh, spec = Mesh(jax.devices(), ("run",)), PartitionSpec("run")
    each = jax.shard_map(
        lambda states, hps, data: jax.lax.map(lambda pair: run.epoch(*pair, data), (states, hps)),
        mesh=mesh, in_specs=(spec, spec, PartitionSpec()), out_specs=spec, check_vma=False,
    )  # fmt: skip
    return optimised_jit(each)(states, hps, data)


def mapped_by_layout(run, states, hps, data):
    layout = choose_layout(RUNS)
    assert layout == Layout(DEVICES, 1) and layout.padded(RUNS) == RUNS
    states, hps, data = place(states, layout, True), place(hps, layout, True), place(data, layout, False)
    return over_runs(run.epoch, (True, True, False), layout)(states, hps, data)


# The larger program compiled as in real runs, the other one faster and through the library's own layout.
@pytest.mark.parametrize(
    ("name", "mapped", "jit"),
    [("tangent_chain", mapped_by_hand, optimised_jit), ("tangent_mask", mapped_by_layout, jax.jit)],
)
def test_mapped_and_sharded_runs_have_the_bits_of_a_run_alone(name, mapped, jit):
    """Two runs mapped on each of eight devices, an epoch each."""
    assert jax.device_count() == DEVICES
    run, states, hps, data = stacked(CONFIGS[name])
    together = mapped(run, states, hps, data)
    assert len({s.device for s in jax.tree.leaves(together)[0].addressable_shards}) == DEVICES
    together, alone, weights = jax.device_get(together), jit(run.epoch), set()
    for i in range(RUNS):
        expected = jax.device_get(alone(at(states, i), at(hps, i), data))
        assert same_bits(at(together, i), expected), i
        weights.add(expected[0].params.readout["w"].tobytes())
    assert len(weights) == RUNS  # sixteen different runs
    assert same_bits(expected, alone(at(states, i), at(hps, i), data))  # and a run repeats its bits


def check_vmap(tolerance):
    # The gradient of one step, seen through a step of SGD beside which the parameters' rounding disappears.
    config = tiny(method="tangent_chain", optimizer="sgd", learning_rate=1e5, rule="target_shift")
    run, states, hps, data = stacked(config, 3)
    together, _ = jax.jit(jax.vmap(run.step, (0, 0, None, None)))(states, hps, data, first_batch(config))
    step = jax.jit(run.step)
    for i in range(3):
        alone, _ = step(at(states, i), at(hps, i), data, first_batch(config))
        for part in ("params", "estimator"):
            pair = (getattr(state, part) for state in (at(together, i), alone))
            assert all(relative(a, b) < tolerance for a, b in zip(*map(jax.tree.leaves, pair), strict=True))


def test_a_step_under_vmap_agrees_in_single_precision():
    check_vmap(1e-5)


def test_a_step_under_vmap_agrees_in_double_precision(x64):
    check_vmap(1e-12)
