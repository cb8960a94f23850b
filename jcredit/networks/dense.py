"""The residual networks of the study as pure functions; the parameters of their blocks are stacked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.numerics import float_type, layer_norm, layer_norm_tangent
from jcredit.settings import Added, ConfigError, Count, Fraction, NonNegative
from jcredit.types import Array, Branch, Key, NetParams, Network, Params, Sizes


def affine(params: Params, x_BxI: Array) -> Array:
    """x W + b."""
    return x_BxI @ params["w"] + params["b"][None, :]


@jax.custom_vjp
def wide_product(x_BxI: Array, w_IxD: Array) -> Array:
    """x W for inputs far wider than the batch; reverse mode only.

    Its gradient x^T g is the widest product of a step; on CPU, XLA forms it faster from an x^T that lies in memory than
    from x (results/benchmark/README.md).
    """
    return x_BxI @ w_IxD


def _pull_wide_product(kept, g_BxD):
    x_BxI, w_IxD = kept
    by_weights = jax.lax.platform_dependent(
        x_BxI,
        g_BxD,
        cpu=lambda x, g: jax.lax.optimization_barrier(x.T) @ g,
        default=lambda x, g: x.T @ g,
    )
    return g_BxD @ w_IxD.T, by_weights


wide_product.defvjp(lambda x, w: (x @ w, (x, w)), _pull_wide_product)


def uniform(key: Key, shape: tuple[int, ...], bound: float) -> Array:
    """Uniform in [-bound, bound)."""
    return jax.random.uniform(key, shape, float_type(), -bound, bound)


def uniform_affine(key: Key, fan_in: int, fan_out: int) -> Params:
    """Weights and bias uniform in +-1/sqrt(fan_in), the default of the study's framework."""
    w_key, b_key = jax.random.split(key)
    bound = fan_in**-0.5
    return {"w": uniform(w_key, (fan_in, fan_out), bound), "b": uniform(b_key, (fan_out,), bound)}


def normal_affine(key: Key, fan_in: int, fan_out: int, std: float | None = None) -> Params:
    """Weights N(0, std^2), by default N(0, 1/fan_in); no bias at the start."""
    scale: float = fan_in**-0.5 if std is None else std
    return {"w": scale * jax.random.normal(key, (fan_in, fan_out), float_type()), "b": jnp.zeros(fan_out, float_type())}


def stack(init_block: Callable[[Key], Params], key: Key, depth: int) -> Params:
    """The parameters of all blocks, stacked along a leading axis."""
    return jax.vmap(init_block)(jax.random.split(key, depth))


def gelu_derivative(z: Array) -> Array:
    """Phi(z) + z phi(z)."""
    return jax.scipy.stats.norm.cdf(z) + z * jnp.exp(-0.5 * z * z) * (2 * jnp.pi) ** -0.5


@jax.custom_jvp
def gelu(z: Array) -> Array:
    """z Phi(z), exact (Hendrycks & Gimpel 2016)."""
    return jax.nn.gelu(z, approximate=False)


@gelu.defjvp
def _gelu_tangent(primals, tangents):
    # One factor, known in the forward pass, is all that a pull has to keep.
    return gelu(*primals), gelu_derivative(*primals) * tangents[0]


def dense_branch(
    width: int,
    gates: Callable[[Params, Array], Array],
    random: Callable[[Key, Array | float], Params],
    own: Callable[[Params], dict[str, Array]],
) -> Branch:
    """((LNJ v) u * m) v of a block with H = D gates behind a LayerNorm: weights {"u": (D, H), "v": (H, D)}."""

    def zero(key: Key) -> Params:
        u = width**-0.5 * jax.random.normal(key, (width, width), float_type())
        return {"u": u, "v": jnp.zeros((width, width), float_type())}

    def push(weights, m_BxH, h_BxD, v_BxD):
        return ((layer_norm_tangent(h_BxD, v_BxD) @ weights["u"]) * m_BxH) @ weights["v"]

    def pull(weights, m_BxH, h_BxD, a_BxD):
        return layer_norm_tangent(h_BxD, ((a_BxD @ weights["v"].T) * m_BxH) @ weights["u"].T)

    return Branch(gates, random, zero, push, pull, dense=True, own=own)


