"""Residual networks of images whose states are maps of features: convolutions, and a patch mixer.

A state is flattened to (B, D), D = positions x channels, as the contract wants it; a block unflattens it.  Their
linearised branches (``types.Branch``) take kernels of the block's own form, never D x D matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.networks.dense import (
    affine,
    gelu,
    gelu_derivative,
    normal_affine,
    stack,
    uniform,
    uniform_affine,
)
from jcredit.numerics import float_type, layer_norm, layer_norm_tangent
from jcredit.settings import ConfigError, Count
from jcredit.types import Array, Branch, Key, NetParams, Network, Params, Sizes

TAPS = 3  # a kernel's side


def patches(x_BxHxWxC: Array, side: int) -> Array:
    """Images cut into squares of ``side`` pixels, row by row: (B, positions, side * side * C)."""
    batch, height, width, channels = x_BxHxWxC.shape
    cut = x_BxHxWxC.reshape(batch, height // side, side, width // side, side, channels)
    return jnp.swapaxes(cut, 2, 3).reshape(batch, -1, side * side * channels)


def _grid(sizes: Sizes, side: int, name: str) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
      ConfigError: samples that are no images, or whose sides the patch does not divide.
    """
    if len(sizes.inputs) != 3:
        raise ConfigError(f"{name}: samples have shape {sizes.inputs}; it takes images (height, width, channels)")
    height, width, _ = sizes.inputs
    if height % side or width % side:
        raise ConfigError(f"{name}: patch={side} does not divide images of {height} x {width}; choose one that does")
    return height // side, width // side


def _image_network(
    sizes: Sizes, depth: int, channels: int, patch: int, grid: tuple[int, int], init_block: Callable[[Key], Params],
    block: Callable[[Params, Array], Array], branch: Branch,
) -> Network:  # fmt: skip
    """A linear embedding of patches, ``block`` L times, and the study's readout of all of LN(h_L)."""
    width = math.prod(grid) * channels

    def init(key: Key) -> NetParams:
        embed, blocks, readout = jax.random.split(key, 3)
        return NetParams(
            embed=uniform_affine(embed, patch * patch * sizes.inputs[-1], channels),
            blocks=stack(init_block, blocks, depth),
            readout=uniform_affine(readout, width, sizes.outputs),
        )

    def embed(params: Params, x_BxHxWxC: Array) -> Array:
        pieces = patches(x_BxHxWxC, patch)
        return affine(params, pieces.reshape(-1, pieces.shape[-1])).reshape(x_BxHxWxC.shape[0], width)

    return Network(init, embed, block, lambda p, h: affine(p, layer_norm(h)), layer_norm, branch)


# --- convolutions -----------------------------------------------------------------------------------------------------


def _shifts(x_BxHxWxC: Array) -> list[Array]:
    """The nine neighbours of every position, zero beyond the border."""
    _, height, width, _ = x_BxHxWxC.shape
    padded = jnp.pad(x_BxHxWxC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i in range(TAPS) for j in range(TAPS)]


def convolve(kernel_IxO: Array, x_BxHxWxC: Array) -> Array:
    """A 3 x 3 convolution; the kernel is a matrix of (9 C, O).

    As a sum of nine products rather than XLA's convolution: mapped over blocks, that is grouped, and slow on CPU.
    """
    taps = kernel_IxO.reshape(TAPS * TAPS, -1, kernel_IxO.shape[-1])
    return sum((x @ tap for x, tap in zip(_shifts(x_BxHxWxC), taps, strict=True)), jnp.zeros((), x_BxHxWxC.dtype))


def convolve_transposed(kernel_IxO: Array, a_BxHxWxO: Array) -> Array:
    """The transpose of ``convolve`` in its input: the flipped kernel, its taps transposed."""
    taps = jnp.swapaxes(kernel_IxO.reshape(TAPS * TAPS, -1, kernel_IxO.shape[-1]), 1, 2)[::-1]
    return convolve(taps.reshape(-1, taps.shape[-1]), a_BxHxWxO)


