"""What cannot run is refused by name and value; swept numbers are free, static fields decide the program."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import first_batch, same_bits, start, tiny

from jcredit.config import SWEPT, Config, ConfigError, Hparams, as_dict, config_hash, hparams, static_key
from jcredit.estimators import make_estimator
from jcredit.tasks.teacher import teacher_task
from jcredit.training import make_run

# --- what is refused --------------------------------------------------------------------------------------------------

UNKNOWN = {
    "task": "mnist", "method": "backprop", "rule": "hebb", "normalise": "max", "code": "h_L", "schedule": "step",
    "optimizer": "adamw", "trains": "all", "bridge_target": "max", "bridge_noise": "past", "state_loss": "mse",
    "scheme": "spsa", "direction_layers": "each", "field_form": "linear", "tangent_target": "vector",
    "rho_scheme": "central", "projection_scale": "one", "evaluate_on": "train",
}  # fmt: skip
REFUSED: list[tuple[str, Any, str]] = [
    *((name, value, rf"{name}='{value}' is unknown; choose one of") for name, value in UNKNOWN.items()),
    ("method", None, "method=None is unknown"),
    ("depth", 0, "depth=0 must be positive"),
    ("depth", -3, "depth=-3 must be positive"),
    ("depth", 2.0, r"depth=2\.0 must be an integer"),
    ("depth", True, "depth=True must be an integer"),
    ("depth", "4", "depth='4' must be an integer"),
    ("depth", math.nan, "depth=nan must be an integer"),
    ("width", 0, "width=0 must be positive"),
    ("batch_size", 0, "batch_size=0 must be positive"),
    ("epochs", 0, "epochs=0 must be positive"),
    ("hidden", 0, "hidden=0"),
    ("directions", 0, "directions=0"),
    ("noise_samples", 0, "noise_samples=0"),
    ("gate_rank", 0, "gate_rank=0"),
    ("diagnose_every", 0, "diagnose_every=0"),
    ("classes", 1, "classes=1 must be at least 2"),
    ("train_size", -1, "train_size=-1 must be zero or more"),
    ("residual_directions", -1, "residual_directions=-1"),
    ("learning_rate", 0, "learning_rate=0 must be positive"),
    ("learning_rate", -1e-3, r"learning_rate=-0\.001 must be positive"),
    ("learning_rate", math.nan, "learning_rate=nan is not finite"),
    ("learning_rate", math.inf, "learning_rate=inf is not finite"),
    ("learning_rate", "1e-3", "learning_rate='1e-3' must be a number"),
    ("learning_rate", True, "learning_rate=True must be a number"),
    ("learning_rate", None, "learning_rate=None must be a number"),
    ("estimator_learning_rate", 0.0, r"estimator_learning_rate=0\.0"),
    ("epsilon", 0.0, r"epsilon=0\.0 must be positive"),
    ("rho_epsilon", 0.0, r"rho_epsilon=0\.0 must be positive"),
    ("nudge_eta", 0.0, r"nudge_eta=0\.0 must be positive"),
    ("softmin_lambda", 0.0, r"softmin_lambda=0\.0 must be positive"),
    ("clip", -1.0, r"clip=-1\.0 must be zero or more"),
    ("clip", -math.inf, "clip=-inf is not finite"),
    ("sigma", -0.1, r"sigma=-0\.1"),
    ("warmup_ratio", 1.5, r"warmup_ratio=1\.5 must lie between 0 and 1"),
    ("ema", 1.01, r"ema=1\.01 must lie between 0 and 1"),
    ("alpha", 2, "alpha=2 must lie between 0 and 1"),
    ("flips", 1, "flips=1 must be True or False"),
    ("shuffled", "yes", "shuffled='yes' must be True or False"),
    ("exact_terminal", None, "exact_terminal=None must be True or False"),
    ("process_noise", 0.1, r"process_noise=0\.1 belongs to task='lq'"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_refused(name, value, message):
    with pytest.raises(ConfigError, match=message):
        Config(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task="cifar10", classes=4), "classes=4 does not fit task='cifar10', which has 10 classes"),
        (dict(task="lq", method="fa"), "method='fa' does not fit task='lq'"),
        (dict(task="lq", method="tangent_mask"), "method='tangent_mask' does not fit task='lq'"),
        (dict(task="lq", method="vector_field", field_form="chain"), "field_form='chain' does not fit task='lq'"),
        (dict(task="lq", method="vector_field", field_form="mask"), "field_form='mask' does not fit task='lq'"),
        (dict(method="tangent_gate", tangent_samples=64, batch_size=32), "tangent_samples=64 exceeds batch_size=32"),
    ],
)
def test_refused_together(changes, message):
    with pytest.raises(ConfigError, match=message) as raised:
        Config(**changes)
    assert isinstance(raised.value, ValueError) and "\n" not in str(raised.value)


def test_every_choice_is_covered_and_every_default_is_valid():
    literal = {f.name for f in dataclasses.fields(Config) if isinstance(getattr(Config(), f.name), str)}
    assert literal == set(UNKNOWN)
    edges = dict(clip=0, warmup_ratio=1, ema=0, alpha=0, learning_rate=1, train_size=0, residual_directions=0)
    assert Config(**edges).learning_rate == 1  # type: ignore
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().depth = 3  # type: ignore


def test_batches_that_do_not_fit_the_data_are_refused():
    for changes in (dict(batch_size=64), dict(batch_size=8, steps_per_epoch=5)):
        with pytest.raises(ConfigError, match=rf"batch_size={changes['batch_size']} .*does not fit the 32 training"):
            make_run(tiny(**changes))
    assert make_run(tiny(batch_size=8, steps_per_epoch=3)).steps_per_epoch == 3
    assert make_run(tiny(batch_size=9)).steps_per_epoch == 3  # the incomplete batch is left out


# --- what identifies a run, and what decides its program --------------------------------------------------------------


def other_value(config: Config, name: str) -> Any:
    value = getattr(config, name)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        options = {"task": "lq", "method": "dfa", "rule": "cosine", "normalise": "rms", "code": "deltaL"}
        others = {"schedule": "cosine", "optimizer": "sgd", "trains": "readout", "bridge_target": "softmin"}
        more = {"bridge_noise": "paired", "state_loss": "raw", "scheme": "jvp", "direction_layers": "all"}
        last = {"field_form": "mask", "tangent_target": "scalar", "rho_scheme": "forward", "projection_scale": "unit"}
        return {**options, **others, **more, **last, "evaluate_on": "validation"}[name]
    if isinstance(value, int):
        return value + 1
    return 0.25 if value != 0.25 else 0.5


def test_hashes_tell_configs_apart_and_not_spellings():
    base = config_hash(Config())
    assert len(base) == 12 and int(base, 16) >= 0
    hashes = {base}
    for field in dataclasses.fields(Config):
        if field.name == "process_noise":
            continue
        hashes.add(config_hash(dataclasses.replace(Config(), **{field.name: other_value(Config(), field.name)})))
    assert len(hashes) == len(dataclasses.fields(Config))  # the base, and one for each field but one
    lq = Config(task="lq")
    assert config_hash(lq) != config_hash(dataclasses.replace(lq, process_noise=0.5))
    assert config_hash(Config(learning_rate=1, clip=0)) == config_hash(Config(learning_rate=1.0, clip=0.0))
    assert config_hash(Config(clip=-0.0)) == config_hash(Config(clip=0.0))
    assert config_hash(Config(**as_dict(Config(depth=7)))) == config_hash(Config(depth=7))


def test_the_program_is_decided_by_static_fields_alone():
    base = Config()
    for field in dataclasses.fields(Config):
        if field.name == "process_noise":
            continue
        other = dataclasses.replace(base, **{field.name: other_value(base, field.name)})
        free = field.name in (*SWEPT, "epochs")
        assert (static_key(other) == static_key(base)) == free, field.name
    hash(static_key(base))  # a key of a dictionary
    numbers = {f.name for f in dataclasses.fields(Config) if isinstance(getattr(base, f.name), float)}
    assert numbers == set(SWEPT)  # every real number is swept


def test_hparams_carry_every_swept_number():
    values = {name: (i + 1) / 64 for i, name in enumerate(SWEPT)}
    found = hparams(Config(task="lq", **values), 17)
    assert {name: float(getattr(found, name)) for name in SWEPT} == values
    assert float(found.total_steps) == 17
    assert all(leaf.shape == () and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))


# --- a sweep recompiles nothing, and every swept number reaches the run -----------------------------------------------


def counted(function):
    """The function compiled once, and how often it was traced."""
    traces = []

    def traced(*args):
        traces.append(1)
        return function(*args)

    return jax.jit(traced), traces


# One program in which all but two of the numbers matter, and one for these two.
BRIDGE = tiny(
    method="scalar_bridge", bridge_target="softmin", rule="target_shift", optimizer="sgd", rho_scheme="forward",
    warmup_ratio=0.5, estimator_clip=0.0,
)  # fmt: skip
FIELD = tiny(task="lq", method="vector_field", scheme="one_sided", steps_per_epoch=2, trains="nothing", epsilon=0.1)


@pytest.mark.parametrize("config", [BRIDGE, FIELD], ids=["bridge", "field"])
def test_a_swept_number_recompiles_nothing_and_changes_the_run(config):
    run = make_run(config)
    if config is BRIDGE:
        state, hp, data = start(run, config)
        swept = [name for name in SWEPT if name not in ("process_noise", "epsilon")]
        state = state._replace(step=state.step + 2)  # at half of the steps' way, where the warm-up ratio decides
    else:
        hp = run.hparams(config)
        state, data = run.init(jax.random.key(0), hp), run.data(jax.random.key(0), hp)
        swept = ["process_noise", "epsilon"]

    def everything(state, hp, data):
        after, metrics = run.step(state, hp, data, first_batch(config))
        return after, metrics, run.diagnose(after, hp, data)

    program, traces = counted(everything)
    reference = program(state, hp, data)
    for name in swept:
        value = {"warmup_ratio": 0.0, "clip": 1e-3, "clamp": 1e-4, "estimator_clip": 1e-3, "ema": 0.5}.get(name, 0.37)
        changed = dataclasses.replace(config, **{name: value})
        other = program(state, run.hparams(changed), data)
        differs = not same_bits(other, reference)
        assert differs, f"{name} does not reach the run"
    assert program(state, run.hparams(dataclasses.replace(config, epochs=9)), data) is not None
    assert len(traces) == 1 and program._cache_size() == 1


def test_numbers_of_the_config_are_not_baked_in():
    # A run built for other numbers, given these, is the run of these.
    asked = dataclasses.replace(BRIDGE, learning_rate=0.05, sigma=0.3, shift_eta=0.7, terminal_weight=0.2, alpha=0.4)
    out = []
    for built in (asked, BRIDGE):
        run = make_run(built)
        state, hp, data = start(run, asked)
        out.append(jax.jit(run.step)(state, hp, data, first_batch(asked)))
    assert same_bits(*out)


def test_swept_numbers_are_named_alike_in_config_and_hparams():
    assert {f.name for f in dataclasses.fields(Hparams)} == {*SWEPT, "total_steps"}
    assert set(SWEPT) <= {f.name for f in dataclasses.fields(Config)}


def test_every_method_has_an_estimator_and_the_teacher_its_sizes():
    for method in ("bp", "frozen", "tangent_chain"):
        assert make_estimator(tiny(method=method)).tier
    task = teacher_task(tiny())
    data = jax.jit(lambda key: task.make_data(key, hparams(tiny(), 1)))(jax.random.key(0))  # type: ignore
    assert data.train_x.shape == (32, 128) and data.test_x.shape == (16, 128)
    assert data.train_y.dtype == jnp.int32 and set(np.unique(data.train_y)) <= set(range(4))
    assert len(np.unique(data.train_y)) > 1
