"""How large things are at the start, by the formulas that the documentation gives."""

import jax
import numpy as np
import pytest
from helpers import make_scene, shapes_of

import jcredit as jc
from jcredit.estimators.linear_maps import gate_map
from jcredit.types import Shapes, Sizes

KEY = jax.random.key(4)
IMAGES = Sizes((6, 4, 2), 3)


def is_uniform(w, bound):
    """Within the bound, reaching it, and of the deviation bound / sqrt 3."""
    assert 0.95 * bound < np.abs(w).max() <= bound * (1 + 1e-6)
    assert np.std(w) == pytest.approx(bound * 3**-0.5, rel=0.1)


def is_normal(w, deviation):
    """Of this deviation, and reaching twice that, as no uniform draw of the deviation does."""
    assert np.std(w) == pytest.approx(deviation, rel=0.1)
    assert np.abs(w).max() > 2 * deviation


def wide(scene, width=100) -> Shapes:
    return shapes_of(scene)._replace(width=width)


def test_learned_gates_start_at_one_over_the_root_of_the_width():
    params = gate_map(50).init(KEY, wide(make_scene("image")))
    assert params["g"].shape == (3, 100, 50) and not params["c"].any()
    is_normal(params["g"], 0.1)
    is_normal(params["u"], 0.1)


@pytest.mark.parametrize("credit", [jc.local_heads(), jc.forward_gradient("local")], ids=str)
def test_heads_start_at_one_over_the_root_of_the_width(credit):
    params = credit.build().init(KEY, wide(make_scene("image"), 400)).params
    assert params["w"].shape == (3, 400, 4) and not params["b"].any()
    is_normal(params["w"], 0.05)


def branch_of(part):
    branch = part.build(IMAGES).branch
    assert branch is not None
    return branch


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_random_kernels_are_uniform_up_to_the_root_of_their_fan_in(scale):
    drawn = branch_of(jc.image_cnn(channels=16, patch=2)).random(KEY, scale)
    for kernel in drawn.values():
        assert kernel.shape == (9 * 16, 16)
        is_uniform(kernel, scale * (9 * 16) ** -0.5)


def test_learned_kernels_start_normal_at_the_root_of_their_fan_in():
    drawn = branch_of(jc.image_cnn(channels=16, patch=2)).zero(KEY)
    is_normal(drawn["u"], (9 * 16) ** -0.5)
    assert not drawn["v"].any()


FAN_INS = {"tokens_u": 6, "tokens_v": 100, "channels_u": 20, "channels_v": 50}
MIXER = jc.image_mixer(channels=20, patch=2, token_hidden=100, channel_hidden=50)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_random_matrices_of_a_mixer_are_uniform_up_to_the_root_of_their_fan_in(scale):
    drawn = branch_of(MIXER).random(KEY, scale)
    for name, fan_in in FAN_INS.items():
        assert drawn[name].shape[0] == fan_in
        is_uniform(drawn[name], scale * fan_in**-0.5)


def test_learned_matrices_of_a_mixer_start_normal_on_the_way_in_and_zero_on_the_way_out():
    drawn = branch_of(MIXER).zero(KEY)
    for name, fan_in in FAN_INS.items():
        if name.endswith("_u"):
            is_normal(drawn[name], fan_in**-0.5)
        else:
            assert not drawn[name].any()
