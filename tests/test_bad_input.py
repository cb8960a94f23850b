"""Bad input that once ended in a traceback, in silence, or in the kernel's killer: one line, field, value, status 2."""

from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import refused, small, tiny

import jcredit as jc
from jcredit import __main__ as command
from jcredit.checking import check_run
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.sweeps import plan, program
from jcredit.sweeps.cost import memory_of
from jcredit.sweeps.engine import InProcess
from jcredit.sweeps.layout import Layout, over_runs
from jcredit.sweeps.run import plan_sweep, run_sweep
from jcredit.sweeps.variants import Folder, Followup, Variant
from jcredit.training import epoch_and_scores, make_run

TINY = tiny(jc.frozen(), depth=2, epochs=1)
LONG = "9" * 400


def experiment(*variants):
    preset = Preset((0,), variants or (Variant("frozen", TINY),), "a moment")
    return Experiment(
        "tiny", "?", "0", "A tiny experiment.", {"quick": preset}, TableSpec("T", credit_columns()), default_figure("T")
    )


@pytest.fixture
def compiles_nothing(monkeypatch):
    monkeypatch.setattr(program, "_compile", lambda *_: pytest.fail("it was compiled"))


@pytest.mark.usefixtures("compiles_nothing")
@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--epochs", LONG], ["epochs", "999", "2147483647"]),
        (["--learning-rate", LONG], ["learning_rate", "999", "float32"]),
        (["--learning-rate", "1e39"], ["learning_rate", "1e39", "not finite in float32"]),
        (["--learning-rate", "1e400"], ["learning_rate", "1e400"]),
        (["--learning-rate", "1e-60"], ["learning_rate", "1e-60", "zero in float32"]),
        (["--learning-rate", "-1e-3"], ["learning_rate", "-1e-3", "positive"]),
        (["--learning-rate", "-inf"], ["learning_rate", "-inf"]),
        (["--depth", "9" * 5000], ["depth", "999", "integer"]),
        (["--width", "10000000"], ["network.width=10000000", "TiB", "lower"]),
        (["--depth", "1000000000"], ["network.depth=1000000000", "TiB", "lower"]),
        (["--plan", "--device-gib", "nan"], ["--device-gib", "nan"]),
        (["--plan", "--device-gib", "inf"], ["--device-gib", "inf"]),
        (["--plan", "--device-gflops", "0"], ["--device-gflops", "'0'"]),
        (["--plan", "--device-gflops", "1e-300"], ["--device-gflops", "1e-300"]),
        (["--results-dir", ""], ["--results-dir", "''"]),
        (["--data-dir", " "], ["--data-dir", "' '"]),
        (["--results-dir", "/dev/null/x"], ["results_dir", "/dev/null/x"]),
        (["--results-dir", "/proc/x"], ["results_dir", "/proc/x"]),
        (["--results-dir", "n" * 300], ["--results-dir", "nnn", "too long"]),
        (["--seeds", LONG], ["--seeds", "999"]),
        (["--seeds", "²"], ["--seeds", "²"]),
        (["--devices", LONG], ["--devices", "999"]),
        (["--seeds-per-batch", "9" * 5000], ["--seeds-per-batch", "999"]),
    ],
)
def test_it_is_one_line_that_names_field_and_value(capsys, tmp_path, argv, named):
    with pytest.raises(SystemExit) as exit_:
        main(experiment(), ["--results-dir", str(tmp_path), *argv])
    text = capsys.readouterr()
    assert exit_.value.code == 2 and text.out == "" and len(text.err.splitlines()) == 1, text.err
    assert all(word in text.err for word in named) and len(text.err) < 500, text.err
    assert not list(tmp_path.iterdir())


SCRIPTS = str(Path(__file__).parent.parent / "experiments")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["list", "--experiments", "n" * 300], ["--experiments", "nnn", "too long"]),
        (["list", "--experiments", "nowhere"], ["--experiments", "nowhere"]),
        (["reproduce", "--hours", "nan"], ["--hours", "nan"]),
        (["reproduce", "--results-dir", "/dev/null/x", "--experiments", SCRIPTS], ["--results-dir", "/dev/null/x"]),
        (["report", "--results-dir", ""], ["--results-dir", "''"]),
        (["report", "--html", " "], ["--html", "' '"]),
        (["claims", "--results-dir", "nowhere", "--experiments", SCRIPTS], ["--results-dir", "nowhere"]),
        (["watch", ""], ["DIR", "''"]),
    ],
)
def test_so_it_is_for_the_commands_over_all_experiments(capsys, tmp_path, monkeypatch, argv, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        command.main(argv)
    text = capsys.readouterr()
    assert exit_.value.code == 2 and text.out == "" and len(text.err.splitlines()) == 1, text.err
    assert all(word in text.err for word in named), text.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["long", "negative", "longer"])
def test_integers_of_any_length_are_refused_in_python(value):
    refused(lambda: jc.Config(learning_rate=value), "learning_rate=.* (is not finite in float32|over 4300)")
    refused(lambda: jc.Config(epochs=value), "epochs=")


def test_numbers_that_float32_cannot_hold_are_refused_and_zero_is_not():
    refused(lambda: jc.Config(learning_rate=1e-60), "learning_rate=1e-60 is zero in float32")
    refused(lambda: jc.Config(clip=-1e-45), "clip=-1e-45 is zero in float32")
    assert jc.Config(clip=0).clip == 0 and jc.Config(learning_rate=1.2e-38).learning_rate == 1.2e-38


