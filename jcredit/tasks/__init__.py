"""What networks are trained on: toy LQ control, the teacher ladder, real images, and arrays of one's own."""

from jcredit.tasks.classification import arrays, correct, cross_entropy
from jcredit.tasks.images import cifar10, fashion_mnist
from jcredit.tasks.ladder import teacher
from jcredit.tasks.linear_quadratic import lq
from jcredit.tasks.targets import regression, squared_error

__all__ = [
    "arrays", "cifar10", "correct", "cross_entropy", "fashion_mnist", "lq", "regression", "squared_error", "teacher",
]  # fmt: skip
