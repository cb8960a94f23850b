"""The network inside bridges and fields, by formula: [LN(h), t, sin k pi t, cos k pi t, s] -> SiLU layers -> output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_scene, normal, randomised, shapes_of, white

import jcredit as jc
from jcredit.estimators.trunk import layer_times


def by_hand(params, h, t, s):
    """One output vector of one state, in numpy; two hidden layers."""
    features = [t, *(np.sin(k * np.pi * t) for k in (1, 2, 3, 4)), *(np.cos(k * np.pi * t) for k in (1, 2, 3, 4))]
    x = np.concatenate([np.asarray(white(jnp.asarray(h))), features, s])
    for name in ("Dense_0", "Dense_1", "Dense_2"):
        x = x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
        x = x / (1 + np.exp(-x)) if name != "Dense_2" else x
    return x


def test_normalised_depth():
    np.testing.assert_allclose(layer_times(4), [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("per_sample", [False, True], ids=["a time for a layer", "a time for a sample"])
def test_a_trunk_by_formula(x64, strict, per_sample):
    scene = make_scene("image")
    trunk = jc.mlp(hidden=5, hidden_layers=2).build()
    params = randomised(jax.eval_shape(lambda key: trunk.init(key, shapes_of(scene), 3)[0], jax.random.key(0)), 11)
    s_BxS, h_KxBxD = normal(2, 8, 4), 3 * normal(3, 4, 8, 12) + 1
    if per_sample:
        h, t = h_KxBxD[0], jnp.abs(normal(4, 8))
        found = trunk.apply(params, scene.env, h, t, s_BxS, 3)
        wanted = [by_hand(params["params"], h[b], float(t[b]), s_BxS[b]) for b in range(8)]
    else:
        t = jnp.asarray([[0.0], [0.3], [0.7], [1.0]])
        found = trunk.apply(params, scene.env, h_KxBxD, t, s_BxS, 3)
        wanted = [
            [by_hand(params["params"], h_KxBxD[k, b], float(t[k, 0]), s_BxS[b]) for b in range(8)] for k in range(4)
        ]
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
