"""Local rules: gradients of one block from the credit at its output, by formula and by finite differences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    IMAGE_NETWORK,
    RULES,
    first_batch,
    flat,
    make_scene,
    normal,
    randomised,
    relative,
    same_bits,
    start,
    tiny,
)  # fmt: skip

import jcredit as jc
from jcredit.passes import forward_with_pulls
from jcredit.rules import local_gradient, local_gradients
from jcredit.training import make_run

strict = pytest.mark.usefixtures("strict")


@pytest.fixture
def one_block(x64, strict):
    """(block, parameters, h, a) of the middle block, in double precision."""
    scene = make_scene("image")
    params = jax.tree.map(lambda p: p[1], scene.params.blocks)
    return scene.network.block, params, scene.ctx.trace.h_KxBxD[1], normal(9, 8, 12)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply_rule(rule, block, params, h, a):
    return local_gradient(rule, block, params, h, rule.goal(h, block(params, h), a))


def gradients_of(scene, rule, a, params=None):
    """The embedding's and the blocks' gradients as the step forms them, from the pulls of its own forward pass."""
    trace, pulls = forward_with_pulls(scene.network, scene.params if params is None else params, scene.x_BxI)
    return local_gradients(rule, trace, pulls, a)


def test_inner_product_is_the_gradient_of_the_batch_mean(one_block):
    block, params, h, a = one_block
    expected = jax.jit(jax.grad(lambda p: jnp.sum(a * block(p, h)) / 8))(params)
    assert relative(flat(apply_rule(jc.inner_product().build(), *one_block)), flat(expected)) < 1e-12


@pytest.mark.parametrize("eta", [0.01, 1.0])
def test_target_shift_starts_as_two_eta_times_inner_product(one_block, eta):
    found = flat(apply_rule(jc.target_shift(eta=eta).build(), *one_block))
    assert relative(found, 2 * eta * flat(apply_rule(jc.inner_product().build(), *one_block))) < 1e-12


@strict
def test_target_shift_keeps_a_credit_far_smaller_than_the_state():
    # Raw credit of a trained network is about 1e-6 of the state: less than the state's own rounding after eta.
    scene = make_scene("image")
    params, h = jax.tree.map(lambda p: p[1], scene.params.blocks), scene.ctx.trace.h_KxBxD[1]
    rules = jc.target_shift(eta=0.01).build(), jc.inner_product().build()
    shift, inner = (flat(apply_rule(rule, scene.network.block, params, h, 1e-7 * normal(9, 8, 12))) for rule in rules)
    assert relative(shift, 0.02 * inner) < 1e-5


def test_target_shift_holds_its_target_over_local_steps(one_block):
    block, params, h, a = one_block
    rule, eta = jc.target_shift(eta=0.3).build(), 0.3
    goal = rule.goal(h, block(params, h), a)
    target = block(params, h) - eta * a
    objective = lambda p: jnp.mean(jnp.sum((block(p, h) - target) ** 2, axis=-1))  # noqa: E731
    both = jax.jit(lambda p: (local_gradient(rule, block, p, h, goal), jax.value_and_grad(objective)(p)))
    losses, p = [], params
    for _ in range(5):
        grads, (loss, expected) = both(p)
        assert relative(flat(grads), flat(expected)) < 1e-10
        losses.append(float(loss))
        p = jax.tree.map(lambda w, g: w - 0.02 * g, p, grads)
    assert all(after < before for before, after in itertools.pairwise(losses))


def test_cosine_rule_by_finite_differences(one_block):
    block, params, h, a = one_block

    output = jax.jit(lambda p: block(p, h) - h)

    def objective(p):
        f = np.asarray(output(p))
        a_np = np.asarray(a)
        return np.mean(1 + np.sum(f * a_np, 1) / np.linalg.norm(f, axis=1) / np.linalg.norm(a_np, axis=1))

    grads = flat(apply_rule(jc.cosine_rule().build(), *one_block))
    for seed in range(3):
        along = randomised(params, 20 + seed, 1.0)
        moved = [jax.tree.map(lambda p, d: p + s * 1e-5 * d, params, along) for s in (1, -1)]  # noqa: B023
        difference = (objective(moved[0]) - objective(moved[1])) / 2e-5
        assert difference == pytest.approx(float(grads @ flat(along)), rel=1e-6)
    # The size of the credit plays no part.
    scaled = flat(apply_rule(jc.cosine_rule().build(), block, params, h, 1e-9 * a))
    assert relative(scaled, grads) < 1e-10


@strict
def test_a_solved_sample_is_left_alone_by_every_rule():
    # Where softmax is saturated the credit is exactly zero: it must not turn the batch's gradient into nan.
    scene = make_scene("image")
    params, h = jax.tree.map(lambda p: p[1], scene.params.blocks), scene.ctx.trace.h_KxBxD[1]
    a = normal(9, 8, 12).at[3].set(0.0)
    others = jnp.asarray([i for i in range(8) if i != 3])
    for name in RULES:
        rule = RULES[name].build()
        grads = functools.partial(apply_rule, rule, scene.network.block, params)
        whole, rest = flat(grads(h, a)), flat(grads(h[others], a[others]))
        assert relative(whole * 8, rest * 7) < 1e-5, name


@pytest.mark.parametrize("kind", ["image", "lq"])  # lq has process noise: a rule is shown the block's own output
@pytest.mark.parametrize("name", RULES)
def test_the_pulls_of_a_pass_give_each_blocks_gradient(name, kind, x64):
    scene, rule, a = make_scene(kind), RULES[name].build(), normal(8, 4, 8, 12)

    @jax.jit
    def whole(params, x, noise):
        trace, pulls = forward_with_pulls(scene.network, params, x, noise)
        return trace, local_gradients(rule, trace, pulls, a)[1]

    trace, blocks = whole(scene.params, scene.x_BxI, scene.noise_LxBxD)
    for layer in range(3):
        params, found = (jax.tree.map(lambda p: p[layer], tree) for tree in (scene.params.blocks, blocks))  # noqa: B023
        wanted = apply_rule(rule, scene.network.block, params, trace.h_KxBxD[layer], a[layer + 1])
        assert relative(flat(found), flat(wanted)) < 1e-10


@strict
@pytest.mark.parametrize("name", RULES)
def test_a_block_sees_its_own_credit_alone(name):
    scene = make_scene("image")
    a = normal(8, 4, 8, 12)
    grads = jax.jit(lambda a: gradients_of(scene, RULES[name].build(), a))
    embed, blocks = grads(a)
    for layer in range(4):  # the credit a_l trains block l - 1, a_0 the embedding
        other_embed, other_blocks = grads(a.at[layer].multiply(-3.0).at[layer, 0].add(1.0))
        assert same_bits(embed, other_embed) == (layer != 0)
        for block in range(3):
            pick = lambda tree: jax.tree.map(lambda leaf: leaf[block], tree)  # noqa: B023, E731
            assert same_bits(pick(blocks), pick(other_blocks)) == (block != layer - 1)


def test_the_embedding_is_a_block_that_starts_from_nothing(x64, strict):
    scene = make_scene("image")
    a = normal(8, 4, 8, 12)
    h_0 = lambda w: w["b"][None] + scene.x_BxI @ w["w"]  # noqa: E731
    unit = lambda v: v / jnp.linalg.norm(v, axis=-1, keepdims=True)  # noqa: E731
    objectives = {
        "inner_product": lambda w: jnp.mean(jnp.sum(a[0] * h_0(w), -1)),
        "target_shift": lambda w: 0.2 * jnp.mean(jnp.sum(a[0] * h_0(w), -1)),
        "cosine": lambda w: jnp.mean(1 + jnp.sum(unit(h_0(w)) * unit(a[0]), -1)),
    }
    for name, objective in objectives.items():
        rule = RULES[name].build()
        found = jax.jit(lambda p, rule=rule: gradients_of(scene, rule, a, p)[0])(scene.params)
        assert relative(flat(found), flat(jax.jit(jax.grad(objective))(scene.params.embed))) < 1e-10, name


@pytest.mark.parametrize("normalise", ["raw", "rms", "batch"])
def test_the_step_normalises_pulls_clamps_and_clips_in_this_order(normalise):
    """One SGD step of DFA against numbers worked out in numpy from its credit."""
    config = tiny(jc.dfa(), network=IMAGE_NETWORK, optimizer="sgd", learning_rate=1e3, normalise=normalise)
    run = make_run(config)
    state, hp, data = start(run, config)
    step = jax.jit(run.step)
    index = first_batch(config)
    network = run.built(hp).network
    x, params = data.train_x[index], state.params

    @jax.jit
    def explicit(params, x):
        h = [network.embed(params.embed, x)]
        for layer in range(3):
            h.append(network.block(jax.tree.map(lambda p: p[layer], params.blocks), h[-1]))  # noqa: B023
        return jnp.stack(h), jax.nn.softmax(network.readout(params.readout, h[-1]))

    h, probability = map(np.asarray, explicit(params, x))
    error = probability - np.eye(4)[np.asarray(data.train_y[index])]
    a = np.einsum("bc,lcd->lbd", error, state.est_state.extra)
    rms = {
        "raw": 1.0,
        "rms": np.sqrt(np.mean(a**2, -1, keepdims=True)),
        "batch": np.sqrt(np.mean(a**2, (1, 2), keepdims=True)),
    }
    a = a / rms[normalise]

    gradients = jax.jit(
        lambda spent: local_gradients(jc.inner_product().build(), *forward_with_pulls(network, params, x), spent)
    )

    def expected(penalty, clamp, clip):
        embed, blocks = gradients(jnp.asarray(a + penalty * h, jnp.float32))
        each = [jax.tree.map(lambda p: np.asarray(p[layer]), blocks) for layer in range(3)]  # noqa: B023
        out = []
        for grads in (jax.tree.map(np.asarray, embed), *each):
            grads = jax.tree.map(lambda g: np.clip(g, -clamp, clamp) if clamp else g, grads)
            norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
            out.append(jax.tree.map(lambda g: g * min(1, clip / norm) if clip else g, grads))  # noqa: B023
        return out

    norms = []
    for penalty, clamp, clip in ((0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.0, 0.02, 0.0), (0.1, 0.02, 0.1)):
        new, _ = step(state, run.hparams(config.replace(state_penalty=penalty, clamp=clamp, clip=clip)), data, index)
        found = jax.tree.map(lambda old, fresh: (old - fresh) / 1e3, params, new.params)
        found = [found.embed, *(jax.tree.map(lambda p: p[layer], found.blocks) for layer in range(3))]  # noqa: B023
        for grads, wanted in zip(found, expected(penalty, clamp, clip), strict=True):
            assert relative(flat(grads), flat(wanted)) < 1e-4
        norms.append([np.linalg.norm(flat(g)) for g in found])
    assert max(norms[-1]) < 0.1 + 1e-5 and max(norms[0]) > 0.1  # clipping did something, block by block
