"""A forward pass of a run as its estimator sees it: what is handed to it, what it may ask, and the credit it gives.

A ``Setup`` is what is known of a run before anything is traced; training and measuring build the parts anew from it and
the traced numbers ``hp``, and look at the network through ``observe`` and ``credit_of`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcredit import diagnostics
from jcredit.config import Config, ConfigError, Hparams
from jcredit.estimators import dfa
from jcredit.files import OF_FOLLOWUPS
from jcredit.numerics import float_type
from jcredit.passes import NetworkEnv, Pulls, depth_of, forward_with_pulls, oracle_deltas
from jcredit.rules import normalise_credit
from jcredit.settings import brief
from jcredit.types import (
    Array,
    Context,
    Estimator,
    EstState,
    Key,
    LocalRule,
    NetParams,
    Network,
    OracleContext,
    Shapes,
    Task,
    Trace,
    TrainState,
)  # fmt: skip

OWN_METRICS = ("train_loss", "train_accuracy", "train_h_rms", "test_loss", "test_accuracy", "estimator_loss")
WARMUP_CREDIT: Estimator = dfa().build()
Metrics = dict[str, Array]


class Built(NamedTuple):
    """The parts of a run, built with (traced) numbers."""

    task: Task
    network: Network
    estimator: Estimator
    rule: LocalRule


class Setup(NamedTuple):
    """What is known of a run before anything is traced.

    Attributes:
      config: the configuration as it is read.
      data_dir: folder with prepared image data.
      estimator: the estimator at the configuration's own numbers, for its facts.
      train_size: samples that an epoch is drawn from.
      steps: optimiser steps in an epoch.
    """

    config: Config
    data_dir: Path | None
    estimator: Estimator
    train_size: int
    steps: int

    def built(self, hp: Hparams) -> Built:
        """The parts with the numbers of ``hp``."""
        config = self.config
        task: Task = config.task.build(self.data_dir, numbers=hp.task)
        network = config.network.build(task.sizes, numbers=hp.network)
        if not isinstance(network, Network):
            raise ConfigError(f"network={config.network!r}: its factory must return a jc.Network, not {brief(network)}")
        return Built(task, network, config.credit.build(numbers=hp.credit), config.rule.build(numbers=hp.rule))

    @property
    def trains_blocks(self) -> bool:
        """Whether blocks and embedding are trained."""
        return self.config.trains == "network" and self.estimator.trains_blocks


def shapes_of(network: Network, params: NetParams, task: Task) -> Shapes:
    """What an estimator is initialised with, from the network itself."""
    x = jax.ShapeDtypeStruct((1, *task.sizes.inputs), float_type())
    width = jax.eval_shape(network.embed, params.embed, x).shape[-1]
    return Shapes(depth_of(params), width, task.sizes.outputs, network.branch)


# Scopes name the parts of a step in profiles (``experiments/benchmark``).
@jax.named_scope("readout")
def make_context(task: Task, network: Network, params: NetParams, trace: Trace, target_B: Array) -> Context:
    """The trace of a forward pass, and everything local to the output layer."""
    total = lambda outputs: jnp.sum(task.loss(outputs, target_B))  # noqa: E731
    error_BxC = jax.grad(total)(trace.outputs_BxC)
    delta_BxD = jax.grad(lambda h: total(network.readout(params.readout, h)))(trace.h_KxBxD[-1])
    return Context(trace, target_B, error_BxC, delta_BxD)


def with_oracle(task: Task, network: Network, params: NetParams, ctx: Context, pulls: Pulls) -> OracleContext:
    """The context with delta_0..delta_L by back-propagation, for oracles and diagnostics."""
    return OracleContext(*ctx, oracle_deltas(network, task.loss, params, ctx.trace, ctx.target_B, pulls))


class Seen(NamedTuple):
    """One forward pass: what estimators see of it, what may be asked, and what training takes from it."""

    ctx: Context
    env: NetworkEnv
    pulls: Pulls


@jax.named_scope("forward")
def observe(built: Built, params: NetParams, x_B: Array, target_B: Array, key: Key, through_states: bool) -> Seen:
    """One forward pass of samples as the network takes them; ``through_states`` as in ``forward_with_pulls``."""
    task, network, *_ = built
    noise = None
    if task.noise is not None:
        width = jax.eval_shape(network.embed, params.embed, x_B).shape[-1]
        noise = task.noise(key, (depth_of(params), x_B.shape[0], width))
    trace, pulls = forward_with_pulls(network, params, x_B, noise, through_states=through_states)
    return Seen(make_context(task, network, params, trace, target_B), NetworkEnv(network, task.loss, params), pulls)


@jax.named_scope("credit")
def credit_of(setup: Setup, built: Built, state: TrainState, seen: Seen, key: Key) -> Array:
    """The estimator's a_0..a_L (L+1, B, D) for a forward pass.

    Raises:
      ConfigError: a credit of another shape or type.
    """
    estimator, ctx = built.estimator, seen.ctx
    view = with_oracle(built.task, built.network, state.params, ctx, seen.pulls) if estimator.oracle else ctx
    h_KxBxD, name = ctx.trace.h_KxBxD, setup.config.credit.name
    with _left_as_it_is(state.est_state, f"credit of {name}"):
        a_KxBxD = estimator.credit(state.est_state, view, seen.env, key)
    found = getattr(a_KxBxD, "shape", type(a_KxBxD).__name__)
    if found != h_KxBxD.shape:
        raise ConfigError(
            f"credit of {name} has shape {found}, not {h_KxBxD.shape}: give a_0..a_L, one for each hidden state"
        )
    if a_KxBxD.dtype != h_KxBxD.dtype:
        raise ConfigError(f"credit of {name} is of type {a_KxBxD.dtype}, hidden states are {h_KxBxD.dtype}: cast it")
    return a_KxBxD


def spent_credit(config: Config, a_KxBxD: Array, ctx: Context, hp: Hparams) -> Array:
    """Credit as the local rule takes it: scaled, and with the optional pull on the states."""
    return normalise_credit(a_KxBxD, config.normalise) + hp.state_penalty * ctx.trace.h_KxBxD


def estimator_loss(setup: Setup, estimator: Estimator, state: EstState, seen: Seen, key: Key) -> tuple[Array, Metrics]:
    """The estimator's loss and metrics.

    Raises:
      ConfigError: it returns something else, or a metric bears the name of a reported one.
    """
    assert estimator.loss is not None
    name = setup.config.credit.name
    with _left_as_it_is(state, f"loss of {name}"):
        found = estimator.loss(state, seen.ctx, seen.env, key)
    if not (isinstance(found, tuple) and len(found) == 2 and jnp.shape(found[0]) == () and isinstance(found[1], dict)):
        raise ConfigError(f"{name}: its loss returns {_kind(found)}; return (scalar, {{name: scalar}})")
    loss, metrics = found
    for metric, value in metrics.items():
        number = isinstance(value, jax.Array | np.ndarray | np.generic | float | int)
        if not isinstance(metric, str) or not number or jnp.shape(value) != ():
            raise ConfigError(f"loss of {name} returns a metric {metric!r} that is {_kind(value)}; give named scalars")
        if "." in metric:  # which leads into a row, in its tables
            raise ConfigError(f"loss of {name} returns a metric {metric!r}; name it without the point")
    reported = (*OWN_METRICS, *diagnostics.METRICS)
    if taken := [name for name in metrics if name in reported or f"test_{name}" in reported]:
        raise ConfigError(f"loss of {name} returns a metric {taken[0]!r}, which is a reported one")
    if taken := [name for name in metrics if name.startswith(OF_FOLLOWUPS)]:
        raise ConfigError(f"loss of {name} returns a metric {taken[0]!r}; {OF_FOLLOWUPS} begins what followups measure")
    return loss, metrics


@contextmanager
def _left_as_it_is(state: EstState, who: str) -> Iterator[None]:
    """Refuses what puts something else into a state that it is handed: training would keep it, and scores would not."""
    before = jax.tree.leaves(state)
    yield
    after = jax.tree.leaves(state)
    if len(before) != len(after) or any(old is not new for old, new in zip(before, after, strict=True)):
        raise ConfigError(
            f"{who} changes the state it is handed; return what is to be kept from the estimator's update"
        )


def _kind(found: Any) -> str:
    """A value in few words, for an error."""
    if isinstance(found, tuple):
        return f"({', '.join(map(_kind, found))})"
    return f"an array of shape {found.shape}" if isinstance(found, jax.Array) else f"a {type(found).__name__}"
