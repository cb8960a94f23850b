"""Every test sees eight fake devices and strict rank promotion; our own code is also held to strict dtypes."""

import os
from contextlib import nullcontext
from pathlib import Path

import jax
import pytest
from quick import xla_flags

# On a machine with a GPU, too: eight devices, and bits that do not depend on a batch, are the CPU's alone.
os.environ["JAX_PLATFORMS"] = "cpu"  # of commands that tests call
jax.config.update("jax_platforms", "cpu")
os.environ["XLA_FLAGS"] = xla_flags()  # before the first compilation
jax.config.update("jax_num_cpu_devices", 8)  # before the first device use
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tiny programs spend their time being compiled.  Tests of bits ask for the real thing (helpers.optimised_jit).
jax.config.update("jax_disable_most_optimizations", True)

assert jax.device_count() == 8  # from here on no command that a test calls can choose otherwise

RESIDENT_LIMIT = 2.5e9
"""Bytes of a worker above which compiled programs are forgotten."""


def pytest_configure(config):
    config.addinivalue_line("markers", "faults: what happens to the command; pytest -m faults runs all of it")
    config.addinivalue_line("markers", "browser: the results page in a real browser; pytest -m browser runs them")
    config.addinivalue_line("markers", "slow: the slow few, left out by default; pytest -m slow runs them")


def resident_bytes() -> float:
    """Memory of this process; infinite where it cannot be told."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else float("inf")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Small programs serve the next file as well; thousands of them fill gigabytes."""
    yield
    if resident_bytes() > RESIDENT_LIMIT:
        jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def sweeps_keep_no_programs():
    """``jc.sweep`` leaves nothing in the home of whoever runs the tests."""
    from jcredit.sweeps import door

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door, "programs_kept", nullcontext)
        yield


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


@pytest.fixture(scope="session")
def experiments():
    """Every experiment of this repository, by name."""
    from jcredit.study.scripts import load_experiments

    return load_experiments(Path(__file__).parent.parent / "experiments")


@pytest.fixture
def holds(request):
    """Tries a property: in the default run a short form of it, with ``-m faults`` all cases."""
    from hypothesis import HealthCheck, settings

    def attempt(prop, short, all_cases):
        count = all_cases if "faults" in request.config.getoption("markexpr").split() else short
        cases = settings(
            max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        cases(prop)()

    return attempt
