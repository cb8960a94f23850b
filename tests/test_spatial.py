"""Networks of images that are no MLPs: their pieces by formula, their branches against their own Jacobians."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import explicit_tail, normal, randomised, refused, relative, small_images

import jcredit as jc
from jcredit.estimators.linear_maps import chain_map, coarse_map, mask_map, sweeps_map
from jcredit.networks.spatial import convolve, convolve_transposed, patches
from jcredit.passes import NetworkEnv, forward_with_pulls, oracle_deltas, own_matrices_of
from jcredit.tasks.classification import cross_entropy
from jcredit.testing import check_estimator
from jcredit.types import Shapes, Sizes

SIZES = Sizes((6, 4, 2), 3)
CNN = jc.image_cnn(depth=3, channels=4, patch=2)
MIXER = jc.image_mixer(depth=3, channels=4, patch=2, token_hidden=5, channel_hidden=7)
BOTH = pytest.mark.parametrize("part", [CNN, MIXER], ids=["cnn", "mixer"])


def scene_of(part):
    """The network, random parameters, its trace on five images, and delta_0 .. delta_L by jax.grad of the tail."""
    network = part.build(SIZES)
    params = randomised(jax.eval_shape(network.init, jax.random.key(0)), 7)
    x, y = normal(1, 5, *SIZES.inputs), jnp.arange(5) % 3
    trace, pulls = forward_with_pulls(network, params, x, through_states=True)
    tail = lambda h, l: jnp.sum(cross_entropy(explicit_tail(network, params, l, h), y))  # noqa: E731, E741
    exact = np.stack([jax.grad(tail)(trace.h_KxBxD[l], l) for l in range(4)])  # noqa: E741
    found = oracle_deltas(network, cross_entropy, params, trace, y, pulls)
    return NetworkEnv(network, cross_entropy, params), trace, exact, found


def test_a_convolution_is_one(strict, x64):
    x, kernel, a = normal(0, 2, 5, 4, 3), normal(1, 27, 6), normal(2, 2, 5, 4, 6)
    dimensions = ("NHWC", "HWIO", "NHWC")
    wanted = lambda x: jax.lax.conv_general_dilated(  # noqa: E731
        x, kernel.reshape(3, 3, 3, 6), (1, 1), "SAME", dimension_numbers=dimensions
    )
    out, pull = jax.vjp(wanted, x)
    assert relative(convolve(kernel, x), out) < 1e-12
    assert relative(convolve_transposed(kernel, a), pull(a)[0]) < 1e-12


def test_patches_are_cut_row_by_row():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    found = patches(jnp.asarray(x), 2)
    assert found.shape == (2, 6, 12)
    np.testing.assert_array_equal(found[1, 4], x[1, 2:4, 2:4].ravel())  # second row, second column


def gelu_by_hand(z):
    return z * np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))(z)


def norm_by_hand(h):
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)


def convolved_by_hand(params, x_BxHxWxC):
    padded, (_, height, width, channels) = np.pad(x_BxHxWxC, ((0, 0), (1, 1), (1, 1), (0, 0))), x_BxHxWxC.shape
    kernel = params["w"].reshape(3, 3, channels, -1)
    taps = [padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)]
    return sum(taps) + params["b"]


def cnn_block_by_hand(p, h):
    inner = convolved_by_hand(p["inner"], norm_by_hand(h).reshape(-1, 3, 2, 4))
    return h + convolved_by_hand(p["outer"], gelu_by_hand(inner)).reshape(-1, 24)


def mixer_block_by_hand(p, h):
    # X' = X + (GELU(LN(X)^T T1 + s1) T2 + s2)^T, X'' = X' + GELU(LN(X') C1 + c1) C2 + c2, X (positions, channels)
    dense = lambda name, x: x @ p[name]["w"] + p[name]["b"]  # noqa: E731
    x = h.reshape(-1, 6, 4)
    mixed = dense("tokens_v", gelu_by_hand(dense("tokens_u", norm_by_hand(x).swapaxes(1, 2))))
    x = x + mixed.swapaxes(1, 2)
    x = x + dense("channels_v", gelu_by_hand(dense("channels_u", norm_by_hand(x))))
    return x.reshape(-1, 24)


@pytest.mark.parametrize(
    ("part", "block"), [(CNN, cnn_block_by_hand), (MIXER, mixer_block_by_hand)], ids=["cnn", "mixer"]
)
def test_the_forward_pass_by_formula(x64, part, block):
    env, trace, *_ = scene_of(part)
    params, x = jax.tree.map(np.asarray, env._params), np.asarray(normal(1, 5, *SIZES.inputs))
    cut = np.stack([x[:, r : r + 2, c : c + 2].reshape(5, -1) for r in (0, 2, 4) for c in (0, 2)], axis=1)
    states = [(cut @ params.embed["w"] + params.embed["b"]).reshape(5, 24)]
    for layer in range(3):
        states.append(block(jax.tree.map(lambda p: p[layer], params.blocks), states[-1]))  # noqa: B023
    assert relative(trace.h_KxBxD, np.stack(states)) < 1e-12
    outputs = norm_by_hand(states[-1]) @ params.readout["w"] + params.readout["b"]
    assert relative(trace.outputs_BxC, outputs) < 1e-12


@BOTH
def test_blocks_start_small_on_their_way_out(part):
    blocks = part.replace(channels=24).build(SIZES).init(jax.random.key(0)).blocks
    for name, leaf in blocks.items():
        last, bound = name in ("outer", "tokens_v", "channels_v"), leaf["w"].shape[1] ** -0.5
        if last:
            assert float(jnp.std(leaf["w"])) == pytest.approx(0.01, rel=0.15)
            assert not np.asarray(leaf["b"]).any()
        else:  # uniform, weights and bias, in +-1/sqrt(fan-in)
            assert 0.9 * bound < float(jnp.max(jnp.abs(leaf["w"]))) <= bound
            assert 0 < float(jnp.max(jnp.abs(leaf["b"]))) <= bound


@BOTH
def test_the_oracle_is_the_gradient_in_double_precision(strict, x64, part):
    _, trace, exact, found = scene_of(part)
    assert trace.h_KxBxD.shape == (4, 5, 24) and trace.outputs_BxC.shape == (5, 3)
    assert relative(found, exact) < 1e-12


@BOTH
def test_a_branch_with_a_blocks_own_weights_is_its_jacobian(strict, x64, part):
    env, trace, *_ = scene_of(part)
    network, branch = env._network, env.branch
    block, h = jax.tree.map(lambda p: p[1], env._params.blocks), trace.h_KxBxD[1]
    v, a = normal(2, 5, 24), normal(3, 5, 24)
    assert branch is not None
    weights, m = own_matrices_of(network, "test")(block), branch.gates(block, h)
    tangent = jax.jvp(lambda s: network.block(block, s), (h,), (v,))[1] - v
    cotangent = jax.vjp(lambda s: network.block(block, s), h)[1](a)[0] - a
    assert relative(branch.push(weights, m, h, v), tangent) < 1e-10
    assert relative(branch.pull(weights, m, h, a), cotangent) < 1e-10
    for drawn in (branch.zero(jax.random.key(0)), branch.random(jax.random.key(0), 1.0)):
        assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, weights)


@BOTH
def test_maps_with_the_blocks_own_weights_are_back_propagation(strict, x64, part):
    env, trace, exact, _ = scene_of(part)
    own = jax.vmap(own_matrices_of(env, "test"))(env._params.blocks)
    delta = jnp.asarray(exact[-1])
    assert relative(chain_map().pull(own, env, trace, delta), exact) < 1e-10
    assert relative(sweeps_map(3, "neumann").pull(own, env, trace, delta), exact) < 1e-10
    # Mask and coarse maps with the weights of the blocks they span are exact where they span one.
    for tangent_map, exact_from in ((mask_map(), 2), (coarse_map(), 2)):
        shapes = Shapes(3, 24, 3, env.branch)
        count = jax.tree.leaves(jax.eval_shape(lambda: tangent_map.init(jax.random.key(0), shapes)))[0].shape[0]  # noqa: B023
        blocks = {6: [0, 1, 2, 1, 2, 2], 4: [0, 1, 2, 2]}[count]  # mask: 0-2, 1-2, 2; coarse: 0, 1-2, 2
        found = tangent_map.pull(jax.tree.map(lambda w: w[np.asarray(blocks)], own), env, trace, delta)  # noqa: B023
        assert relative(found[exact_from:], exact[exact_from:]) < 1e-10
        assert 1e-3 < relative(found[:exact_from], exact[:exact_from]) < 1


@pytest.mark.parametrize(
    ("credit", "network"),
    [
        (jc.tangent_chain(4), MIXER), (jc.tangent_mask(4), CNN), (jc.tangent_gate(8, 4), MIXER),
        (jc.tangent_sweeps(2, samples=4), CNN), (jc.tangent_coarse(4), MIXER), (jc.weight_mirror(8), CNN),
        (jc.kolen_pollack(), MIXER),
    ],
    ids=str,
)  # fmt: skip
def test_estimators_run_on_them(credit, network):
    check_estimator(credit, network=network, task=small_images(64, *SIZES.inputs))


@pytest.mark.parametrize("name", ["image_cnn", "image_mixer"])
def test_what_is_no_image_or_not_cut_by_its_patches_is_refused(name):
    factory = getattr(jc, name)
    refused(lambda: factory().build(Sizes((12,), 3)), f"{name}: samples have shape \\(12,\\); it takes images")
    refused(lambda: factory(patch=4).build(SIZES), f"{name}: patch=4 does not divide images of 6 x 4")