@parts.network
def image_cnn(sizes: Sizes, /, depth: Count = 3, channels: Count = 48, patch: Count = 4) -> Network:
    """A residual convolutional network; its states are maps of (height / patch) x (width / patch) x channels.

    h_{l+1} = h_l + GELU(LN(h_l) * K1 + b1) * K2 + b2, with 3 x 3 kernels; LN over the whole map (one group, no affine);
    patches are embedded linearly, logits = LN(h_L) W_out + b_out.  K2 starts at N(0, 0.01^2), as the MLP's W2.

    Args:
      sizes: of the task, whose samples are images.
      depth: number of residual blocks L.
      channels: of every map.
      patch: side in pixels of the squares that are embedded.
    """
    rows, columns = _grid(sizes, patch, "image_cnn")
    width = rows * columns * channels
    as_map = lambda h_BxD: h_BxD.reshape(-1, rows, columns, channels)  # noqa: E731
    flat = lambda x_BxHxWxC: x_BxHxWxC.reshape(-1, width)  # noqa: E731
    fan_in = TAPS * TAPS * channels

    def init_block(key: Key) -> Params:
        inner, outer = jax.random.split(key)
        return {
            "inner": uniform_affine(inner, fan_in, channels),
            "outer": normal_affine(outer, fan_in, channels, 0.01),
        }

    def before_gelu(params: Params, h_BxD: Array) -> Array:
        return convolve(params["inner"]["w"], as_map(layer_norm(h_BxD))) + params["inner"]["b"][None, None, None, :]

    def block(params: Params, h_BxD: Array) -> Array:
        outer = (
            convolve(params["outer"]["w"], gelu(before_gelu(params, h_BxD))) + params["outer"]["b"][None, None, None]
        )
        return h_BxD + flat(outer)

    def push(weights, m_BxH, h_BxD, v_BxD):
        inner = convolve(weights["u"], as_map(layer_norm_tangent(h_BxD, v_BxD)))
        return flat(convolve(weights["v"], inner * as_map(m_BxH)))

    def pull(weights, m_BxH, h_BxD, a_BxD):
        inner = convolve_transposed(weights["v"], as_map(a_BxD)) * as_map(m_BxH)
        return layer_norm_tangent(h_BxD, flat(convolve_transposed(weights["u"], inner)))

    def random(key: Key, scale: Array | float) -> Params:
        u, v = jax.random.split(key)
        draw = lambda k: scale * uniform(k, (fan_in, channels), fan_in**-0.5)  # noqa: E731
        return {"u": draw(u), "v": draw(v)}

    def zero(key: Key) -> Params:
        u = fan_in**-0.5 * jax.random.normal(key, (fan_in, channels), float_type())
        return {"u": u, "v": jnp.zeros((fan_in, channels), float_type())}

    branch = Branch(
        gates=lambda p, h: flat(gelu_derivative(before_gelu(p, h))),
        random=random,
        zero=zero,
        push=push,
        pull=pull,
        own=lambda p: {"u": p["inner"]["w"], "v": p["outer"]["w"]},
    )
    return _image_network(sizes, depth, channels, patch, (rows, columns), init_block, block, branch)


# --- a patch mixer ----------------------------------------------------------------------------------------------------


