"""A residual convolutional network of one's own, in one file, runs in the shared step like ours.

Its states are images, flattened to (B, D); its ``Branch`` has convolution kernels for weights, so that feedback
alignment and the chain of learned maps work on it as well.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import first_batch, flat, randomised, relative, small, white

import jcredit as jc
from jcredit.checking import check_run
from jcredit.config import Config
from jcredit.testing import HiddenBackprop, poisoned
from jcredit.training import make_run


def convolve(x_BxHxWxI, kernel_3x3xIxO):
    return jax.lax.conv_general_dilated(
        x_BxHxWxI, kernel_3x3xIxO, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def convolve_back(y_BxHxWxO, kernel_3x3xIxO):
    """The transpose of ``convolve``: kernels turned round, and inputs swapped with outputs."""
    return convolve(y_BxHxWxO, jnp.swapaxes(kernel_3x3xIxO[::-1, ::-1], 2, 3))


def kernel(key, inputs, outputs, scale=1.0):
    return scale * (9 * inputs) ** -0.5 * jax.random.normal(key, (3, 3, inputs, outputs))


@jc.network
def convolutional(sizes: jc.Sizes, /, depth: jc.Count = 2, channels: jc.Count = 3, gates: jc.Count = 4) -> jc.Network:
    """h_{l+1} = h_l + tanh(LN(h_l) * W_l) * V_l on images of the input's size, with kernels of 3 x 3.

    Args:
      sizes: of the task.
      depth: number of blocks.
      channels: channels of a state.
      gates: channels between the two convolutions.
    """
    height, width, inputs = sizes.inputs
    flattened = lambda x: x.reshape(x.shape[0], -1)  # noqa: E731
    image = lambda h: h.reshape(h.shape[0], height, width, -1)  # noqa: E731

    def weights(key, scale: Any = 1.0):
        inner, outer = jax.random.split(key)
        return {"inner": kernel(inner, channels, gates, scale), "outer": kernel(outer, gates, channels, scale)}

    def init(key):
        embed, blocks, readout = jax.random.split(key, 3)
        size = height * width * channels
        return jc.NetParams(
            embed=kernel(embed, inputs, channels),
            blocks=jax.vmap(weights)(jax.random.split(blocks, depth)),
            readout=size**-0.5 * jax.random.normal(readout, (size, sizes.outputs)),
        )

    def before_gates(params, h):
        return convolve(image(white(h)), params["inner"])

    def push(w, m, h, v):
        inside = convolve(image(jax.jvp(white, (h,), (v,))[1]), w["inner"])
        return flattened(convolve(inside * image(m), w["outer"]))

    def pull(w, m, h, a):
        inside = convolve_back(image(a), w["outer"]) * image(m)
        return jax.vjp(white, h)[1](flattened(convolve_back(inside, w["inner"])))[0]

    return jc.Network(
        init=init,
        embed=lambda params, x: flattened(convolve(x, params)),
        block=lambda params, h: h + flattened(convolve(jnp.tanh(before_gates(params, h)), params["outer"])),
        readout=lambda params, h: white(h) @ params,
        normalise=white,
        branch=jc.Branch(
            gates=lambda params, h: flattened(1 - jnp.tanh(before_gates(params, h)) ** 2),
            random=weights,
            zero=lambda key: {**weights(key), "outer": jnp.zeros((3, 3, gates, channels))},
            push=push,
            pull=pull,
        ),
    )


@functools.cache
def images():
    """48 + 16 images of 8 x 8 x 2 in three classes, which a third of their rows tells apart."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(64, 8, 8, 2)), np.arange(64) % 3
    for image, label in zip(x, y, strict=True):
        image[2 * label : 2 * label + 3] += 1.5
    return jc.tasks.arrays(x[:48], y[:48], x[48:], y[48:])


def tiny_images(credit=None, network=None, **changes):
    config = Config(task=images(), network=network or convolutional(), batch_size=16, epochs=2, diagnostic_samples=16)
    return config.replace(credit=credit or jc.bp(), **changes)


def begin(config):
    run = make_run(config)
    hp, key = run.hparams(config), jax.random.key(0)
    return run, run.init(key, hp), hp, run.data(key, hp)


