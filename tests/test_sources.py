"""What identifies a part of one's own: everything that it is made of, and nothing else."""

import argparse
import functools
import importlib
import importlib.util
import itertools
import operator
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
from array import array
from collections import deque
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

import jcredit as jc
from jcredit.config import config_hash, described, static_key
from jcredit.sources import _Identity, source_hash

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


def test_objects_of_classes_made_elsewhere_are_known_by_what_they_hold():
    def values():
        yield from (argparse.Namespace(beta=1.0), argparse.Namespace(beta=2.0), argparse.Namespace(beta={"b", "a"}))
        yield from (SimpleNamespace(a=np.zeros(2)), SimpleNamespace(a=np.ones(2)), Path("a.npy"), Path("b.npy"))
        yield from (Decimal("1"), Decimal("2"), date(2020, 1, 1), date(2020, 1, 2), deque([1]), deque([2]))
        yield from (bytearray(b"a"), bytearray(b"b"), array("d", [1]), array("d", [2]), re.compile("a"))
        yield from (re.compile("b"), Fraction(1, 3), Fraction(2, 3), signal.SIGINT, signal.SIGTERM)
        yield from (operator.itemgetter(1), operator.itemgetter(2), deque([1]).count, deque([2]).count)
        yield from (random.Random(1), random.Random(2))
        knot = SimpleNamespace(a=1)
        knot.itself = knot
        yield knot

    hashes = [_Identity("author").of(value) for value in values()]
    assert len({repr(found) for found in hashes}) == len(hashes)
    assert hashes == [_Identity("author").of(value) for value in values()]  # of equal ones, the same
    with pytest.raises(jc.ConfigError, match=r"of <unlocked _thread.lock .* that author uses .*; make it a setting"):
        _Identity("author").of({"lock": threading.Lock()})


def test_a_key_is_the_same_in_every_process(tmp_path):
    values = 'NAMES = frozenset({"a", "b", "c", "d"})\nGIVEN = argparse.Namespace(a={"x", "y"})'
    text = f"import argparse\n{MODULE}\n{values}\nuses_set = made((NAMES, TABLE, nested, MAP, GIVEN))\n"
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


def factored(function, factor):
    return functools.wraps(function)(lambda x: factor * function(x))


class Scaled:
    """A decorator that is an object."""

    def __init__(self, function, factor):
        functools.update_wrapper(self, function)
        self.factor = factor

    def __call__(self, x):
        return self.factor * self.__wrapped__(x)


def test_what_is_made_of_a_function_is_not_known_by_its_name():
    values = [
        jnp.dot, jax.vmap(jnp.dot, in_axes=(0, None)), jax.vmap(jnp.dot, in_axes=(None, 0)),
        jax.nn.softplus, jax.grad(jax.nn.softplus), jax.vmap(jax.grad(jax.nn.softplus)),
        jnp.tanh, factored(jnp.tanh, 2), factored(jnp.tanh, 3), Scaled(jnp.tanh, 2), Scaled(jnp.tanh, 3),
        np.vectorize(lambda x: x + 1), np.vectorize(lambda x: x + 2), {"a": 1, "b": 2}, {"b": 2, "a": 1},
    ]  # fmt: skip
    told = lambda: [repr(_Identity(__name__).of(value)) for value in values]  # noqa: E731
    assert len(set(told())) == len(values) and told() == told()
    for known in (jnp.dot, jax.nn.softplus, jnp.tanh, np.sum, jax.lax.scan, np.random.Generator, threading.Thread):
        assert isinstance(_Identity(__name__).of(known), str)  # by their names, as ever


CLASSES = """
import collections
import functools
from typing import NamedTuple
import jax.numpy as jnp
import jcredit as jc

FACTOR = 7

class Pair(NamedTuple):
    a: int = 1
    def both(self):
        return self.a + 3

class Table(dict):
    def entry(self):
        return self["a"] + 4

class Kind:
    @classmethod
    def named(cls, x):
        return helper(x)

    @functools.cached_property
    def kept(self):
        return 6

def helper(x):
    return x + 5

@functools.wraps(jnp.tanh)
def wrapped(x):
    return FACTOR * jnp.tanh(x)

PAIR, TABLE, KIND = Pair(), Table(a=1), Kind()

@jc.estimator
def mine() -> jc.Estimator:
    used = PAIR, TABLE, KIND, wrapped
    return jc.broadcast().build()
"""


@pytest.mark.parametrize("old", ["self.a + 3", '["a"] + 4', "x + 5", "return 6", "FACTOR = 7"])
def test_methods_of_own_classes_are_followed_whatever_the_class_is_made_of(tmp_path, old):
    assert CLASSES.count(old) == 1
    before, after = (loaded(tmp_path, text).mine for text in (CLASSES, CLASSES.replace(old, f"{old}0")))
    assert before.source != after.source


ABSTRACT = """
import abc
import jcredit as jc

class Base(abc.ABC):
    @abc.abstractmethod
    def of(self, x): ...

class Mine(Base):
    def of(self, x):
        return x + 3

@jc.estimator
def mine() -> jc.Estimator:
    return jc.broadcast().build()._replace(tier=str(Mine().of(1)))
"""


def test_classes_with_abstract_methods_are_known_as_others_are(tmp_path):
    before, again, after = (loaded(tmp_path, text).mine for text in (ABSTRACT, ABSTRACT, ABSTRACT.replace("3", "4")))
    assert before.source == again.source != after.source


def test_a_traced_array_that_was_kept_is_no_identity(tmp_path):
    module = loaded(
        tmp_path, CLASSES.replace("used = PAIR", "used = KEPT, PAIR").replace("FACTOR =", "KEPT = []; FACTOR =")
    )
    jax.make_jaxpr(module.KEPT.append)(jnp.ones(3))
    with pytest.raises(jc.ConfigError, match=r"a traced array of shape \(3,\), which was kept in a global"):
        source_hash(module.mine.function)


def test_what_an_object_has_computed_and_keeps_is_no_part_of_it(tmp_path):
    module = loaded(tmp_path, CLASSES)
    before = _Identity("author").of(module.KIND)
    assert module.KIND.kept == 6 and _Identity("author").of(module.KIND) == before


def test_a_file_that_was_edited_since_it_was_imported_is_refused(tmp_path):
    module = loaded(tmp_path, CLASSES.replace("def mine", "def known") + CLASSES[CLASSES.index("@jc.est") :])
    known = module.mine().factory.source
    file = Path(module.__file__)
    file.write_text(file.read_text().replace("x + 5", "x + 6"))
    assert module.mine.source == known  # it was told before
    with pytest.raises(jc.ConfigError, match=r"author.py was edited since it was imported; start again"):
        module.known().described()
    assert loaded(tmp_path, file.read_text()).known().described()["source"]


def test_a_set_among_constants_has_no_order():
    program = """
        from jcredit.sources import _Identity
        print(_Identity("__main__").of(lambda x: x in {"a", "b", "c", "d"}))
    """
    told = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in "123"
    ]  # fmt: skip
    assert "'a', 'b', 'c', 'd'" in told[0] and len(set(told)) == 1


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


def test_the_error_that_own_parts_raise_keeps_its_name():
    # Keys of own parts, and what processes send each other, name it so; it need not be defined there.
    assert _Identity("author").of(jc.ConfigError) == "jcredit.parts.ConfigError"
    assert pickle.loads(pickle.dumps(jc.ConfigError)) is jc.ConfigError
