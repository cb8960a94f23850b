"""THE shared functional training step: every experiment, estimator and rule goes through ``make_run``.

``make_run(config)`` returns pure functions of (state, hp, data).  Jit, map, vmap and shard them as you like:

    run = make_run(Config(method="dfa"))
    key, hp = jax.random.key(0), run.hparams(Config(method="dfa", learning_rate=3e-3))
    data = run.data(key, hp)
    state = run.init(key, hp)
    state, metrics = jax.jit(run.epoch)(state, hp, data)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcredit import diagnostics
from jcredit.config import Config, ConfigError, Hparams, hparams
from jcredit.estimators import dfa, make_estimator
from jcredit.losses.rules import make_rule, normalise_credit
from jcredit.networks import Pulls, forward, forward_with_pulls, make_env, oracle_deltas
from jcredit.numerics import clamp, clip_by_norm, float_type
from jcredit.tasks import Data, Task, make_task
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
    Params,
    Shapes,
    Trace,
    TrainState,
)  # fmt: skip

EVALUATION_BATCH = 1000
ADAM = optax.scale_by_adam()


class Run(NamedTuple):
    """One configuration as pure functions; shapes and program are fixed, swept numbers arrive in ``hp``.

    Attributes:
      hparams: Config -> Hparams (its swept numbers and total steps).
      data: (key, hp) -> Data; the same for all keys where ``shared_data``.
      init: (key, hp) -> TrainState.
      step: (state, hp, data, index_B) -> (state, metrics); metrics are scalars of this batch.
      epoch: (state, hp, data) -> (state, metrics averaged over the epoch), a scan over ``step``.
      evaluate: (state, hp, data) -> test_loss (nats) and, for classification, test_accuracy.
      diagnose: (state, hp, data) -> {"metrics": scalars, "layers": arrays over layers}.
      credit: (state, hp, x_B as the network takes it, target_B, key) -> (Context, a_LxBxD), for measures of one's own.
      task: the task.
      shared_data: whether all runs share one Data.
      steps_per_epoch: optimiser steps in an epoch.
      tier: the estimator's information tier.
    """

    hparams: Callable[[Config], Hparams]
    data: Callable[[Key, Hparams], Data]
    init: Callable[[Key, Hparams], TrainState]
    step: Callable[..., tuple[TrainState, dict[str, Array]]]
    epoch: Callable[..., tuple[TrainState, dict[str, Array]]]
    evaluate: Callable[..., dict[str, Array]]
    diagnose: Callable[..., dict[str, dict[str, Array]]]
    credit: Callable[..., tuple[Context, Array]]
    task: Task
    shared_data: bool
    steps_per_epoch: int
    tier: str


def code_width(config: Config) -> int:
    """Width S of the conditioning code."""
    width = config.classes if config.code.startswith("eT") else config.width
    return width + (config.projection_dim if config.code.endswith("hL") else 0)


# Scopes name the parts of a step in profiles (``experiments/benchmark.py``).
@jax.named_scope("readout")
def make_context(
    config: Config, task: Task, network: Network, params: NetParams, projection_DxP: Array, trace: Trace, target_B
) -> Context:
    """The trace of a forward pass, and everything local to the output layer."""
    h_last = trace.h_LxBxD[-1]
    total = lambda outputs: jnp.sum(task.loss(outputs, target_B))  # noqa: E731
    error_BxC = jax.grad(total)(trace.outputs_BxC)
    delta_BxD = jax.grad(lambda h: total(network.readout(params.readout, h)))(h_last)
    code = error_BxC if config.code.startswith("eT") else delta_BxD
    if config.code.endswith("hL"):
        code = jnp.concatenate([code, h_last @ projection_DxP], axis=-1)
    return Context(trace, target_B, error_BxC, delta_BxD, code)


def with_oracle(task: Task, network: Network, params: NetParams, ctx: Context, pulls: Pulls) -> OracleContext:
    """The context with delta_0..delta_L by back-propagation, for oracles and diagnostics."""
    return OracleContext(*ctx, oracle_deltas(network, task.loss, params, ctx.trace, ctx.target_B, pulls))


def local_gradients(rule: LocalRule, trace: Trace, pulls: Pulls, a_LxBxD: Array) -> tuple[Params, Params]:
    """Gradients of the embedding (by a_0) and of all blocks (by a_1..a_L), each block seeing only itself."""

    def one(pull, h, after, a):
        return pull(rule.signal(h, after, rule.goal(h, after, a)))[0]

    h_LxBxD = trace.h_LxBxD
    after_LxBxD = h_LxBxD[1:] if trace.noise_LxBxD is None else h_LxBxD[1:] - trace.noise_LxBxD
    blocks = jax.vmap(one)(pulls.blocks, h_LxBxD[:-1], after_LxBxD, a_LxBxD[1:])
    # The embedding is a block that starts from nothing: its residual output is h_0 itself.
    with jax.named_scope("embedding"):
        return one(pulls.embed, jnp.zeros_like(h_LxBxD[0]), h_LxBxD[0], a_LxBxD[0]), blocks


@jax.named_scope("adam")
def _adam_step(params, grads, moments, learning_rate: Array, weight_decay: Array | float = 0.0, sgd: bool = False):
    """AdamW (Loshchilov & Hutter 2019) with traced numbers; decay applies to every parameter, as the study's did."""
    direction, moments = (grads, moments) if sgd else ADAM.update(grads, moments, params)
    step = lambda p, d: p - learning_rate * (d + weight_decay * p)  # noqa: E731
    return jax.tree.map(step, params, direction), moments


