"""Parts of a run (estimators, rules, networks, tasks, trunks) and the settings each declares beside itself.

A factory is a function whose keyword parameters are its settings.  Decorated, it returns a ``Part`` when it is called:
the factory with its settings bound and checked, which a ``Config`` holds and the run builds.

    @jc.estimator
    def learned_feedback(directions: jc.Count = 4, epsilon: jc.Positive = 1e-2) -> jc.Estimator: ...

    jc.Config(credit=learned_feedback(directions=8))

The annotation says what a setting is: a **swept** number, which reaches the factory as a traced scalar, or a **static**
value, which decides the program (``jcredit.settings``); a ``Part`` is static, its numbers are traced: ``build`` it.
Positional-only parameters are no settings: the run hands them over (a network gets its ``Sizes``).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jcredit.functions import Function
from jcredit.settings import ConfigError, Kind, Setting, argument_docs, brief, declared, known
from jcredit.sources import array_digest


class Arrays(tuple):
    """Static arrays among settings (a data set), equal and hashed by their contents, which must not change any more."""

    @functools.cached_property  # read for every key of every run
    def digest(self) -> str:
        """Hash of dtypes, shapes and bytes."""
        return array_digest(self)

    @functools.cached_property  # a task is built again for every run and every trace
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the first array along all axes but the last, in float64."""
        axes = tuple(range(self[0].ndim - 1))
        return self[0].mean(axes, dtype=np.float64), self[0].std(axes, dtype=np.float64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arrays) and self.digest == other.digest

    def __ne__(self, other: object) -> bool:  # a tuple's own would compare arrays
        return not self == other

    def __hash__(self) -> int:
        return hash(self.digest)


Description = Literal["full", "static", "key"]


# --- factories and parts ----------------------------------------------------------------------------------------------


class Factory(Function):
    """A decorated factory: called, it returns a ``Part``; ``function`` is what was decorated.

    Attributes:
      kind: ``estimator``, ``rule``, ``network``, ``task`` or ``trunk``.
      function: (what the run hands over, /, **settings) -> what the part is.
      settings: the declared settings by name.
      given: how many arguments the run hands over.
      usual_network: of a task: the network it is given unless one is named.
    """

    def __init__(self, kind: str, function: Callable, usual_network: Part | None = None):
        super().__init__(kind, function)
        self.usual_network = usual_network
        hints = typing.get_type_hints(function, include_extras=True)
        docs = argument_docs(function.__doc__)
        self.settings: dict[str, Setting] = {}
        self.given = 0
        whole = inspect.signature(function)
        own = [p for p in whole.parameters.values() if p.kind is not p.POSITIONAL_ONLY]
        self.__signature__ = whole.replace(parameters=own, return_annotation=Part)  # for ``help`` and editors
        for name, parameter in whole.parameters.items():
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self.given += 1
                continue
            if name in (kind, "source"):
                raise TypeError(f"{self.name}: setting {name!r} would hide the {kind}'s own {name}; call it otherwise")
            if name not in hints or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                raise TypeError(f"{self.name}: setting {name!r} needs a type, such as jc.Count or jc.Positive")
            setting = declared(name, hints[name], parameter.default, docs.get(name, ""))
            if not _can_be_kept(setting):
                raise TypeError(
                    f"{self.name}: setting {name!r} of type {parameter.annotation} cannot be kept in a row; take a"
                    " number, bool, str, tuple, Literal of one type or another part, and choose functions by a name"
                )
            self.settings[name] = setting

    def __call__(self, *args: Any, **settings: Any) -> Part:
        """The part with these settings; the others have their defaults.

        Raises:
          ConfigError: an unknown setting, one without a value, or a bad value.
        """
        positional = dict(zip(self.settings, args, strict=False))
        if len(args) > len(self.settings):
            surplus, names = brief(args[len(self.settings)]), ", ".join(self.settings) or "none"
            raise ConfigError(f"{self.name}: {surplus} is one value too many; settings: {names}")
        if twice := sorted(positional.keys() & settings.keys()):
            raise ConfigError(f"{self.name}: setting {twice[0]!r} is given twice; give it once")
        given = positional | settings
        for name in given:
            known(f"{self.name}: setting", name, self.settings)
        missing = [s.name for s in self.settings.values() if s.default is inspect.Parameter.empty]
        if left_out := [name for name in missing if name not in given]:
            raise ConfigError(f"{self.name}: setting {left_out[0]!r} has no default; give it")
        return Part(self, tuple((s.name, s.checked(given.get(s.name, s.default))) for s in self.settings.values()))

    def __repr__(self) -> str:
        return f"<{self.kind} factory {self.name}>"


