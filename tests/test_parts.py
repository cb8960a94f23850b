"""Parts of one's own: settings from annotations, documentation from docstrings, and an identity that cannot lie."""

import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import textwrap
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_part, first_batch, refused, same_bits, tiny

import jcredit as jc
from jcredit.config import config_hash, described, static_key
from jcredit.parts import Added, Arrays, Part
from jcredit.training import make_run

# --- settings ---------------------------------------------------------------------------------------------------------


@jc.estimator
def mine(
    rank: jc.Count = 4,
    holes: jc.Size = 0,
    rate: jc.Positive = 1e-2,
    decay: jc.NonNegative = 0.0,
    share: jc.Fraction = 0.5,
    shift: jc.Swept = -1.0,
    threshold: float = 0.1,
    how: Literal["fast", "slow"] = "fast",
    order: Literal[1, 2] = 1,
    loud: bool = False,
    name: str = "x",
    inner: Part = jc.mlp(hidden=8),  # noqa: B008
    other: Part | None = None,
) -> jc.Estimator:
    """A broadcast with every kind of setting.

    Args:
      rank: of nothing,
        told on two lines.
      rate: a swept number.

    Raises:
      Nothing: at all.
    """
    estimator = jc.broadcast().build()
    return estimator._replace(credit=lambda *args: estimator.credit(*args) * (rate - shift))


def test_the_annotation_says_what_a_setting_is():
    settings = mine.settings
    assert list(settings) == list(mine().settings) and mine().kind == "estimator"
    swept = {name for name, setting in settings.items() if setting.swept}
    assert swept == {"rate", "decay", "share", "shift"}
    assert settings["how"].choices == ("fast", "slow") and settings["order"].choices == (1, 2)
    assert mine().settings["rate"] == 0.01 and mine(rate=1).settings["rate"] == 1.0
    assert isinstance(mine(rate=np.float32(2)).settings["rate"], float)
    assert isinstance(mine(threshold=1).settings["threshold"], float)


def test_documentation_comes_from_the_docstring():
    docs = {name: setting.doc for name, setting in mine.settings.items()}
    assert docs["rank"] == "of nothing, told on two lines." and docs["rate"] == "a swept number."
    assert docs["holes"] == "" and not any("Nothing" in doc for doc in docs.values())
    assert mine.__doc__ and getattr(mine, "__name__") == "mine"  # noqa: B009  # help(mine) works


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(rank=0), "rank=0 must be positive"),
        (dict(holes=-1), "holes=-1 must be zero or more"),
        (dict(rate=0.0), r"rate=0\.0 must be positive"),
        (dict(decay=-1.0), r"decay=-1\.0 must be zero or more"),
        (dict(share=1.1), r"share=1\.1 must lie between 0 and 1"),
        (dict(shift=np.nan), "shift=nan is not finite"),
        (dict(threshold=np.inf), "threshold=inf is not finite"),
        (dict(how="fsat"), "how='fsat' is unknown; choose one of: fast, slow"),
        (dict(order=3), "order=3 is unknown; choose one of: 1, 2"),
        (dict(order=True), "order=True is unknown"),
        (dict(loud=1), "loud=1 must be True or False"),
        (dict(name=1), "name=1 must be of type str"),
        (dict(inner=jc.mlp), "inner=.* must be of type Part; call its factory"),
        (dict(inner=None), "inner=None must be of type Part"),
        (dict(ranks=1), "test_parts.mine: setting 'ranks' is unknown; did you mean 'rank'"),
    ],
)
def test_values_are_checked_where_they_are_given(settings, message):
    refused(lambda: mine(**settings), message)
    refused(lambda: mine().replace(**settings), message)
    refused(
        lambda: tiny(mine()).replace(**{f"credit.{name}": value for name, value in settings.items()}),
        "is unknown|must be|must lie|finite",
    )


def test_a_setting_without_a_type_is_refused_when_it_is_declared():
    with pytest.raises(TypeError, match=r"untyped: setting 'rank' needs a type, such as jc\.Count or jc\.Positive"):

        @jc.estimator
        def untyped(rank=4): ...

    with pytest.raises(TypeError, match="open_ended: setting 'rest' needs a type"):

        @jc.estimator
        def open_ended(**rest: int): ...


