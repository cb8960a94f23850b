"""How runs are laid on hardware: mapped, a run gives the bits it gives alone; sharded, it does not matter over what.

A program sharded over several devices is not the program of one device: XLA's partitioner simplifies it further
(measured: two matrix products fewer in the step of ``tangent_chain``), which moves last bits.  Hence layouts are kept
on resume, and even a single run takes two devices where there are several.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IMAGE_NETWORK, easy_data, first_batch, optimised_jit, relative, same_bits, small, tiny

import jcredit as jc
from jcredit.sweeps.layout import Layout, choose_layout, over_runs, put
from jcredit.training import make_run

DEVICES = 8
NETWORK = IMAGE_NETWORK.replace(depth=2)
CHAIN = tiny(small(jc.tangent_chain), network=NETWORK, warmup_ratio=0.25, clip=1.0, normalise="rms")


def stacked(config, count):
    """(run, states, hps, data) of runs with seeds and learning rates of their own; data are shared."""
    run = make_run(config)
    hp = run.hparams(config)
    rates = config.learning_rate * (1 + jnp.arange(count, dtype=hp.learning_rate.dtype))
    hps = jax.tree.map(lambda leaf: jnp.full(count, leaf), hp)._replace(learning_rate=rates)
    alone = [run.init(key, hp) for key in jax.random.split(jax.random.key(0), count)]
    return run, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone), hps, easy_data(config)


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def shard(run, states, hps, data, layout):
    """An epoch of every run through the library's own layout, back on the host."""
    args = put(states, layout, True), put(hps, layout, True), put(data, layout, False)
    out = over_runs(run.epoch, (True, True, False), layout)(*args)
    assert len({s.device for s in jax.tree.leaves(out)[0].addressable_shards}) == layout.devices
    return jax.device_get(out)


def mapped_and_alone(config, count):
    """Epochs of runs one after the other in one program, and each by itself; compiled as in real runs."""
    run, states, hps, data = stacked(config, count)
    mapped = optimised_jit(lambda s, h, d: jax.lax.map(lambda pair: run.epoch(*pair, d), (s, h)))(states, hps, data)
    alone = optimised_jit(run.epoch)
    return mapped, [alone(at(states, i), at(hps, i), data) for i in range(count)]


def test_a_mapped_run_has_the_bits_of_the_run_alone():
    mapped, alone = mapped_and_alone(tiny(jc.dfa(), network=NETWORK, normalise="rms", clip=1.0), 2)
    assert all(same_bits(at(mapped, i), alone[i]) for i in range(2))
    assert not same_bits(*alone)


@pytest.mark.slow
def test_mapped_runs_have_the_bits_of_a_run_alone_and_sharded_ones_those_of_any_number_of_devices():
    assert jax.device_count() == DEVICES and choose_layout(16) == Layout(DEVICES, 1)
    run, states, hps, data = stacked(CHAIN, DEVICES)
    mapped, results = mapped_and_alone(CHAIN, 3)
    weights = {np.asarray(expected[0].params.readout["w"]).tobytes() for expected in results}
    assert all(same_bits(at(mapped, i), expected) for i, expected in enumerate(results))
    assert len(weights) == 3  # three different runs

    eight = shard(run, states, hps, data, Layout(DEVICES, 1))  # one run on each
    two = shard(run, states, hps, data, Layout(2, 1))  # four on each
    assert same_bits(eight, two)
    for i, expected in enumerate(results):
        pairs = zip(jax.tree.leaves(at(eight, i)[0].params), jax.tree.leaves(expected[0].params), strict=True)
        assert all(relative(ours, theirs) < 1e-5 for ours, theirs in pairs)


@pytest.mark.slow
def test_64_seeds_times_9_settings_on_eight_devices_equal_the_loop():
    """The sweep's own layout: seeds and swept numbers on one run axis, sharded over devices and mapped within."""
    run, states, hps, data = stacked(tiny(jc.dfa(), network=NETWORK), 64)
    settings = jnp.array([(rate, clip) for rate in (1e-3, 3e-3, 1e-2) for clip in (0.0, 0.1, 1.0)])
    states, hps = (jax.tree.map(lambda leaf: jnp.repeat(leaf, 9, axis=0), tree) for tree in (states, hps))
    settings = jnp.tile(settings, (64, 1))
    hps = hps._replace(learning_rate=settings[:, 0], clip=settings[:, 1])
    together, alone = shard(run, states, hps, data, choose_layout(64 * 9)), jax.jit(run.epoch)
    for i in range(64 * 9):
        assert same_bits(at(together, i), jax.device_get(alone(at(states, i), at(hps, i), data))), i


def check_vmap(tolerance, credit):
    # The gradient of one step, seen through a step of SGD beside which the parameters' rounding disappears.
    config = tiny(credit, network=IMAGE_NETWORK, optimizer="sgd", learning_rate=1e5, rule=jc.target_shift(eta=0.1))
    run, states, hps, data = stacked(config, 3)
    together, _ = jax.jit(jax.vmap(run.step, (0, 0, None, None)))(states, hps, data, first_batch(config))
    step = jax.jit(run.step)
    for i in range(3):
        alone, _ = step(at(states, i), at(hps, i), data, first_batch(config))
        for part in ("params", "est_state"):
            pair = (getattr(state, part) for state in (at(together, i), alone))
            assert all(relative(a, b) < tolerance for a, b in zip(*map(jax.tree.leaves, pair), strict=True))


def test_a_step_under_vmap_agrees_in_single_precision():
    check_vmap(1e-5, small(jc.tangent_chain))


def test_a_step_under_vmap_agrees_in_double_precision(x64):
    check_vmap(1e-12, jc.fa())
