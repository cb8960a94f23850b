"""The time left of a sweep, against arithmetic."""

import io
import os
import signal

import pytest
from helpers import small, tiny

import jcredit as jc
from jcredit.sweeps import program, run
from jcredit.sweeps.cost import matmul_flops
from jcredit.sweeps.forecast import Bar, Forecast, Work
from jcredit.sweeps.program import what_is_run
from jcredit.sweeps.variants import Folder, Variant


def test_programs_that_have_not_run_take_as_long_per_flop_as_those_that_have():
    told = Forecast({"cheap": Work(10, 1e9), "dear": Work(4, 50e9)})
    assert told.left() is None
    told.compiled("cheap", 7.0)
    told.done("cheap", 2, 3.0)
    # 8 more at 1.5 s; 4 at 50 times that; one more compilation.  Run-epochs alone would say 12 * 1.5.
    assert told.left() == pytest.approx(8 * 1.5 + 4 * 75.0 + 7.0)
    assert told.run_epochs_left() == 12


def test_a_program_that_has_run_goes_on_at_its_own_pace():
    told = Forecast({"a": Work(10, 1e9), "b": Work(10, 1e9), "c": Work(10, 2e9)})
    told.done("a", 5, 5.0)
    told.done("b", 5, 15.0)
    assert told.left() == pytest.approx(5 * 1.0 + 5 * 3.0 + 10 * 2 * 2.0)  # c: 20 s for 10e9 so far


def test_what_was_found_says_nothing_of_the_pace():
    told = Forecast({"a": Work(10, 1e9)})
    told.done("a", 6)
    assert told.left() is None and told.run_epochs_left() == 4
    told.done("a", 1, 2.0)
    assert told.left() == pytest.approx(6.0)
    told.done("a", 3, 6.0)
    assert told.left() == 0.0


def test_programs_side_by_side_share_the_time():
    told = Forecast({"a": Work(4, 1.0), "b": Work(4, 1.0)}, at_once=8)
    told.done("a", 2, 2.0)
    assert told.left() == pytest.approx(6 / 2)
    told.done("b", 4, 4.0)
    assert told.left() == pytest.approx(2.0)


def test_a_program_without_products_counts_as_something():
    told = Forecast({"a": Work(2, 0.0), "b": Work(1, 0.0)})
    told.done("a", 1, 1.0)
    assert told.left() == pytest.approx(2.0)


def test_the_bar_says_it_and_counts_down(monkeypatch):
    clock = [1000.0]
    screen, said = io.StringIO(), []
    bar = Bar({"a": Work(4, 1.0), "b": Work(4, 3.0)}, tell=lambda f: said.append(f.left()), file=screen, mininterval=0)
    monkeypatch.setattr(bar, "_time", lambda: clock[0])
    bar.start_t = clock[0]
    assert "? left" in str(bar)
    clock[0] += 10.0
    bar.done("a", 1, 10.0)
    assert "1/8 run-epochs, 00:10 gone, 02:30 left" in str(bar)  # 3 * 10 + 4 * 30
    clock[0] += 5.0
    assert "00:15 gone, 02:25 left" in str(bar)
    bar.done("a", 3)
    assert said == [150.0, 120.0] and "02:00 left" in str(bar)
    bar.close()


def test_a_bar_in_a_file_is_a_line_now_and_then(monkeypatch):
    log = io.StringIO()
    with Bar({"a": Work(400, 1.0)}, file=log, mininterval=0.0, miniters=100) as bar:
        bar.set_description("bp +3")
        for _ in range(400):
            bar.done("a", 1, 2.0)
    lines = log.getvalue().strip().splitlines()
    assert "\r" not in log.getvalue() and all("run-epochs" in line for line in lines)
    assert len(lines) == 7 and lines[1].startswith("bp +3:   0%") and "200/400" in lines[3] and "400/400" in lines[-1]
    assert Bar({"a": Work(1, 1.0)}, file=log).mininterval == 30.0


def test_a_bar_says_that_its_sweep_stops_and_what_is_compiled():
    said = ["compiling bp", "stopping after the epoch under way; once more, and it stops at once", "bp"]
    for disable, expected in ((False, said), (True, [])):
        log = io.StringIO()
        with Bar({"a": Work(4, 1.0)}, file=log, disable=disable) as bar:
            bar.done("a", 1, 2.0)
            bar.set_postfix(epoch="1/4")
            bar.at("compiling bp")
            bar.stopping()
            bar.at("bp")
        found = [line for line in log.getvalue().splitlines() if line.startswith(("compiling", "stopping", "bp"))]
        assert list(dict.fromkeys(line.partition(":")[0] for line in found)) == expected
        assert not any("epoch=" in line for line in found), "which was of the program before"


def test_a_sweep_stops_though_nobody_hears_that_it_does(tmp_path, monkeypatch):
    """Its output was a pipe that ended with the same signal."""

    class Broken(Bar):
        def stopping(self):
            raise BrokenPipeError

    monkeypatch.setattr(run, "Bar", Broken)
    real = program._compile
    monkeypatch.setattr(program, "_compile", lambda *a: os.kill(os.getpid(), signal.SIGINT) or real(*a))
    lines = [Variant("narrow", tiny(small(jc.dfa), **{"network.depth": 1, "epochs": 2}))]
    with pytest.raises(run.Stopped, match="stopped at epoch 1 of 2"):
        run.run_sweep(lines, (0,), Folder(tmp_path, "a", "b"), progress=False)


def test_a_sweep_weighs_its_programs_by_the_products_of_their_steps(tmp_path, monkeypatch):
    """From the door: the forecast after the first epoch of the first program knows the second one's cost."""
    config = tiny(small(jc.dfa), **{"network.depth": 1, "epochs": 2})
    lines = [Variant("narrow", config), Variant("wide", config.replace(**{"network.width": 64, "epochs": 3}))]
    told = []

    class Spied(Bar):
        def done(self, name, run_epochs, seconds=None):
            super().done(name, run_epochs, 1.0)  # a clock of our own
            told.append((name, self.forecast.left()))

        def compiled(self, name, seconds):
            super().compiled(name, 100.0)

    monkeypatch.setattr(run, "Bar", Spied)
    run.run_sweep(lines, (0,), Folder(tmp_path, "a", "b"), progress=False)
    import jax

    from jcredit.training import make_run

    def cost(variant):
        one = make_run(variant.config)
        key, hp = jax.random.key(0), one.hparams(variant.config)
        index = jax.ShapeDtypeStruct((variant.config.batch_size,), "int32")
        state, data = jax.eval_shape(one.init, key, hp), jax.eval_shape(one.data, key, hp)
        return matmul_flops(one.step, state, hp, data, index) * one.steps_per_epoch

    names = [what_is_run(v.config) for v in lines]
    first = told[0][0]
    other = lines[1 - names.index(first)]
    own_left, other_left = lines[names.index(first)].config.epochs - 1, other.config.epochs
    ratio = cost(other) / cost(lines[names.index(first)])
    assert told[0][1] == pytest.approx(own_left + other_left * ratio + 100.0)
    assert told[-1][1] == 0.0 and len(told) == 5