def test_positional_only_parameters_are_no_settings():
    @jc.network
    def net(sizes: jc.Sizes, /, depth: jc.Count = 2) -> Any:
        return sizes, depth

    assert list(net.settings) == ["depth"]
    assert net(depth=3).build(jc.Sizes((5,), 2)) == (jc.Sizes((5,), 2), 3)

    @jc.task(net())
    def data(data_dir: str | None, /, size: jc.Count = 3) -> Any:
        return data_dir, size

    assert data().build("here") == ("here", 3) and jc.Config(task=data()).network == net()

    @jc.task(net())
    def without() -> Any:
        return "nothing was handed over"

    assert without().build("here") == "nothing was handed over"


def test_parts_among_settings_are_built_with_traced_numbers():
    @jc.trunk
    def scaled(scale: jc.Positive = 2.0) -> Any:
        return scale

    @jc.estimator
    def outer(inner: Part, factor: jc.Swept = 3.0) -> Any:
        return factor * inner.build()

    part = outer(inner=scaled(scale=5))
    assert part.numbers() == {"factor": 3.0, "inner": {"scale": 5.0}}
    assert part.build() == 15
    program = jax.jit(lambda numbers: part.build(numbers=numbers))
    assert program({"factor": 2.0, "inner": {"scale": 0.5}}) == 1 and program(part.numbers()) == 15


def test_an_own_swept_setting_is_traced_and_a_static_one_is_not():
    config = tiny(mine(), optimizer="sgd")
    run = make_run(config)
    key, seen = jax.random.key(0), []

    def credit(key, hp):
        seen.append(1)
        state, data = run.init(key, hp), run.data(key, hp)
        return run.step(state, hp, data, first_batch(config))[0]

    program = jax.jit(credit)
    results = [program(key, run.hparams(config.replace(**{"credit.rate": rate}))) for rate in (0.1, 0.2)]
    assert len(seen) == 1 and not same_bits(*results)
    assert static_key(config) == static_key(config.replace(rate=0.5))
    assert static_key(config) != static_key(config.replace(threshold=0.5))


def test_a_part_shows_what_was_changed():
    assert repr(mine()) == "test_parts.mine()"
    assert repr(mine(rank=3, how="slow")) == "test_parts.mine(rank=3, how='slow')"
    assert repr(jc.exact_terminal(jc.fa(scale=2))) == "exact_terminal(of=fa(scale=2.0))"
    assert mine() == mine(rank=4) != mine(rank=5) and len({mine(), mine(rank=4), mine(rank=5)}) == 2


# --- identity: what an own part is made of ----------------------------------------------------------------------------

MODULE = """
import functools
import jax
import jax.numpy as jnp
import numpy as np
import jcredit as jc

SCALE = 2.0
TABLE = {"one": jnp.tanh, "two": [1, 2]}
ACTIVATION = jnp.tanh
ARRAY = np.arange(3.0)
TRUNK = jc.mlp(hidden=8)
UNUSED = 1

def nested(x):
    return x + 1

def helper(x, by=SCALE):
    return nested(x) * 2

@jax.jit
def compiled(x):
    return x * 3

@jax.custom_jvp
def clipped(x):
    return x

@clipped.defjvp
def clipped_tangent(primals, tangents):
    return clipped(*primals), tangents[0] * 1

class Map:
    size = 4

    def push(self, x):
        return nested(x) * self.size

    @staticmethod
    def pull(x):
        return x * 5

class Table(dict):
    pass

MAP = Map()
PARTIAL = functools.partial(nested, x=3)

@jc.estimator
def mine(rank: jc.Count = 4) -> jc.Estimator:
    inner = jc.broadcast().build()
    def credit(state, ctx, env, key):
        a = inner.credit(state, ctx, env, key)
        used = SCALE, TABLE, ACTIVATION, ARRAY, TRUNK, compiled, clipped, Map, MAP, PARTIAL
        return helper(a) * 7
    return inner._replace(credit=credit)

def made(value):
    @jc.estimator
    def own() -> jc.Estimator:
        return jc.broadcast().build()._replace(tier=str(value))
    return own
"""
COUNT = itertools.count()


