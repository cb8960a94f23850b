"""One flat, typed description of a run, and the split of it into what is compiled and what is swept.

A *run* is one ``Config`` and one seed.  Fields named in ``Hparams`` are **swept numbers**: they reach the compiled
program as traced scalars, so a sweep over them recompiles nothing and maps like a seed.  All other fields are
**static**: they decide the program itself.  ``epochs`` is neither: it only sets how often the epoch program is called.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
from flax import struct

Task = Literal["lq", "teacher", "cifar10", "fashion_mnist"]
Method = Literal[
    "bp", "frozen", "broadcast", "dfa", "fa", "state_bridge", "scalar_bridge", "vector_field",
    "tangent_gate", "tangent_mask", "tangent_chain",
]  # fmt: skip
Code = Literal["eT", "deltaL", "eT_hL", "deltaL_hL"]


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the field, the value and the fix."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run except its seed.  Defaults are jcredit's own (raw credit, no clipping)."""

    # what is learned
    task: Task = "teacher"
    """Which problem: toy LQ control, the teacher ladder, CIFAR-10 or Fashion-MNIST."""
    depth: int = 4
    """Number of residual blocks L."""
    width: int = 128
    """Width D of the hidden state."""
    classes: int = 10
    """Number of classes C (lq: dimension of the readout)."""
    alpha: float = 1.0
    """Teacher ladder: phi(z) = (1 - alpha) z + alpha tanh z, in teacher and student."""
    teacher_layer_norm: bool = True
    """Teacher ladder: whether the teacher's blocks normalise their input."""
    process_noise: float = 0.0
    """Standard deviation of the noise added to every new state (lq: 0.03)."""
    train_size: int = 0
    """Training samples (0: all there are; teacher: 8192)."""
    test_size: int = 0
    """Evaluation samples (0: all there are; teacher: 1024)."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Images: the test set, or the last 5,000 training images held out (for choosing hyperparameters)."""
    crops: bool = False
    """Images: random crops after padding by four pixels."""
    flips: bool = False
    """Images: random horizontal flips."""

    # how the network is trained
    epochs: int = 10
    """Passes over the training data (lq: blocks of ``steps_per_epoch`` fresh batches)."""
    steps_per_epoch: int = 0
    """Optimiser steps in an epoch (0: training samples // batch size)."""
    batch_size: int = 128
    """Samples per step B."""
    learning_rate: float = 1e-3
    """Adam's step size for network parameters."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning-rate schedule of the network, over the whole run."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the network's parameters (the estimator always has Adam)."""
    trains: Literal["network", "readout", "nothing"] = "network"
    """What of the network is trained (lq and studies on frozen features: nothing)."""
    train_embedding: bool = True
    """Whether a_0 trains the embedding."""

    # the local rule
    method: Method = "bp"
    """Where the credit comes from."""
    rule: Literal["inner_product", "target_shift", "cosine"] = "inner_product"
    """Local objective that turns a credit into a gradient of one block's parameters."""
    normalise: Literal["raw", "rms", "batch"] = "raw"
    """Credit scale: as it is, per-sample RMS (the study's), or one scale for the whole batch."""
    shift_eta: float = 0.1
    """Target shift: step of the target along the credit."""
    clip: float = 0.0
    """Global-norm clip of each block's gradient (0: off; the study: 1)."""
    clamp: float = 0.0
    """Element-wise clamp of block gradients (0: off; phase 6A: 1)."""
    state_penalty: float = 0.0
    """lam of a local term lam h_l added to the credit, which keeps hidden states from growing."""
    warmup_ratio: float = 0.0
    """Fraction of training in which blocks take DFA's credit while the estimator already learns."""

    # the credit estimator
    code: Code = "eT"
    """Conditioning code s."""
    projection_dim: int = 32
    """Columns of the fixed random projection of h_L in the codes that contain it."""
    projection_scale: Literal["unit", "fan_in"] = "fan_in"
    """Entries of that projection: N(0, 1) or N(0, 1/D)."""
    hidden: int = 256
    """Width of the estimator's hidden layers."""
    hidden_layers: int = 2
    """Number of the estimator's hidden layers."""
    estimator_learning_rate: float = 1e-3
    """Adam's step size for the estimator."""
    estimator_clip: float = 1.0
    """Global-norm clip of the estimator's gradient (0: off)."""
    ema: float = 0.99
    """Decay of the slow copy of the value function."""
    terminal_weight: float = 1.0
    """Weight of the terminal gradient loss (the study's tgw and tw; 0: none)."""
    value_weight: float = 1.0
    """Scalar bridge: weight of the terminal value loss."""
    exact_terminal: bool = False
    """Whether a learned estimator's a_L is replaced by the exact delta_L."""
    bridge_target: Literal["mean", "softmin"] = "mean"
    """Scalar bridge: how the K noisy next values are combined."""
    bridge_noise: Literal["next", "present", "paired"] = "next"
    """Scalar bridge: noise on h_{l+1}, on h_l before the block, or on h_l in value and target alike."""
    noise_samples: int = 4
    """Scalar bridge: number K of noisy next states."""
    sigma: float = 0.05
    """Scalar bridge: standard deviation of that noise."""
    softmin_lambda: float = 0.1
    """Scalar bridge: temperature of the soft minimum."""
    state_loss: Literal["normalised", "raw"] = "normalised"
    """State bridge: squared error relative to mean ||h_L||^2, or as it is (the toy's ablation)."""
    directions: int = 4
    """Vector field: number M of fresh directions per step."""
    direction_layers: Literal["random", "all"] = "random"
    """Vector field: each sample perturbed at one random layer (as many at each), or every sample at all layers."""
    scheme: Literal["central", "one_sided", "jvp"] = "central"
    """Vector field: how the effect of a perturbation is measured."""
    epsilon: float = 1e-2
    """Vector field: size of a finite perturbation."""
    shuffled: bool = False
    """Control: measured targets permuted over the batch."""
    field_form: Literal["mlp", "gate", "mask", "chain"] = "mlp"
    """Vector field: free network, or linear in delta_L with learned gates or activation derivatives."""
    tangent_target: Literal["state", "scalar"] = "state"
    """Tangent bridge: fit tangents of h_L (or of one block), or only the loss's own tangents."""
    gate_rank: int = 256
    """Tangent bridge, gate form: rank of the learned correction."""
    tangent_samples: int = 32
    """Tangent bridge: samples of the batch whose tangents are measured."""
    residual_directions: int = 0
    """Fresh directions of the unbiased residual added to a linear form's credit (0: off)."""

    # measurement
    rho_scheme: Literal["jvp", "forward"] = "jvp"
    """Effect of a perturbation in rho: exact, or the study's forward difference."""
    rho_epsilon: float = 1e-3
    """Size of that forward difference."""
    nudge_eta: float = 1e-2
    """Step of the nudging test."""
    diagnostic_samples: int = 256
    """Evaluation samples on which credit is scored."""
    diagnose_every: int = 5
    """Epochs between credit scores on the curves (the last epoch always is scored)."""

    def __post_init__(self):
        _check(self)


