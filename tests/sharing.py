"""Sweeps of tests share their programs: what one test has compiled, others of its file run.

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")
"""

from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from jcredit.config import static_key
from jcredit.sweeps import engine, owners, program, run


@pytest.fixture(scope="module")
def programs_of_the_file():
    """Compiled programs, and what has been checked, by what decides them."""
    return {}


@pytest.fixture
def shared_programs(monkeypatch, programs_of_the_file):
    """Compiles and checks a program once."""
    found, compile_, check = programs_of_the_file, program._compile, run.check_run

    def compile_once(one, layout, *args):
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(args))
        key = static_key(one.config), layout, shapes
        if key not in found:
            found[key] = compile_(one, layout, *args)
        return found[key]

    def check_once(one):
        if static_key(one.config) not in found:
            found[static_key(one.config)] = check(one)
        return found[static_key(one.config)]

    monkeypatch.setattr(program, "_compile", compile_once)
    monkeypatch.setattr(run, "check_run", check_once)


@pytest.fixture
def compiled(monkeypatch, shared_programs):
    """The credits of the programs that sweeps compile from here on."""
    credits = []
    real = program._compile
    monkeypatch.setattr(program, "_compile", lambda run, *a: credits.append(run.config.credit) or real(run, *a))
    return credits


@pytest.fixture
def pool(monkeypatch):
    """Two threads in the place of two workers."""
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(owners, "POLL_SECONDS", 0.01)
    with ThreadPoolExecutor(2) as threads:
        yield threads