def loaded(tmp_path, text, name="author"):
    """The module of this source, imported from a file of its own under the same name."""
    path = tmp_path / f"{next(COUNT)}" / f"{name}.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if hasattr(module, "mine"):
        module.mine().described()  # Python looks a class's source up in whichever module has the name by then
    return module


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("helper(a) * 7", "helper(a) * 8"),  # the function itself
        ("nested(x) * 2", "nested(x) * 3"),  # a helper
        ("return x + 1", "return x + 2"),  # a helper's helper
        ("SCALE = 2.0", "SCALE = 3.0"),  # a constant, and a default of the helper
        ("jnp.tanh, ", "jnp.sin, "),  # a function in a table
        ("[1, 2]", "[1, 3]"),
        ("ACTIVATION = jnp.tanh", "ACTIVATION = jnp.sin"),
        ("np.arange(3.0)", "np.arange(3.0) + 1"),
        ("jc.mlp(hidden=8)", "jc.mlp(hidden=9)"),  # a part
        ("return x * 3", "return x * 4"),  # inside a compiled helper
        ("tangents[0] * 1", "tangents[0] * 2"),  # a rule of differentiation
        ("size = 4", "size = 5"),  # a class's constant, and its methods
        ("nested(x) * self.size", "nested(x) + self.size"),
        ("return x * 5", "return x * 6"),
        ("MAP = Map()", "MAP = Map()\nMAP.size = 9"),  # an object's state
        ("nested, x=3", "nested, x=4"),
        ("def mine(rank: jc.Count = 4)", "def mine(rank: jc.Count = 5)"),
    ],
)
def test_a_change_of_what_a_part_is_made_of_changes_its_key(tmp_path, old, new):
    assert MODULE.count(old) == 1
    before, after = (loaded(tmp_path, text).mine(rank=4) for text in (MODULE, MODULE.replace(old, new)))
    assert before.name == after.name == "author.mine"
    assert before != after and config_hash(tiny(before)) != config_hash(tiny(after))
    assert static_key(tiny(before)) != static_key(tiny(after))


@pytest.mark.parametrize(
    ("old", "new"),
    [("UNUSED = 1", "UNUSED = 2"), ("class Table(dict):", "class Other(dict):"), ("\nSCALE", "\n\nSCALE")],
)
def test_a_change_of_anything_else_does_not(tmp_path, old, new):
    assert MODULE.count(old) == 1
    before, after = (loaded(tmp_path, text).mine() for text in (MODULE, MODULE.replace(old, new)))
    assert before == after and config_hash(tiny(before)) == config_hash(tiny(after))


def adds(n):
    return lambda x: x + n


def test_what_a_factory_closes_over_is_part_of_it(tmp_path):
    module = loaded(tmp_path, MODULE)
    values = [
        1, 2, "one", (1, 2), [1, 3], {"a": 1}, {"a": 2}, {1, 2}, np.zeros(2), np.ones(2), jnp.ones(3),
        jax.random.key(0), jax.random.key(1), jnp.tanh, jnp.sin, np.tanh,
        functools.partial(jnp.add, 1), functools.partial(jnp.add, 2),
        module.helper, module.nested, jc.mlp(hidden=1), jc.mlp(hidden=2), None, lambda x: x + 1, lambda x: x + 2,
        adds(1), adds(2), jc.dfa().build(), jc.fa().build(),
    ]  # fmt: skip
    hashes = [module.made(value).source for value in values]
    assert len(set(hashes)) == len(values)
    assert hashes == [module.made(value).source for value in values]  # told again, the same


def test_a_key_is_the_same_in_every_process(tmp_path):
    text = MODULE + '\nNAMES = frozenset({"a", "b", "c", "d"})\nuses_set = made((NAMES, TABLE, nested, MAP))\n'
    module = loaded(tmp_path, text)
    here = [module.mine().factory.source, module.uses_set.source]
    path = tmp_path / "elsewhere"
    path.mkdir()
    (path / "author.py").write_text(text)
    program = "import author; print(author.mine().factory.source, author.uses_set.source)"
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONHASHSEED": "7"}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, cwd=path
    )
    assert found.stdout.split() == here


def test_parts_typed_into_an_interpreter_are_known_by_what_they_do():
    def typed(factor):
        scope: dict[str, Any] = {"jc": jc, "__name__": "__main__"}
        text = f"""
            def own() -> jc.Estimator:
                inner = jc.broadcast().build()
                return inner._replace(credit=lambda *args: {factor} * inner.credit(*args))
        """
        exec(textwrap.dedent(text), scope)
        return jc.estimator(scope["own"])

    assert typed(2).source == typed(2).source != typed(3).source


