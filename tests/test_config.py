"""Settings that cannot be are refused by name and value; what identifies a run is what it reads."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FACTORIES, IMAGE_NETWORK, TRUNK, as_part, first_batch, refused, same_bits, small, start, tiny

import jcredit as jc
from jcredit.config import (
    PARTS,
    config_hash,
    described,
    settings,
    static_difference,
    static_key,
)
from jcredit.parts import Arrays, Factory, Part
from jcredit.settings import Setting
from jcredit.sweeps.layout import Layout, over_runs
from jcredit.tasks.classification import arrays_task
from jcredit.tasks.targets import regression_task
from jcredit.training import make_run

# --- every factory of ours, and every setting -------------------------------------------------------------------------

ARRAYS = Arrays(np.ones((2, 3), np.float32) * i for i in range(4))
REQUIRED: dict[Factory, dict[str, Any]] = {
    jc.exact_at: dict(of=jc.dfa()),
    jc.exact_terminal: dict(of=jc.dfa()),
    jc.unbiased_residual: dict(of=jc.dfa()),
    arrays_task: dict(data=ARRAYS, classes=3),
    regression_task: dict(data=ARRAYS, outputs=3),
}


def example(factory: Factory) -> Part:
    """The factory's part at its defaults."""
    return factory(**REQUIRED.get(factory, {}))


def holding(part: Part) -> jc.Config:
    """A configuration that reads the part."""
    if part.kind == "trunk":
        return jc.Config(credit=jc.state_bridge(trunk=part))
    field = next(name for name, kind in PARTS.items() if kind == part.kind)
    chosen: dict[str, Any] = {"credit": jc.dfa(), field: part}
    return jc.Config(**chosen)