@parts.network
def image_mixer(
    sizes: Sizes,
    /,
    depth: Count = 4,
    channels: Count = 48,
    patch: Count = 4,
    token_hidden: Count = 64,
    channel_hidden: Count = 96,
) -> Network:
    """An MLP-Mixer (Tolstikhin et al. 2021, NeurIPS): each block mixes positions, then channels.

    With X the state as (positions, channels) and LN over the channels of a position,
    X' = X + (GELU(LN(X)^T T1 + s1) T2 + s2)^T and X'' = X' + GELU(LN(X') C1 + c1) C2 + c2.  Patches are embedded
    linearly; logits = LN(h_L) W_out + b_out of the whole state.  T2 and C2 start at N(0, 0.01^2), as the MLP's W2.

    Args:
      sizes: of the task, whose samples are images.
      depth: number of residual blocks L.
      channels: of every position.
      patch: side in pixels of the squares that are embedded.
      token_hidden: hidden units of the mixing of positions.
      channel_hidden: hidden units of the mixing of channels.
    """
    grid = _grid(sizes, patch, "image_mixer")
    positions = math.prod(grid)
    width, token_gates = positions * channels, channels * token_hidden
    tokens = lambda h_BxD: h_BxD.reshape(-1, positions, channels)  # noqa: E731
    turned = lambda x: jnp.swapaxes(x, -1, -2)  # noqa: E731
    add = lambda b: b[None, None, :]  # noqa: E731
    shapes = {
        "tokens_u": (positions, token_hidden), "tokens_v": (token_hidden, positions),
        "channels_u": (channels, channel_hidden), "channels_v": (channel_hidden, channels),
    }  # fmt: skip

    def init_block(key: Key) -> Params:
        keys = dict(zip(shapes, jax.random.split(key, 4), strict=True))
        first = {n: uniform_affine(keys[n], *shapes[n]) for n in ("tokens_u", "channels_u")}
        return first | {n: normal_affine(keys[n], *shapes[n], 0.01) for n in ("tokens_v", "channels_v")}

    def mixed(params: Params, h_BxD: Array) -> tuple[Array, Array, Array, Array]:
        """What precedes the two GELUs (B, C, T) and (B, P, H), the state between them and the block's output."""
        x = tokens(h_BxD)
        z_BxCxT = turned(layer_norm(x)) @ params["tokens_u"]["w"] + add(params["tokens_u"]["b"])
        between = x + turned(gelu(z_BxCxT) @ params["tokens_v"]["w"] + add(params["tokens_v"]["b"]))
        z_BxPxH = layer_norm(between) @ params["channels_u"]["w"] + add(params["channels_u"]["b"])
        after = between + gelu(z_BxPxH) @ params["channels_v"]["w"] + add(params["channels_v"]["b"])
        return z_BxCxT, z_BxPxH, between, after

    def gates(params: Params, h_BxD: Array) -> Array:
        # The block's two halves follow each other: the second is linearised at the state between them.
        z_BxCxT, z_BxPxH, between, _ = mixed(params, h_BxD)
        parts_ = (gelu_derivative(z_BxCxT), gelu_derivative(z_BxPxH), between)
        return jnp.concatenate([part.reshape(h_BxD.shape[0], -1) for part in parts_], axis=-1)

    def unpacked(m_BxH: Array) -> tuple[Array, Array, Array]:
        first, second, between = jnp.split(m_BxH, (token_gates, m_BxH.shape[-1] - width), axis=-1)
        batch = m_BxH.shape[0]
        return (
            first.reshape(batch, channels, token_hidden),
            second.reshape(batch, positions, channel_hidden),
            tokens(between),
        )

    def push(weights, m_BxH, h_BxD, v_BxD):
        first, second, between = unpacked(m_BxH)
        seen = turned(layer_norm_tangent(tokens(h_BxD), tokens(v_BxD)))
        moved = turned(((seen @ weights["tokens_u"]) * first) @ weights["tokens_v"])
        seen = layer_norm_tangent(between, tokens(v_BxD) + moved)
        return (moved + ((seen @ weights["channels_u"]) * second) @ weights["channels_v"]).reshape(-1, width)

    def pull(weights, m_BxH, h_BxD, a_BxD):
        first, second, between = unpacked(m_BxH)
        a = tokens(a_BxD)
        back = ((a @ weights["channels_v"].T) * second) @ weights["channels_u"].T
        a_between = layer_norm_tangent(between, back)  # of X' beyond the identity
        back = ((turned(a + a_between) @ weights["tokens_v"].T) * first) @ weights["tokens_u"].T
        return (a_between + layer_norm_tangent(tokens(h_BxD), turned(back))).reshape(-1, width)

    def random(key: Key, scale: Array | float) -> Params:
        keys = jax.random.split(key, 4)
        return {n: scale * uniform(k, s, s[0] ** -0.5) for k, (n, s) in zip(keys, shapes.items(), strict=True)}

    def zero(key: Key) -> Params:
        keys = dict(zip(shapes, jax.random.split(key, 4), strict=True))
        first = lambda n: shapes[n][0] ** -0.5 * jax.random.normal(keys[n], shapes[n], float_type())  # noqa: E731
        return {n: first(n) if n.endswith("_u") else jnp.zeros(s, float_type()) for n, s in shapes.items()}

    branch = Branch(gates, random, zero, push, pull, own=lambda p: {n: p[n]["w"] for n in shapes})
    block = lambda params, h: mixed(params, h)[3].reshape(-1, width)  # noqa: E731
    return _image_network(sizes, depth, channels, patch, grid, init_block, block, branch)