def test_ours_are_known_by_name_alone():
    text = str(described(jc.Config(credit=jc.exact_terminal(of=jc.vector_field()))))
    assert "source" not in text and "vector_field" in text


def test_a_setting_that_was_added_later_leaves_old_keys_as_they_were(tmp_path):
    before = loaded(tmp_path, "import jcredit as jc\n@jc.rule\ndef own(eta: jc.Positive = 0.1): ...\n").own
    factory = jc.estimator(lambda: None)
    assert factory.source is not None and before.source is not None

    @jc.trunk
    def later(hidden: jc.Count = 8, sharpness: Annotated[jc.Positive, Added(1.0)] = 2.0) -> Any: ...

    assert "sharpness" not in later(sharpness=1.0).described("key")
    assert later(sharpness=1.0).described("full")["sharpness"] == 1.0
    assert later().described("key")["sharpness"] == 2.0
    assert later() != later(sharpness=1.0) and later.settings["sharpness"].swept


def test_arrays_are_equal_by_their_contents():
    one, same = (Arrays((np.arange(4), np.ones(2))) for _ in range(2))
    for other in (
        Arrays((np.arange(4), np.zeros(2))), Arrays((np.arange(4.0), np.ones(2))), Arrays((np.arange(4),)),
        Arrays((np.arange(4).reshape(2, 2), np.ones(2))),
    ):  # fmt: skip
        assert one != other and one.digest != other.digest
    assert one == same and hash(one) == hash(same)


# --- own rules and tasks ----------------------------------------------------------------------------------------------


def test_an_own_rule_is_that_rule():
    @jc.rule
    def doubled(eta: jc.Positive = 0.5) -> jc.LocalRule:
        return jc.LocalRule(lambda h, after, a: a, lambda h, after, goal: 2 * eta * goal / goal.shape[0])

    results = []
    for rule in (doubled(), jc.inner_product()):
        config = tiny(jc.dfa(), rule=rule)
        run = make_run(config)
        hp, key = run.hparams(config), jax.random.key(0)
        state, data = run.init(key, hp), run.data(key, hp)
        results.append(jax.jit(run.step)(state, hp, data, first_batch(config))[0])
    assert same_bits(*results)  # 2 x 0.5 = 1, exactly
    assert described(tiny(rule=doubled()))["rule"]["eta"] == 0.5


# --- arrays of one's own as a task ------------------------------------------------------------------------------------


def my_arrays(*shape, dtype: Any = np.float32, classes=3):
    random = np.random.default_rng(0)
    x, y = random.normal(3.0, 2.0, size=(24, *shape)), np.arange(24) % classes
    x = (10 * x).clip(0, 255).astype(dtype) if dtype == np.uint8 else x.astype(dtype)
    return x[:16], y[:16], x[16:], y[16:]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((5,), np.float64), ((5,), np.float16), ((4, 4, 2), np.float32), ((4, 4, 2), np.uint8)]
)
def test_arrays_are_a_task(shape, dtype):
    data = my_arrays(*shape, dtype=dtype)
    config = tiny(jc.dfa(), task=jc.tasks.arrays(*data), network=jc.image_mlp(depth=2, width=16))
    run = make_run(config)
    hp, key = run.hparams(config), jax.random.key(0)
    task, kept = run.built(hp).task, np.uint8 if dtype == np.uint8 else np.float32
    assert task.sizes == jc.Sizes(shape, 3) and run.shared_data and run.steps_per_epoch == 2
    prepared = np.asarray(task.prepare(jnp.asarray(data[0].astype(kept))))
    axes = tuple(range(prepared.ndim - 1)) if len(shape) > 1 else (0,)  # each channel of images, each feature
    np.testing.assert_allclose(prepared.mean(axes), 0, atol=2e-3 if dtype == np.float16 else 1e-5)
    np.testing.assert_allclose(prepared.std(axes), 1, rtol=2e-3 if dtype == np.float16 else 1e-5)
    state, found = run.init(key, hp), run.data(key, hp)
    x, y = task.batch(found, jnp.asarray([3, 1]), key)
    np.testing.assert_array_equal(x, prepared[[3, 1]])
    np.testing.assert_array_equal(y, data[1][[3, 1]])
    _, metrics = jax.jit(run.epoch)(state, hp, found)
    assert np.isfinite(metrics["train_loss"]) and 0 <= run.evaluate(state, hp, found)["test_accuracy"] <= 1
    plain = jc.tasks.arrays(*data, normalise=False).build()
    np.testing.assert_allclose(plain.prepare(jnp.asarray(data[0])), data[0].astype(np.float32), rtol=1e-6)


