"""Lines of one's own: ``--estimator MODULE:FACTORY`` and ``--rule MODULE:FACTORY`` on an experiment's command line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_command import ROOT, TINY, fails, tiny_experiment

import jcredit as jc
from jcredit import __main__ as command
from jcredit.report.rows import read_rows
from jcredit.study.experiment import grid_of, preset_name, run
from jcredit.study.own import Own
from jcredit.sweeps.variants import Variant

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")

OWN = """
import jcredit as jc

@jc.estimator
def scaled(factor: jc.Positive = 1.0, flip: bool = False, how: str = "up") -> jc.Estimator:
    inner = jc.broadcast().build()
    return inner._replace(credit=lambda *args: (-factor if flip else factor) * inner.credit(*args))

@jc.estimator
def broken(rank: int) -> jc.Estimator:
    raise RuntimeError(f"no rank {rank}")

@jc.rule
def a_rule() -> jc.LocalRule:
    return jc.inner_product().build()

plain = lambda: None
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module in the current directory, which is on no path."""
    (tmp_path / "my_credit.py").write_text(OWN)
    (tmp_path / "torn_credit.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    sys.modules.pop("my_credit", None)


@pytest.mark.slow
def test_an_own_estimator_is_a_line_of_every_block(capsys, own_module):
    more = (Variant("dfa", TINY.replace(credit=jc.dfa(), learning_rate=3e-3), "second"),)
    spec = "my_credit:scaled(factor=2, flip=False, how='x')"
    argv = ["--results-dir", "out", "--no-progress", "--seeds", "0", "--estimator", spec, "--width", "8"]
    run(tiny_experiment(*more), argv)
    [rows] = Path("out").rglob("rows.jsonl")
    table = (rows.parent / "table.md").read_text(encoding="utf-8")
    assert rows.parent.name == "quick+width=8+my_credit.scaled(factor=2,flip=False,how=x)"
    found = {(r["block"], r["label"]): r for r in read_rows(rows)}
    label = "scaled(factor=2, flip=False, how='x')"
    assert set(found) == {("", "frozen"), ("", label), ("second", "dfa"), ("second", label)}
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines() if label in line] == [label, label]
    mine = found["second", label]["config"]
    assert mine["credit"].pop("source")
    assert mine["credit"] == {"estimator": "my_credit.scaled", "factor": 2.0, "flip": False, "how": "x"}
    assert mine["learning_rate"] == 3e-3 and mine["network"]["width"] == 8
    assert found["", label]["metrics"]["rho"] > 0
    # The report knows it as well.
    (rows.parent / "table.md").unlink()
    capsys.readouterr()
    scripts = own_module / "scripts"
    scripts.mkdir()
    (scripts / "tiny.py").write_text(
        "import test_command as t\nEXPERIMENT = t.tiny_experiment(\n"
        "    t.Variant('dfa', t.TINY.replace(credit=t.jc.dfa(), learning_rate=3e-3), 'second'))"
    )
    command.main(["report", "--experiments", str(scripts), "--results-dir", "out"])
    assert "rebuilt from 4 rows\n" in capsys.readouterr().out
    assert (rows.parent / "table.md").read_text() in table


@pytest.mark.slow
def test_an_own_estimator_runs_in_a_script_of_the_study(own_module):
    script = ROOT / "experiments/synth_ladder.py"
    options = ["--preset", "smoke", "--methods", "scaled", "--estimator", "my_credit:scaled", "--no-progress"]
    ran = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, cwd=own_module)
    assert ran.returncode == 0 and re.search(r"^\W*scaled ", ran.stdout, re.M), ran.stdout + ran.stderr
    [rows] = own_module.rglob("rows.jsonl")
    assert [r["method"] for r in read_rows(rows)] == ["my_credit.scaled"]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("my_credit", ["MODULE:FACTORY"]),
        ("my_credits:scaled", ["my_credits", "ModuleNotFoundError"]),
        ("torn_credit:scaled", ["torn_credit", "nothing_of_this_name"]),
        ("my_credit.py:scaled", ["is a file", "module's name"]),
        ("my_credit:scald", ["scald", "did you mean 'scaled'"]),
        ("my_credit:scaled(factor=1e-3", ["scaled(factor=1e-3", "literals"]),
        ("my_credit:scaled(factor=len('x'))", ["literals"]),
        ("my_credit:scaled(**{})", ["literals"]),
        ("my_credit:__import__('os').getcwd()", ["literals"]),
        ("my_credit:scaled(factor=-1)", ["factor=-1", "positive"]),
        ("my_credit:scaled(facter=1)", ["facter", "factor"]),
        ("my_credit:broken", ["rank", "no default"]),
        ("my_credit:broken(rank=3)", ["no rank 3"]),
        ("my_credit:a_rule", ["a rule's", "@jc.estimator"]),
        ("my_credit:plain", ["function", "@jc.estimator"]),
        ("jcredit:frozen", ["'frozen'", "already"]),
        ("jcredit:frosen", ["frosen", "did you mean 'frozen'"]),
    ],
)
def test_a_wrong_estimator_is_one_line_and_status_2(capsys, own_module, spec, named):
    message = fails(capsys, own_module, "--estimator", spec)
    assert all(word in message for word in [*named, "--estimator"]), message
    assert not list(own_module.rglob("rows.jsonl"))


def test_an_estimator_is_no_rule(capsys, own_module):
    message = fails(capsys, own_module, "--rule", "my_credit:scaled")
    assert all(word in message for word in ["--rule", "an estimator's", "not a rule's", "@jc.rule"]), message


def test_an_own_rule_is_a_line_with_the_first_lines_credit(own_module):
    owns = [Own("rule", "my_credit:a_rule"), Own("estimator", "my_credit:scaled")]
    first, rule, estimator = grid_of(tiny_experiment(), "quick", owns=owns)
    assert rule.label == "a_rule" and rule.config.rule.name == "my_credit.a_rule"
    assert rule.config == first.config.replace(rule=rule.config.rule)
    assert estimator.config == first.config.replace(credit=estimator.config.credit)


def test_a_folder_is_named_by_what_was_changed_and_never_too_long():
    short = preset_name("quick", {"width": 8}, [Own("rule", "my_credit:a_rule(x=1)")])
    assert short == "quick+width=8+my_credit.a_rule(x=1)"
    long = [preset_name("quick", {}, [Own("estimator", f"my_credit:scaled(how={'é' * 150 + end!r})")]) for end in "xy"]
    assert long[0] != long[1] and all(len(name.encode()) < 200 for name in long)
