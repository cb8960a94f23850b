"""Residual networks as pure functions: the study's, and two for images that are no MLPs."""

from jcredit.networks.dense import gelu, gelu_derivative, image_mlp, ladder_mlp, lq_dynamics, wide_product
from jcredit.networks.spatial import image_cnn, image_mixer

__all__ = [
    "gelu", "gelu_derivative", "image_cnn", "image_mixer", "image_mlp", "ladder_mlp", "lq_dynamics", "wide_product",
]  # fmt: skip
