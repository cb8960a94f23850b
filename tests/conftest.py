"""Every test sees eight fake devices and strict rank promotion; our own code is also held to strict dtypes."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # before the first device use
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tiny programs spend their time being compiled.  Tests of bits ask for the real thing (helpers.optimised_jit).
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs of one file are of no use to the next, and thousands of them fill gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def strict():
    """No implicit dtype promotion.  Not for whole training steps: optax.adam itself mixes dtypes."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    """Double precision for everything built inside the test."""
    with jax.enable_x64(True):
        yield
