"""Whatever command line is given, it goes on or is refused in one line (see ``test_properties``)."""

import contextlib
import io
from collections import Counter
from unittest import mock

import pytest
from drawn import EXPERIMENT, PRESET, admits, good, says_one_line
from hypothesis import given, strategies as st

from jcredit.checking import check_run
from jcredit.config import static_key
from jcredit.settings import Setting
from jcredit.study.command import options_of
from jcredit.study.experiment import main
from jcredit.sweeps import plan, program, run

pytestmark = pytest.mark.faults

OPTIONS = list(options_of([variant.config for variant in PRESET.variants]))
JUNK = st.sampled_from([
    "", " ", "nan", "inf", "-inf", "1e39", "1e-60", "1e400", "0", "-1", "-1e-3", "9" * 400, "9" * 5000, "1.5", "true",
    "²", "\u0661", "1_0", "0x10", "--", "-", "--x", "../x", "/dev/null/x", "a\nb", "\udcff", "%s", "{}", "None", "=",
    "\0", "x" * 300,
]) | st.text(max_size=6)  # fmt: skip
OF_RUNS = {
    "--preset": ["smoke", "quick"], "--seeds": ["0", "7"], "--methods": ["frozen", "learner"],
    "--seeds-per-batch": ["auto", "2"], "--batch-runs": ["auto", "1"], "--devices": ["1", "64"],
    "--device-gib": ["16", "0.5"], "--device-gflops": ["10", "1e5"], "--results-dir": ["."], "--data-dir": ["."],
    "--estimator": [], "--learnin-rate": [], "--task": [],
}  # fmt: skip


class Started(Exception):
    """The command got as far as compiling or running something."""


def admits_text(setting: Setting, text: str) -> bool:
    """Whether a text stands for a value of a setting's kind."""
    if setting.choices:
        return text in map(str, setting.choices)
    if setting.type is bool:
        return text.lower() in ("true", "false")
    try:
        return admits(setting, setting.type(text))
    except ValueError:
        return False


@st.composite
def command_lines(draw):
    """Arguments: some good settings, a few options of the run, and often something bad; and what must be refused."""
    argv, bad = [], []
    for option in draw(st.lists(st.sampled_from(OPTIONS), max_size=3, unique_by=lambda option: option.name)):
        if draw(st.integers(0, 3)):
            value = draw(good(option.settings[0]))
            text = str(value).lower() if isinstance(value, bool) else str(value)
        else:
            text = draw(JUNK)
        if not any(admits_text(setting, text) for setting in option.settings):
            bad.append((option.flag, option.settings[0].name, text))
        argv += [option.flag, text]
    for flag in draw(st.lists(st.sampled_from(sorted(OF_RUNS)), max_size=2, unique=True)):
        fine = OF_RUNS[flag]
        if fine and draw(st.integers(0, 3)):
            argv += [flag, draw(st.sampled_from(fine))]
        else:
            argv += [flag, draw(JUNK)]
    if draw(st.booleans()):
        argv.append("--plan")
    return argv, bad


@contextlib.contextmanager
def nothing_is_compiled(traced):
    """Whatever would compile or run raises ``Started``; programs that have been traced are not traced again."""

    def check_once(one):
        if static_key(one.config) not in traced:
            traced[static_key(one.config)] = check_run(one)
        return traced[static_key(one.config)]

    def start(*_, **__):
        raise Started

    with contextlib.ExitStack() as stack:
        for owner, name in ((program, "_compile"), (plan, "cost_of"), (plan, "this_device"), (run, "run_all")):
            stack.enter_context(mock.patch.object(owner, name, start))
        stack.enter_context(mock.patch.object(run, "check_run", check_once))
        yield


def answer(argv):
    """What the command says when it refuses; None where it goes on."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(EXPERIMENT, argv)
        except Started:
            assert not err.getvalue() and not out.getvalue()
            return None
        except SystemExit as exit_:
            assert exit_.code == 2 and not out.getvalue(), (exit_.code, err.getvalue(), out.getvalue())
            return err.getvalue()
    raise AssertionError("neither refused nor started")


def test_a_command_line_is_refused_in_one_line_or_goes_on(holds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen, traced = Counter(), {}

    @given(command_lines())
    def prop(line):
        argv, bad = line
        with nothing_is_compiled(traced):
            said = answer(["--no-compile-cache", "--no-progress", *argv])
        seen["went on" if said is None else "refused"] += 1
        if said is not None:
            says_one_line(said, "tiny.py: error: ")
            assert "Error)" not in said and "Traceback" not in said, said
            if len(bad) == 1 and len(argv) == 2:
                flag, name, text = bad[0]
                assert flag in said or name in said, said
                assert text.startswith("--") or repr(text)[1:-1][:40] in said, said
        else:
            assert not bad, argv
        assert not list(tmp_path.rglob("rows.jsonl"))

    holds(prop, 60, 680)
    assert min(seen["went on"], seen["refused"]) >= 10, seen
