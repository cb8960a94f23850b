"""``jc.sweep``, the one door: a user's own parts, seeds and settings in, rows out; resumed, labelled, refused."""

import importlib
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small, tiny

import jcredit as jc
from jcredit.report.lines import Line, keep_lines, of_lines
from jcredit.report.rows import read_rows
from jcredit.study.found import found_in
from jcredit.sweeps import door, program
from jcredit.sweeps.variants import Variant, checked_seeds

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")

NET = {"network.depth": 2}

OWN_PARTS = '''
"""A user's own estimator, rule and task, outside the package."""

import jax
import jax.numpy as jnp

import jcredit as jc


@jc.estimator
def learned_feedback(directions: jc.Count = 2, gain: jc.Positive = 1.0) -> jc.Estimator:
    """DFA with feedback that is fitted to measured effects of perturbations."""

    def init(key, shapes):
        m = 0.1 * jax.random.normal(key, (shapes.depth + 1, shapes.outputs, shapes.width))
        return jc.EstState(params=m, extra={})

    def credit(state, ctx, env, key):
        return gain * jnp.einsum("bc,kcd->kbd", ctx.error_BxC, state.params)

    def loss(state, ctx, env, key):
        layer_key, v_key = jax.random.split(key)
        probe = jc.random_layers(layer_key, ctx)
        v = jax.random.normal(v_key, (directions, *probe.h_BxD.shape))
        effect = jc.measure(env, probe, v)
        a = jnp.einsum("bc,bcd->bd", probe.ctx.error_BxC, state.params[probe.layer_B])
        return jc.directional_loss(a, v, effect), {}

    return jc.Estimator(init, credit, loss, tier="2: loss under perturbation")


@jc.rule
def doubled(by: jc.Positive = 2.0) -> jc.LocalRule:
    """The inner product, louder."""
    return jc.LocalRule(lambda h, after, a: a, lambda h, after, a: by * a / h.shape[0])


@jc.task(jc.image_mlp(depth=2, width=12))
def rings(samples: jc.Count = 48, noise: jc.NonNegative = 0.1) -> jc.Task:
    """Two rings in the plane."""

    def data(key, network):
        keys = jax.random.split(key, 3)
        y = jax.random.bernoulli(keys[0], 0.5, (samples,)).astype(jnp.int32)
        angle = 6.28 * jax.random.uniform(keys[1], (samples,))
        x = (1 + y)[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
        x = x + noise * jax.random.normal(keys[2], x.shape)
        return jc.Data(x, y, x[:16], y[:16])

    def loss(outputs, target):
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), target[:, None], 1)[:, 0]

    return jc.Task(
        sizes=jc.Sizes((2,), 2),
        loss=loss,
        accuracy=lambda outputs, target: (outputs.argmax(1) == target).astype(outputs.dtype),
        data=data,
        batch=lambda data, index, key: (data.train_x[index], data.train_y[index]),
        prepare=lambda x: x,
        train_size=samples,
    )
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module of a user, who knows ``jcredit`` by its front door alone."""
    (tmp_path / "users_parts.py").write_text(OWN_PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("users_parts")


@pytest.mark.slow
def test_a_users_own_parts_are_swept_as_one_program_per_static_shape_and_found_again(own, tmp_path, compiled):
    base = jc.Config(
        task=own.rings(), rule=own.doubled(by=1.5), batch_size=16, epochs=2, diagnostic_samples=16, diagnose_every=2
    )
    configs = {"mine": base.replace(credit=own.learned_feedback()), "dfa": base.replace(credit=jc.dfa())}
    vary = {"learning_rate": [1e-3, 3e-3, 1e-2]}
    rows = jc.sweep(configs, range(8), vary, results_dir=tmp_path / "results", name="own", progress=False)
    assert [credit.name for credit in compiled] == ["users_parts.learned_feedback", "dfa"]
    assert {row["timing"]["runs_in_program"] for row in rows} == {24}
    labels = [f"{label} learning_rate={rate}" for label in configs for rate in ("0.001", "0.003", "0.01")]
    assert [(r["label"], r["seed"]) for r in rows] == [(label, seed) for label in labels for seed in range(8)]
    assert all(r["status"] == "ok" and math.isfinite(r["metrics"]["gamma"]) for r in rows)
    assert [rows[0]["config"][part][kind] for part, kind in (("credit", "estimator"), ("task", "task"))] == [
        "users_parts.learned_feedback", "users_parts.rings",
    ]  # fmt: skip
    assert len({row["metrics"]["train_loss"] for row in rows}) == 48  # seeds and rates all tell

    table, frame = rows.table(), rows.frame()
    assert all(label in table for label in labels) and "2: loss under perturbation" in table
    assert len(frame) == 48 and set(frame["learning_rate"]) == set(vary["learning_rate"])

    again = jc.sweep(configs, range(8), vary, results_dir=tmp_path / "results", name="own", progress=False)
    assert again == rows and len(compiled) == 2
    # Swept settings of own parts are traced as well.
    vary = {"by": [1.0, 2.0], "gain": [1.0, 2.0], "noise": [0.2]}
    rows = jc.sweep({"mine": configs["mine"]}, range(6), vary, progress=False)
    assert len(compiled) == 3
    [quiet], [loud] = (rows.where(by=1.0, gain=gain, seed=0) for gain in (1.0, 2.0))
    assert loud["layers"]["credit_norm"][0] == pytest.approx(2 * quiet["layers"]["credit_norm"][0], rel=1e-2)


def test_a_global_changed_between_two_sweeps_makes_runs_anew(tmp_path, monkeypatch, compiled):
    (tmp_path / "users_gain.py").write_text("""
import jcredit as jc

GAIN = 1.0

@jc.estimator
def louder() -> jc.Estimator:
    inner = jc.broadcast().build()
    return inner._replace(credit=lambda *args: GAIN * inner.credit(*args))
""")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("users_gain")
    config = tiny(module.louder(), trains="nothing", epochs=1, **NET)
    sweep = lambda: jc.sweep({"own": config}, [0], results_dir=tmp_path / "results", progress=False)[0]  # noqa: E731
    quiet = sweep()
    assert sweep() == quiet and len(compiled) == 1
    module.GAIN = 2.0
    loud = sweep()
    assert len(compiled) == 2
    assert loud["layers"]["credit_norm"][0] == pytest.approx(2 * quiet["layers"]["credit_norm"][0], rel=1e-5)


def test_rows_in_memory_leave_nothing_behind(tmp_path, monkeypatch, compiled):
    monkeypatch.setattr(door.tempfile, "tempdir", str(tmp_path))
    rows = jc.sweep({"dfa": tiny(jc.dfa(), **NET)}, [0], progress=False)
    assert len(rows) == 1 and rows[0]["experiment"] == "sweep" and not list(tmp_path.iterdir())
    jc.sweep({"dfa": tiny(jc.dfa(), **NET)}, [0], progress=False)
    assert len(compiled) == 2  # nobody remembers


def test_every_label_has_its_row_and_equal_configurations_are_one_run(tmp_path, compiled):
    same = tiny(jc.dfa(), **NET)
    # A setting that only an estimator of another kind reads makes no other run.
    configs = {"a": same, "b": same.replace(warmup_ratio=0.5), "c": tiny(jc.bp(), **NET)}
    rows = jc.sweep(configs, [1, 0], results_dir=tmp_path, progress=False)
    assert [(r["label"], r["seed"]) for r in rows] == [("a", 1), ("a", 0), ("b", 1), ("b", 0), ("c", 1), ("c", 0)]
    assert len(compiled) == 2 and [r["metrics"] for r in rows[:2]] == [r["metrics"] for r in rows[2:4]]
    assert [r["config"]["warmup_ratio"] for r in rows] == [0, 0, 0.5, 0.5, 0, 0]
    assert len(read_rows(tmp_path / "sweep/sweep/rows.jsonl")) == 4
    assert [r["depth"] for r in rows] == [1, 1, 1, 1, 2, 2] and "| tier " in rows.table() and "| depth " in rows.table()
    renamed = jc.sweep({"other": same}, [0], results_dir=tmp_path, progress=False)
    assert [r["label"] for r in renamed] == ["other"] and len(compiled) == 2
    jc.sweep(configs, [1, 0], results_dir=tmp_path, progress=False)
    read = jc.Rows.read(tmp_path / "sweep/sweep")  # every label of the latest has its row, with its own settings
    assert [r["label"] for r in read] == [*"aabbcc"]
    assert sorted(map(repr, read)) == sorted(map(repr, rows))
    elsewhere = jc.sweep({"a": same}, [0], results_dir=tmp_path, name="elsewhere", progress=False)
    assert elsewhere[0]["from"] == "sweep/sweep" and len(compiled) == 2


def test_a_rebuilt_table_has_the_lines_in_the_order_of_the_sweep(tmp_path, compiled):
    configs = {"z": tiny(jc.dfa()), "a": tiny(jc.broadcast())}
    for rates in ([3e-3], [1e-3, 3e-3]):
        rows = jc.sweep(configs, [0, 1], {"learning_rate": rates}, results_dir=tmp_path, progress=False)
    assert [row["label"] for row in read_rows(tmp_path / "sweep/sweep/rows.jsonl")] != [row["label"] for row in rows]
    rebuilt = found_in(tmp_path / "sweep/sweep", {}).rows
    assert [(r["label"], r["seed"]) for r in rebuilt] == [(r["label"], r["seed"]) for r in rows]
    assert rows[0]["label"] == "z learning_rate=0.001"
    (tmp_path / "sweep/sweep/lines.json").write_text("torn")
    assert len(found_in(tmp_path / "sweep/sweep", {}).rows) == 8  # in the order in which they ended


def test_a_report_leaves_out_rows_of_configurations_that_a_label_stood_for_before(tmp_path, compiled):
    """An estimator that is edited under one label has a new key; the rows of the old one stay in the file."""
    folder = tmp_path / "sweep/sweep"
    for scale in (1.0, 2.0):
        config = tiny(jc.dfa(), learning_rate=scale * 1e-3, epochs=1)
        rows = jc.sweep({"mine": config, "bp": tiny(jc.bp(), epochs=1)}, [0], results_dir=tmp_path, progress=False)
    found = found_in(folder, {})
    assert found.rows == list(rows) and "from 2 rows; 1 rows of earlier configurations" in found.text
    assert len(jc.Rows.read(folder / "rows.jsonl")) == 3  # the file has every row; a folder those that labels stand for
    assert list(jc.Rows.read(tmp_path)) == list(rows)
    renamed = tiny(jc.dfa(), learning_rate=1e-3, epochs=1)
    jc.sweep({"before": renamed}, [0], results_dir=tmp_path, progress=False)  # its row is there, as one of "mine"
    assert {r["label"] for r in found_in(folder, {}).rows} == {"before", "mine", "bp"}
    keep_lines(folder, dict.fromkeys(("before", "mine", "bp"), Line("new")))
    with pytest.raises(jc.ConfigError, match="its 3 rows are of earlier configurations"):
        found_in(folder, {})


def test_a_line_under_a_new_label_is_read_once(tmp_path):
    """``0`` and ``0.0`` are one value of a setting and two texts."""
    for values in ([0.0, 0.5], [0, 0.5]):
        rows = jc.sweep({"bp": tiny(epochs=1)}, [0], {"state_penalty": values}, results_dir=tmp_path, progress=False)
    assert [row["label"] for row in rows] == ["bp state_penalty=0", "bp state_penalty=0.5"]
    assert list(jc.Rows.read(tmp_path)) == list(rows)


def test_lines_without_keys_order_their_rows_and_leave_none_out(tmp_path):
    """As an earlier version wrote them."""
    (tmp_path / "lines.json").write_text('["b", "a", 3]')
    rows = [{"label": label, "config_hash": key} for label, key in (("a", "1"), ("b", "2"), ("a", "3"))]
    assert [row["config_hash"] for row in of_lines(tmp_path, rows)] == ["2", "1", "3"]
    keep_lines(tmp_path, {"a": Line("3")})
    assert [row["config_hash"] for row in of_lines(tmp_path, rows)] == ["3", "2"]


def test_rows_of_an_experiment_bear_its_labels_and_newer_ones_are_not_lost(tmp_path):
    """A script was edited, and is run: its config.json is that of its last table."""
    lines = [("new name", "raw", "1"), ("new name", "rms", "1")]
    grid = [{"label": label, "block": block, "depth": 3, "config_hash": key} for label, block, key in lines]
    (tmp_path / "config.json").write_text(json.dumps({"variants": grid}))
    rows = [{"label": "old name", "seed": seed, "config_hash": key} for seed, key in ((1, "1"), (0, "1"), (0, "2"))]
    found = [(row["label"], row.get("block"), row["seed"], row.get("depth")) for row in of_lines(tmp_path, rows)]
    placed = [("new name", block, seed, 3) for block in ("raw", "rms") for seed in (0, 1)]
    assert found == [*placed, ("old name", None, 0, None)]
    (tmp_path / "config.json").write_text(json.dumps({"variants": [{"label": "without depth", "config_hash": "1"}]}))
    assert of_lines(tmp_path, rows) == sorted(rows, key=lambda row: 0), "an earlier version's"


def test_values_cross_in_order_and_reach_their_settings():
    lines = door._lines(
        {"x": tiny(small(jc.vector_field))}, {"credit.epsilon": np.array([1e-2, 1e-3]), "rule": [jc.target_shift()]}
    )
    assert [v.label for v in lines] == [
        "x credit.epsilon=0.01 rule=target_shift()",
        "x credit.epsilon=0.001 rule=target_shift()",
    ]
    assert [v.config.credit.settings["epsilon"] for v in lines] == [0.01, 0.001]
    assert {v.config.rule.name for v in lines} == {"target_shift"}
    assert len(door._lines({"x": tiny(), "y": tiny()}, {"learning_rate": [1, 2], "clip": [0, 1, 2]})) == 12
    lines = door._lines({"x": tiny()}, {"credit.samples": [4, 8], "credit": [jc.tangent_chain(), jc.tangent_mask()]})
    settings = [(v.config.credit.name, v.config.credit.settings["samples"]) for v in lines]
    assert settings == [(name, samples) for samples in (4, 8) for name in ("tangent_chain", "tangent_mask")]


def test_tasks_on_ones_own_arrays_are_told_apart_in_labels():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6) % 2
    tasks = [jc.tasks.arrays(by * x, y, x, y) for by in (1, 2)]
    labels = [variant.label for variant in door._lines({"bp": jc.Config(task=tasks[0])}, {"task": tasks})]
    assert len(set(labels)) == 2 and all("data=<arrays " in label for label in labels)


def test_numbers_of_any_kind_are_varied_as_pythons():
    for values in (np.asarray([0.5, 0.25], np.float32), jnp.asarray([0.5, 0.25]), [0.5, 0.25]):
        lines = door._lines({"bp": tiny()}, {"learning_rate": values})
        assert [line.label for line in lines] == ["bp learning_rate=0.5", "bp learning_rate=0.25"]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_narrow_number_is_the_decimal_it_was_made_of(kind):
    [line] = door._lines({"bp": tiny()}, {"learning_rate": np.asarray([1e-3], kind)})
    assert line.label == "bp learning_rate=0.001" and line.hash == Variant("", tiny(learning_rate=1e-3)).hash
    [line] = door._lines({"bp": tiny()}, {"learning_rate": jnp.asarray([1e-3])})
    assert line.config.learning_rate == 1e-3


def test_seeds_are_whole_numbers_of_any_kind():
    for seeds in (jnp.arange(3), np.arange(3), [jnp.asarray(0), np.int64(1), 2]):
        found = checked_seeds(seeds)
        assert found == (0, 1, 2) and {type(seed) for seed in found} == {int}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_executor_that_forks_is_refused(method):
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:  # no process before the first task
        said = r"forks hangs .*get_context\('spawn'\)" if method == "fork" else "needs results_dir"
        with pytest.raises(jc.ConfigError, match=said):
            jc.sweep({"bp": tiny()}, [0], executor=pool, progress=False)


def test_a_name_is_a_folder():
    with pytest.raises(jc.ConfigError, match=r"name='a/b'"):
        jc.sweep({"bp": tiny()}, [0], name="a/b")


def test_an_interrupted_sweep_goes_on_where_rows_are_kept_and_says_so_where_not(tmp_path, monkeypatch, compiled):
    configs = {"dfa": tiny(jc.dfa(), **NET)}
    with monkeypatch.context() as patch:
        real = program._compile
        patch.setattr(program, "_compile", lambda *a: os.kill(os.getpid(), signal.SIGINT) or real(*a))
        assert issubclass(jc.Interrupted, KeyboardInterrupt)  # passes by a caller's ``except Exception``
        with pytest.raises(jc.Interrupted, match="epoch 1 of 2; with results_dir"):
            jc.sweep(configs, [0], progress=False)
        with pytest.raises(jc.Interrupted, match="the same command goes on"):
            jc.sweep(configs, [0], results_dir=tmp_path, progress=False)
    assert len(list((tmp_path / "sweep/sweep/cache").glob("*/program.json"))) == 1
    [row] = jc.sweep(configs, [0], results_dir=tmp_path, progress=False)
    assert row["epochs"] == 2 and not list((tmp_path / "sweep/sweep/cache").glob("*"))


def test_a_script_beside_a_clone_finds_the_package_and_not_the_clones_folder(tmp_path):
    (tmp_path / "jcredit").mkdir()  # the clone: without an __init__.py, a namespace package if nothing better is found
    (tmp_path / "mine.py").write_text("import jcredit as jc\nprint(jc.sweep)\n")
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "function sweep" in done.stdout, done.stderr


def test_a_sweep_after_jax_has_been_used_says_once_that_cores_are_left():
    lines = (
        "import os; os.sched_getaffinity = lambda pid: {0, 1, 2}",
        "import jax; jax.devices()",
        "from jcredit.sweeps.layout import use_all_cores; use_all_cores(); use_all_cores()",
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr.count("has 1 of 3 cores") == 1, done.stderr


@pytest.mark.parametrize(
    "chosen", [{"JAX_NUM_CPU_DEVICES": "1"}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}]
)
def test_a_chosen_number_of_devices_stays(chosen):
    lines = (
        "import os; os.sched_getaffinity = lambda pid: {0, 1, 2}",
        "from jcredit.sweeps.layout import use_all_cores; use_all_cores()",
        "import jax; print(jax.local_device_count())",
    )
    others = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    for environment, devices in ((others | chosen, "1"), (others, "3")):
        done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=environment)
        assert (done.stdout.strip(), done.stderr) == (devices, "")


def test_the_package_tells_its_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jc.__version__)
