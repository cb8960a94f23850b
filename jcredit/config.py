"""One typed description of a run: its parts, how it is trained and measured; and what identifies it.

A *run* is one ``Config`` and one seed.  The parts (task, network, credit, rule) own their settings; see ``parts`` for
**swept numbers**, which reach the compiled program as traced scalars, and **static** settings, which decide it.
``epochs`` and ``diagnose_every`` are neither: they only set how often the programs of an epoch and of the scores are
called.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jcredit.estimators import bp
from jcredit.files import cause
from jcredit.numerics import unusual_numerics
from jcredit.parts import Description, Part, as_numbers, change_part
from jcredit.rules import Normalisation, inner_product
from jcredit.settings import (
    Added,
    ConfigError,
    Count,
    Fraction,
    NonNegative,
    Positive,
    Setting,
    Size,
    brief,
    fields_of,
    known,
)  # fmt: skip
from jcredit.tasks import teacher
from jcredit.types import Estimator, LocalRule

T = TypeVar("T")
PARTS = {"task": "task", "network": "network", "credit": "estimator", "rule": "rule"}
"""Which field of a ``Config`` holds which kind of part."""
BETWEEN_EPOCHS = ("epochs", "diagnose_every")
"""The fields that no compiled program knows."""
EXAMPLES = {
    "task": "jc.tasks.teacher()",
    "network": "jc.image_mlp()",
    "estimator": "jc.dfa()",
    "rule": "jc.inner_product()",
}


def _names_unknown_settings(cls: type[T]) -> type[T]:
    """Has ``Config(...)`` name the nearest setting to one that is unknown, as ``replace`` does."""
    init = cls.__init__

    @functools.wraps(init)
    def checked(self, *args: Any, **given: Any) -> None:
        for name in given:
            if name not in settings():
                _say_whose(name, cls(*args, **{n: value for n, value in given.items() if n in settings()}))
        init(self, *args, **given)

    cls.__init__ = checked
    return cls


def _say_whose(name: str, config: Any) -> NoReturn:
    """Refuses a setting that is none of ``Config``'s own, and says where it belongs."""
    if name in ("seed", "seeds"):
        raise ConfigError(f"{name} is no setting: give seeds to the sweep, as in jc.sweep(configs, seeds=[1])")
    if paths := paths_of(config, name):
        part = paths[0].rpartition(".")[0]
        plain = name.isidentifier() and len(paths) == 1
        how = f"replace({name}=...)" if plain else f"replace(**{{{paths[0]!r}: ...}})"
        raise ConfigError(f"setting {name!r} is one of {part}'s: give it to the factory there, or Config(...).{how}")
    known("setting", name, settings())
    raise AssertionError(f"{name} is known")


