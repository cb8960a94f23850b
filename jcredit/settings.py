"""The settings that a part or a ``Config`` declares: the annotation of each says what it is.

**Swept** numbers (``Swept``, ``NonNegative``, ``Positive``, ``Fraction``) reach what declares them as traced scalars
inside the compiled program, as with ``optax.inject_hyperparams``: a sweep over them recompiles nothing and maps like a
seed.  All others are **static** and decide the program: ``Count``, ``Size``, ``int``, ``float``, ``bool``, ``str``,
``Literal``, and the parts and ``Arrays`` of ``jcredit.parts``.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the setting, the value and the fix."""

    __module__ = "jcredit.parts"  # the name it has in the keys of users' own parts that raise it (see ``sources``)


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


# --- what errors say --------------------------------------------------------------------------------------------------


SHORT = {
    "lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "seed": "seeds", "estimator": "credit",
    "n_layers": "depth", "layers": "depth", "dim": "width", "hidden_dim": "hidden", "model": "network",
    "dataset": "task", "optim": "optimizer", "n_epochs": "epochs", "num_epochs": "epochs",
}  # fmt: skip
"""What settings are called elsewhere, for hints."""


def brief(value: Any) -> str:
    """A value as an error shows it: on one line, and not without end."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python writes out
        return "<an integer of over 4300 digits>"
    return text if len(text) <= 120 else f"{text[:60]} ... {text[-20:]}"


def as_python(value: Any) -> Any:
    """A number of numpy's or jax's as Python's own; float32(1e-3) as 0.001, which is its shortest decimal."""
    if type(value) in (int, float) or not is_scalar(value) or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return value  # of the last a random key
    number = np.asarray(value)
    return float(str(number[()])) if number.dtype in (np.float16, np.float32) else number.item()


def is_scalar(value: Any) -> bool:
    """Whether it is an array of numpy's or jax's without axes."""
    return isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0


def known(what: str, name: str, names: Any) -> None:
    """Raises ConfigError unless ``name`` is one of ``names``; the message has the nearest one."""
    if name in names:
        return
    near = nearest(str(name), names)
    hint = f"did you mean {near!r}?" if near else f"choose one of: {', '.join(names) or '(none)'}"
    raise ConfigError(f"{what} {brief(name)} is unknown; {hint}")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like another, if any is; of dotted names the last parts are compared, and the rest is kept."""
    head, last = _dotted(name)
    parts = [(*_dotted(other), other) for other in names]
    pool = {tail: other for before, tail, other in parts if not head or before == head or before.endswith(f".{head}")}
    if (usual := SHORT.get(last.lower())) in pool:
        return pool[usual]
    near = difflib.get_close_matches(last, pool, n=1, cutoff=0.7)
    return pool[near[0]] if near else None


def _dotted(name: str) -> tuple[str, str]:
    """What is before the last dot of a path of settings, and what is after it."""
    before, _, last = name.rpartition(".") if all(part.isidentifier() for part in name.split(".")) else ("", "", name)
    return before, last


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
        if choices := self.choices:
            same = isinstance(value, type(choices[0])) and isinstance(value, bool) == isinstance(choices[0], bool)
            if not same or value not in choices:
                raise ConfigError(f"{name}={brief(value)} is unknown; choose one of: {', '.join(map(str, choices))}")
        elif kind is bool:
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={brief(value)} must be True or False")
        elif kind in (int, float):
            return self._number(value)
        elif not isinstance(value, kind):
            wanted = getattr(kind, "__name__", str(kind))
            raise ConfigError(f"{name}={brief(value)} must be of type {wanted}{'; call its factory' * callable(value)}")
        elif self.kind is not None and value is not None and value.kind != self.kind.name:
            raise ConfigError(f"{name}={value!r} is no {self.kind.name} but a part of kind {value.kind}")
        of_tuples = kind is tuple or (isinstance(kind, tuple) and tuple in kind)
        return self._inside(value) if of_tuples and isinstance(value, tuple) else value

    def _inside(self, value: Any) -> Any:
        """What a tuple holds, as it can be hashed and written down."""
        if isinstance(value, tuple):
            inside, make = map(self._inside, value), getattr(value, "_make", tuple)  # of a NamedTuple, or plain
            return make(inside)
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ConfigError(f"{self.name} holds {brief(value)}; give a tuple of numbers, texts, None or such tuples")

    def _number(self, value: Any, text: str | None = None) -> int | float:
        """The number, checked; where it was typed, errors have the text."""
        value = as_python(value)
        if isinstance(value, bool) or not isinstance(value, int if self.type is int else int | float):
            raise ConfigError(f"{self.name}={brief(value)} must be a{'n integer' if self.type is int else ' number'}")
        if complaint := self._complaint(value):
            raise ConfigError(f"{self.name}={brief(value) if text is None else brief(text)[1:-1]} {complaint}")
        return float(value) + 0.0 if self.type is float else value  # -0.0 is 0.0

    def _complaint(self, value: int | float) -> str | None:
        """What is wrong with a number, if anything is."""
        bound = self.bound
        if self.type is float and not abs(value) <= LARGEST:  # nan too; whole numbers of any length compare
            return "is not finite in float32; give an ordinary number"
        if self.type is float and 0 < abs(value) < SMALLEST:
            return f"is zero in float32; give 0 or at least {SMALLEST:.2g} in size"
        if self.type is int and abs(value) > LARGEST_INTEGER:
            return f"is too large; give at most {LARGEST_INTEGER}"
        if bound.low == 0 and bound.high == 1 and not 0 <= value <= 1:
            return "must lie between 0 and 1"
        if value < bound.low or value > bound.high or (bound.open and value == bound.low):
            positive = bound.open or bound.low == 1
            least = "zero or more" if bound.low == 0 else f"at least {bound.low}"
            return f"must be {'positive' if positive else least}"
        return None

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
            value = self.type(text) if self.type in (int, float) else text
        except (ValueError, OverflowError):
            kind = "an integer" if self.type is int else "a number"
            raise ConfigError(f"{self.name}={brief(text)} must be {kind}") from None
        if self.type in (int, float):
            return self._number(value, text)
        if self.type is not str:
            raise ConfigError(f"{self.name}={brief(text)} must be set from Python")
        return self.checked(text)


def declared(name: str, annotation: Any, default: Any, doc: str) -> Setting:
    """The setting that a parameter or field of this annotation and default declares."""
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
    if get_origin(annotation) is tuple:
        annotation = tuple  # what it holds is the factory's to check
    return Setting(name, annotation, bound, default, doc, added, part)


def argument_docs(doc: str | None) -> dict[str, str]:
    """The ``Args:`` section of a docstring, {name: text on one line}."""
    section = re.search(r"^ *Args:\n(.*?)(?:\n *\n|\Z)", inspect.cleandoc(doc or ""), re.S | re.M)
    lines = section[1] if section else ""
    return {name: " ".join(text.split()) for name, text in re.findall(r"^  (\w+): (.*(?:\n {3,}.*)*)", lines, re.M)}


def fields_of(cls: type, docs: Mapping[str, str]) -> dict[str, Setting]:
    """The settings a dataclass declares as fields, by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: declared(f.name, hints[f.name], f.default, docs.get(f.name, "")) for f in dataclasses.fields(cls)}