def _can_be_kept(setting: Setting) -> bool:
    """Whether the values of a setting can be checked, hashed and written down."""
    if setting.choices:
        return len({type(choice) for choice in setting.choices}) == 1
    kinds = setting.type if isinstance(setting.type, tuple) else (setting.type,)
    return all(kind in (bool, int, float, str, tuple, Part, Arrays, type(None)) for kind in kinds)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A factory with its settings bound.  Parts with equal names, sources and settings are equal.

    Attributes:
      factory: what makes it.
      bound: its settings, by name.
      samples: of an own task in a sweep: hash of the samples it is built with, which a file may hold.
    """

    factory: Factory
    bound: tuple[tuple[str, Any], ...]
    samples: str = ""

    def with_samples(self) -> Part:
        """An own task that knows the samples it is built with; itself where settings and source tell them.

        They do where samples are drawn from a run's key; of those in a folder that a run hands over ``Task.origin``
        tells.
        """
        if self.kind != "task" or self.factory.source is None or self.factory.given:
            return self
        try:
            data = self.build().data
        except Exception:  # whatever it is, it is said where the run is made
            return self
        return self if callable(data) else dataclasses.replace(self, samples=array_digest(jax.tree.leaves(data)))

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
        # No setting can be called "its samples".
        samples = {"its samples": self.samples} if how == "key" and self.samples else {}
        chosen = {name: value for name, value in self.bound if how != "key" or not self._is_as_before(name, value)}
        settings = {name: self._plain(name, value, how) for name, value in chosen.items()}
        return {**self.factory.identity(), **samples, **settings}

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
            f"{name}={f'<arrays {value.digest[:8]}>' if isinstance(value, Arrays) else repr(value)}"
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


def estimator(function: Callable, /) -> Factory:
    """Declares a factory of an ``Estimator``: (**settings) -> Estimator; ``@jc.estimator``, no parentheses."""
    return Factory("estimator", function)


def rule(function: Callable, /) -> Factory:
    """Declares a factory of a ``LocalRule``: (**settings) -> LocalRule; ``@jc.rule``, no parentheses."""
    return Factory("rule", function)


def network(function: Callable, /) -> Factory:
    """Declares a factory of a ``Network``: (sizes, /, **settings) -> Network; ``@jc.network``, no parentheses."""
    return Factory("network", function)


def trunk(function: Callable, /) -> Factory:
    """Declares a factory of a ``Trunk``, the network inside an estimator: (**settings) -> Trunk; no parentheses."""
    return Factory("trunk", function)


def task(usual_network: Part) -> Callable[[Callable], Factory]:
    """Declares a factory of a ``Task``: (**settings) -> Task, and the network it is given unless one is named.

    Raises:
      TypeError: no network, as where the parentheses are left out.
    """
    if not isinstance(usual_network, Part) or usual_network.kind != "network":
        raise TypeError(
            f"@jc.task({brief(usual_network)}): name the network that it is usually given, as @jc.task(jc.image_mlp())"
        )
    return lambda function: Factory("task", function, usual_network)


def as_numbers(tree: Any) -> Any:
    """Python numbers of a (nested) dictionary as JAX scalars."""
    return jax.tree.map(lambda x: jnp.asarray(float(x)), tree)