@parts.network
def image_mlp(sizes: Sizes, /, depth: Count = 4, width: Count = 256) -> Network:
    """The study's residual MLP for flattened images (docs/method.md 1).

    h_{l+1} = h_l + GELU(LN(h_l) W1 + b1) W2 + b2, logits = LN(h_L) W_out + b_out; W2 starts at N(0, 0.01^2).

    Args:
      sizes: of the task.
      depth: number of residual blocks L.
      width: width D of the hidden state.
    """
    inputs = math.prod(sizes.inputs)

    def init_block(key: Key) -> Params:
        inner, outer = jax.random.split(key)
        return {"inner": uniform_affine(inner, width, width), "outer": normal_affine(outer, width, width, 0.01)}

    def init(key: Key) -> NetParams:
        embed, blocks, readout = jax.random.split(key, 3)
        return NetParams(
            embed=uniform_affine(embed, inputs, width),
            blocks=stack(init_block, blocks, depth),
            readout=uniform_affine(readout, width, sizes.outputs),
        )

    def block(params: Params, h_BxD: Array) -> Array:
        return h_BxD + affine(params["outer"], gelu(affine(params["inner"], layer_norm(h_BxD))))

    def random(key: Key, scale: Array | float) -> Params:
        # FA replaces both matrices at the scale of the initial W1: uniform in +-1/sqrt(D).
        u, v = jax.random.split(key)
        draw = lambda k: scale * uniform(k, (width, width), width**-0.5)  # noqa: E731
        return {"u": draw(u), "v": draw(v)}

    return Network(
        init=init,
        embed=lambda params, x: wide_product(x.reshape(x.shape[0], -1), params["w"]) + params["b"][None, :],
        block=block,
        readout=lambda params, h: affine(params, layer_norm(h)),
        normalise=layer_norm,
        branch=dense_branch(
            width,
            gates=lambda p, h: gelu_derivative(affine(p["inner"], layer_norm(h))),
            random=random,
            own=lambda p: {"u": p["inner"]["w"], "v": p["outer"]["w"]},
        ),
    )


@parts.network
def ladder_mlp(
    sizes: Sizes, /, depth: Count = 4, width: Count = 128, alpha: Fraction = 1.0, layer_norm_on: bool = True
) -> Network:
    """Student and teacher of the synthetic ladder (docs/method.md 1 and 8).

    h_{l+1} = h_l + phi(LN(h_l) W_l + b_l), phi(z) = (1 - alpha) z + alpha tanh z; logits = h_L W_out + b_out.

    Args:
      sizes: of the task.
      depth: number of residual blocks L.
      width: width D of the hidden state.
      alpha: nonlinearity, from linear (0) to tanh (1).
      layer_norm_on: whether the blocks normalise their input; a network without is for teachers alone.
    """
    norm = layer_norm if layer_norm_on else lambda h: h
    inputs = math.prod(sizes.inputs)

    def init(key: Key) -> NetParams:
        embed, blocks, readout = jax.random.split(key, 3)
        return NetParams(
            embed=normal_affine(embed, inputs, width),
            blocks=stack(lambda k: normal_affine(k, width, width), blocks, depth),
            readout=normal_affine(readout, width, sizes.outputs),
        )

    def block(params: Params, h_BxD: Array) -> Array:
        z = affine(params, norm(h_BxD))
        return h_BxD + (1 - alpha) * z + alpha * jnp.tanh(z)

    def gates(params: Params, h_BxD: Array) -> Array:
        return (1 - alpha) + alpha * (1 - jnp.tanh(affine(params, norm(h_BxD))) ** 2)

    def random(key: Key, scale: Array | float) -> Params:
        # One matrix per block: the way out of the activation is the identity and is kept.
        u = scale * width**-0.5 * jax.random.normal(key, (width, width), float_type())
        return {"u": u, "v": jnp.eye(width, dtype=float_type())}

    branch = dense_branch(width, gates, random, own=lambda p: {"u": p["w"]}) if layer_norm_on else None
    embed = lambda params, x: affine(params, x.reshape(x.shape[0], -1))  # noqa: E731
    return Network(init, embed, block, affine, layer_norm, branch)


@parts.network
def lq_dynamics(
    sizes: Sizes,
    /,
    depth: Count = 12,
    near: Annotated[Literal["isometry", "identity"], Added("isometry")] = "isometry",
    spread: Annotated[NonNegative, Added(0.1)] = 0.1,
) -> Network:
    """Linear dynamics h_{l+1} = h_l A_l and readout y = h_L W (docs/method.md 7); no residual branch, hence no gates.

    Args:
      sizes: of the task; h_0 is the input, so D is its size.
      depth: number of steps L.
      near: A_l is a random orthogonal matrix, or the identity, plus spread N(0, 1/D) entries; the study's is unknown.
      spread: size of those entries.
    """
    if len(sizes.inputs) != 1:
        raise ConfigError(f"lq_dynamics: samples have shape {sizes.inputs}; it takes vectors")
    (width,) = sizes.inputs

    def init_block(key: Key) -> Params:
        q_key, g_key = jax.random.split(key)
        identity = near == "identity"
        q = jnp.eye(width, dtype=float_type()) if identity else jax.random.orthogonal(q_key, width, dtype=float_type())
        return {"a": q + spread * width**-0.5 * jax.random.normal(g_key, (width, width), float_type())}

    def init(key: Key) -> NetParams:
        blocks, readout = jax.random.split(key)
        return NetParams({}, stack(init_block, blocks, depth), normal_affine(readout, width, sizes.outputs))

    return Network(init, lambda params, x: x, lambda params, h: h @ params["a"], affine)