@pytest.mark.usefixtures("compiles_nothing")
def test_sizes_that_cannot_fit_are_refused_in_python():
    refused(lambda: jc.sweep({"a": TINY.replace(width=10_000_000)}, [0]), "network.width=10000000: frozen needs .* TiB")


def taken_by(run, runs, layout):
    """Bytes of a device, and of what all its runs share, in the program of a sweep."""
    key, hp = jax.random.key(0), run.hparams(run.config)
    state, data = jax.eval_shape(run.init, key, hp), jax.eval_shape(run.data, key, hp)
    each = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct((runs, *x.shape), x.dtype), tree)  # noqa: E731
    program = over_runs(epoch_and_scores(run), (True, True, not run.shared_data), layout, (0,))
    found = memory_of(program.lower(each(state), each(hp), data if run.shared_data else each(data)).compile())
    shared = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(data)) if run.shared_data else 0
    return sum(found), shared


def test_runs_that_take_turns_need_the_data_and_the_scratch_of_one():
    x = np.random.default_rng(0).normal(size=(256, 128)).astype(np.float32)
    task = jc.tasks.arrays(x, np.arange(256) % 4, x, np.arange(256) % 4)
    run = make_run(tiny(small(jc.tangent_chain), task=task, batch_size=64, network=jc.ladder_mlp(depth=2, width=16)))
    (two, shared), (sixteen, _) = (taken_by(run, runs, Layout()) for runs in (2, 16))
    assert run.shared_data and shared > 250_000
    assert sixteen < 0.7 * 8 * two  # which eight times as many runs would take if each had its own
    for runs, need in ((2, two), (16, sixteen)):
        plan.check_fits(run, runs, Layout(), 1.05 * need)
        refused(lambda: plan.check_fits(run, runs, Layout(), 0.95 * need), f"needs .* for {runs} runs.*fewer seeds")  # noqa: B023
        plan.check_fits(run, 4 * runs, Layout(4), 1.05 * need)
    together, _ = taken_by(run, 16, Layout(1, 16))
    assert together > sixteen
    refused(lambda: plan.check_fits(run, 16, Layout(1, 16), sixteen), "needs at least .* for 16 runs")


def test_the_memory_of_a_machine_counts_only_for_what_runs_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "device_memory", lambda: 2048.0)
    lines, folder = [Variant("frozen", TINY)], Folder(tmp_path, "tiny", "smoke")
    assert [cost.runs for cost in plan_sweep(lines, [0, 1], folder)] == [2]
    refused(lambda: run_sweep(lines, [0, 1], folder, progress=False), "a device has 2 KiB")
    sent = []

    class Elsewhere(InProcess):
        def submit(self, fn, /, *args, **kwargs):
            sent.append(args)
            return super().submit(fn, *args, **kwargs)

    refused(lambda: run_sweep(lines, [0], folder, progress=False, executor=Elsewhere()), "a device has 2 KiB")
    assert len(sent) == 1  # a worker has said so
    monkeypatch.undo()
    assert len(run_sweep(lines, [0], folder, progress=False, executor=Elsewhere())) == 1


def test_a_program_that_the_bound_leaves_open_is_compiled_for_what_it_takes():
    run = make_run(TINY)
    taken = plan.cost_of(run)
    refused(lambda: plan.check_fits(run, 1, Layout(), taken.of_device(1) - 1), "needs at least")
    plan.check_fits(run, 1, Layout(), taken.of_device(1))


def test_what_a_followup_lacks_is_said_before_training(monkeypatch, tmp_path):
    def build(run, settings):
        def measure(state, hp, data):
            if data.test_x.shape[0] < 1000:
                raise jc.ConfigError(f"{data.test_x.shape[0]} evaluation samples are too few; raise test_size")
            return {"metrics": {}, "curves": {}}

        return measure

    class Nothing(tuple):
        def _asdict(self):
            return {}

    monkeypatch.setattr(program, "_compile", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(SystemExit) as exit_:
        main(experiment(Variant("f", TINY, followup=Followup("f", build, Nothing()))), ["--results-dir", str(tmp_path)])
    assert exit_.value.code == 2 and not list(tmp_path.rglob("rows.jsonl"))


def test_networks_of_vectors_flatten_images_or_refuse_them():
    x, y = np.zeros((8, 4, 4, 1), np.float32), np.arange(8) % 2
    task = jc.tasks.arrays(x, y, x, y)
    check_run(make_run(jc.Config(task=task, network=jc.ladder_mlp(depth=2, width=8), batch_size=4)))
    one = make_run(jc.Config(task=task, network=jc.lq_dynamics(depth=2), batch_size=4))
    refused(lambda: check_run(one), r"lq_dynamics: samples have shape \(4, 4, 1\); it takes vectors")
    refused(lambda: plan.check_fits(one), "it takes vectors")  # sizes are not what is wrong


def test_a_run_that_diverges_is_flagged_and_stops_no_sweep(tmp_path):
    good = tiny(jc.bp(), depth=2, epochs=2, optimizer="sgd")
    rows = jc.sweep({"good": good, "bad": good.replace(learning_rate=1e30)}, [0], results_dir=tmp_path, progress=False)
    by_label = {row["label"]: row for row in rows}
    assert by_label["good"]["status"] == "ok" and by_label["good"]["metrics"]["test_loss"] > 0
    assert by_label["bad"]["status"] == "diverged" and by_label["bad"]["metrics"] == {}
    assert by_label["good"]["timing"]["runs_in_program"] == 2  # side by side in one program
