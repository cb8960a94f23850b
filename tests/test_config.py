"""Settings that cannot be are refused by name and value; what identifies a run is what it reads."""

import dataclasses
import gc
import json
import math
import os
import subprocess
import sys
import textwrap
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FACTORIES, IMAGE_NETWORK, TRUNK, as_part, first_batch, refused, same_bits, small, start, tiny

import jcredit as jc
from jcredit.config import (
    PARTS,
    change,
    config_hash,
    described,
    paths_of,
    settings,
    static_difference,
    static_key,
)
from jcredit.parts import Arrays, Factory, Part
from jcredit.settings import Setting, nearest
from jcredit.tasks.classification import arrays_task
from jcredit.training import make_run

# --- every factory of ours, and every setting -------------------------------------------------------------------------

ARRAYS = Arrays(np.ones((2, 3), np.float32) * i for i in range(4))
REQUIRED: dict[Factory, dict[str, Any]] = {
    jc.exact_terminal: dict(of=jc.dfa()),
    jc.unbiased_residual: dict(of=jc.dfa()),
    arrays_task: dict(data=ARRAYS, classes=3),
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
    from jcredit.tasks import classification, images, ladder, linear_quadratic

    modules = (networks, rules, aligned, bridges, controls, feedback, fields, local_losses, mirrors, tangents, wrappers)
    modules += (trunks,)
    modules += (classification, images, ladder, linear_quadratic)
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
    (lambda: CONFIG(rule=jc.dfa()), r"rule=dfa\(\) is no rule; give one, such as jc.inner"),
    (lambda: CONFIG(rule=jc.target_shift), "rule=<rule factory target_shift> is no rule; call its factory"),
    (lambda: CONFIG(credit=jc.dfa), "credit=<estimator factory dfa> is no estimator"),
    (lambda: jc.Config(credit=jc.inner_product()), r"credit=inner_product\(\) is no estimator"),
    (lambda: jc.Config(task=jc.ladder_mlp()), r"task=ladder_mlp\(\) is no task"),
    (lambda: CONFIG(rule=None), "rule=None is no rule"),
    (lambda: jc.Config(learning_rat=1), "setting 'learning_rat' is unknown; did you mean 'learning_rate'"),
    (lambda: jc.Config().replace(learning_rat=1), "setting 'learning_rat' is unknown; did you mean 'learning_rate'"),
    (lambda: jc.Config().replace(**{"credit.sigma": 1}), "setting 'credit.sigma' is unknown"),
    (lambda: jc.Config(credit=as_part(jc.estimator, 3)), "its factory must return a jc.Estimator"),
]


@pytest.mark.parametrize(("call", "message"), SILENT, ids=[message[:40] for _, message in SILENT])
def test_what_once_was_taken_silently(call, message):
    refused(call, message)


# --- settings by name -------------------------------------------------------------------------------------------------


def test_a_name_is_found_in_every_part_that_has_it():
    config = tiny(jc.exact_terminal(of=small(jc.vector_field)))
    assert paths_of(config, "hidden") == ["credit.of.trunk.hidden"]
    assert paths_of(config, "depth") == ["network.depth"]
    assert paths_of(config, "learning_rate") == ["learning_rate"]  # a field of Config comes first
    assert paths_of(config, "credit.learning_rate") == ["credit.of.learning_rate"]
    assert paths_of(config, "nothing") == []
    twice = config.replace(task=jc.tasks.teacher(teacher_network=jc.ladder_mlp()))
    assert paths_of(twice, "width") == ["task.teacher_network.width", "network.width"]
    changed = twice.replace(width=9).replace(**{"network.width": 7})
    assert changed.task.settings["teacher_network"].settings["width"] == 9
    assert changed.network.settings["width"] == 7


def test_texts_stand_for_their_values():
    config = tiny(small(jc.vector_field))
    for name, text, value in [
        ("epochs", "7", 7), ("learning_rate", "1e-2", 0.01), ("trains", "readout", "readout"),
        ("train_embedding", "false", False),
    ]:  # fmt: skip
        assert getattr(change(config, name, text), name) == value
    parts = change(change(config, "shuffled", "true"), "credit.epsilon", "0.5").credit.settings
    assert parts["shuffled"] is True and parts["epsilon"] == 0.5
    for name, text, message in [
        ("epochs", "7.5", "epochs='7.5' must be an integer"), ("epochs", "0", "epochs=0 must be positive"),
        ("learning_rate", "fast", "learning_rate='fast' must be a number"),
        ("learning_rate", "nan", "learning_rate=nan is not finite"),
        ("shuffled", "yes", "shuffled='yes' must be true or false"),
        ("layers", "rnadom", "layers='rnadom' is unknown"),
        ("trunk", "mlp", "trunk='mlp' must be set from Python"),
    ]:  # fmt: skip
        refused(lambda name=name, text=text: change(config, name, text), message)


