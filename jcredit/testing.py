"""Checks an author can run on a part of their own; jcredit's contract suite is these functions over all of ours.

    jc.testing.check_estimator(learned_feedback(rank=4))

Each returns nothing, or raises ``CheckFailed`` with one line that says what is wrong.  They run real training steps of
a tiny network, in a few seconds.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from jcredit.checking import check_blocks_apart, check_repeats, check_run, check_samples_apart, check_signatures
from jcredit.config import Config, Hparams
from jcredit.estimators import bp, broadcast
from jcredit.files import cause
from jcredit.networks import image_mlp
from jcredit.numerics import float_type, in_full_precision
from jcredit.observing import shapes_of
from jcredit.parts import Factory, Part
from jcredit.passes import NetworkEnv, depth_of, forward
from jcredit.poison import HiddenBackprop, check_no_hidden_backprop, poisoned
from jcredit.settings import ConfigError
from jcredit.tasks import teacher
from jcredit.training import Run, make_run
from jcredit.types import Branch, Data, Env, Network, Task, TrainState

__all__ = [
    "CheckFailed", "HiddenBackprop", "check_estimator", "check_network", "check_rule", "check_task", "poisoned",
    "tiny_config",
]  # fmt: skip
BATCH = 32
MORE_STEPS = 15
P = ParamSpec("P")
QUESTIONS = tuple(name for name in vars(Env) if not name.startswith("_"))
"""What may be asked of ``env``."""
# Programs here run once: what is compiled quickly is done quickly.
_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


class CheckFailed(AssertionError):
    """What is wrong with a part, in one line."""


# --- shared pieces ----------------------------------------------------------------------------------------------------


def tiny_config(**changes: Any) -> Config:
    """A configuration that compiles and runs in moments: three blocks of width 16 on 64 samples of the ladder."""
    scored = BATCH + 8  # another number than a batch has, which no part may rely on
    task = teacher(classes=4, inputs=12, train_size=2 * BATCH, test_size=scored)
    network = image_mlp(depth=3, width=16)
    return Config(**{"task": task, "network": network, "batch_size": BATCH, "diagnostic_samples": scored, **changes})


def _part(thing: Any, kind: str) -> Part:
    part = _guarded(lambda: thing() if isinstance(thing, Factory) else thing, repr(thing))
    if not isinstance(part, Part) or part.kind != kind:
        raise CheckFailed(
            f"{thing!r} is no {kind}: decorate its factory with @jc.{kind}, and pass it or what it returns"
        )
    return part


def _guarded(call: Callable, name: str) -> Any:
    """What ``call`` returns; what it raises is said in one line."""
    try:
        return call()
    except CheckFailed:
        raise
    except ConfigError as error:
        raise CheckFailed(str(error)) from error
    except jax.errors.TracerArrayConversionError as error:
        raise CheckFailed(f"{name} hands a traced array to numpy; use jax.numpy{_hint(error)}") from error
    except jax.errors.ConcretizationTypeError as error:
        raise CheckFailed(
            f"{name} reads a traced number or array as a Python value; use jnp.where or make the setting static"
            f"{_hint(error)}"
        ) from error
    except Exception as error:
        raise CheckFailed(f"{name} does not run: {cause(error)}{_hint(error)}") from error


def _one_line(check: Callable[P, None]) -> Callable[P, None]:
    """A check that raises nothing else than ``CheckFailed``, wherever what it is given fails, and rounds as runs do."""

    @in_full_precision
    @functools.wraps(check)
    def checked(*args: P.args, **settings: P.kwargs) -> None:
        inspect.signature(check).bind(*args, **settings)  # the caller's own mistake is none of the part's
        _guarded(lambda: check(*args, **settings), getattr(args[0], "name", "the part") if args else "the part")

    return checked


def _hint(error: Exception) -> str:
    """What an object of ours has, where it was asked for something else, and the line of the caller's own file."""
    obj = error.obj if isinstance(error, AttributeError) else None
    fields = QUESTIONS if isinstance(obj, NetworkEnv) else getattr(obj, "_fields", ())
    has = f"; it has {', '.join(fields)}" if fields else ""
    here = Path(__file__).parent
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if here not in Path(frame.filename).parents and "site-packages" not in Path(frame.filename).parts
    ]  # fmt: skip
    return f"{has} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else has


