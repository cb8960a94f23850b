"""THE shared functional training step: every experiment, estimator and rule goes through ``make_run``.

``make_run(config)`` returns pure functions of (state, hp, data).  Jit, map, vmap and shard them as you like:

    config = jc.Config(credit=jc.dfa(), learning_rate=3e-3)
    run = jc.make_run(config)
    key, hp = jax.random.key(0), run.hparams(config)
    data, state = run.data(key, hp), run.init(key, hp)
    state, metrics = jax.jit(run.epoch)(state, hp, data)

What the step and the measurements of a run share, its forward pass and its credit, is ``observing``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jcredit.config import Config, ConfigError, Hparams, hparams, static_difference
from jcredit.measuring import diagnose, evaluate
from jcredit.numerics import clamp, clip_by_norm, float_type, in_full_precision
from jcredit.observing import (
    WARMUP_CREDIT,
    Built,
    Metrics,
    Seen,
    Setup,
    credit_of,
    estimator_loss,
    observe,
    shapes_of,
    spent_credit,
)
from jcredit.parts import Part
from jcredit.rules import local_gradients
from jcredit.settings import brief
from jcredit.types import (
    Array,
    Context,
    Data,
    EstState,
    Key,
    Task,
    TrainState,
)  # fmt: skip

ADAM = optax.scale_by_adam()
RAMP = 0.1  # fraction of a run over which the rate of schedule="warmup_cosine" rises from zero


class Run(NamedTuple):
    """One configuration as pure functions; shapes and program are fixed, swept numbers arrive in ``hp``.

    Attributes:
      hparams: Config -> Hparams (its swept numbers and total steps); the Config may differ in these and in epochs.
      data: (key, hp) -> Data; the same for all keys and numbers where ``shared_data``.
      init: (key, hp) -> TrainState.
      step: (state, hp, data, index_B) -> (state, metrics); metrics are scalars of this batch.
      epoch: (state, hp, data) -> (state, metrics averaged over the epoch), a scan over ``step``.
      evaluate: (state, hp, data) -> test_loss (nats) and, for classification, test_accuracy; without process noise.
      diagnose: (state, hp, data) -> {"metrics": scalars, "layers": arrays over layers}.
      credit: (state, hp, x_B as the network takes it, target_B, key) -> (Context, a_KxBxD), for followups.
      built: hp -> Built, the parts themselves.
      config: the configuration, with what it does not read at its default.
      shared_data: whether all runs share one Data: that of a task that stores some which hang on no swept number.
      steps_per_epoch: optimiser steps in an epoch.
      tier: the estimator's information tier.
      origin: hash of the data set that the task was read from (``Task.origin``).
    """

    hparams: Callable[[Config], Hparams]
    data: Callable[[Key, Hparams], Data]
    init: Callable[[Key, Hparams], TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    epoch: Callable[..., tuple[TrainState, Metrics]]
    evaluate: Callable[..., Metrics]
    diagnose: Callable[..., dict[str, Metrics]]
    credit: Callable[..., tuple[Context, Array]]
    built: Callable[[Hparams], Built]
    config: Config
    shared_data: bool
    steps_per_epoch: int
    tier: str
    origin: str


def make_run(config: Config, *, data_dir: str | Path | None = None) -> Run:
    """Builds the pure functions of one run.

    Args:
      config: the run; its swept numbers are ignored here and come with ``hp``.
      data_dir: folder with prepared image data (default: ``TFDS_DATA_DIR``, else tfds downloads).

    Raises:
      ConfigError: no ``Config``, or sizes that do not fit the data.
      DataError: image data that can neither be found nor downloaded.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"make_run({brief(config)}): give a jc.Config, such as jc.Config(credit=jc.dfa())")
    config, data_dir = config.as_read, None if data_dir is None else Path(data_dir)
    task: Task = config.task.build(data_dir)
    if not isinstance(task, Task):
        raise ConfigError(f"task={config.task!r}: its factory must return a jc.Task, not {brief(task)}")
    samples = config.batch_size * config.steps_per_epoch if task.train_size is None else task.train_size
    steps = config.steps_per_epoch or samples // config.batch_size
    if task.train_size is None and steps < 1:
        raise ConfigError(
            f"steps_per_epoch={config.steps_per_epoch}: task {config.task.name} draws fresh samples in every step; say"
            " how many steps make an epoch"
        )
    if steps < 1 or steps * config.batch_size > samples:
        asked = f" with steps_per_epoch={config.steps_per_epoch}" if config.steps_per_epoch else ""
        lower = "one of them" if asked else "it"
        raise ConfigError(
            f"batch_size={config.batch_size}{asked} does not fit the {samples} training samples; lower {lower}"
        )
    setup = Setup(config, data_dir, config.credit.build(), samples, steps)

    def bind(function: Callable[..., Any], setup: Setup) -> Callable[..., Any]:
        return functools.partial(in_full_precision(function), setup)

    return Run(
        hparams=bind(_hparams, setup),
        data=bind(_data, setup),
        init=bind(_init, setup),
        step=bind(_step, setup),
        epoch=bind(_epoch, setup),
        evaluate=bind(evaluate, setup),
        diagnose=bind(diagnose, setup),
        credit=bind(_credit, setup),
        built=setup.built,
        config=config,
        shared_data=isinstance(task.data, Data) and not _hangs_on_numbers(config.task, data_dir),
        steps_per_epoch=steps,
        tier=setup.estimator.tier,
        origin=task.origin,
    )


