"""Parts of a run (estimators, rules, networks, tasks, trunks) and the settings each declares beside itself.

A factory is a function whose keyword parameters are its settings.  Decorated, it returns a ``Part`` when it is called:
the factory with its settings bound and checked, which a ``Config`` holds and the run builds.

    @jc.estimator
    def learned_feedback(directions: jc.Count = 4, epsilon: jc.Positive = 1e-2) -> jc.Estimator: ...

    jc.Config(credit=learned_feedback(directions=8))

The annotation says what a setting is.  **Swept** numbers (``Swept``, ``NonNegative``, ``Positive``, ``Fraction``) reach
the factory as traced scalars inside the compiled program, as with ``optax.inject_hyperparams``: a sweep over them
recompiles nothing and maps like a seed.  All others are **static** and decide the program: ``Count``, ``Size``,
``int``, ``float``, ``bool``, ``str``, ``Literal``, ``Part`` (its numbers traced; ``build`` it) and ``Arrays``.
Positional-only parameters are no settings: the run hands them over (a network gets its ``Sizes``).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import re
import socket
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np

from jcredit.sources import array_digest, source_hash


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the setting, the value and the fix."""


LARGEST_INTEGER = 2**31 - 1
"""The largest whole number of a setting: arrays are indexed with int32."""
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Magnitudes between which float32 holds a number to full precision; below, compiled programs compute with zero."""


class Bound(NamedTuple):
    """The range of a number, and whether it is swept."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False  # whether ``low`` itself is excluded
    swept: bool = False


class Added(NamedTuple):
    """Marks a setting that was added later: at ``value`` the part does what it did before, and its key is the old one.

    ``sharpness: Annotated[Positive, Added(1.0)] = 1.0``: rows made before the setting existed stay those of today.
    """

    value: Any


class Kind(NamedTuple):
    """Marks a setting that is a part of this kind."""

    name: str


Number: TypeAlias = float | jax.Array
Swept: TypeAlias = Annotated[Number, Bound(swept=True)]
"""A swept number of any sign."""
NonNegative: TypeAlias = Annotated[Number, Bound(0, swept=True)]
"""A swept number, zero or more."""
Positive: TypeAlias = Annotated[Number, Bound(0, open=True, swept=True)]
"""A swept number above zero."""
Fraction: TypeAlias = Annotated[Number, Bound(0, 1, swept=True)]
"""A swept number from 0 to 1."""
Count: TypeAlias = Annotated[int, Bound(1)]
"""A static whole number from 1."""
Size: TypeAlias = Annotated[int, Bound(0)]
"""A static whole number from 0."""


class Arrays(tuple):
    """Static arrays among settings (a data set), equal and hashed by their contents, which must not change any more."""

    @functools.cached_property  # read for every key of every run
    def digest(self) -> str:
        """Hash of dtypes, shapes and bytes."""
        return array_digest(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arrays) and self.digest == other.digest

    def __ne__(self, other: object) -> bool:  # a tuple's own would compare arrays
        return not self == other

    def __hash__(self) -> int:
        return hash(self.digest)


Description = Literal["full", "static", "key"]


