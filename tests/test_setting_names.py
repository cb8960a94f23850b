"""Settings by name: where a name leads, in what order changes are made, and what describing a run leaves alone."""

import gc
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import weakref
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refused, small, tiny

import jcredit as jc
from jcredit.config import change, config_hash, paths_of, static_key
from jcredit.settings import nearest


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


@jc.rule
def mixing(mix: jc.Fraction = 0.5) -> jc.LocalRule:
    return jc.inner_product().build()


@jc.estimator
def mixed(mix: jc.Fraction = 0.5) -> jc.Estimator:
    return jc.broadcast().build()


def test_a_name_that_credit_and_rule_share_is_to_be_said_whole():
    config = tiny(mixed(), rule=mixing())
    refused(
        lambda: config.replace(mix=0.1), "mix is a setting of more than one part; say which: credit.mix or rule.mix"
    )
    with pytest.raises(jc.ConfigError, match=re.escape("Config(...).replace(**{'credit.mix': ...})")):
        jc.Config(credit=mixed(), rule=mixing(), mix=0.1)
    changed = config.replace(**{"credit.mix": 0.1})
    assert (changed.credit.settings["mix"], changed.rule.settings["mix"]) == (0.1, 0.5)


def test_a_float32_is_the_number_that_it_prints():
    one, other = (tiny(learning_rate=rate) for rate in (1e-3, np.float32(1e-3)))
    assert other.learning_rate == 1e-3 and config_hash(one) == config_hash(other)
    assert tiny(learning_rate=jnp.float32(1e-3)).learning_rate == 1e-3
    assert tiny(learning_rate=np.float16(1e-3)).learning_rate == 1e-3


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
    drawn = jc.Config(task=jc.tasks.arrays(np.zeros((8, 2)), np.arange(8) % 2, np.zeros((8, 2)), np.arange(8) % 2))
    refused(lambda: change(drawn, "task.data", "foo"), "data='foo' must be set from Python")


def test_a_setting_of_a_part_or_a_seed_given_to_config_is_told_where_it_belongs():
    for given, said in (
        ({"depth": 3}, r"setting 'depth' is one of network's: give it to the factory there, or .*replace\(depth="),
        ({"credit": jc.vector_field(), "directions": 8}, r"'directions' is one of credit's"),
        ({"seed": 1}, r"seed is no setting: give seeds to the sweep"),
        ({"learing_rate": 1e-3}, "did you mean 'learning_rate'"),
    ):
        refused(lambda given=given: jc.Config(**given), said)


def test_a_factory_shows_what_it_is_called_with():
    assert list(inspect.signature(jc.image_mlp).parameters) == ["depth", "width"]
    assert inspect.signature(jc.dfa).return_annotation is type(jc.dfa())


class Pair(NamedTuple):
    one: Any
    two: Any


def test_tuples_hold_what_can_be_written_down_and_do_not_come_from_texts():
    @jc.trunk
    def layered(layers: tuple = (1,)) -> object: ...

    part = layered(layers=(np.int64(2), (np.float32(0.5), "a"), None))
    assert part.settings["layers"] == (2, (0.5, "a"), None) and json.dumps(part.described())
    assert json.dumps(layered(layers=Pair(np.int64(2), None)).described())
    for value, said in (
        ((jc.dfa(),), r"layers holds .*dfa.*; give a tuple of numbers"),
        ([1], "must be of type tuple"),
    ):
        refused(lambda value=value: layered(layers=value), said)
    refused(lambda: layered.settings["layers"].parsed("1,2"), "layers='1,2' must be set from Python")


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
        of = {name: {"of": jc.dfa()} for name in ("exact_at", "exact_terminal", "unbiased_residual")}
        of |= {"grape": {"anchor_every": 5}}
        credits = [getattr(estimators, name)(**of.get(name, {})) for name in estimators.__all__ if name != "mlp"]
        configs = [jc.Config(task=task, credit=credit) for task in tasks for credit in credits]
        assert len({config_hash(config) for config in configs}) == len(configs) >= 80
        jax.config.update("jax_num_cpu_devices", 3)
        assert jax.local_device_count() == 3
    """
    here = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=here)


@pytest.mark.parametrize(
    ("name", "names", "found"),
    [
        ("learning_rat", ["epochs", "learning_rate"], "learning_rate"),
        ("rang", ["trains", "credit.rank"], "credit.rank"),
        ("credit.xy", ["credit.rank", "credit.learning_rate"], None),  # the head alone is alike
        ("credit.lr", ["credit.rank", "credit.learning_rate"], "credit.learning_rate"),  # as others call it
        ("seed", ["configs", "seeds"], "seeds"),
        ("model", ["models", "dfa"], "models"),  # what others call a network is a label here
        ("credit.learning_rat", ["network.learning_rate", "credit.learning_rate"], "credit.learning_rate"),
        ("tgw=0.2", ["tgw=0.25", "dfa"], "tgw=0.25"),  # a label: its dot parts nothing
    ],
)
def test_the_nearest_name(name, names, found):
    assert nearest(name, names) == found