def _hangs_on_numbers(task: Part, data_dir: Path | None) -> bool:
    """Whether stored samples are computed from a task's swept numbers, by tracing it."""
    leaves: list[Any] = []
    numbers = task.numbers()
    if numbers:
        jax.eval_shape(
            lambda traced: leaves.extend(jax.tree.leaves(task.build(data_dir, numbers=traced).data)), numbers
        )
    return any(isinstance(leaf, Tracer) for leaf in leaves)


def epoch_and_scores(run: Run) -> Callable[..., tuple[TrainState, Metrics]]:
    """(state, hp, data) -> (state, metrics of one epoch and of its evaluation): the program a sweep calls per epoch."""

    def advance(state: TrainState, hp: Hparams, data: Data):
        state, metrics = run.epoch(state, hp, data)
        return state, {**metrics, **run.evaluate(state, hp, data)}

    return advance


# --- the start --------------------------------------------------------------------------------------------------------


def _hparams(setup: Setup, config: Config) -> Hparams:
    if found := static_difference(setup.config, config):
        raise ConfigError(f"hparams: {found}, and that decides its program; make a run of its own")
    return hparams(config, setup.steps * config.epochs)


def _data(setup: Setup, key: Key, hp: Hparams) -> Data:
    task, network, *_ = setup.built(hp)
    if isinstance(task.data, Data):
        return jax.tree.map(jnp.asarray, task.data)
    return task.data(jax.random.fold_in(key, 1), network)


def _init(setup: Setup, key: Key, hp: Hparams) -> TrainState:
    task, network, estimator, _ = setup.built(hp)
    # The second key of the split was a projection's once; keeping it keeps the bits of committed rows.
    net_key, est_key, _, train_key = jax.random.split(jax.random.fold_in(key, 0), 4)
    params = network.init(net_key)
    shapes = shapes_of(network, params, task)
    # DFA and the warm-up take the same key, hence the same feedback matrices; heads of local losses start from it, too.
    est_state = estimator.init(est_key, shapes)
    if not isinstance(est_state, EstState):
        raise ConfigError(
            f"{setup.config.credit.name}: init returns a {type(est_state).__name__}; return jc.EstState(params=...,"
            " extra=...)"
        )
    return TrainState(
        params=params,
        opt_state=ADAM.init(params),
        est_state=est_state,
        est_opt_state=estimator.optimizer.init(est_state.params),
        warmup=WARMUP_CREDIT.init(est_key, shapes),
        step=jnp.zeros((), jnp.int32),
        key=train_key,
    )