def brief(value: Any) -> str:
    """A value as an error shows it: on one line, and not without end."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python writes out
        return "<an integer of over 4300 digits>"
    return text if len(text) <= 120 else f"{text[:60]} ... {text[-20:]}"


# --- one setting ------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A setting as declared: its name, type, range, default and documentation."""

    name: str
    type: Any
    bound: Bound
    default: Any
    doc: str
    added: Added | None = None
    kind: Kind | None = None

    @property
    def swept(self) -> bool:
        """Whether its value is traced."""
        return self.bound.swept

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a ``Literal``; else none."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def metavar(self) -> str:
        """How the command line's help shows its values."""
        if self.choices:
            return "|".join(map(str, self.choices))
        return {bool: "true|false", int: "N", float: "X"}.get(self.type, "VALUE")

    def checked(self, value: Any) -> Any:
        """The value as it is kept.

        Raises:
          ConfigError: a value of another type or outside the range.
        """
        name, kind = self.name, self.type
        if self.choices:
            same = isinstance(value, type(self.choices[0])) and isinstance(value, bool) == isinstance(
                self.choices[0], bool
            )
            if not same or value not in self.choices:
                raise ConfigError(
                    f"{name}={brief(value)} is unknown; choose one of: {', '.join(map(str, self.choices))}"
                )
        elif kind is bool:
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={brief(value)} must be True or False")
        elif kind in (int, float):
            return self._number(value)
        elif isinstance(value, Part) and self.kind is not None and value.kind != self.kind.name:
            raise ConfigError(f"{name}={value!r} is no {self.kind.name} but a part of kind {value.kind}")
        elif not isinstance(value, kind):
            wanted = getattr(kind, "__name__", str(kind))
            raise ConfigError(f"{name}={brief(value)} must be of type {wanted}{'; call its factory' * callable(value)}")
        return value

    def _number(self, value: Any, text: str | None = None) -> int | float:
        """The number, checked; where it was typed, errors have the text."""
        bound = self.bound
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int if self.type is int else int | float):
            raise ConfigError(f"{self.name}={brief(value)} must be a{'n integer' if self.type is int else ' number'}")
        where = f"{self.name}={brief(value) if text is None else brief(text)[1:-1]}"
        if self.type is float and not abs(value) <= LARGEST:  # nan too; whole numbers of any length compare
            raise ConfigError(f"{where} is not finite in float32; give an ordinary number")
        if self.type is float and 0 < abs(value) < SMALLEST:
            raise ConfigError(f"{where} is zero in float32; give 0 or at least {SMALLEST:.2g} in size")
        if self.type is int and abs(value) > LARGEST_INTEGER:
            raise ConfigError(f"{where} is too large; give at most {LARGEST_INTEGER}")
        if bound.low == 0 and bound.high == 1 and not 0 <= value <= 1:
            raise ConfigError(f"{where} must lie between 0 and 1")
        if value < bound.low or value > bound.high or (bound.open and value == bound.low):
            positive = bound.open or bound.low == 1
            least = "zero or more" if bound.low == 0 else f"at least {bound.low}"
            raise ConfigError(f"{where} must be {'positive' if positive else least}")
        return float(value) + 0.0 if self.type is float else value  # -0.0 is 0.0

    def parsed(self, text: str) -> Any:
        """The value a text on a command line stands for.

        Raises:
          ConfigError: a text that is no such value.
        """
        if self.choices:
            return self.checked(next((c for c in self.choices if str(c) == text), text))
        if self.type is bool:
            if text.lower() not in ("true", "false"):
                raise ConfigError(f"{self.name}={brief(text)} must be true or false")
            return text.lower() == "true"
        try:
            return self._number(self.type(text), text) if self.type in (int, float) else self.checked(self.type(text))
        except ConfigError:
            raise
        except (ValueError, TypeError, OverflowError):
            kind = {int: "an integer", float: "a number"}.get(self.type, "set from Python")
            raise ConfigError(f"{self.name}={brief(text)} must be {kind}") from None


def _declared(name: str, annotation: Any, default: Any, doc: str) -> Setting:
    bound, added, part = Bound(), None, None
    if get_origin(annotation) is Annotated:
        annotation, *marks = get_args(annotation)
        bound = next((m for m in marks if isinstance(m, Bound)), bound)
        added = next((m for m in marks if isinstance(m, Added)), None)
        part = next((m for m in marks if isinstance(m, Kind)), None)
    if annotation == Number:
        annotation = float
    if get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = tuple(get_args(annotation))
    return Setting(name, annotation, bound, default, doc, added, part)


def _argument_docs(doc: str | None) -> dict[str, str]:
    """The ``Args:`` section of a docstring, {name: text on one line}."""
    section = re.search(r"^ *Args:\n(.*?)(?:\n *\n|\Z)", inspect.cleandoc(doc or ""), re.S | re.M)
    lines = section[1] if section else ""
    return {name: " ".join(text.split()) for name, text in re.findall(r"^  (\w+): (.*(?:\n {3,}.*)*)", lines, re.M)}