def test_a_constant_feature_is_no_division_by_zero():
    x, y, x_test, y_test = my_arrays(5)
    x = x.copy()
    x[:, 2] = 7.0
    assert np.isfinite(jc.tasks.arrays(x, y, x_test, y_test).build().prepare(x)).all()


def test_the_key_of_arrays_depends_on_their_contents():
    data = my_arrays(5)
    part = jc.tasks.arrays(*data)
    same = jc.tasks.arrays(*(np.array(a) for a in data))
    assert part == same and config_hash(tiny(task=part)) == config_hash(tiny(task=same))
    for i in range(4):
        changed = [np.array(a) for a in data]
        changed[i].flat[0] += 1
        assert config_hash(tiny(task=jc.tasks.arrays(*changed))) != config_hash(tiny(task=part))
    assert len(repr(tiny(task=part))) < 1500 and "sha256" in str(described(tiny(task=part)))
    # What happens to the arrays later does not reach the task, whose key is known.
    x = my_arrays(4, 4, 2, dtype=np.uint8)
    task, kept = jc.tasks.arrays(*x), x[0].copy()
    x[0][:] = 0
    np.testing.assert_array_equal(task.settings["data"][0], kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, u, v: (x[:, 0], y, u, v), r"x has shape \(16,\); give \(samples, \.\.\.\)"),
        (lambda x, y, u, v: (x, y, u[:, :4], v), r"x_test has shape \(8, 4\)"),
        (lambda x, y, u, v: (x, y[:5], u, v), r"labels of x have shape \(5,\); give one for each of 16 samples"),
        (lambda x, y, u, v: (x, y, u, v[:, None]), "labels of x_test have shape"),
        (lambda x, y, u, v: (x[:0], y[:0], u, v), "labels of x have shape"),
        (lambda x, y, u, v: (x, y.astype(float), u, v), "labels of x are float64 .* give whole numbers from 0"),
        (lambda x, y, u, v: (x, y - 1, u, v), "labels of x are int64 from -1; give whole numbers from 0"),
        (lambda x, y, u, v: (np.where(x > 5, np.nan, x), y, u, v), "x holds values that are not finite"),
        (lambda x, y, u, v: (x, y, u / 0, v), "x_test holds values that are not finite"),
        (lambda x, y, u, v: (x, 0 * y, u, 0 * v), "labels name one class only; give at least two"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_arrays_that_do_not_fit_are_refused(change, message):
    refused(lambda: jc.tasks.arrays(*change(*my_arrays(5))), message)


def test_an_own_part_of_another_kind_is_refused():
    refused(lambda: jc.Config(credit=as_part(jc.rule, None)), "is no estimator; give a factory's result")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.vector_field(trunk=jc.dfa()), r"trunk=dfa\(\) is no trunk but a part of kind estimator"),
        (lambda: jc.exact_terminal(of=jc.mlp()), r"of=mlp\(\) is no estimator but a part of kind trunk"),
        (lambda: jc.tasks.teacher(teacher_network=jc.dfa()), "teacher_network=dfa.* is no network"),
        (lambda: jc.vector_field(trunk=jc.mlp), "must be of type Part; call its factory"),
    ],
)
def test_a_part_of_another_kind_is_refused_where_it_is_given(make, message):
    with pytest.raises(jc.ConfigError, match=message):
        make()


def test_a_setting_added_later_leaves_the_keys_of_runs_that_do_not_use_it():
    before = jc.Config(task=jc.tasks.lq(), network=jc.lq_dynamics(), trains="nothing", steps_per_epoch=2)
    text = json.dumps(described(before, "key"))
    for name in ("near", "spread", "target"):  # added after rows had been made; all at what was there before
        assert f'"{name}"' not in text and f'"{name}"' in json.dumps(described(before))
    keys = {config_hash(before.replace(**{path: value})) for path, value in (
        ("network.near", "identity"), ("network.spread", 0.2), ("task.target", "fixed")
    )}  # fmt: skip
    assert len(keys | {config_hash(before)}) == 4
    assert config_hash(before.replace(spread=0.1, near="isometry", target="independent")) == config_hash(before)
