"""What ``jc.sweep`` cannot do is said in one line before anything runs; and where its results lie."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

import jcredit as jc

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (({"bp": tiny()}, [0], {"credit.sigma": [0.1]}), "line 'bp': setting 'credit.sigma' is unknown.*without it"),
        (({"bp": tiny()}, [0], {"learning_rat": [0.1]}), "did you mean 'learning_rate'"),
        (({"bp": tiny()}, [0], {"learning_rate": [-1.0]}), "line 'bp': learning_rate=-1.0 must be positive"),
        (({"bp": tiny()}, [0], {"learning_rate": 0.1}), "learning_rate=0.1 must be a list"),
        (({"bp": tiny()}, [0], {"schedule": "cosine"}), "schedule='cosine' must be a list"),
        (({"bp": tiny()}, [0], {"clip": []}), r"clip=\[\] has no values; give some"),
        (({"bp": tiny()}, [0], ["clip"]), r"vary=\['clip'\] must be settings and their values"),
        (
            ({"bp": tiny()}, [0], {"credit.lr": [0.1]}),
            "setting 'credit.lr' is unknown; choose .*; sweep 'bp' without it",
        ),
        (
            ({"sb": tiny(jc.state_bridge())}, [0], {"credit.learning_rate": ["fast"]}),
            "vary: credit.learning_rate: line 'sb': learning_rate='fast' must be a number",
        ),
        (({"bp": tiny()}, [0], {"clip": [1, 1.0]}), "clip has 1.0 twice"),
        (({"bp": tiny()}, 3), r"seeds=3 must be several, such as range\(3\)"),
        (({"bp": tiny()}, None), r"seeds=None must be several, such as range\(3\)"),
        (({"bp": tiny()}, [0], {3: [1]}), "vary: 3 must be the name of a setting"),
        (({"bp": tiny()}, [0], {"credit": [np.ones(2), np.ones(2)]}), "vary: credit=.* must be a list of numbers"),
        (({"bp": tiny()}, [0], {"credit": [np.ones(2)]}), "vary: credit: line 'bp'"),
        (({"bp": tiny()}, [0], {"clip": np.asarray(1.0)}), "vary: clip=.* must be a list of numbers"),
        (({"bp": tiny()}, np.asarray(3)), "seeds=array.3. must be several"),
        (({"bp": tiny()}, jnp.arange(2.0)), "seed 0.0 must be a whole number"),
        (({"bp": tiny()}, jax.random.split(jax.random.key(0))), "seed .* must be a whole number"),
        (({"bp": tiny()}, [0, 0]), "seed 0 is given more than once"),
        (({"bp": tiny()}, [-1]), "seed -1"),
        (({"bp": tiny()}, []), "at least one"),
        (({}, [0]), "at least one configuration"),
        (({"bp": jc.bp()}, [0]), "'bp': bp.* must be a label and a jc.Config"),
        (({" ": tiny()}, [0]), "label ' ' is no plain text"),
        (({"a\nb": tiny()}, [0]), r"label 'a\\nb' is no plain text"),
        (
            ({"bp": tiny()}, [0], {"width": [8, 12], "network.width": [16]}),
            "lines 'bp width=8 network.width=16' and 'bp width=12 network.width=16' would be one configuration",
        ),
        (({"bp": tiny()}, [0], {"learning_rate": ["1e-3", 1e-3]}), "would be one configuration: give each value once"),
    ],
)
def test_what_cannot_be_swept_is_said_in_one_line(arguments, named):
    with pytest.raises(jc.ConfigError, match=named) as raised:
        jc.sweep(*arguments, progress=False)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fact", "of"), [("tier", "size {}".format), ("trains_blocks", lambda size: size > 0)], ids=["tier", "blocks"]
)
def test_what_a_program_is_told_once_must_not_hang_on_a_swept_number(fact, of):
    @jc.estimator
    def sized(size: jc.NonNegative = 1.0) -> jc.Estimator:
        return jc.broadcast().build()._replace(**{fact: of(size)})

    config = tiny(sized())
    with pytest.raises(jc.ConfigError, match=f"{fact} is .* for one value of a swept number and .* for another"):
        jc.sweep({"own": config}, [0], {"size": [1.0, 0.0]}, progress=False)
    assert len(jc.sweep({"own": config}, [0], {"learning_rate": [1e-3, 1e-2]}, progress=False)) == 2


def shut_down():
    with ThreadPoolExecutor(1) as executor:
        return executor


def test_a_sweep_says_that_it_compiles():
    with jax.disable_jit(), pytest.raises(jc.ConfigError, match="jax_disable_jit is on, and a sweep compiles"):
        jc.sweep({"bp": tiny()}, [0], progress=False)


def test_a_home_folder_can_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    rows = jc.sweep({"bp": tiny()}, [0], results_dir="~/runs", progress=False)
    assert list(jc.Rows.read("~/runs")) == list(rows) and not (tmp_path / "~").exists()
    for refusing in (
        lambda: jc.sweep({"bp": tiny()}, [0], results_dir="~nobody-here/x", progress=False),
        lambda: jc.Rows.read("~nobody-here/x"),
    ):
        with pytest.raises(ValueError, match="'~nobody-here/x': Could not determine home directory"):
            refusing()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_runs": -1}, "batch_runs=-1 must be a whole number from 1"),
        ({"batch_runs": 1.5}, "batch_runs=1.5 must be"),
        ({"seeds_per_batch": "auto"}, "seeds_per_batch='auto' must be"),
        ({"seeds_per_batch": True}, "seeds_per_batch=True must be"),
        (
            {"executor": "tcp://x", "results_dir": "runs"},
            r"executor='tcp://x' is none of concurrent.futures; .* give distributed\.Client\('tcp://HOST:8786'\)\.get_executor\(\)",
        ),
        ({"results_dir": ""}, "results_dir='' is no folder"),
        ({"results_dir": 5}, "results_dir=5 is no folder"),
        ({"results_dir": "a\0b"}, "is no folder"),
        ({"executor": shut_down(), "results_dir": "runs"}, "executor=.* is shut down; make a new one"),
    ],
)
def test_what_an_option_cannot_be_is_said_in_one_line(options, named):
    with pytest.raises(jc.ConfigError, match=named):
        jc.sweep({"bp": tiny()}, [0], progress=False, **options)