def _finite(tree: Any, what: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
            raise CheckFailed(f"{what}{jax.tree_util.keystr(path)} is not finite")


def _close(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two trees of numbers agree relative to the norm of each leaf."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    numbers = [(np.asarray(x), np.asarray(y)) for x, y in pairs if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(np.linalg.norm(x - y) <= tolerance * (np.linalg.norm(y) + 1e-6) for x, y in numbers)


def _same_bits(a: Any, b: Any) -> bool:
    host = lambda x: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)  # noqa: E731
    return all(
        host(x).tobytes() == host(y).tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _begin(run: Run, config: Config):
    hp, key = run.hparams(config), jax.random.key(0)
    return _jit(run.init)(key, hp), hp, run.data(key, hp)


def _tried_on(network: Part | None, task: Part | None, **parts: Part) -> Config:
    """A tiny configuration with these parts, on this network and task where they are given."""
    given = {name: part for name, part in (("network", network), ("task", task)) if part is not None}
    return tiny_config(**parts, **given)


def _check_step(config: Config, name: str) -> tuple[TrainState, TrainState]:
    """The state before and after a training step that runs, is finite, repeats its bits, maps over seeds, and takes
    other swept numbers without being compiled anew."""
    run = _guarded(lambda: make_run(config), name)
    _guarded(lambda: check_run(run), name)
    state, hp, data = _begin(run, config)
    traces = []

    def traced(*args):
        traces.append(1)
        return run.step(*args)

    step, index = _jit(traced), jnp.arange(BATCH)
    found = step(state, hp, data, index)
    _finite(found[1], f"{name}: metric")
    _finite(found[0], f"{name}: after one step, state")
    if not _same_bits(found, step(state, hp, data, index)):
        raise CheckFailed(f"{name} gives other bits when it is called again: draw from the key it is handed alone")
    program = [_jit(lambda *args: run.step(*args)).lower(state, hp, data, index).as_text() for _ in range(2)]
    if program[0] != program[1]:
        raise CheckFailed(
            f"{name} is another program when it is traced again: it draws from numpy or keeps something between calls;"
            " draw from the key it is handed alone"
        )
    _check_mapped(run, state, hp, data, name)
    halved = jax.tree.map(lambda x: 0.5 * x, hp)
    step(state, halved, data, index)
    if len(traces) != 1:
        raise CheckFailed(f"{name} is compiled anew for other swept numbers")
    return state, found[0]


def _check_mapped(run: Run, state: TrainState, hp: Hparams, data: Data, name: str) -> None:
    """The step maps over seeds, and the credit is the same under vmap as alone."""
    task = run.built(hp).task
    x, y = task.batch(data, jnp.arange(BATCH), jax.random.key(0))
    credit = lambda s: run.credit(s, hp, x, y, jax.random.key(1))[1]  # noqa: E731
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    over_seeds = jax.vmap(run.step, (0, None, None, None))
    _guarded(lambda: jax.eval_shape(over_seeds, both, hp, data, jnp.arange(BATCH)), f"{name} under vmap")
    found, alone = _guarded(
        lambda: _jit(lambda b, s: (jax.vmap(credit)(b), credit(s)))(both, state), f"{name} under vmap"
    )
    if not _close(found[0], alone, 1e-3):
        raise CheckFailed(f"{name} gives other numbers under vmap than alone")


# --- the four checks --------------------------------------------------------------------------------------------------


@_one_line
def check_estimator(estimator: Factory | Part, *, network: Part | None = None, task: Part | None = None) -> None:
    """Checks an estimator: shapes, finite numbers, vmap, no recompilation, and no hidden back-propagation.

    Args:
      estimator: its factory (settings at their defaults), or what it returned.
      network: the network to try it on (None: a tiny residual MLP).
      task: the task to try it on (None: a tiny teacher).

    Raises:
      CheckFailed: what is wrong, in one line.
    """
    part = _part(estimator, "estimator")
    config = _guarded(lambda: _tried_on(network, task, credit=part), part.name)
    built = _guarded(part.build, part.name)
    check_signatures(part.name, built)
    _check_init(config, part.name)
    _guarded(lambda: check_no_hidden_backprop(config), part.name)
    before, after = _check_step(config, part.name)
    if built.loss is not None and not jax.tree.leaves(before.est_state.params):
        raise CheckFailed(f"{part.name} has a loss, but its state.params hold nothing to train")
    if built.loss is None and jax.tree.leaves(before.est_state.params):
        raise CheckFailed(f"{part.name} has no loss, so that nothing trains its state.params; keep them in extra")
    if built.loss is not None and not _ever_learns(config, before, after):
        raise CheckFailed(
            f"{part.name}: its loss does not depend on state.params, so nothing is learned (or its gradient, or what"
            f" its optimizer makes of that, is zero for {1 + MORE_STEPS} steps)"
        )


def _ever_learns(config: Config, before: TrainState, after: TrainState) -> bool:
    """Whether a few steps change what is trained: a schedule may begin at zero, gradients may be gathered first."""
    if not _same_bits(before.est_state.params, after.est_state.params):
        return True
    run = make_run(config)
    _, hp, data = _begin(run, config)
    step = _jit(run.step)
    for _ in range(MORE_STEPS):
        after, _ = step(after, hp, data, jnp.arange(BATCH))
    return not _same_bits(before.est_state.params, after.est_state.params)


def _check_init(config: Config, name: str) -> None:
    """``init`` gives a state that the shared step knows, and the same from the same key."""
    run = _guarded(lambda: make_run(config), name)
    _guarded(lambda: check_repeats(f"{name}: init", run.init, jax.random.key(0), run.hparams(config)), name)


@_one_line
def check_rule(rule: Factory | Part, *, network: Part | None = None, task: Part | None = None) -> None:
    """Checks a local rule: shapes, finite numbers, a mean over the batch, and all that a training step asks.

    Args:
      rule: its factory (settings at their defaults), or what it returned.
      network: the network to try it on (None: a tiny residual MLP).
      task: the task to try it on (None: a tiny teacher).

    Raises:
      CheckFailed: what is wrong, in one line.
    """
    part = _part(rule, "rule")
    built = _guarded(part.build, part.name)
    h, after, a = (jax.random.normal(jax.random.key(i), (BATCH, 16), float_type()) for i in range(3))
    signal = lambda *x: built.signal(*x[:2], built.goal(*x))  # noqa: E731
    found = _guarded(lambda: signal(h, after, a), part.name)
    if (found.shape, found.dtype) != (after.shape, after.dtype):
        raise CheckFailed(
            f"{part.name}: signal has shape {found.shape} and type {found.dtype}, not {after.shape} and {after.dtype}"
            " as the block's output"
        )
    _finite({"signal": found}, f"{part.name}: ")
    twice = signal(*(jnp.concatenate([x, x]) for x in (h, after, a)))
    if not _close(twice[:BATCH] * 2, found, 1e-4):
        raise CheckFailed(f"{part.name}: the objective is no mean over the batch: samples met twice change its size")
    _check_step(_guarded(lambda: _tried_on(network, task, credit=broadcast(), rule=part), part.name), part.name)


@_one_line
def check_network(network: Factory | Part, *, task: Part | None = None) -> None:
    """Checks a network: shapes, samples that do not mix, a branch whose pull transposes its push, and BP through it.

    Args:
      network: its factory (settings at their defaults), or what it returned.
      task: the task whose sizes it takes (None: a tiny teacher).

    Raises:
      CheckFailed: what is wrong, in one line.
    """
    part = _part(network, "network")
    config = _guarded(lambda: _tried_on(part, task, credit=bp()), part.name)
    check_run(make_run(config))
    own_task: Task = config.task.build(None)
    built: Network = part.build(own_task.sizes)
    params = built.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (BATCH, *own_task.sizes.inputs), float_type())
    trace = forward(built, params, x)
    first = jax.tree.map(lambda p: p[0], params.blocks)
    h = trace.h_KxBxD[0]
    _finite({"h": trace.h_KxBxD}, f"{part.name}: state ")
    check_blocks_apart(part.name, built, params, h)
    if built.branch is not None:
        _check_branch(part.name, built.branch, first, h)
    _check_gradient(config, part.name)
    _check_step(config, part.name)


def _check_branch(name: str, branch: Branch, first: Any, h: jax.Array) -> None:
    weights, m = branch.random(jax.random.key(2), 1.0), branch.gates(first, h)
    v, a = (jax.random.normal(jax.random.key(i), h.shape, h.dtype) for i in (3, 4))
    forth, back = branch.push(weights, m, h, v), branch.pull(weights, m, h, a)
    if forth.shape != h.shape or back.shape != h.shape:
        raise CheckFailed(f"{name}: branch push and pull have shapes {forth.shape} and {back.shape}, not {h.shape}")
    if not _close(jnp.sum(forth * a, -1), jnp.sum(v * back, -1), 1e-3):
        raise CheckFailed(f"{name}: branch.pull is not the transpose of branch.push")
    zero = branch.push(branch.zero(jax.random.key(5)), m, h, v)
    if np.asarray(zero).any():
        raise CheckFailed(f"{name}: branch.zero gives weights whose branch is not zero")


def _check_gradient(config: Config, name: str) -> None:
    """The oracle's credit through the shared step is jax.grad of the whole network's loss."""
    run = make_run(config.replace(optimizer="sgd", learning_rate=1.0))
    state, hp, data = _begin(run, run.config)
    task, network, *_ = run.built(hp)
    index = jnp.arange(BATCH)
    key = jax.random.split(jax.random.fold_in(state.key, state.step), 4)[0]
    x, y = task.batch(data, index, key)
    whole = jax.grad(lambda p: jnp.mean(task.loss(forward(network, p, x).outputs_BxC, y)))(state.params)
    after, _ = _jit(run.step)(state, hp, data, index)
    ours = jax.tree.map(lambda old, new: old - new, state.params, after.params)
    if not _close(ours, whole, 2e-2):
        raise CheckFailed(f"{name}: BP credit through the shared step is not the gradient of the whole network")


@_one_line
def check_task(task: Factory | Part, *, network: Part | None = None) -> None:
    """Checks a task: sizes against its data, losses of samples, and all that a training step asks.

    Args:
      task: its factory (settings at their defaults), or what it returned.
      network: the network it is given (None: its usual one).

    Raises:
      CheckFailed: what is wrong, in one line.
    """
    part = _part(task, "task")
    given = {"steps_per_epoch": 1} if _guarded(lambda: part.build(None), part.name).train_size is None else {}
    config = _guarded(lambda: tiny_config(task=part, network=network, **given), part.name)
    run = _guarded(lambda: make_run(config), part.name)
    state, hp, data = _guarded(lambda: _begin(run, config), part.name)
    built: Task = run.built(hp).task
    x, y = _guarded(lambda: built.batch(data, jnp.arange(BATCH), jax.random.key(0)), part.name)
    stored = _guarded(lambda: built.prepare(data.test_x[:BATCH]), part.name)
    for what, found in (("batch", x), ("prepare", stored)):
        if found.shape[1:] != tuple(built.sizes.inputs):
            raise CheckFailed(f"{part.name}: {what} gives samples {found.shape[1:]}, sizes say {built.sizes.inputs}")
    if jnp.issubdtype(y.dtype, jnp.integer) and (int(y.min()) < 0 or int(y.max()) >= built.sizes.outputs):
        raise CheckFailed(
            f"{part.name}: labels run from {int(y.min())} to {int(y.max())}, outputs are {built.sizes.outputs}"
        )
    network_ = run.built(hp).network
    width = shapes_of(network_, state.params, built).width
    outputs = forward(network_, state.params, x).outputs_BxC
    check_samples_apart(part.name, built, outputs, y)
    for what, fn in (("loss", built.loss), ("accuracy", built.accuracy or built.loss)):
        _finite(fn(outputs, y), f"{part.name}: {what}")
    if built.noise is not None:
        shape = (depth_of(state.params), BATCH, width)
        if (found := built.noise(jax.random.key(0), shape).shape) != shape:
            raise CheckFailed(f"{part.name}: noise has shape {found}, not {shape}")
    _check_step(config, part.name)
