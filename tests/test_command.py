"""The command line: what is wrong is said in one line that names the value and the fix, with exit status 2."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny

import jcredit as jc
from jcredit.config import config_hash, described, settings
from jcredit.files import write_sealed
from jcredit.report.rows import read_rows
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import (
    Experiment,
    Preset,
    credit_columns,
    default_figure,
    grid_of,
    main,
    parser_of,
    preset_name,
)  # fmt: skip
from jcredit.sweeps import program
from jcredit.sweeps.variants import Variant

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))
TINY = tiny(jc.frozen(), depth=2, train_size=64, test_size=64, batch_size=32, epochs=1, diagnostic_samples=32)
LEARNER = jc.scalar_bridge(trunk=jc.mlp(hidden=16))


def tiny_experiment(*more, **changes):
    variants = (Variant("frozen", TINY.replace(**changes)), *more)
    preset = Preset((0, 1), variants, "a moment")
    table = TableSpec("Tiny", credit_columns(), {"frozen": {"accuracy": ".349"}})
    presets = {"smoke": preset, "quick": preset, "full": preset}
    return Experiment("tiny", "?", "0", "A tiny experiment.", presets, table, default_figure("Tiny"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EXPERIMENT


def fails(capsys, tmp_path, *argv, of=None):
    with pytest.raises(SystemExit) as exit_:
        main(of or tiny_experiment(), ["--results-dir", str(tmp_path), *argv])
    text = capsys.readouterr()
    assert exit_.value.code == 2 and text.out == ""
    assert len(text.err.strip().splitlines()) == 1, text.err
    return text.err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--preset", "quik"], ["quik", "quick"]),
        (["--methods", "frozn"], ["frozn", "frozen"]),
        (["--task", "imagenet"], ["--task", "unrecognized"]),
        (["--credit.sigma", "0.1"], ["--credit.sigma", "did you mean --sigma?"]),  # its name in Python
        (["--learnin-rate", "1"], ["--learnin-rate", "--learning-rate"]),
        (["--learning-rate", "-1"], ["learning_rate", "-1"]),
        (["--learning-rate", "nan"], ["learning_rate", "nan"]),
        (["--trains", "nothing", "--learning-rate", "3e-3"], ["learning_rate", "no line", "reads it"]),
        (["--learning-rate", "inf"], ["learning_rate", "inf"]),
        (["--learning-rate", "fast"], ["--learning-rate", "fast"]),
        (["--depth", "0"], ["depth", "0"]),
        (["--noise-samples", "0"], ["noise_samples", "0"]),
        (["--target", "softmni"], ["--target", "softmni", "softmin"]),
        (["--width", "1.5"], ["--width", "1.5"]),
        (["--layer-norm-on", "maybe"], ["maybe", "true or false"]),
        (["--credit.learning-rate", "0"], ["learning_rate", "0", "positive"]),
        (["--credit.learnin-rate", "0"], ["--credit.learnin-rate", "--credit.learning-rate"]),
        (["--seeds", "1", "2", "1"], ["1", "more than once"]),
        (["--seeds", "-1"], ["-1"]),
        (["--seeds", "x"], ["x"]),
        (["--batch-size", "4096"], ["4096", "64"]),
        (["--seeds-per-batch", "0"], ["0", "auto"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, tmp_path, argv, named):
    message = fails(capsys, tmp_path, *argv, of=tiny_experiment(Variant("learner", TINY.replace(credit=LEARNER))))
    assert all(word in message for word in named), message
    assert not list(tmp_path.rglob("rows.jsonl"))


def test_bad_data_directories_are_one_line_and_status_2(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JCREDIT_CACHE", str(tmp_path / "cache"))
    images = tiny_experiment(task=jc.tasks.cifar10())
    assert str(tmp_path / "nowhere") in fails(capsys, tmp_path, "--data-dir", str(tmp_path / "nowhere"), of=images)
    (tmp_path / "other/imagenet2012/1.0.0").mkdir(parents=True)
    assert "cifar10" in fails(capsys, tmp_path, "--data-dir", str(tmp_path / "other"), of=images)


def test_errors_leave_earlier_results_untouched(capsys, tmp_path):
    main(tiny_experiment(), ["--results-dir", str(tmp_path), "--no-progress", "--seeds", "0"])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    capsys.readouterr()
    fails(capsys, tmp_path, "--learning-rate", "-1")
    rows = tmp_path / "tiny/quick/rows.jsonl"
    rows.write_text(rows.read_text() + '{"torn')
    torn = rows.read_bytes()
    assert "rows.jsonl" in fails(capsys, tmp_path, "--seeds", "0", "1")
    assert rows.read_bytes() == torn
    assert {p: p.read_bytes() for p in before if p != rows} == {p: b for p, b in before.items() if p != rows}


def test_a_run_writes_rows_table_figure_and_config(capsys, tmp_path):
    main(tiny_experiment(), ["--results-dir", str(tmp_path), "--no-progress"])
    shown = capsys.readouterr().out
    place = tmp_path / "tiny/quick"
    table = (place / "table.md").read_text()
    assert ".349" in table and "±" in table and "none: readout only" in table
    assert ".349" in shown and "±" in shown and "none: readout only" in shown
    table, _, _ = shown.partition("rows, table and figure: ")  # a path cannot be broken
    assert max(map(len, table.splitlines())) <= 100 and "\x1b" not in shown  # no terminal, no colour
    assert (place / "figure.png").read_bytes().startswith(b"\x89PNG")
    rows = read_rows(place / "rows.jsonl")
    assert [r["seed"] for r in rows] == [0, 1]
    [line] = json.loads((place / "config.json").read_text())["variants"]
    assert line["config_hash"] == rows[0]["config_hash"] == config_hash(TINY) and line["config"] == described(TINY)
    main(tiny_experiment(), ["--results-dir", str(tmp_path), "--no-progress"])
    assert "every run was there already" in capsys.readouterr().out


def test_rows_that_a_killed_command_had_made_are_in_the_table(tmp_path):
    options = ["--results-dir", str(tmp_path), "--no-progress"]
    main(tiny_experiment(), [*options, "--seeds", "0"])
    place = tmp_path / "tiny/quick"
    write_sealed(place / "cache/0123456789ab/rows.json", {"rows": read_rows(place / "rows.jsonl")})
    (place / "rows.jsonl").unlink()
    main(tiny_experiment(), [*options, "--seeds", "1"])
    assert [row["seed"] for row in read_rows(place / "rows.jsonl")] == [0, 1] and not list(place.glob("cache/*"))
    assert re.search(r"\| frozen .*\| +2 \|", (place / "table.md").read_text())


def test_rows_are_read_once_in_a_command(tmp_path, monkeypatch):
    from jcredit.report import schema
    from jcredit.study import experiment

    main(tiny_experiment(), ["--results-dir", str(tmp_path), "--no-progress", "--seeds", "0"])
    parsed = []
    monkeypatch.setattr(experiment, "read_rows", lambda path, *of: parsed.append(path) or schema.read_rows(path, *of))
    monkeypatch.setattr("jcredit.sweeps.run.read_rows", lambda *_: pytest.fail("read a second time"))
    main(tiny_experiment(), ["--results-dir", str(tmp_path), "--no-progress", "--seeds", "0"])
    assert len(parsed) == 1


def test_fresh_starts_over_in_a_folder_of_its_own_and_deletes_nothing(capsys, tmp_path, compiled):
    usual = ["--results-dir", str(tmp_path), "--no-progress", "--seeds", "0"]
    main(tiny_experiment(), usual)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for n in (1, 2):
        main(tiny_experiment(), [*usual, "--fresh"])
        [row] = read_rows(tmp_path / f"fresh-{n}/tiny/quick/rows.jsonl")
        assert "from" not in row and len(compiled) == 1 + n  # run, and not copied from a folder above it
    assert before == {p: p.read_bytes() for p in before}
    capsys.readouterr()
    main(tiny_experiment(), [*usual, "--fresh", "--plan"])
    assert "frozen " in capsys.readouterr().out and not (tmp_path / "fresh-3").exists()
    main(tiny_experiment(), [*usual, "--plan"])
    assert "frozen " not in capsys.readouterr().out  # there, nothing is left to run
    blocked = tmp_path / "a file"
    blocked.touch()
    assert str(blocked) in fails(capsys, tmp_path, "--results-dir", str(blocked), "--fresh")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("fresh", [False, True])
def test_an_interrupted_command_says_the_one_that_goes_on(capsys, tmp_path, monkeypatch, number, status, fresh):
    usual = ["--results-dir", str(tmp_path / "with space"), "--no-progress", "--epochs", "3", *["--fresh"] * fresh]
    real = program._compile
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setattr(program, "_compile", lambda *a: os.kill(os.getpid(), number) or real(*a))
        main(tiny_experiment(), usual)
    message = capsys.readouterr().err
    assert exit_.value.code == status and len(message.strip().splitlines()) == 1
    assert "stopped at epoch 1 of 3; the same command goes on from there: python tiny.py --" in message
    _, script, *again = shlex.split(message.partition("from there: ")[2])
    assert script == "tiny.py" and (again == usual) != fresh
    main(tiny_experiment(), again)
    [rows] = tmp_path.rglob("rows.jsonl")
    assert len(read_rows(rows)) == 2 and not list((rows.parent / "cache").iterdir())


def test_a_scheduler_that_is_not_there_is_one_line(capsys, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("jcredit.sweeps.cluster.CONNECT_SECONDS", 0.5)
    message = fails(capsys, tmp_path, "--scheduler", "tcp://127.0.0.1:1")
    assert "--scheduler 'tcp://127.0.0.1:1': no scheduler answers there" in message and not list(tmp_path.iterdir())


def test_overridden_settings_get_a_directory_of_their_own(tmp_path):
    main(tiny_experiment(), ["--results-dir", str(tmp_path), "--no-progress", "--seeds", "0", "--width", "8"])
    [rows] = tmp_path.rglob("rows.jsonl")
    assert rows.parent.name == "quick+width=8" == preset_name("quick", {"width": 8})
    assert read_rows(rows)[0]["config"]["network"]["width"] == 8


def options(*configs):
    parser = parser_of("tiny", None, {"quick": "?"}, {"quick": configs})
    return {s: action.help for action in parser._actions for s in action.option_strings}


def test_every_setting_is_an_option_with_help():
    found = options(TINY, TINY.replace(credit=LEARNER), TINY.replace(credit=jc.tangent_gate()))
    for name in settings():
        if name != "rule":  # --rule names one of one's own
            assert (name in ("task", "network", "credit")) != ("--" + name.replace("_", "-") in found)
    own = ["--depth", "--width", "--alpha", "--train-size", "--hidden", "--code", "--sigma", "--rank", "--samples"]
    assert {*own, "--credit.learning-rate", "--credit.clip"} <= set(found)
    assert "--learnin-rate" not in found and "--teacher-network" not in found and "--trunk" not in found
    assert all(len(text) > 10 for text in found.values())
    assert "scalar_bridge, tangent_gate" in found["--credit.learning-rate"]
    assert found["--hidden"].endswith("[16]") and found["--learning-rate"].endswith("[0.001]")


def test_a_setting_of_two_kinds_of_parts_goes_by_its_path():
    @jc.estimator
    def wide(width: jc.Count = 3) -> jc.Estimator:
        """Args:
        width: of something else.
        """
        return jc.dfa().build()

    found = options(TINY, TINY.replace(credit=wide()))
    assert {"--network.width", "--credit.width"} <= set(found) and "--width" not in found


def test_a_flag_reaches_every_line_that_has_the_setting():
    field = jc.exact_terminal(of=jc.vector_field())
    more = [Variant(name, TINY.replace(credit=part)) for name, part in (("learner", LEARNER), ("field", field))]
    overrides = {"hidden": 8, "credit.clip": 0.5, "depth": 1, "clip": 2.0}
    frozen, learner, inner = (v.config for v in grid_of(tiny_experiment(*more), "quick", overrides))
    assert [c.network.settings["depth"] for c in (frozen, learner, inner)] == [1, 1, 1] and frozen.clip == 2.0
    assert learner.credit == LEARNER.replace(trunk=jc.mlp(hidden=8), clip=0.5)
    assert inner.credit.settings["of"] == jc.vector_field(trunk=jc.mlp(hidden=8), clip=0.5)
    with pytest.raises(jc.ConfigError, match="'hiden' is unknown"):
        grid_of(tiny_experiment(*more), "quick", {"hiden": 8})


# --- the scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_scripts_are_experiments(path):
    found = load(path)
    assert found.name == path.stem and {"smoke", "quick", "full"} <= set(found.presets)
    for name, preset in found.presets.items():
        keys = [(v.block, v.hash) for v in preset.variants]  # a run can stand in two blocks: frozen under two rules
        assert len(set(keys)) == len(keys), f"{name} holds the same configuration twice in a block"
        names = [(v.block, v.label) for v in preset.variants]
        assert len(set(names)) == len(names)
    known = {label for v in found.presets["full"].variants for label in (v.label, f"{v.block} | {v.label}")}
    assert set(found.table.study) <= known, "a figure of the study that no line shows"


def test_help_explains(tmp_path):
    shown = subprocess.run(
        [sys.executable, ROOT / "experiments/toy_lq.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "closed form" in shown and "--credit.learning-rate" in shown and "quick:" in shown
    heads = ("run:", "how it is trained and measured:", "task lq:", "network lq_dynamics:", "credit of state_bridge:")
    assert all(f"\n{head}" in shown for head in heads)