def test_back_propagation_is_the_gradient_of_the_whole_loss(x64):
    # A step of gradient descent so long that the parameters' own rounding disappears beside it.
    config = tiny_images(optimizer="sgd", learning_rate=1e5)
    run, state, hp, data = begin(config)
    task, network, *_ = run.built(hp)
    index = first_batch(config)

    def whole_loss(params, x, y):
        h = network.embed(params.embed, x)
        for layer in range(2):
            h = network.block({name: w[layer] for name, w in params.blocks.items()}, h)
        logits = network.readout(params.readout, h)
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(y, 3), axis=-1))

    @jax.jit
    def both(state, hp):
        x, y = task.prepare(jnp.asarray(data.train_x)[index]), jnp.asarray(data.train_y)[index]
        return run.step(state, hp, data, index)[0].params, jax.grad(whole_loss)(state.params, x, y)

    after, wanted = both(state, hp)
    found = jax.tree.map(lambda old, new: (old - new) / 1e5, state.params, after)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert b.dtype == jnp.float64 and relative(a, b) < 1e-12


def test_push_and_pull_are_transposes_and_the_branch_is_the_blocks_jacobian(x64):
    network = convolutional().build(jc.Sizes((8, 8, 2), 3))
    params = jax.tree.map(lambda p: p[0], randomised(jax.eval_shape(network.init, jax.random.key(0)), 1)).blocks
    h, v, a = np.random.default_rng(2).normal(size=(3, 5, 192))

    @jax.jit
    def products(h, v, a):
        m = network.branch.gates(params, h)
        tangent = jax.jvp(lambda x: network.block(params, x), (h,), (v,))[1] - v
        nothing = network.branch.push(network.branch.zero(jax.random.key(0)), m, h, v)
        return network.branch.push(params, m, h, v), network.branch.pull(params, m, h, a), tangent, nothing

    push, pull, tangent, nothing = map(np.asarray, products(h, v, a))
    np.testing.assert_allclose(np.sum(push * a, -1), np.sum(v * pull, -1), rtol=1e-10)
    assert relative(push, tangent) < 1e-12 and not nothing.any() and push.any()


ESTIMATORS = {
    "fa": jc.fa(),
    "tangent_chain": small(jc.tangent_chain),
    "linear_chain": small(jc.linear_field, form="chain"),
    "tangent_mask": small(jc.tangent_mask),
    "tangent_coarse": small(jc.tangent_coarse),
    "tangent_gate": small(jc.tangent_gate),
    "vector_field": small(jc.vector_field),
    "state_bridge": small(jc.state_bridge),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_train_it_and_none_back_propagates(name):
    config = tiny_images(ESTIMATORS[name], poisoned(of=convolutional()))
    run, state, hp, data = begin(config)
    after, metrics = jax.jit(run.step)(state, hp, data, first_batch(config))
    assert all(np.isfinite(value) for value in metrics.values())
    for old, new in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        assert np.isfinite(new).all() and (np.asarray(old) != np.asarray(new)).any()


def test_back_propagation_through_it_is_caught():
    with pytest.raises(HiddenBackprop):
        check_run(make_run(tiny_images(jc.bp(), poisoned(of=convolutional()))))


def test_a_fitted_chain_finds_the_gradient():
    config = tiny_images(jc.tangent_chain(samples=16, learning_rate=2e-2), trains="nothing", epochs=60)
    run, state, hp, data = begin(config)

    @jax.jit
    def fitted(state):
        after, metrics = jax.lax.scan(lambda s, _: run.epoch(s, hp, data), state, length=config.epochs)
        gamma = lambda s: run.diagnose(s, hp, data)["layers"]["gamma"]  # noqa: E731
        return jax.lax.map(gamma, jax.tree.map(lambda a, b: jnp.stack([a, b]), state, after)), metrics

    (before, after), metrics = fitted(state)
    assert after.min() > 0.9 and before.min() < 0.8  # it starts as the broadcast of delta_L
    assert metrics["unexplained"][-1] < 0.2 < metrics["unexplained"][0]


def test_the_weights_of_a_branch_stay_small_where_a_dense_map_would_not():
    # A dense map of flattened images would hold D x D numbers in each block.
    config = tiny_images(small(jc.tangent_chain))
    _, state, _, _ = begin(config)
    assert flat(state.est_state.params).size == 2 * 2 * 9 * 3 * 4 < math.prod((2, 192, 192))