def _credit(
    setup: Setup, state: TrainState, hp: Hparams, x_B: Array, target_B: Array, key: Key
) -> tuple[Context, Array]:
    built = setup.built(hp)
    noise_key, credit_key = jax.random.split(key)
    seen = observe(built, state.params, x_B, target_B, noise_key, built.estimator.oracle)
    return seen.ctx, credit_of(setup, built, state, seen, credit_key)


# --- learning ---------------------------------------------------------------------------------------------------------


@jax.named_scope("adam")
def _adam_step(params, grads, moments, learning_rate: Array, weight_decay: Array, sgd: bool):
    """AdamW (Loshchilov & Hutter 2019) with traced numbers; decay applies to every parameter, as the study's did."""
    direction, moments = (grads, moments) if sgd else ADAM.update(grads, moments, params)
    step = lambda p, d: p - learning_rate * (d + weight_decay * p)  # noqa: E731
    return jax.tree.map(step, params, direction), moments


def _learning_rate(setup: Setup, state: TrainState, hp: Hparams) -> Array:
    """The network's step size now."""
    if setup.config.schedule == "constant":
        return hp.learning_rate
    progress = jnp.minimum(state.step.astype(float_type()) / hp.total_steps, 1.0)  # steps beyond the run's are at 0
    if setup.config.schedule == "cosine":
        return hp.learning_rate * (0.5 * (1 + jnp.cos(jnp.pi * progress)))
    after = jnp.maximum(progress - RAMP, 0.0) / (1 - RAMP)
    return hp.learning_rate * jnp.minimum(progress / RAMP, 0.5 * (1 + jnp.cos(jnp.pi * after)))


@jax.named_scope("update")
def _learn_network(setup: Setup, built: Built, state: TrainState, hp: Hparams, seen: Seen, a_KxBxD: Array):
    config, params, ctx = setup.config, state.params, seen.ctx
    readout_loss = lambda p: jnp.mean(  # noqa: E731
        built.task.loss(built.network.readout(p, ctx.trace.h_KxBxD[-1]), ctx.target_B)
    )
    grads = jax.tree.map(jnp.zeros_like, params)._replace(readout=jax.grad(readout_loss)(params.readout))
    if setup.trains_blocks:
        embed, blocks = local_gradients(built.rule, ctx.trace, seen.pulls, spent_credit(config, a_KxBxD, ctx, hp))
        bound = lambda tree: clip_by_norm(clamp(tree, hp.clamp), hp.clip)  # noqa: E731
        grads = grads._replace(blocks=jax.vmap(bound)(blocks))
        grads = grads._replace(embed=bound(embed)) if config.train_embedding else grads
    rate = _learning_rate(setup, state, hp)
    new, moments = _adam_step(params, grads, state.opt_state, rate, hp.weight_decay, config.optimizer == "sgd")
    # What is not trained does not decay either.
    kept = new if setup.trains_blocks else params._replace(readout=new.readout)
    return kept if config.train_embedding else kept._replace(embed=params.embed), moments


def _asked_for(update: Callable, known: dict[str, Any]) -> dict[str, Any]:
    """What of ``known`` an optimizer's update takes beside the gradient: by name, or whatever it is given."""
    parameters = inspect.signature(update).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in known.items() if takes_all or name in parameters}


@jax.named_scope("estimator")
def _learn_estimator(setup: Setup, built: Built, state: TrainState, seen: Seen, key: Key) -> tuple[TrainState, Metrics]:
    estimator, extra = built.estimator, state.est_state.extra
    of_params = lambda p: estimator_loss(setup, estimator, EstState(p, extra), seen, key)  # noqa: E731
    (loss, metrics), grads = jax.value_and_grad(of_params, has_aux=True)(state.est_state.params)
    told = _asked_for(estimator.optimizer.update, {"value": loss, "grad": grads})
    updates, moments = estimator.optimizer.update(grads, state.est_opt_state, state.est_state.params, **told)
    fresh = EstState(optax.apply_updates(state.est_state.params, updates), extra)
    return state._replace(est_state=fresh, est_opt_state=moments), {"estimator_loss": loss, **metrics}


