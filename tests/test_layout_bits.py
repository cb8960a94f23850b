"""How runs are laid on hardware does not change them: mapped or sharded, a run gives the bits it gives alone."""

import jax
import jax.numpy as jnp
import pytest
from helpers import easy_data, first_batch, image_network_task, optimised_jit, relative, same_bits, tiny
from jax.sharding import Mesh, PartitionSpec

from jcredit.training import make_run

RUNS, DEVICES = 16, 8
CONFIGS = {
    "tangent_mask": tiny(method="tangent_mask", depth=2),
    "scalar_bridge": tiny(method="scalar_bridge", depth=2, warmup_ratio=0.25, clip=1.0, normalise="rms"),
}


def stacked(config, count=RUNS):
    """(run, states, hps, data) of runs with seeds and learning rates of their own; data are shared."""
    run = make_run(config, task=image_network_task(config))
    hp = run.hparams(config)
    rates = config.learning_rate * (1 + jnp.arange(count, dtype=hp.alpha.dtype))
    hps = jax.tree.map(lambda leaf: jnp.full(count, leaf), hp).replace(learning_rate=rates)
    states = jax.jit(jax.vmap(run.init))(jax.random.split(jax.random.key(0), count), hps)
    return run, states, hps, easy_data(config)


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.mark.parametrize("name", CONFIGS)
def test_mapped_and_sharded_runs_have_the_bits_of_a_run_alone(name):
    """Two runs mapped on each of eight devices, an epoch each."""
    run, states, hps, data = stacked(CONFIGS[name])
    mesh, spec = Mesh(jax.devices(), ("run",)), PartitionSpec("run")
    assert mesh.size == DEVICES
    mapped = jax.shard_map(
        lambda states, hps, data: jax.lax.map(lambda pair: run.epoch(*pair, data), (states, hps)),
        mesh=mesh, in_specs=(spec, spec, PartitionSpec()), out_specs=spec, check_vma=False,
    )  # fmt: skip
    together = optimised_jit(mapped)(states, hps, data)
    assert len({s.device for s in jax.tree.leaves(together)[0].addressable_shards}) == DEVICES
    together, alone = jax.device_get(together), optimised_jit(run.epoch)
    weights = set()
    for i in range(RUNS):
        expected = jax.device_get(alone(at(states, i), at(hps, i), data))
        assert same_bits(at(together, i), expected), i
        weights.add(expected[0].params.readout["w"].tobytes())
    assert len(weights) == RUNS  # sixteen different runs


def check_vmap(tolerance):
    # The gradient of one step, seen through a step of SGD beside which the parameters' rounding disappears.
    config = tiny(method="tangent_chain", optimizer="sgd", learning_rate=1e5, rule="target_shift")
    run, states, hps, data = stacked(config, 3)
    together, _ = optimised_jit(jax.vmap(run.step, (0, 0, None, None)))(states, hps, data, first_batch(config))
    step = optimised_jit(run.step)
    for i in range(3):
        alone, _ = step(at(states, i), at(hps, i), data, first_batch(config))
        pairs = zip(jax.tree.leaves(at(together, i).params), jax.tree.leaves(alone.params), strict=True)
        assert all(relative(a, b) < tolerance for a, b in pairs)
        pairs = zip(jax.tree.leaves(at(together, i).estimator), jax.tree.leaves(alone.estimator), strict=True)
        assert all(relative(a, b) < tolerance for a, b in pairs)


def test_a_step_under_vmap_agrees_in_single_precision():
    check_vmap(1e-5)


def test_a_step_under_vmap_agrees_in_double_precision(x64):
    check_vmap(1e-12)


def test_a_run_repeats_its_bits_and_a_seed_changes_them():
    run, states, hps, data = stacked(CONFIGS["tangent_mask"], 2)
    step = jax.jit(run.step)
    one, again, other = (step(at(states, i), at(hps, 0), data, jnp.arange(8)) for i in (0, 0, 1))
    assert same_bits(one, again) and not same_bits(one, other)