class Hparams(struct.PyTreeNode):
    """The swept numbers of a run, as traced scalars.  ``total_steps`` fixes schedule and warm-up."""

    alpha: jax.Array
    process_noise: jax.Array
    learning_rate: jax.Array
    weight_decay: jax.Array
    shift_eta: jax.Array
    clip: jax.Array
    clamp: jax.Array
    state_penalty: jax.Array
    warmup_ratio: jax.Array
    estimator_learning_rate: jax.Array
    estimator_clip: jax.Array
    ema: jax.Array
    terminal_weight: jax.Array
    value_weight: jax.Array
    sigma: jax.Array
    softmin_lambda: jax.Array
    epsilon: jax.Array
    rho_epsilon: jax.Array
    nudge_eta: jax.Array
    total_steps: jax.Array


SWEPT = tuple(f.name for f in dataclasses.fields(Hparams) if f.name != "total_steps")
_POSITIVE = (
    "depth", "width", "batch_size", "epochs", "learning_rate", "hidden", "hidden_layers",
    "estimator_learning_rate", "noise_samples", "softmin_lambda", "directions", "epsilon", "gate_rank",
    "tangent_samples", "rho_epsilon", "nudge_eta", "diagnostic_samples", "diagnose_every", "projection_dim",
    "shift_eta",
)  # fmt: skip
_FRACTION = ("alpha", "warmup_ratio", "ema")


def _check(config: Config) -> None:
    """Raises ConfigError for the first field whose value cannot run."""
    for name, hint in get_type_hints(Config).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise ConfigError(f"{name}={value!r} is unknown; choose one of: {', '.join(get_args(hint))}")
        elif hint is bool:
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r} must be True or False")
        elif isinstance(value, bool) or not isinstance(value, (int,) if hint is int else (int, float)):
            raise ConfigError(f"{name}={value!r} must be a{'n integer' if hint is int else ' number'}")
        elif not math.isfinite(value):
            raise ConfigError(f"{name}={value} is not finite; give an ordinary number")
        elif value < 0 or (value == 0 and name in _POSITIVE):
            raise ConfigError(f"{name}={value} must be {'positive' if name in _POSITIVE else 'zero or more'}")
        elif name in _FRACTION and value > 1:
            raise ConfigError(f"{name}={value} must lie between 0 and 1")
    if config.classes < 2:
        raise ConfigError(f"classes={config.classes} must be at least 2")
    if config.task in ("cifar10", "fashion_mnist") and config.classes != 10:
        raise ConfigError(f"classes={config.classes} does not fit task={config.task!r}, which has 10 classes")
    if config.task == "lq" and (config.method == "fa" or config.method.startswith("tangent_")):
        raise ConfigError(
            f"method={config.method!r} does not fit task='lq', whose linear dynamics have no residual branch and are"
            " never trained; use bp, frozen, broadcast, dfa, state_bridge, scalar_bridge or vector_field"
        )
    if config.task == "lq" and config.method == "vector_field" and config.field_form in ("mask", "chain"):
        raise ConfigError(
            f"field_form={config.field_form!r} does not fit task='lq', whose blocks have no activation derivatives;"
            " use mlp or gate"
        )
    if config.process_noise and config.task != "lq":
        raise ConfigError(f"process_noise={config.process_noise} belongs to task='lq'; set it to 0 for {config.task!r}")
    if config.tangent_samples > config.batch_size and config.method.startswith("tangent_"):
        raise ConfigError(
            f"tangent_samples={config.tangent_samples} exceeds batch_size={config.batch_size}; lower it to the batch"
        )


def hparams(config: Config, total_steps: int) -> Hparams:
    """Returns the traced numbers of ``config`` for a run of ``total_steps`` steps."""
    numbers = {name: jnp.asarray(float(getattr(config, name))) for name in SWEPT}
    return Hparams(**numbers, total_steps=jnp.asarray(float(total_steps)))


def static_key(config: Config) -> tuple:
    """What decides the compiled program: runs with equal keys share one."""
    skip = (*SWEPT, "epochs")
    return tuple((k, v) for k, v in dataclasses.asdict(config).items() if k not in skip)


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return dataclasses.asdict(config)


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits that identify a configuration (with the seed, the key of a run)."""
    canonical = {
        f.name: float(v) + 0.0 if f.type == "float" else v  # -0.0 is 0.0
        for f in dataclasses.fields(config)
        for v in [getattr(config, f.name)]
    }
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]