def fields_of(cls: type, docs: Mapping[str, str]) -> dict[str, Setting]:
    """The settings a dataclass declares as fields, by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: _declared(f.name, hints[f.name], f.default, docs.get(f.name, "")) for f in dataclasses.fields(cls)}


# --- factories and parts ----------------------------------------------------------------------------------------------


class Factory:
    """A decorated factory: called, it returns a ``Part``; ``function`` is what was decorated.

    Attributes:
      kind: ``estimator``, ``rule``, ``network``, ``task`` or ``trunk``.
      function: (what the run hands over, /, **settings) -> what the part is.
      settings: the declared settings by name.
      given: how many arguments the run hands over.
    """

    def __init__(self, kind: str, function: Callable):
        functools.update_wrapper(self, function)
        self.kind, self.function = kind, function
        hints = typing.get_type_hints(function, include_extras=True)
        docs = _argument_docs(function.__doc__)
        self.settings: dict[str, Setting] = {}
        self.given = 0
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self.given += 1
                continue
            if name not in hints or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                raise TypeError(f"{self.name}: setting {name!r} needs a type, such as jc.Count or jc.Positive")
            self.settings[name] = _declared(name, hints[name], parameter.default, docs.get(name, ""))

    @property
    def name(self) -> str:
        """The function's name for jcredit's own, with its module in front for anybody else's."""
        function = self.function
        ours = function.__module__.split(".")[0] == __name__.split(".")[0]
        return function.__name__ if ours else f"{function.__module__}.{function.__qualname__}"

    @functools.cached_property
    def source(self) -> str | None:
        """Hash of an own factory's source and of what it uses of its module; None for jcredit's own."""
        return None if self.name == self.function.__name__ else source_hash(self.function)

    def __call__(self, *args: Any, **settings: Any) -> Part:
        """The part with these settings; the others have their defaults.

        Raises:
          ConfigError: an unknown setting, one without a value, or a bad value.
        """
        positional = dict(zip(self.settings, args, strict=False))
        if len(args) > len(self.settings) or positional.keys() & settings.keys():
            raise ConfigError(f"{self.name}: settings are {', '.join(self.settings) or 'none'}; give each once")
        given = positional | settings
        for name in given:
            known(f"{self.name}: setting", name, self.settings)
        missing = [s.name for s in self.settings.values() if s.default is inspect.Parameter.empty]
        if left_out := [name for name in missing if name not in given]:
            raise ConfigError(f"{self.name}: setting {left_out[0]!r} has no default; give it")
        return Part(self, tuple((s.name, s.checked(given.get(s.name, s.default))) for s in self.settings.values()))

    def __repr__(self) -> str:
        return f"<{self.kind} factory {self.name}>"

    def __reduce__(self) -> tuple[Callable, tuple]:
        """By its name, for other processes, which import its module: from the folder it has here, if need be.

        Raises:
          ConfigError: no other process finds it: it is of ``__main__``, or made inside a function.
        """
        module, name = self.function.__module__, self.function.__qualname__
        loaded = sys.modules.get(module)
        if module == "__main__" or getattr(loaded, name, None) is not self:
            where = "the script that runs" if module == "__main__" else f"{module}, inside something else"
            raise ConfigError(
                f"{self.kind} {name} is defined in {where}, where other processes do not find it; move it to the top of"
                " a module and import it"
            )
        top = sys.modules[module.partition(".")[0]]
        found = getattr(top, "__file__", None)
        folder = str(Path(found).resolve().parents[1 if hasattr(top, "__path__") else 0]) if found else None
        return _named, (self.kind, module, name, None if self.source is None else folder, self.source)