def other_value(setting: Setting, value: Any) -> Any:
    """Another value that is valid for a setting."""
    if setting.choices:
        return next(choice for choice in setting.choices if choice != value)
    if isinstance(value, Arrays):
        return Arrays(a + 1 for a in value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return 0.25 if value != 0.25 else 0.5
    others = {"of": jc.broadcast(), "trunk": TRUNK, "teacher_network": jc.ladder_mlp(depth=1)}
    return others[setting.name]


ALL_SETTINGS = [(factory, setting) for factory in FACTORIES for setting in factory.settings.values()]
NAMES = [f"{factory.name}.{setting.name}" for factory, setting in ALL_SETTINGS]
OWN = list(settings().values())


def test_help_says_what_each_setting_is():
    assert jc.Config.__doc__ is not None
    for name, setting in settings().items():
        assert len(setting.doc) > 10 and f"\n  {name}: {setting.doc[:20]}" in jc.Config.__doc__
    assert "\n  batch_size: Samples per step B.\n" in jc.Config.__doc__


def test_no_factory_is_forgotten():
    from jcredit import networks, rules
    from jcredit.estimators import (
        aligned,
        bridges,
        controls,
        feedback,
        fields,
        local_losses,
        mirrors,
        tangents,
        trunk as trunks,
        wrappers,
    )  # fmt: skip
    from jcredit.tasks import classification, images, ladder, linear_quadratic, targets

    modules = (networks, rules, aligned, bridges, controls, feedback, fields, local_losses, mirrors, tangents, wrappers)
    modules += (trunks,)
    modules += (classification, images, ladder, linear_quadratic, targets)
    found = {id(v): v for module in modules for v in vars(module).values() if isinstance(v, Factory)}
    assert set(found) == set(map(id, FACTORIES)), [f.name for f in found.values()]


def test_every_setting_is_documented_and_its_default_is_valid():
    for factory, setting in ALL_SETTINGS:
        assert setting.doc and "\n" not in setting.doc, (factory.name, setting.name)
        assert setting.checked(example(factory).settings[setting.name]) is not None or setting.default is None
        assert setting.metavar
    for setting in OWN:
        assert setting.doc, setting.name
    edges = jc.Config(clip=0, warmup_ratio=1, learning_rate=1, credit=jc.scalar_bridge(ema=0, sigma=0))
    assert edges.learning_rate == 1 and isinstance(edges.learning_rate, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        jc.Config().epochs = 3  # type: ignore


# --- what is refused --------------------------------------------------------------------------------------------------

NUMBERS = [
    (math.nan, "is not finite"),
    (math.inf, "is not finite"),
    (-math.inf, "is not finite"),
    (1e39, "is not finite in float32"),
    ("0.1", "must be a number"),
    (True, "must be a number"),
    (None, "must be a number"),
    (jnp.ones(2), "must be a number"),
]
INTEGERS = [
    (2.0, "must be an integer"),
    (math.nan, "must be an integer"),
    ("4", "must be an integer"),
    (True, "must be an integer"),
    (None, "must be an integer"),
    (-1, "must be "),
]


def bad_values(setting: Setting) -> list[tuple[Any, str]]:
    name, bound = setting.name, setting.bound
    lowest: Any = bound.low
    if setting.choices:
        return [(value, f"{name}={value!r} is unknown; choose one of: ") for value in ("rnadom", None, 1, True)]
    if setting.type is bool:
        return [(value, f"{name}={value!r} must be True or False") for value in ("no", 1, 0, None)]
    if setting.type is int:
        low = {1: [(0, "must be positive")], 2: [(1, "must be at least 2")]}.get(lowest, [])
        return [(value, f"{name}=.*{text}") for value, text in INTEGERS + low]
    if setting.type is float:
        high = [(1.5, "must lie between 0 and 1")] if bound.high == 1 else []
        low = {0: [(0, "must be positive")] if bound.open else [(-0.1, "must ")]}.get(lowest, [])
        return [(value, f"{name}=.*{text}") for value, text in NUMBERS + high + low]
    return [(value, f"{name}=.*must be of type") for value in ("mlp", 3, jc.mlp)]


@pytest.mark.parametrize(("factory", "setting"), ALL_SETTINGS, ids=NAMES)
def test_bad_values_of_every_setting_are_refused_by_name(factory, setting):
    for value, message in bad_values(setting):
        refused(lambda value=value: example(factory).replace(**{setting.name: value}), message)


@pytest.mark.parametrize("setting", [s for s in OWN if s.name not in PARTS], ids=lambda s: s.name)
def test_bad_values_of_a_configuration_are_refused_by_name(setting):
    for value, message in bad_values(setting):
        refused(lambda value=value: jc.Config(**{setting.name: value}), message)


CONFIG: Any = jc.Config
# Each of these ran once, as something else than what was asked for.
SILENT: list[tuple[Any, str]] = [
    (lambda: jc.vector_field(layers="rnadom"), "layers='rnadom' is unknown; choose one of: one, all"),
    (lambda: jc.scalar_bridge(noise_at="nxt"), "noise_at='nxt' is unknown; choose one of: next, present, paired"),
    (lambda: jc.scalar_bridge(target="softmni"), "target='softmni' is unknown; choose one of: mean, softmin"),
    (lambda: jc.state_bridge(state_loss="nromalised"), "state_loss='nromalised' is unknown; choose one of: normal"),
    (lambda: jc.linear_field(form="path"), "form='path' is unknown; choose one of: gate, mask, chain"),
    (lambda: jc.vector_field(directions=0), "directions=0 must be positive"),
    (lambda: jc.scalar_bridge(noise_samples=0), "noise_samples=0 must be positive"),
    (lambda: jc.tangent_chain(samples=0), "samples=0 must be positive"),
    (lambda: jc.unbiased_residual(jc.dfa(), directions=0), "directions=0 must be positive"),
    (lambda: jc.vector_field(shuffled="no"), "shuffled='no' must be True or False"),
    (lambda: jc.fa(scale=0), "scale=0 must be positive"),
    (lambda: jc.dfa(scale=1.0), r"dfa: setting 'scale' is unknown; choose one of: \(none\)"),
    (lambda: jc.vector_field(direction=2), "vector_field: setting 'direction' is unknown; did you mean 'directions'"),
    (lambda: jc.exact_terminal(), "exact_terminal: setting 'of' has no default; give it"),
    (lambda: jc.exact_terminal(jc.dfa), "of=<estimator factory dfa> must be of type Part; call its factory"),
    (lambda: jc.fa(1.0, 2.0), "fa: 2.0 is one value too many; settings: scale"),
    (lambda: jc.fa(1.0, scale=2.0), "fa: setting 'scale' is given twice; give it once"),
    (lambda: CONFIG(credit="dfa"), "credit='dfa' is no estimator; give one, such as jc.dfa()"),
    (
        lambda: CONFIG(rule=jc.dfa()),
        r"rule=dfa\(\) is no rule; estimators are given as credit=; give one, such as jc.inner",
    ),
    (lambda: CONFIG(rule=jc.target_shift), "rule=<rule factory target_shift> is no rule; call its factory"),
    (lambda: CONFIG(credit=jc.dfa), "credit=<estimator factory dfa> is no estimator"),
    (
        lambda: jc.Config(credit=jc.inner_product()),
        r"credit=inner_product\(\) is no estimator; rules are given as rule=; give one, such as jc.dfa",
    ),
    (lambda: jc.Config(credit=jc.mlp()), r"credit=mlp\(\) is no estimator; give one, such as jc.dfa"),
    (lambda: jc.Config(task=jc.ladder_mlp()), r"task=ladder_mlp\(\) is no task"),
    (lambda: CONFIG(rule=None), "rule=None is no rule"),
    (lambda: jc.Config(learning_rat=1), "setting 'learning_rat' is unknown; did you mean 'learning_rate'"),
    (lambda: jc.Config().replace(learning_rat=1), "setting 'learning_rat' is unknown; did you mean 'learning_rate'"),
    (lambda: jc.Config().replace(**{"credit.sigma": 1}), "setting 'credit.sigma' is unknown"),
    (lambda: jc.Config(credit=as_part(jc.estimator, 3)), "its factory must return a jc.Estimator"),
]


def test_a_path_changes_the_setting_it_leads_to_alone():
    wrapped = jc.Config(credit=jc.unbiased_residual(of=jc.vector_field(directions=4), directions=2))

    def directions(name):
        credit = wrapped.replace(**{name: 7}).credit
        return credit.settings["directions"], credit.settings["of"].settings["directions"]

    assert directions("credit.directions") == (7, 4)
    assert directions("credit.of.directions") == (2, 7)
    # A path that leads nowhere means those of its name further inside.
    changed = wrapped.replace(**{"credit.learning_rate": 0.5})
    assert changed.credit.settings["of"].settings["learning_rate"] == 0.5


@pytest.mark.parametrize(("call", "message"), SILENT, ids=[message[:40] for _, message in SILENT])
def test_what_once_was_taken_silently(call, message):
    refused(call, message)


# --- what identifies a run, and what decides its program --------------------------------------------------------------


def test_float64_is_another_run():
    config = tiny(jc.dfa())
    single = config_hash(config)
    with jax.enable_x64(True):
        double = config_hash(config)
    with jax.default_matmul_precision("tensorfloat32"):
        coarse = config_hash(config)
    assert len({single, double, coarse}) == 3 and config_hash(config) == single


@pytest.mark.parametrize("precision", ["default", "bfloat16", "high", "F32_F32_F32"])
def test_another_precision_is_another_run(precision):
    config = tiny(jc.dfa())  # of F32_F32_F32 convolutions know nothing, and float64 products would be float32
    usual = config_hash(config)
    with jax.default_matmul_precision(precision):
        assert config_hash(config) != usual


@pytest.mark.parametrize("precision", ["highest", "float32"])
def test_the_precision_that_runs_have_anyway_is_no_other_run(precision):
    config = tiny(jc.dfa())
    usual = config_hash(config)
    with jax.default_matmul_precision(precision):
        assert config_hash(config) == usual


def products_of(program: str) -> list[str]:
    return [line for line in program.splitlines() if "dot_general" in line]


@pytest.mark.parametrize("function", ["step", "evaluate", "diagnose"])
def test_matrix_products_have_full_precision_unless_another_is_chosen(function):
    # By default a GPU would round float32 factors to TF32, a TPU to bfloat16.
    config = tiny(small(jc.tangent_chain))
    run = make_run(config)
    state, hp, data = start(run, config)
    args = (state, hp, data, jnp.arange(config.batch_size))[: 4 if function == "step" else 3]
    usual = products_of(jax.jit(getattr(run, function)).lower(*args).as_text())
    assert usual and all("precision = [HIGHEST, HIGHEST]" in line for line in usual)
    lifted = (
        over_runs(lambda x: x @ x, (True,), Layout()).lower(jnp.ones((1, 2, 2))).as_text()
    )  # whatever else a sweep runs
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products_of(lifted))
    with jax.default_matmul_precision("tensorfloat32"):
        chosen = products_of(jax.jit(getattr(run, function)).lower(*args).as_text())
    assert len(chosen) == len(usual) and all("precision = [HIGH, HIGH]" in line for line in chosen)


def test_the_first_setting_in_which_programs_differ_is_named():
    config = jc.Config(credit=jc.vector_field(directions=4))
    swept = config.replace(learning_rate=0.5, epochs=3, **{"credit.learning_rate": 0.5})
    assert static_difference(config, swept) == ""
    other = config.replace(**{"credit.directions": 8})
    assert static_difference(config, other) == "credit.directions=8 where the run has 4"
    assert static_difference(config, config.replace(credit=jc.dfa())).startswith("credit.estimator='dfa' where the run")


def hides_its_source(source: jc.Positive = 1.0): ...


def hides_its_name(estimator: jc.Positive = 1.0): ...


@pytest.mark.parametrize(("function", "name"), [(hides_its_source, "source"), (hides_its_name, "estimator")])
def test_a_setting_must_not_hide_what_identifies_its_part(function, name):
    with pytest.raises(TypeError, match=f"setting '{name}' would hide the estimator's own {name}; call it otherwise"):
        jc.estimator(function)


def test_a_task_brings_its_usual_network_and_keeps_one_that_was_chosen():
    assert jc.Config(task=jc.tasks.lq()).network == jc.lq_dynamics()
    assert jc.Config().replace(task=jc.tasks.lq()).network == jc.lq_dynamics()
    chosen = jc.Config(network=IMAGE_NETWORK)
    assert chosen.replace(task=jc.tasks.cifar10()).network == IMAGE_NETWORK


@pytest.mark.parametrize(("factory", "setting"), ALL_SETTINGS, ids=NAMES)
def test_every_setting_of_a_part_identifies_it_and_static_ones_alone_decide_the_program(factory, setting):
    part = example(factory)
    other = part.replace(**{setting.name: other_value(setting, part.settings[setting.name])})
    one, two = holding(part), holding(other)
    assert part != other and one != two and config_hash(one) != config_hash(two)
    assert (static_key(one) == static_key(two)) == setting.swept


def test_every_field_identifies_a_run_and_static_ones_alone_decide_the_program():
    base = jc.Config(credit=jc.scalar_bridge())  # reads all fields
    others = {"task": jc.tasks.lq(), "network": IMAGE_NETWORK, "credit": jc.state_bridge(), "rule": jc.cosine_rule()}
    hashes = {config_hash(base)}
    for setting in OWN:
        value = others.get(setting.name) or other_value(setting, getattr(base, setting.name))
        other = dataclasses.replace(base, **{setting.name: value})
        hashes.add(config_hash(other))
        free = setting.swept or setting.name in ("epochs", "diagnose_every")
        assert (static_key(other) == static_key(base)) == free, setting.name
    assert len(hashes) == 1 + len(OWN)
    swept = {s.name for s in OWN if s.swept}
    assert {s.name for s in OWN if isinstance(getattr(base, s.name), float)} == swept  # every real number is swept
    for factory, setting in ALL_SETTINGS:
        assert (setting.type is float) == setting.swept, (factory.name, setting.name)


def test_hashes_tell_no_spellings_apart():
    base = config_hash(jc.Config())
    assert len(base) == 12 and int(base, 16) >= 0
    same = [
        (jc.Config(learning_rate=1, clip=0), jc.Config(learning_rate=1.0, clip=0.0)),
        (jc.Config(clip=-0.0), jc.Config(clip=0.0)),
        (jc.Config(credit=jc.fa(1)), jc.Config(credit=jc.fa(scale=np.float64(1.0)))),
        (jc.Config(credit=jc.scalar_bridge(sigma=-0.0)), jc.Config(credit=jc.scalar_bridge(sigma=0))),
        (jc.Config(epochs=np.int64(7)), jc.Config(epochs=7)),  # type: ignore
        (jc.Config(network=jc.ladder_mlp()), jc.Config()),
    ]
    for one, two in same:
        assert one == two and hash(one) == hash(two) and config_hash(one) == config_hash(two)
    assert json.loads(json.dumps(described(jc.Config()))) == described(jc.Config())


def test_a_key_does_not_depend_on_what_no_run_builds():
    # BP has no estimator's network, hence no width of it; its numbers and settings are nowhere in its key.
    text = json.dumps(described(jc.Config()))
    for name in ("hidden", "sigma", "projection_dim", "directions"):
        assert name not in text
    assert "hidden" in json.dumps(described(jc.Config(credit=jc.state_bridge())))


UNREAD_BLOCKS: dict[str, Any] = dict(
    rule=jc.target_shift(eta=0.3), normalise="rms", clip=0.01, clamp=0.01, state_penalty=0.3, train_embedding=False,
    warmup_ratio=0.7,
)  # fmt: skip
NO_FIT = dict(warmup_ratio=0.7, estimator_steps=3)
UNREAD: dict[str, tuple[jc.Config, dict[str, Any]]] = {
    "bp": (tiny(), NO_FIT),
    "frozen": (tiny(jc.frozen()), UNREAD_BLOCKS | NO_FIT),
    "readout": (tiny(small(jc.vector_field), trains="readout"), UNREAD_BLOCKS),
    "nothing": (
        tiny(small(jc.vector_field), trains="nothing"),
        {**UNREAD_BLOCKS, "learning_rate": 0.3, "weight_decay": 0.3, "schedule": "cosine", "optimizer": "sgd"},
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_a_run_does_not_read_changes_neither_its_key_nor_its_bits(name, monkeypatch):
    config, changes = UNREAD[name]
    keys = {config_hash(config.replace(**{field: value})) for field, value in changes.items()}
    assert keys == {config_hash(config)} == {config_hash(config.replace(**changes))}
    assert static_key(config.replace(**changes)) == static_key(config)
    assert config.replace(**changes).as_read == config.as_read

    # Even a run that is handed these fields does the same.
    monkeypatch.setattr(jc.Config, "as_read", property(lambda config: config))
    results = []
    for asked in (config, config.replace(**changes)):
        run = make_run(asked)
        assert run.config == asked

        def everything(state, hp, data, run=run):
            scores = run.diagnose(state, hp, data) if config.trains == "network" else {}
            return run.step(state, hp, data, first_batch(config)), scores

        results.append(jax.jit(everything)(*start(run, asked)))
    assert same_bits(*results)