def _fit_estimator(setup: Setup, built: Built, state: TrainState, seen: Seen, key: Key) -> tuple[TrainState, Metrics]:
    """Takes the ``estimator_steps`` of one step; metrics are their means."""
    steps = setup.config.estimator_steps
    if steps == 1:  # with the key as it is: the bits of rows made before there could be more
        return _learn_estimator(setup, built, state, seen, key)
    learn = lambda s, k: _learn_estimator(setup, built, s, seen, k)  # noqa: E731
    state, metrics = jax.lax.scan(learn, state, jax.random.split(key, steps))
    return state, jax.tree.map(jnp.mean, metrics)


def _step(setup: Setup, state: TrainState, hp: Hparams, data: Data, index_B: Array) -> tuple[TrainState, Metrics]:
    built = setup.built(hp)
    task, estimator = built.task, built.estimator
    step_key = jax.random.fold_in(state.key, state.step)
    batch_key, noise_key, credit_key, loss_key = jax.random.split(step_key, 4)
    with jax.named_scope("batch"):
        x_B, target_B = task.batch(data, index_B, batch_key)
    seen = observe(built, state.params, x_B, target_B, noise_key, estimator.oracle)
    outputs_BxC = seen.ctx.trace.outputs_BxC
    metrics = {
        "train_loss": jnp.mean(task.loss(outputs_BxC, target_B)),
        "train_h_rms": jnp.sqrt(jnp.mean(seen.ctx.trace.h_KxBxD[-1] ** 2)),
    }
    if task.accuracy is not None:
        metrics["train_accuracy"] = jnp.mean(task.accuracy(outputs_BxC, target_B))
    new = state._replace(step=state.step + 1)
    if setup.config.trains != "nothing":
        a_KxBxD = credit_of(setup, built, state, seen, credit_key)
        if estimator.loss is not None:
            warm = state.step.astype(float_type()) < hp.warmup_ratio * hp.total_steps
            a_KxBxD = jnp.where(warm, WARMUP_CREDIT.credit(state.warmup, seen.ctx, seen.env, credit_key), a_KxBxD)
        params, moments = _learn_network(setup, built, state, hp, seen, a_KxBxD)
        new = new._replace(params=params, opt_state=moments)
        if estimator.follow is not None and setup.trains_blocks:
            keep = 1 - _learning_rate(setup, state, hp) * hp.weight_decay
            step = jax.tree.map(lambda after, p: after - keep * p, params.blocks, state.params.blocks)
            new = new._replace(est_state=estimator.follow(new.est_state, seen.env, step, keep))
    if estimator.loss is not None:
        new, learned = _fit_estimator(setup, built, new, seen, loss_key)
        metrics |= learned
    # A split's keys are those of 0, 1, ...: the fifth is none of the four above, nor any that a loss makes of its own.
    kept = estimator.update(new.est_state, seen.ctx, seen.env, jax.random.fold_in(step_key, 4))
    return new._replace(est_state=kept), metrics


def _epoch(setup: Setup, state: TrainState, hp: Hparams, data: Data) -> tuple[TrainState, Metrics]:
    size, steps = setup.config.batch_size, setup.steps
    stored = setup.built(hp).task.train_size is not None
    if stored and len(data.train_x) < setup.train_size:  # JAX would take the last ones again
        raise ConfigError(f"data have {len(data.train_x)} training samples, and this run's have {setup.train_size}")
    order = jax.random.permutation(jax.random.fold_in(state.key, -1 - state.step), setup.train_size)
    index_SxB = order[: steps * size].reshape(steps, size)
    state, metrics = jax.lax.scan(lambda s, index: _step(setup, s, hp, data, index), state, index_SxB)
    return state, jax.tree.map(jnp.mean, metrics)
