"""Networks, and the questions an estimator may ask of them, against explicit loops and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import branch_weights_of, explicit_tail, make_scene, normal, relative

import jcredit as jc
from jcredit.networks import gelu, gelu_derivative, wide_product
from jcredit.passes import NetworkEnv, branch_of, forward
from jcredit.types import Shapes, Sizes

pytestmark = pytest.mark.usefixtures("strict")
KINDS = ("image", "ladder", "lq")


def block_of(scene, layer):
    return jax.tree.map(lambda p: p[layer], scene.params.blocks)


def test_gelu_and_its_derivative(x64):
    from math import erf, exp, pi, sqrt

    z = [-6.0, -1.3, -0.2, 0.0, 0.7, 2.5, 8.0]
    np.testing.assert_allclose(gelu(jnp.asarray(z)), [0.5 * x * (1 + erf(x / sqrt(2))) for x in z], rtol=1e-8)
    expected = [0.5 * (1 + erf(x / sqrt(2))) + x * exp(-x * x / 2) / sqrt(2 * pi) for x in z]
    np.testing.assert_allclose(gelu_derivative(jnp.asarray(z)), expected, rtol=1e-8, atol=1e-15)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.asarray(z)), expected, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_ladder_block_and_gates_by_formula(x64, alpha):
    network = jc.ladder_mlp(depth=1, width=6, alpha=alpha).build(Sizes((5,), 3))
    w, b, h = normal(0, 6, 6), normal(1, 6), normal(2, 4, 6)
    h_np = np.asarray(h)
    whitened = (h_np - h_np.mean(1, keepdims=True)) / np.sqrt(h_np.var(1, keepdims=True) + 1e-5)
    z = whitened @ np.asarray(w) + np.asarray(b)
    phi = (1 - alpha) * z + alpha * np.tanh(z)
    np.testing.assert_allclose(network.block({"w": w, "b": b}, h), h + phi, rtol=1e-10)
    assert network.branch is not None
    gates = network.branch.gates({"w": w, "b": b}, h)
    np.testing.assert_allclose(gates, 1 - alpha * np.tanh(z) ** 2, atol=1e-14)
    bare = jc.ladder_mlp(depth=1, width=6, alpha=alpha, layer_norm_on=False).build(Sizes((5,), 3))
    z = h_np @ np.asarray(w) + np.asarray(b)
    np.testing.assert_allclose(bare.block({"w": w, "b": b}, h), h + (1 - alpha) * z + alpha * np.tanh(z), rtol=1e-10)
    assert bare.branch is None  # a network for teachers alone


def test_gates_of_the_image_network_by_formula():
    scene = make_scene("image")
    h, inner = scene.ctx.trace.h_KxBxD, scene.params.blocks["inner"]
    z = jnp.einsum("lbd,ldh->lbh", scene.network.normalise(h[:-1]), inner["w"]) + inner["b"][:, None]
    activation = jax.vmap(jax.grad(lambda x: 0.5 * x * (1 + jax.lax.erf(x / 2**0.5))))(z.ravel())
    assert relative(scene.ctx.trace.gates_LxBxH, activation.reshape(z.shape)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_the_explicit_loop(kind):
    scene = make_scene(kind)
    trace = scene.ctx.trace
    h = scene.network.embed(scene.params.embed, scene.x_BxI)
    assert trace.h_KxBxD.shape == (4, 8, 12) and trace.outputs_BxC.shape == (8, 4)
    for layer in range(3):
        assert relative(trace.h_KxBxD[layer], h) < 1e-6
        h = scene.network.block(block_of(scene, layer), h)
        h = h if scene.noise_LxBxD is None else h + scene.noise_LxBxD[layer]
    assert relative(trace.h_KxBxD[3], h) < 1e-6
    assert relative(trace.outputs_BxC, scene.network.readout(scene.params.readout, h)) < 1e-6
    assert (trace.noise_LxBxD is None) == (kind != "lq")


@pytest.mark.parametrize("kind", KINDS)
def test_loss_at_is_the_explicit_tail_from_every_layer(kind):
    scene = make_scene(kind)
    moved = scene.ctx.trace.h_KxBxD + 0.3 * normal(1, 4, 8, 12)
    loss_at = jax.jit(lambda *args: scene.env.loss_at(*args))
    expected = []
    for layer in range(4):
        tail = explicit_tail(scene.network, scene.params, layer, moved[layer], scene.noise_LxBxD)
        expected.append(np.asarray(scene.loss(tail, scene.target_B)))
        assert relative(loss_at(scene.ctx, jnp.full(8, layer), moved[layer]), expected[-1]) < 1e-5
        unmoved = loss_at(scene.ctx, jnp.full(8, layer), scene.ctx.trace.h_KxBxD[layer])
        assert relative(unmoved, scene.loss(scene.ctx.trace.outputs_BxC, scene.target_B)) < 1e-5
    mixed = jnp.asarray([0, 3, 1, 2, 2, 0, 1, 3])  # a layer of its own for every sample
    found = loss_at(scene.ctx, mixed, moved[mixed, jnp.arange(8)])
    assert relative(found, np.stack(expected)[mixed, np.arange(8)]) < 1e-5


@pytest.mark.parametrize("layers", [[0, 0, 2, 3, 3, 5, 6, 6], [4, 4, 5, 5, 5, 5, 6, 7], [3, 0, 1, 2, 2, 0, 1, 3]])
def test_known_layers_give_the_loss_of_traced_ones(layers, x64):
    scene = make_scene("lq", depth=7)  # seven blocks: parts of one and of two
    known, v = np.asarray(layers), normal(2, 3, 8, 12)
    h = scene.ctx.trace.h_KxBxD[known, np.arange(8)] + 0.3 * normal(1, 8, 12)

    @jax.jit
    def both(traced):
        return [(scene.env.loss_at(scene.ctx, layer, h), scene.env.loss_tangent(scene.ctx, layer, h, v))
                for layer in (known, traced)]  # fmt: skip

    (loss, tangent), (expected_loss, expected_tangent) = both(jnp.asarray(known))
    assert relative(loss, expected_loss) < 1e-12 and relative(tangent, expected_tangent) < 1e-12


def test_samples_run_their_own_tails_only():
    scene, seen = make_scene("image", depth=4), []

    def recording(params, h):
        seen.append(h.shape[0])
        return scene.network.block(params, h)

    env = NetworkEnv(scene.network._replace(block=recording), scene.loss, scene.params)
    for layers, running in (([0, 0, 1, 1, 1, 2, 3, 3], [2, 5, 6, 8]), ([2, 2, 2, 3, 3, 4, 4, 4], [3, 5])):
        seen.clear()
        jax.eval_shape(lambda h: env.loss_at(scene.ctx, np.asarray(layers), h), scene.ctx.trace.h_KxBxD[0])  # noqa: B023
        assert seen == running


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_tangent_is_the_gradient_along_the_direction(kind, x64):
    scene = make_scene(kind)
    layer = jnp.asarray([0, 2, 1, 2, 2, 0, 1, 0])
    v = normal(2, 3, 8, 12)
    h, delta = (a[layer, jnp.arange(8)] for a in (scene.ctx.trace.h_KxBxD, scene.delta_KxBxD))
    found = jax.jit(lambda *args: scene.env.loss_tangent(*args))(scene.ctx, layer, h, v)
    assert relative(found, jnp.sum(delta[None] * v, -1)) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_next_states_and_tangents_are_jacobian_products(kind):
    scene = make_scene(kind)
    h, v = scene.ctx.trace.h_KxBxD, normal(3, 3, 8, 12)

    @jax.jit
    def found(h, v):
        one = lambda p, x: scene.network.block(p, x[None])[0]  # noqa: E731
        jacobian_LxBxOxI = jax.vmap(jax.vmap(jax.jacrev(one, 1), (None, 0)))(scene.params.blocks, h)
        env = scene.env
        return jacobian_LxBxOxI, env.next_states(scene.ctx, h), env.block_tangents(h, v), env.tangents(h, v[0])

    jacobian, following, each, carried = map(np.asarray, found(h[:-1], v))
    assert relative(following, h[1:]) < 1e-6
    assert relative(each, np.einsum("lboi,lbi->lbo", jacobian, v)) < 1e-5
    u = [np.asarray(v[0])]
    for layer in range(3):
        u.append(np.einsum("boi,bi->bo", jacobian[layer], u[-1]))
    assert relative(carried, np.stack(u)) < 1e-5


def test_image_network_starts_as_the_study_describes():
    # ||f_l|| / ||h_l|| about .095 and ||h_L|| about 9 for unit-variance pixels (docs 1); W1, embedding uniform.
    network = jc.image_mlp(depth=2, width=256).build(Sizes((32, 32, 3), 10))
    params = jax.jit(network.init)(jax.random.key(0))
    x = normal(1, 16, 32, 32, 3)  # images are flattened
    h = forward(network, params, x).h_KxBxD
    norms = jnp.linalg.norm(h, axis=-1)
    assert jnp.mean(norms[-1]) == pytest.approx(9, rel=0.1)
    assert jnp.mean(jnp.linalg.norm(h[1] - h[0], axis=-1) / norms[0]) == pytest.approx(0.095, rel=0.1)
    inner, outer = params.blocks["inner"], params.blocks["outer"]
    for w, fan_in in ((inner["w"], 256), (inner["b"], 256), (params.embed["w"], 3072), (params.readout["w"], 256)):
        assert 0.97 * fan_in**-0.5 < jnp.max(jnp.abs(w)) <= fan_in**-0.5
        assert jnp.std(w) == pytest.approx((3 * fan_in) ** -0.5, rel=0.05)
    assert jnp.std(outer["w"]) == pytest.approx(0.01, rel=0.02) and not outer["b"].any()
    assert not jnp.array_equal(inner["w"][0], inner["w"][1])


def test_ladder_and_lq_start_as_described():
    ladder = jax.jit(jc.ladder_mlp(depth=3, width=64).build(Sizes((128,), 10)).init)(jax.random.key(0))
    for w, fan_in in ((ladder.embed["w"], 128), (ladder.blocks["w"], 64), (ladder.readout["w"], 64)):
        assert jnp.std(w) == pytest.approx(fan_in**-0.5, rel=0.1)
    assert not ladder.embed["b"].any() and not ladder.blocks["b"].any() and not ladder.readout["b"].any()
    blocks = jax.jit(jc.lq_dynamics(depth=3).build(Sizes((64,), 10)).init)(jax.random.key(0)).blocks["a"]
    stretch = np.linalg.svd(blocks, compute_uv=False)
    assert stretch.min() > 0.75 and stretch.max() < 1.25  # near-isometric
    assert np.ptp(stretch) > 0.05  # but not an isometry


def test_lq_has_no_branch():
    scene = make_scene("lq")
    for owner in (scene.env, Shapes(3, 12, 4, scene.network.branch)):
        with pytest.raises(jc.ConfigError, match="gates of mine: the network has no branch"):
            branch_of(owner, "gates of mine")
    assert scene.ctx.trace.gates_LxBxH.shape == (3, 8, 0)


@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_the_branch_with_a_blocks_own_weights_is_its_jacobian(kind, x64):
    # push is the block's tangent less the identity, pull its transpose, and zero weights push nothing.
    scene = make_scene(kind)
    branch, params, h = scene.network.branch, block_of(scene, 1), scene.ctx.trace.h_KxBxD[1]
    own = jax.tree.map(lambda w: w[1], branch_weights_of(scene))
    assert branch is not None
    v, a = normal(1, 8, 12), normal(2, 8, 12)

    @jax.jit
    def found(v, a):
        m_BxH = branch.gates(params, h)
        tangent = jax.jvp(lambda x: scene.network.block(params, x), (h,), (v,))[1] - v
        cotangent = jax.vjp(lambda x: scene.network.block(params, x), h)[1](a)[0] - a
        nothing = branch.push(branch.zero(jax.random.key(0)), m_BxH, h, v)
        return branch.push(own, m_BxH, h, v), tangent, branch.pull(own, m_BxH, h, a), cotangent, nothing

    push, tangent, pull, cotangent, nothing = found(v, a)
    assert relative(push, tangent) < 1e-10 and relative(pull, cotangent) < 1e-10 and not nothing.any()


def test_normalise_of_an_env_meets_states_of_two_axes_only(strict):
    # Stacked layers are flattened first: a network's own function is promised (N, D).
    scene, met = make_scene("image"), []
    network = scene.network._replace(normalise=lambda h: met.append(h.shape) or scene.network.normalise(h))
    env = NetworkEnv(network, scene.loss, scene.params)
    h = scene.ctx.trace.h_KxBxD
    assert relative(env.normalise(h), scene.network.normalise(h)) < 1e-6
    assert env.normalise(h[0]).shape == (8, 12) and met == [(32, 12), (8, 12)]


def test_the_wide_product_is_a_product(x64):
    x, w, g = normal(0, 5, 40), normal(1, 40, 3), normal(2, 5, 3)
    out, pull = jax.vjp(wide_product, x, w)
    for found, wanted in zip((out, *pull(g)), (x @ w, g @ w.T, x.T @ g), strict=True):
        assert relative(found, wanted) < 1e-12
    by_weights = jax.grad(lambda w, x: jnp.sum(g * wide_product(x, w)))
    several = jax.vmap(by_weights)(jnp.stack([w, 2 * w]), jnp.stack([x, -x]))
    assert relative(several, jnp.stack([x.T @ g, -x.T @ g])) < 1e-12
