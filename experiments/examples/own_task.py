"""A task of your own: arrays are enough, and a task that draws its samples anew takes a factory.

The digits of scikit-learn come as arrays.  The second task, parity of a few signs among many, has no arrays: every step
draws fresh samples, and how many signs count is a setting to sweep.
"""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jcredit as jc


@jc.task(jc.image_mlp(depth=3, width=32))
def parity(inputs: jc.Count = 20, bits: jc.Count = 2, tests: jc.Count = 512) -> jc.Task:
    """Is the number of negative signs among the first ``bits`` of ``inputs`` random signs odd?

    Args:
      inputs: length of a sample.
      bits: how many of its signs count.
      tests: evaluation samples.
    """

    def draw(key, samples):
        x = jax.random.rademacher(key, (samples, inputs), jnp.float32)
        return x, (jnp.prod(x[:, :bits], axis=1) < 0).astype(jnp.int32)

    return jc.Task(
        sizes=jc.Sizes((inputs,), 2),
        loss=jc.tasks.cross_entropy,
        accuracy=jc.tasks.correct,
        data=lambda key, network: jc.Data(*draw(key, 1), *draw(jax.random.fold_in(key, 1), tests)),
        batch=lambda data, index, key: draw(key, index.shape[0]),
        prepare=lambda x: x,
        train_size=None,  # every step draws fresh samples; Config.steps_per_epoch says what an epoch is
    )


if __name__ == "__main__":  # workers import this file
    x, y = (np.asarray(a) for a in load_digits(return_X_y=True))
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=0)
    digits_task = jc.tasks.arrays(x, y, x_test, y_test)
    credits = {"bp": jc.bp(), "dfa": jc.dfa()}
    for name, task, more in (("digits", digits_task, {}), ("parity", parity(), {"steps_per_epoch": 100})):
        base = jc.Config(task=task, network=jc.image_mlp(depth=3, width=32), epochs=5, batch_size=64)
        base = base.replace(**more)
        configs = {label: base.replace(credit=credit) for label, credit in credits.items()}
        print(jc.sweep(configs, seeds=range(3), name=name).table())
    jc.testing.check_task(parity)  # last: a sweep in a process that has used JAX has one core