def _named(kind: str, module: str, name: str, folder: str | None, source: str | None) -> Factory:
    """The factory that another process has sent by its name.

    Raises:
      ConfigError: it is not found, or another one than that process had.
    """
    try:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError:
            if folder is None or folder in sys.path:
                raise
            sys.path.append(folder)
            loaded = importlib.import_module(module)
    except Exception as error:  # whatever a user's module does
        raise ConfigError(
            f"{kind} {name}: module {module!r} cannot be imported on {socket.gethostname()}"
            f" ({type(error).__name__}: {error}); put its folder {folder} on the PYTHONPATH there"
        ) from None
    factory = getattr(loaded, name, None)
    if not isinstance(factory, Factory) or factory.kind != kind or factory.source != source:
        raise ConfigError(
            f"{kind} {name} of {getattr(loaded, '__file__', module)} on {socket.gethostname()} is not the one that was"
            " sent; give all processes the same file, and start them again after an edit"
        )
    return factory


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A factory with its settings bound.  Parts with equal names, sources and settings are equal."""

    factory: Factory
    bound: tuple[tuple[str, Any], ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name."""
        return dict(self.bound)

    @property
    def name(self) -> str:
        """The factory's name."""
        return self.factory.name

    @property
    def kind(self) -> str:
        """The factory's kind."""
        return self.factory.kind

    def replace(self, **settings: Any) -> Part:
        """The same part with some settings changed.

        Raises:
          ConfigError: an unknown setting or a bad value.
        """
        return self.factory(**{**self.settings, **settings})

    def numbers(self) -> dict[str, Any]:
        """The swept numbers, nested as the parts are; what the compiled program is handed."""
        own = {name: value for name, value in self.bound if self.factory.settings[name].swept}
        inner = {name: value.numbers() for name, value in self.bound if isinstance(value, Part)}
        return own | {name: numbers for name, numbers in inner.items() if numbers}

    def build(self, *given: Any, numbers: Mapping[str, Any] | None = None) -> Any:
        """What the factory makes, from its settings with these (traced) numbers in place of its own."""
        part = self if numbers is None else self._with_numbers(numbers)
        return self.factory.function(*given[: self.factory.given], **part.settings)

    def _with_numbers(self, numbers: Mapping[str, Any]) -> Part:
        def value_of(name: str, value: Any) -> Any:
            if isinstance(value, Part):
                return value._with_numbers(numbers.get(name, {}))
            return numbers[name] if self.factory.settings[name].swept else value

        return Part(self.factory, tuple((name, value_of(name, value)) for name, value in self.bound))

    def described(self, how: Description = "full") -> dict[str, Any]:
        """Plain JSON values that identify the part.

        Args:
          how: all settings; the ``static`` ones alone (values of swept numbers are None); or those that enter the
            ``key`` (without settings added later that change nothing).
        """
        source = {} if self.factory.source is None else {"source": self.factory.source}
        chosen = {name: value for name, value in self.bound if how != "key" or not self._is_as_before(name, value)}
        return {self.kind: self.name, **source, **{name: self._plain(name, v, how) for name, v in chosen.items()}}

    def _is_as_before(self, name: str, value: Any) -> bool:
        return (added := self.factory.settings[name].added) is not None and added.value == value

    def _plain(self, name: str, value: Any, how: Description) -> Any:
        if isinstance(value, Part):
            return value.described(how)
        if isinstance(value, Arrays):
            return f"sha256:{value.digest}"
        return None if how == "static" and self.factory.settings[name].swept else value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self.described() == other.described()

    def __hash__(self) -> int:
        return hash(repr(self.described()))

    def __repr__(self) -> str:
        changed = (
            f"{name}={'<arrays>' if isinstance(value, Arrays) else repr(value)}"
            for name, value in self.bound
            if value is not self.factory.settings[name].default and value != self.factory.settings[name].default
        )
        return f"{self.name}({', '.join(changed)})"

    def walk(self, path: str) -> Iterator[tuple[str, Part]]:
        """This part and those among its settings, each with its dotted path."""
        yield path, self
        for name, value in self.bound:
            if isinstance(value, Part):
                yield from value.walk(f"{path}.{name}")


EstimatorPart: TypeAlias = Annotated[Part, Kind("estimator")]
"""A setting that is an estimator."""
NetworkPart: TypeAlias = Annotated[Part, Kind("network")]
"""A setting that is a network."""
TrunkPart: TypeAlias = Annotated[Part, Kind("trunk")]
"""A setting that is a trunk."""


def change_part(part: Part, path: str, value: Any) -> Part:
    """The part with the setting at a path changed; the path is relative to it, texts stand for their values."""
    head, _, rest = path.partition(".")
    if rest:
        return part.replace(**{head: change_part(part.settings[head], rest, value)})
    return part.replace(**{head: part.factory.settings[head].parsed(value) if isinstance(value, str) else value})


def known(what: str, name: str, names: Any) -> None:
    """Raises ConfigError unless ``name`` is one of ``names``; the message has the nearest one."""
    if name in names:
        return
    near = difflib.get_close_matches(str(name), list(names), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(names) or '(none)'}"
    raise ConfigError(f"{what} {brief(name)} is unknown; {hint}")


def estimator(function: Callable) -> Factory:
    """Declares a factory of an ``Estimator``: (**settings) -> Estimator."""
    return Factory("estimator", function)


def rule(function: Callable) -> Factory:
    """Declares a factory of a ``LocalRule``: (**settings) -> LocalRule."""
    return Factory("rule", function)


def network(function: Callable) -> Factory:
    """Declares a factory of a ``Network``: (sizes, /, **settings) -> Network."""
    return Factory("network", function)


def trunk(function: Callable) -> Factory:
    """Declares a factory of a ``Trunk``, the network inside an estimator: (**settings) -> Trunk."""
    return Factory("trunk", function)


def task(usual_network: Part) -> Callable[[Callable], Factory]:
    """Declares a factory of a ``Task``: (**settings) -> Task, and the network it is given unless one is named."""

    def declare(function: Callable) -> Factory:
        factory = Factory("task", function)
        factory.usual_network = usual_network  # type: ignore[attr-defined]
        return factory

    return declare


def as_numbers(tree: Any) -> Any:
    """Python numbers of a (nested) dictionary as JAX scalars."""
    return jax.tree.map(lambda x: jnp.asarray(float(x)), tree)
