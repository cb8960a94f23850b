"""Controls: what must not move stays bit for bit, what must not learn does not, and DFA's warm-up is DFA."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    IMAGE_NETWORK,
    VARIANTS,
    as_part,
    branch_weights_of,
    first_batch,
    make_scene,
    relative,
    same_bits,
    small,
    start,
    tiny,
    trunk,
)  # fmt: skip

import jcredit as jc
from jcredit.training import make_run
from jcredit.types import EstState


def some_steps(config, count=3, seed=0):
    """(state before, state after) ``count`` steps on different batches."""
    run = make_run(config)
    state, hp, data = start(run, config, seed)
    step = jax.jit(run.step)
    after = state
    for i in range(count):
        after, metrics = step(after, hp, data, first_batch(config) + i * config.batch_size)
    assert np.isfinite(metrics["train_loss"])  # type: ignore
    return state, after


def moved(before, after):
    """Which parts of the network moved, in every leaf of the part."""
    parts = {}
    for name in ("embed", "blocks", "readout"):
        pairs = zip(jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(after, name)), strict=True)
        changed = [not same_bits(a, b) for a, b in pairs]
        assert all(changed) or not any(changed), name
        parts[name] = all(changed)
    return parts


# Weight decay and a pull on the states must not move what is not trained either.
PULLED = dict(weight_decay=0.1, state_penalty=0.1)
READOUT_ONLY = dict(embed=False, blocks=False, readout=True)
FROZEN_OF_MY_OWN = as_part(jc.estimator, jc.broadcast().build()._replace(trains_blocks=False))


@pytest.mark.parametrize(
    ("credit", "changes", "expected"),
    [
        (jc.frozen(), {}, READOUT_ONLY),
        # What trains belongs to the estimator, not to a name: wrapped, or one's own.
        (jc.exact_terminal(of=jc.frozen()), {}, READOUT_ONLY),
        (FROZEN_OF_MY_OWN, {}, READOUT_ONLY),
        (jc.dfa(), dict(trains="readout"), READOUT_ONLY),
        (jc.dfa(), dict(trains="nothing"), dict(embed=False, blocks=False, readout=False)),
        (jc.dfa(), dict(train_embedding=False), dict(embed=False, blocks=True, readout=True)),
        (jc.broadcast(), {}, dict(embed=True, blocks=True, readout=True)),
    ],
    ids=["frozen", "frozen-wrapped", "frozen-own", "readout", "nothing", "no-embedding", "broadcast"],
)
def test_what_is_not_trained_keeps_its_bits(credit, changes, expected):
    before, after = some_steps(tiny(credit, network=IMAGE_NETWORK, **changes, **PULLED))
    assert moved(before.params, after.params) == expected
    assert same_bits(before.est_state, after.est_state)  # fixed feedback stays fixed
    assert same_bits(before.warmup, after.warmup)


@pytest.mark.parametrize("trains", ["readout", "nothing"])
def test_an_estimator_trains_on_frozen_features(trains):
    before, after = some_steps(tiny(VARIANTS["field-central"], network=IMAGE_NETWORK, trains=trains, **PULLED))
    assert moved(before.params, after.params) == dict(embed=False, blocks=False, readout=trains == "readout")
    pairs = zip(jax.tree.leaves(before.est_state.params), jax.tree.leaves(after.est_state.params), strict=True)
    assert not any(same_bits(a, b) for a, b in pairs)


def test_a_projection_of_a_code_is_never_trained():
    before, after = some_steps(tiny(VARIANTS["state_bridge-raw"]))
    assert same_bits(before.est_state.extra, after.est_state.extra) and before.est_state.extra["projection"].any()
    assert not same_bits(before.est_state.params, after.est_state.params)


def test_warmup_of_all_epochs_is_dfa_bit_for_bit():
    reference = None
    for credit in (jc.dfa(), small(jc.vector_field), small(jc.scalar_bridge)):
        config = tiny(credit, warmup_ratio=1.0, normalise="rms", clip=1.0)
        run = make_run(config)
        state, hp, data = start(run, config)
        step = jax.jit(run.step)
        for i in range(8):  # all its steps
            state, _ = step(state, hp, data, (first_batch(config) + i) % 32)
        assert int(state.step) == int(hp.total_steps)
        reference = reference or (state.params, state.opt_state)
        assert same_bits(reference, (state.params, state.opt_state)), credit


def test_warmup_ends_after_its_share_of_the_steps():
    config = tiny(small(jc.vector_field), warmup_ratio=0.5)  # 4 of 8 steps
    run, dfa_run = make_run(config), make_run(tiny(jc.dfa()))
    state, hp, data = start(run, config)
    dfa_state, dfa_hp, _ = start(dfa_run, tiny(jc.dfa()))
    step, dfa_step = jax.jit(run.step), jax.jit(dfa_run.step)
    same = []
    for number in range(6):
        at = jnp.asarray(number, jnp.int32)
        new, _ = step(state._replace(step=at), hp, data, first_batch(config))
        old, _ = dfa_step(dfa_state._replace(step=at), dfa_hp, data, first_batch(config))
        np.testing.assert_allclose(new.params.readout["w"], old.params.readout["w"], rtol=1e-6)
        same.append(np.allclose(new.params.blocks["w"], old.params.blocks["w"], rtol=1e-6, atol=1e-7))
    assert same == [True] * 4 + [False] * 2


# --- shuffled targets -------------------------------------------------------------------------------------------------

# Training the estimator alone on frozen features: the strictest place for a control, where it can find what leaks.
STUDY = dict(
    trains="nothing", width=16, batch_size=16, train_size=256, test_size=128, diagnostic_samples=128, epochs=20
)


def gammas(credit, seeds=8):
    """Gamma before and after training, and the trained estimators, over seeds that share one program."""
    config = tiny(credit, **STUDY)
    run = make_run(config)
    hp = run.hparams(config)

    def train(key):
        start, data = run.init(key, hp), run.data(key, hp)
        end, _ = jax.lax.scan(lambda s, _: run.epoch(s, hp, data), start, length=config.epochs)
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), start, end)
        gamma = jax.lax.map(lambda s: run.diagnose(s, hp, data)["metrics"]["gamma"], both)
        return gamma, end.est_state.params

    gamma, params = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(1), seeds))
    return *np.asarray(gamma).T, params


@pytest.mark.slow
def test_shuffled_targets_teach_a_field_nothing():
    field = jc.vector_field(
        scheme="jvp", layers="all", directions=4, terminal_weight=0.0, learning_rate=3e-3, trunk=trunk(hidden=32)
    )
    _, shuffled, _ = gammas(field.replace(shuffled=True))
    assert abs(shuffled.mean()) < 0.05  # a control that kept one sample of its sixteen in place: 0.16
    _, honest, _ = gammas(field)  # the same training finds the credit when measurements are its own
    assert honest.min() > 0.5


@pytest.mark.slow
def test_the_shuffled_tangent_bridge_falls_to_the_broadcast():
    bridge = jc.tangent_chain(samples=16, clip=1.0)
    broadcast, shuffled, params = gammas(bridge.replace(shuffled=True))  # with V = 0 it starts as the broadcast
    _, honest, learned = gammas(bridge)
    assert abs(shuffled.mean() - broadcast.mean()) < 0.006  # a control that kept one sample in place: 0.011
    assert (honest > broadcast + 0.1).all()
    # V stays near the zero it started from, in all but noise.
    size = lambda p: np.linalg.norm(p["v"], axis=(-2, -1)).mean()  # noqa: E731
    assert size(params) < 0.25 * size(learned)


def one_block(form):
    """A network of one block, and the weights with which a map of this form is its tangent map."""
    if form != "gate":
        scene = make_scene("image", depth=1)
        return scene, branch_weights_of(scene)
    scene = make_scene("lq", depth=1)  # linear: gates that stand at 1/2, and twice A - I
    eye = jnp.eye(12)[None]
    u = 2 * (scene.params.blocks["a"] - eye)
    return scene, {"u": u, "v": eye, "g": jnp.zeros((1, 12, 12)), "c": jnp.zeros((1, 1, 12))}


@pytest.mark.parametrize("form", ["gate", "mask", "chain", "sweeps", "coarse"])
@pytest.mark.parametrize("measured", ["tangents", "effects"])
def test_the_truth_fits_what_is_measured_of_a_sample_and_not_of_another(x64, form, measured):
    scene, weights = one_block(form)
    part = getattr(jc, f"tangent_{form}")(samples=8) if measured == "tangents" else jc.linear_field(form, scheme="jvp")

    def missed(shuffled):
        estimator = part.replace(shuffled=shuffled).build()
        fit = jax.jit(lambda key: estimator.loss(EstState(weights, {}), scene.ctx, scene.env, key)[0])
        return min(float(fit(jax.random.key(seed))) for seed in range(3))

    assert missed(False) < 1e-20
    assert missed(True) > 0.1


def disturbed(error, batch=16, width=512):
    """The error of the disturbed oracle relative to |delta_l|, for three layers (3, B, D), and its state."""
    delta = jax.random.normal(jax.random.key(0), (4, batch, width))
    ctx = types.SimpleNamespace(delta_KxBxD=delta, delta_BxD=delta[-1])
    estimator = jc.disturbed_bp(1.0, error).build()
    state = estimator.init(jax.random.key(1), jc.Shapes(3, width, 10, None))
    a = estimator.credit(state, ctx, None, jax.random.key(2))
    size = jnp.linalg.norm(delta, axis=-1, keepdims=True)
    return np.asarray(((a - delta) / size)[:-1]), state


@pytest.mark.parametrize("error", ["fresh", "fixed"])
def test_errors_of_a_disturbed_oracle_are_independent_over_samples_and_layers(error):
    e_LxBxD, _ = disturbed(error)
    np.testing.assert_allclose((e_LxBxD**2).sum(-1).mean(), 1, rtol=0.1)
    # E |mean_b e_b|^2 = 1 / B of independent errors of size 1, and 1 of errors that the batch shares.
    np.testing.assert_allclose((e_LxBxD.mean(1) ** 2).sum(-1), 1 / 16, rtol=0.4)
    layers = np.corrcoef(e_LxBxD.reshape(3, -1))
    assert np.abs(layers - np.eye(3)).max() < 0.1  # 8192 entries: a deviation of 1/90


def test_fixed_errors_have_a_matrix_for_each_layer():
    _, state = disturbed("fixed", width=64)
    r_LxDxD = np.asarray(state.extra["r"])
    np.testing.assert_allclose(r_LxDxD.std((1, 2)), 64**-0.5, rtol=0.05)
    assert np.abs(np.corrcoef(r_LxDxD.reshape(3, -1)) - np.eye(3)).max() < 0.1  # 4096 entries: 1/64


def test_the_residual_measures_along_directions_that_the_credit_did_not_take():
    # Taken along the same four directions, mean v v^T = V, it would give (2 V - V^2) delta: its mean is
    # (1 - (D + 1) / 4) delta. Of fresh ones the mean is delta, with a relative variance of ((D + 1) / 4)^2 a draw.
    scene, directions, draws = make_scene("image"), 4, 1000
    inner = jc.forward_gradient(objective="task", directions=directions)
    estimator = jc.unbiased_residual(of=inner, directions=directions).build()
    credit = lambda key: estimator.credit(EstState({}, {}), scene.ctx, scene.env, key)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), draws)
    mean = jax.jit(lambda keys: jnp.mean(jax.vmap(credit)(keys), axis=0))(keys)
    expected = (12 + 1) / directions * draws**-0.5
    assert 0.5 < relative(mean[:-1], scene.delta_KxBxD[:-1]) / expected < 1.5


@pytest.mark.parametrize("error", ["fresh", "fixed"])
@pytest.mark.parametrize("size", [0.0, 0.5, 2.0])
def test_an_oracle_disturbed_by_a_known_size_has_the_cosine_it_says(error, size):
    depth, batch, width = 3, 64, 512
    delta_KxBxD = 1e-24 * jax.random.normal(jax.random.key(0), (depth + 1, batch, width))  # squares underflow
    ctx = types.SimpleNamespace(delta_KxBxD=delta_KxBxD, delta_BxD=delta_KxBxD[-1])
    estimator = jc.disturbed_bp(size, error).build()
    state = estimator.init(jax.random.key(1), jc.Shapes(depth, width, 10, None))
    a, again = (np.asarray(estimator.credit(state, ctx, None, jax.random.key(k)), np.float64) for k in (2, 3))
    delta = np.asarray(delta_KxBxD, np.float64)
    cosine = np.sum(a * delta, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(delta, axis=-1)
    np.testing.assert_allclose(cosine[:-1].mean(), (1 + size**2) ** -0.5, atol=0.01)
    np.testing.assert_array_equal(a[-1], delta[-1])  # the readout's own credit is left alone
    same = np.array_equal(a, again)
    assert same == (error == "fixed" or size == 0)
    if error == "fresh" and size:  # the error averages out over draws
        draws = jax.vmap(lambda key: estimator.credit(state, ctx, None, key))(jax.random.split(jax.random.key(4), 256))
        left = np.linalg.norm(np.asarray(draws.mean(0), np.float64) - delta) / np.linalg.norm(a - delta)
        np.testing.assert_allclose(left, 256**-0.5, rtol=0.05)