@_names_unknown_settings
@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run except its seed.  Defaults are jcredit's own (raw credit, no clipping)."""

    task: Part = teacher()  # noqa: RUF009
    """Which problem."""
    network: Part = None  # type: ignore[assignment]
    """Which residual network (None: the one the task is usually given)."""
    credit: Part = bp()  # noqa: RUF009
    """Where the credit comes from: an estimator."""
    rule: Part = inner_product()  # noqa: RUF009
    """Local objective that turns a credit into a gradient of one block's parameters."""

    # how the network is trained
    epochs: Count = 10
    """Passes over the training data (or blocks of ``steps_per_epoch`` steps)."""
    steps_per_epoch: Size = 0
    """Optimiser steps in an epoch (0: training samples // batch size)."""
    batch_size: Count = 128
    """Samples per step B."""
    learning_rate: Positive = 1e-3
    """Adam's step size for network parameters."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    schedule: Literal["constant", "cosine", "warmup_cosine"] = "constant"
    """Learning-rate schedule of the network, over the whole run (warmup_cosine: linear from 0 over its first tenth)."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the network's parameters (the estimator brings its own)."""
    trains: Literal["network", "readout", "nothing"] = "network"
    """What of the network is trained (toy LQ and studies on frozen features: nothing)."""
    train_embedding: bool = True
    """Whether a_0 trains the embedding."""
    estimator_steps: Annotated[Count, Added(1)] = 1
    """Optimiser steps of the estimator for one of the network, on the same batch with fresh noise."""

    # how credit is spent
    normalise: Normalisation = "raw"
    """Credit scale: as it is, per-sample RMS (the study's), or one scale per layer for the whole batch."""
    clip: NonNegative = 0.0
    """Global-norm clip of each block's gradient, and of the embedding's (0: off; the study's, here 1, is not known)."""
    clamp: NonNegative = 0.0
    """Element-wise clamp of the same gradients, before the clip (0: off; phase 6A: 1)."""
    state_penalty: NonNegative = 0.0
    """lam of a local term lam h_l added to the credit, which keeps hidden states from growing."""
    warmup_ratio: Fraction = 0.0
    """Fraction of training in which blocks take DFA's credit while the estimator already learns."""

    # measurement
    rho_epsilon: Positive = 1e-3
    """Size of the study's forward difference, with which rho is measured beside the exact one."""
    nudge_eta: Positive = 1e-2
    """Step of the nudging test."""
    diagnostic_samples: Count = 256
    """Evaluation samples on which credit is scored."""
    diagnose_every: Count = 5
    """Epochs between credit scores on the curves (the last epoch always is scored)."""

    def __post_init__(self):
        for name, setting in settings().items():
            value = getattr(self, name)
            if name == "network" and value is None and isinstance(self.task, Part):
                value = self.task.factory.usual_network
            if name in PARTS and not (isinstance(value, Part) and value.kind == PARTS[name]):
                kind = PARTS[name]
                found = getattr(value, "kind", None)
                mend = "call its factory" if found == kind else f"give one, such as {EXAMPLES[kind]}"
                if isinstance(value, Part) and found in PARTS.values():
                    field = next(field for field, its in PARTS.items() if its == found)
                    mend = f"{found}s are given as {field}=; {mend}"
                raise ConfigError(f"{name}={brief(value)} is no {kind}; {mend}")
            object.__setattr__(self, name, value if name in PARTS else setting.checked(value))
        estimator = self.credit.build()
        if not isinstance(estimator, Estimator):
            raise ConfigError(f"credit={self.credit!r}: its factory must return a jc.Estimator")
        if not hasattr(estimator.optimizer, "update"):
            given = brief(estimator.optimizer)
            raise ConfigError(f"credit={self.credit!r}: optimizer={given} is none of optax; give one as jc.adam(1e-3)")
        if not isinstance(rule := self.rule.build(), LocalRule):
            raise ConfigError(f"rule={self.rule!r}: its factory must return a jc.LocalRule, not {brief(rule)}")
        if not isinstance(tier := estimator.tier, str):
            raise ConfigError(f"credit={self.credit!r}: tier={tier!r} must be a text, which tables print")
        credit_depth(self)

    def replace(self, **changes: Any) -> Config:
        """The configuration with settings changed: own fields, or dotted paths such as ``{"credit.sigma": 0.1}``.

        The task comes first, then the other parts, then settings of parts, whatever the order.  A network that is the
        old task's usual one gives way to the new task's, unless a network is named here too.

        Raises:
          ConfigError: an unknown setting or a value that cannot run.
        """
        config = self
        for path, value in parts_first(changes.items()):
            config = change(config, path, value)
        return config

    @functools.cached_property
    def as_read(self) -> Config:
        """The configuration with every field that the run does not read at its default.

        Runs are built from this form, so what is not in it cannot matter: without a learning estimator there is no
        warm-up and no step of its own, without blocks that train no rule and no scale of the credit.
        """
        estimator: Estimator = self.credit.build()
        unread: list[str] = []
        if self.trains != "network" or not estimator.trains_blocks:
            unread += ["rule", "normalise", "clip", "clamp", "state_penalty", "train_embedding", "warmup_ratio"]
        if self.trains == "nothing":
            unread += ["learning_rate", "weight_decay", "schedule", "optimizer"]
        if estimator.loss is None:
            unread += ["warmup_ratio", "estimator_steps"]
        return dataclasses.replace(self, **{name: settings()[name].default for name in unread})