def test_a_network_that_is_named_stays_whatever_the_order():
    chosen = jc.ladder_mlp()  # the usual one of Config()'s own task
    for changes in ({"network": chosen, "task": jc.tasks.cifar10()}, {"task": jc.tasks.cifar10(), "network": chosen}):
        assert jc.Config().replace(**changes).network == chosen
    assert jc.Config().replace(task=jc.tasks.cifar10()).network == jc.image_mlp()


def test_a_part_does_not_undo_settings_that_are_named_before_it():
    chain = jc.tangent_chain(shuffled=True)
    assert jc.Config().replace(**{"credit.samples": 4, "credit": chain}).credit == jc.tangent_chain(4, shuffled=True)
    field = {"trunk": jc.mlp(hidden=8), "credit": jc.vector_field()}
    changes = {"credit.trunk.hidden_layers": 1, "hidden": 16, "directions": 2, **field, "task": jc.tasks.cifar10()}
    for order in (changes, dict(reversed(changes.items()))):
        config = jc.Config().replace(**order)
        assert config.credit == jc.vector_field(directions=2, trunk=jc.mlp(hidden=16, hidden_layers=1))
        assert config.network == jc.image_mlp()


def test_a_configuration_that_was_read_can_be_forgotten():
    """A user's own arrays are among its settings: folds of a cross-validation must not pile up."""
    x = np.ones((8, 2), np.float32)
    task = jc.tasks.arrays(x, np.arange(8) % 2, x, np.arange(8) % 2)
    config = tiny(jc.dfa(), task=task, network=jc.image_mlp(depth=2, width=4))
    config_hash(config), static_key(config), config.as_read
    gone = weakref.ref(config)
    del config
    gc.collect()
    assert gone() is None


def test_describing_runs_leaves_jax_as_it_is():
    """A device that is used while configurations are made could no longer be divided among the runs of a sweep."""
    code = """
        import jax, numpy as np, jcredit as jc
        from jcredit import estimators
        from jcredit.config import config_hash
        x, y = np.ones((8, 2), np.float32), np.arange(8) > 3
        tasks = [jc.tasks.teacher(), jc.tasks.cifar10(), jc.tasks.lq(), jc.tasks.arrays(x, y, x, y)]
        of = {"exact_terminal": {"of": jc.dfa()}, "unbiased_residual": {"of": jc.dfa()}, "grape": {"anchor_every": 5}}
        credits = [getattr(estimators, name)(**of.get(name, {})) for name in estimators.__all__ if name != "mlp"]
        configs = [jc.Config(task=task, credit=credit) for task in tasks for credit in credits]
        assert len({config_hash(config) for config in configs}) == len(configs) >= 80
        jax.config.update("jax_num_cpu_devices", 3)
        assert jax.local_device_count() == 3
    """
    here = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=here)


def test_float64_is_another_run():
    config = tiny(jc.dfa())
    single = config_hash(config)
    with jax.enable_x64(True):
        double = config_hash(config)
    with jax.default_matmul_precision("tensorfloat32"):
        coarse = config_hash(config)
    assert len({single, double, coarse}) == 3 and config_hash(config) == single


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


# --- what identifies a run, and what decides its program --------------------------------------------------------------


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
        assert (static_key(other) == static_key(base)) == (setting.swept or setting.name == "epochs"), setting.name
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
UNREAD: dict[str, tuple[jc.Config, dict[str, Any]]] = {
    "bp": (tiny(), dict(warmup_ratio=0.7)),
    "frozen": (tiny(jc.frozen()), UNREAD_BLOCKS),
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


@pytest.mark.parametrize(
    ("name", "names", "found"),
    [
        ("learning_rat", ["epochs", "learning_rate"], "learning_rate"),
        ("rang", ["trains", "credit.rank"], "credit.rank"),
        ("credit.lr", ["credit.rank", "credit.learning_rate"], None),  # the head alone is alike
        ("credit.learning_rat", ["network.learning_rate", "credit.learning_rate"], "credit.learning_rate"),
        ("tgw=0.2", ["tgw=0.25", "dfa"], "tgw=0.25"),  # a label: its dot parts nothing
    ],
)
def test_the_nearest_name(name, names, found):
    assert nearest(name, names) == found