def make_run(
    config: Config,
    *,
    task: Task | None = None,
    estimator: Estimator | None = None,
    rule: Callable[[Hparams], LocalRule] | None = None,
    data_dir: str | Path | None = None,
) -> Run:
    """Builds the pure functions of one run.

    Args:
      config: the run; fields listed in ``SWEPT`` are ignored here and come with ``hp``.
      task: a task of one's own in place of ``config.task``.
      estimator: an estimator of one's own in place of ``config.method``.
      rule: a local rule of one's own in place of ``config.rule``, from the swept numbers.
      data_dir: folder with prepared image data.

    Raises:
      ConfigError: sizes that do not fit the data.
      DataError: image data that can neither be found nor downloaded.
    """
    task = make_task(config, data_dir) if task is None else task
    estimator = make_estimator(config) if estimator is None else estimator
    rule = (lambda hp: make_rule(config.rule, hp.shift_eta)) if rule is None else rule
    warmup = dfa()
    steps = config.steps_per_epoch or task.train_size // config.batch_size
    if steps < 1 or steps * config.batch_size > task.train_size:
        raise ConfigError(
            f"batch_size={config.batch_size} with steps_per_epoch={config.steps_per_epoch} does not fit the"
            f" {task.train_size} training samples; lower one of them"
        )
    trains_blocks = config.trains == "network" and config.method != "frozen"
    trains_readout = config.trains != "nothing"

    def init(key: Key, hp: Hparams) -> TrainState:
        network = task.network(hp)
        net_key, est_key, projection_key, train_key = jax.random.split(jax.random.fold_in(key, 0), 4)
        params = network.init(net_key)
        gate_width = _gate_width(network, params, config.width)
        shapes = Shapes(
            config.depth, config.width, config.classes, code_width(config), gate_width, network.branch_weights
        )
        # DFA and the warm-up take the same key, hence the same feedback matrices.
        est_state = estimator.init(est_key, shapes)
        scale = config.width**-0.5 if config.projection_scale == "fan_in" else 1.0
        projection = scale * jax.random.normal(projection_key, (config.width, config.projection_dim), float_type())
        return TrainState(
            params=params,
            optimizer=ADAM.init(params),
            estimator=est_state,
            estimator_optimizer=ADAM.init(est_state.params),
            warmup=warmup.init(est_key, shapes),
            projection_DxP=projection,
            step=jnp.zeros((), jnp.int32),
            key=train_key,
        )

    @jax.named_scope("forward")
    def observe(state: TrainState, hp: Hparams, network: Network, x_B, target_B, noise_key, through_states: bool):
        noise = None if task.noise is None else task.noise(noise_key, x_B.shape[0], hp)
        trace, pulls = forward_with_pulls(network, state.params, x_B, noise, through_states=through_states)
        return make_context(config, task, network, state.params, state.projection_DxP, trace, target_B), pulls

    @jax.named_scope("credit")
    def credit_of(state: TrainState, hp: Hparams, network: Network, ctx: Context, pulls: Pulls, env, key: Key) -> Array:
        view = with_oracle(task, network, state.params, ctx, pulls) if estimator.is_oracle else ctx
        return estimator.credit(state.estimator, view, env, hp, key)

    def spend(a_LxBxD: Array, ctx: Context, hp: Hparams) -> Array:
        """Credit as the local rule takes it: scaled, and with the optional pull on the states."""
        return normalise_credit(a_LxBxD, config.normalise) + hp.state_penalty * ctx.trace.h_LxBxD

    @jax.named_scope("update")
    def learn_network(state: TrainState, hp: Hparams, network: Network, ctx: Context, pulls: Pulls, a_LxBxD: Array):
        params = state.params
        readout_loss = lambda p: jnp.mean(  # noqa: E731
            task.loss(network.readout(p, ctx.trace.h_LxBxD[-1]), ctx.target_B)
        )
        grads = jax.tree.map(jnp.zeros_like, params)._replace(readout=jax.grad(readout_loss)(params.readout))
        if trains_blocks:
            embed, blocks = local_gradients(rule(hp), ctx.trace, pulls, spend(a_LxBxD, ctx, hp))
            bound = lambda tree: clip_by_norm(clamp(tree, hp.clamp), hp.clip)  # noqa: E731
            grads = grads._replace(blocks=jax.vmap(bound)(blocks))
            grads = grads._replace(embed=bound(embed)) if config.train_embedding else grads
        progress = state.step / hp.total_steps
        decay = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if config.schedule == "cosine" else 1.0
        new, moments = _adam_step(
            params, grads, state.optimizer, hp.learning_rate * decay, hp.weight_decay, config.optimizer == "sgd"
        )
        # What is not trained does not decay either.
        kept = new if trains_blocks else params._replace(readout=new.readout)
        return kept if config.train_embedding else kept._replace(embed=params.embed), moments

    @jax.named_scope("estimator")
    def learn_estimator(state: TrainState, hp: Hparams, ctx: Context, env, key: Key):
        assert estimator.loss is not None
        (loss, metrics), grads = jax.value_and_grad(estimator.loss, has_aux=True)(
            state.estimator.params, state.estimator, ctx, env, hp, key
        )
        grads = clip_by_norm(grads, hp.estimator_clip)
        params, moments = _adam_step(
            state.estimator.params, grads, state.estimator_optimizer, hp.estimator_learning_rate
        )
        fresh = estimator.update(EstState(params, state.estimator.extra), hp)
        return fresh, moments, {"estimator_loss": loss, **metrics}

    def step(state: TrainState, hp: Hparams, data: Data, index_B: Array) -> tuple[TrainState, dict[str, Array]]:
        network = task.network(hp)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
        with jax.named_scope("batch"):
            x_B, target_B = task.batch(data, index_B, keys[0])
        ctx, pulls = observe(state, hp, network, x_B, target_B, keys[1], estimator.is_oracle)
        env = make_env(network, task.loss, state.params)
        metrics = {"train_loss": jnp.mean(task.loss(ctx.trace.outputs_BxC, target_B))}
        if task.accuracy is not None:
            metrics["train_accuracy"] = jnp.mean(task.accuracy(ctx.trace.outputs_BxC, target_B))
        new = state._replace(step=state.step + 1)
        if trains_readout:
            a_LxBxD = credit_of(state, hp, network, ctx, pulls, env, keys[2])
            if estimator.loss is not None:
                warm = state.step < hp.warmup_ratio * hp.total_steps
                a_LxBxD = jnp.where(warm, warmup.credit(state.warmup, ctx, env, hp, keys[2]), a_LxBxD)
            params, moments = learn_network(state, hp, network, ctx, pulls, a_LxBxD)
            new = new._replace(params=params, optimizer=moments)
        if estimator.loss is not None:
            fresh, moments, est_metrics = learn_estimator(state, hp, ctx, env, keys[3])
            new = new._replace(estimator=fresh, estimator_optimizer=moments)
            metrics |= est_metrics
        return new, metrics

    def epoch(state: TrainState, hp: Hparams, data: Data) -> tuple[TrainState, dict[str, Array]]:
        order = jax.random.permutation(jax.random.fold_in(state.key, -1 - state.step), task.train_size)
        index_SxB = order[: steps * config.batch_size].reshape(steps, config.batch_size)
        state, metrics = jax.lax.scan(lambda s, index: step(s, hp, data, index), state, index_SxB)
        return state, jax.tree.map(jnp.mean, metrics)

    def evaluate(state: TrainState, hp: Hparams, data: Data) -> dict[str, Array]:
        network, samples = task.network(hp), data.test_x.shape[0]
        size = min(EVALUATION_BATCH, samples)
        chunks = -(-samples // size)
        index = jnp.arange(chunks * size).reshape(chunks, size)

        def score(index_B):
            inside = (index_B < samples).astype(float_type())  # the last chunk is padded
            at = jnp.minimum(index_B, samples - 1)
            outputs = forward(network, state.params, task.prepare(data.test_x[at])).outputs_BxC
            scores = {"test_loss": task.loss(outputs, data.test_y[at])}
            if task.accuracy is not None:
                scores["test_accuracy"] = task.accuracy(outputs, data.test_y[at])
            return {name: jnp.sum(value * inside) for name, value in scores.items()}

        return jax.tree.map(lambda total: jnp.sum(total) / samples, jax.lax.map(score, index))

    def diagnose(state: TrainState, hp: Hparams, data: Data) -> dict[str, dict[str, Array]]:
        network = task.network(hp)
        keys = jax.random.split(jax.random.key(0), 4)  # the same directions for every method, seed and epoch
        x_B, target_B = task.prepare(data.test_x[: config.diagnostic_samples]), data.test_y[: config.diagnostic_samples]
        ctx, pulls = observe(state, hp, network, x_B, target_B, keys[0], True)
        env = make_env(network, task.loss, state.params)
        a_LxBxD = credit_of(state, hp, network, ctx, pulls, env, keys[1])
        oracle = with_oracle(task, network, state.params, ctx, pulls)
        layers = diagnostics.score_credit(
            env, ctx, a_LxBxD, oracle.delta_LxBxD, keys[2],
            rho_scheme=config.rho_scheme, rho_epsilon=hp.rho_epsilon, nudge_eta=hp.nudge_eta,
        )  # fmt: skip
        if trains_blocks:
            spent = local_gradients(rule(hp), ctx.trace, pulls, spend(a_LxBxD, ctx, hp))
            exact = local_gradients(make_rule("inner_product", 0.0), ctx.trace, pulls, oracle.delta_LxBxD)
            layers["weight_cosine"] = diagnostics.weight_cosine(spent[1], exact[1])
        metrics = diagnostics.summarise(layers)
        if estimator.loss is not None:
            loss, terms = estimator.loss(state.estimator.params, state.estimator, ctx, env, hp, keys[3])
            metrics |= {f"test_{name}": value for name, value in {"estimator_loss": loss, **terms}.items()}
        return {"metrics": metrics, "layers": layers}

    def credit(state: TrainState, hp: Hparams, x_B: Array, target_B: Array, key: Key) -> tuple[Context, Array]:
        network = task.network(hp)
        noise_key, credit_key = jax.random.split(key)
        ctx, pulls = observe(state, hp, network, x_B, target_B, noise_key, estimator.is_oracle)
        env = make_env(network, task.loss, state.params)
        return ctx, credit_of(state, hp, network, ctx, pulls, env, credit_key)

    def data(key: Key, hp: Hparams) -> Data:
        if task.make_data is None:
            return jax.tree.map(jnp.asarray, task.shared)
        return task.make_data(jax.random.fold_in(key, 1), hp)

    return Run(
        hparams=lambda c: hparams(c, steps * c.epochs),
        data=data,
        init=init,
        step=step,
        epoch=epoch,
        evaluate=evaluate,
        diagnose=diagnose,
        credit=credit,
        task=task,
        shared_data=task.make_data is None,
        steps_per_epoch=steps,
        tier=estimator.tier,
    )


def epoch_and_scores(run: Run) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """(state, hp, data) -> (state, metrics of one epoch and of its evaluation): the program a sweep calls per epoch."""

    def advance(state: TrainState, hp: Hparams, data: Data):
        state, metrics = run.epoch(state, hp, data)
        return state, {**metrics, **run.evaluate(state, hp, data)}

    return advance


def _gate_width(network: Network, params: NetParams, width: int) -> int:
    """Gates per block, from the shapes alone; 0 where blocks have no activation (toy LQ)."""
    first = jax.tree.map(lambda leaf: leaf[0], params.blocks)
    try:
        return jax.eval_shape(network.gates, first, jax.ShapeDtypeStruct((1, width), float_type())).shape[-1]
    except ValueError:
        return 0
