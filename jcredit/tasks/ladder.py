"""The synthetic nonlinearity ladder: a student learns the argmax of a random teacher (docs/method.md 8)."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.networks import ladder_mlp
from jcredit.numerics import float_type
from jcredit.parts import Part
from jcredit.passes import forward
from jcredit.settings import Count, Kind
from jcredit.tasks.classification import Classes, correct, cross_entropy
from jcredit.tasks.samples import gather
from jcredit.types import Data, Sizes, Task


@parts.task(ladder_mlp())
def teacher(
    classes: Classes = 10,
    inputs: Count = 128,
    train_size: Count = 8192,
    test_size: Count = 1024,
    teacher_network: Annotated[Part | None, Kind("network")] = None,
) -> Task:
    """x ~ N(0, I); the teacher is of the student's form, and each run draws its own.

    Args:
      classes: number of classes C.
      inputs: dimension of x.
      train_size: training samples.
      test_size: evaluation samples.
      teacher_network: the teacher's network (None: the student's, at other random parameters).
    """
    sizes = Sizes((inputs,), classes)

    def data(key, network):
        teacher_key, x_key = jax.random.split(key)
        drawn = network if teacher_network is None else teacher_network.build(sizes)
        x = jax.random.normal(x_key, (train_size + test_size, inputs), float_type())
        y = jnp.argmax(forward(drawn, drawn.init(teacher_key), x).outputs_BxC, axis=1).astype(jnp.int32)
        return Data(x[:train_size], y[:train_size], x[train_size:], y[train_size:])

    return Task(sizes, cross_entropy, correct, data, gather, lambda x: x, train_size)
