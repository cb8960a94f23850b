"""A network of your own: residual convolutional blocks, on which feedback alignment and tangent chains work as well.

States are images, flattened to (B, D).  A network without a ``branch`` trains with every estimator that needs none; the
branch is the block's linear part with weights to be replaced, here convolution kernels.  Its transpose is derived.
"""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import jcredit as jc


def convolve(x, kernel):
    """Images (B, H, W, I) with kernels (3, 3, I, O)."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jc.network
def convolutional(sizes: jc.Sizes, /, depth: jc.Count = 3, channels: jc.Count = 4, gates: jc.Count = 8) -> jc.Network:
    """h_{l+1} = h_l + tanh(LN(h_l) * U_l) * V_l with kernels of 3 x 3, and ``gates`` channels between the two."""
    (height, width, inputs), flat = sizes.inputs, lambda x: x.reshape(x.shape[0], -1)
    image = lambda h: h.reshape(h.shape[0], height, width, -1)  # noqa: E731
    kernel = lambda key, i, o: (9 * i) ** -0.5 * jax.random.normal(key, (3, 3, i, o))  # noqa: E731
    inside = lambda w, h: convolve(image(jc.layer_norm(h)), w["u"])  # noqa: E731

    def weights(key, scale: jax.Array | float = 1.0):
        u, v = jax.random.split(key)
        return {"u": scale * kernel(u, channels, gates), "v": scale * kernel(v, gates, channels)}

    def init(key):
        embed, blocks, readout = jax.random.split(key, 3)
        out = 0.05 * jax.random.normal(readout, (height * width * channels, sizes.outputs))
        return jc.NetParams(kernel(embed, inputs, channels), jax.vmap(weights)(jax.random.split(blocks, depth)), out)

    def push(w, m, h, tangent):
        return flat(convolve(convolve(image(jax.jvp(jc.layer_norm, (h,), (tangent,))[1]), w["u"]) * image(m), w["v"]))

    embed, block = lambda w, x: flat(convolve(x, w)), lambda w, h: h + flat(convolve(jnp.tanh(inside(w, h)), w["v"]))
    branch = jc.Branch(
        gates=lambda w, h: flat(1 - jnp.tanh(inside(w, h)) ** 2),
        random=weights,
        zero=lambda key: {**weights(key), "v": jnp.zeros((3, 3, gates, channels))},
        push=push,
        pull=lambda w, m, h, a: jax.vjp(lambda t: push(w, m, h, t), a)[1](a)[0],
    )
    return jc.Network(init, embed, block, lambda w, h: jc.layer_norm(h) @ w, jc.layer_norm, branch)


if __name__ == "__main__":  # workers, and --estimator, --rule ... of an experiment, import this file
    x, y = (np.asarray(a) for a in load_digits(return_X_y=True))
    task = jc.tasks.arrays(x[:1200].reshape(-1, 8, 8, 1), y[:1200], x[1200:].reshape(-1, 8, 8, 1), y[1200:])
    base = jc.Config(task=task, network=convolutional(), epochs=3, batch_size=50)
    credits = {"bp": jc.bp(), "fa": jc.fa(), "chain": jc.tangent_chain()}
    print(jc.sweep({label: base.replace(credit=credit) for label, credit in credits.items()}, seeds=range(2)).table())
    jc.testing.check_network(convolutional, task=task)  # last: a sweep in a process that has used JAX has one core