@functools.cache
def settings() -> dict[str, Setting]:
    """The fields of ``Config`` as settings; their documentation is the text below each."""
    body = ast.parse(inspect.getsource(Config)).body[0].body  # type: ignore[attr-defined]
    docs = {
        field.target.id: text.value.value  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    return fields_of(Config, docs)


# help(jc.Config) sees no text below a field.
_FIELDS = (f"  {name}: {setting.doc.rstrip('.')}." for name, setting in settings().items())
Config.__doc__ = "\n".join((f"{Config.__doc__}\n\nAttributes:", *_FIELDS))

# --- settings by name -------------------------------------------------------------------------------------------------


def parts_of(config: Config) -> Iterator[tuple[str, Part]]:
    """Every part of a configuration with its dotted path, those inside others too."""
    for name in PARTS:
        yield from getattr(config, name).walk(name)


def paths_of(config: Config, name: str) -> list[str]:
    """The paths a name stands for: a field of ``Config``, a dotted path, or the setting of that name in any part.

    A path that leads to a setting stands for that one alone; one that does not, for those of its name further inside.
    """
    if name in settings():
        return [name]
    head, _, last = name.rpartition(".")
    owners = [path for path, part in parts_of(config) if last in part.factory.settings]
    if head in owners:
        return [name]
    return [f"{path}.{last}" for path in owners if not head or path.startswith(f"{head}.")]


def parts_first(changes: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Changes in the order in which none undoes another: a part takes the place of an earlier one with its settings."""

    def place(named: tuple[str, Any]) -> tuple[bool, bool, bool, int]:
        name, value = named
        return name != "task", name not in PARTS, not isinstance(value, Part), name.count(".")

    return sorted(changes, key=place)


def change(config: Config, name: str, value: Any) -> Config:
    """The configuration with one setting changed, wherever ``paths_of`` finds it; texts stand for their values.

    Raises:
      ConfigError: no such setting, one of several parts (but task and network, and a part and those inside it, are
        changed together), or a value that cannot run.
    """
    paths = paths_of(config, name)
    if not paths:
        names = [*settings(), *(f"{path}.{s}" for path, part in parts_of(config) for s in part.factory.settings)]
        known("setting", name, names)
    if len(owners := {path.partition(".")[0] for path in paths}) > 1 and not owners <= {"task", "network"}:
        raise ConfigError(f"{name} is a setting of more than one part; say which: {' or '.join(paths)}")
    for path in paths:
        head, _, rest = path.partition(".")
        if rest:
            new = change_part(getattr(config, head), rest, value)
        else:
            new = settings()[head].parsed(value) if isinstance(value, str) and head not in PARTS else value
        gives_way = path == "task" and config.network == config.task.factory.usual_network
        fresh = {"network": None} if gives_way else {}
        config = dataclasses.replace(config, **{head: new, **fresh})
    return config


# --- what identifies a run, and what decides its program --------------------------------------------------------------


def described(config: Config, how: Description = "full") -> dict[str, Any]:
    """The configuration as plain JSON values; ``how`` as in ``Part.described``."""

    def plain(name: str) -> Any:
        value = getattr(config, name)
        if isinstance(value, Part):
            return value.described(how)
        return None if how == "static" and settings()[name].swept else value

    added = {name: setting.added for name, setting in settings().items() if setting.added is not None}
    as_before = [name for name, mark in added.items() if how == "key" and getattr(config, name) == mark.value]
    return {name: plain(name) for name in settings() if name not in as_before}


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits that identify what a run reads (with the seed, the key of a run).

    Options of JAX that decide bits, such as float64, count where they are not what they are by default.
    """
    own = described(config.as_read, "key")
    changed = unusual_numerics()
    return digest([own, changed] if changed else own)


def static_key(config: Config) -> str:
    """What decides the compiled program: runs with equal keys share one."""
    return json.dumps({k: v for k, v in described(config.as_read, "static").items() if k not in BETWEEN_EPOCHS})


def static_difference(one: Config, other: Config) -> str:
    """The path of the first setting in which two programs differ, with both values; "" where there is none."""
    return _difference(described(one.as_read, "static"), described(other.as_read, "static"), "")


def _difference(one: Any, other: Any, path: str) -> str:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in [*one, *(name for name in other if name not in one)]:
            at = f"{path}.{name}" if path else name
            if at not in BETWEEN_EPOCHS and (found := _difference(one.get(name), other.get(name), at)):
                return found
        return ""
    return "" if one == other else f"{path}={brief(other)} where the run has {brief(one)}"


def digest(value: Any) -> str:
    """Twelve hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def credit_depth(config: Config) -> int | None:
    """The sequential depth of the configuration's credit (``Estimator.depth``); None where it is not stated.

    A network says its L by a setting called ``depth``, as all of ours do; where it has none, a depth that grows with L
    is not stated either.

    Raises:
      ConfigError: a depth that is no whole number, or a function that fails.
    """
    estimator: Estimator = config.credit.build()
    depth, of_blocks = estimator.depth, ""
    if callable(depth):
        inside = (part.settings for _, part in config.network.walk("network"))
        blocks = next((settings["depth"] for settings in inside if "depth" in settings), None)
        try:
            depth, of_blocks = None if blocks is None else depth(blocks), f" for L = {blocks}"
        except Exception as error:
            raise ConfigError(f"credit={config.credit!r}: its depth fails for L = {blocks} ({cause(error)})") from error
    if isinstance(depth, np.integer):
        depth = int(depth)
    if depth is None or type(depth) is int:
        return depth
    raise ConfigError(
        f"credit={config.credit!r}: depth={depth!r}{of_blocks} must be a whole number, or a function of L that gives"
        " one"
    )


# --- the numbers a program is handed ----------------------------------------------------------------------------------


class Hparams(NamedTuple):
    """The swept numbers of a run as traced scalars: those of each part by name, those of ``Config``, and the steps.

    ``total_steps`` fixes schedule and warm-up.
    """

    task: Mapping[str, Any]
    network: Mapping[str, Any]
    credit: Mapping[str, Any]
    rule: Mapping[str, Any]
    learning_rate: jax.Array
    weight_decay: jax.Array
    clip: jax.Array
    clamp: jax.Array
    state_penalty: jax.Array
    warmup_ratio: jax.Array
    rho_epsilon: jax.Array
    nudge_eta: jax.Array
    total_steps: jax.Array


def hparams(config: Config, total_steps: int) -> Hparams:
    """The traced numbers of ``config`` for a run of ``total_steps`` steps."""
    config = config.as_read
    own: dict[str, Any] = {n: jnp.asarray(float(getattr(config, n))) for n, s in settings().items() if s.swept}
    inside: dict[str, Any] = {name: as_numbers(getattr(config, name).numbers()) for name in PARTS}
    return Hparams(**inside, **own, total_steps=jnp.asarray(float(total_steps)))
