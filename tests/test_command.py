"""The command line: what is wrong is said in one line that names the value and the fix, with exit status 2."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jcredit import experiment, results
from jcredit.config import Config
from jcredit.experiment import Experiment, Preset, credit_columns, default_figure, field_help, main, preset_name
from jcredit.sweep import Variant
from jcredit.tables import TableSpec

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(p for p in (ROOT / "experiments").glob("*.py") if "EXPERIMENT = " in p.read_text())
TINY = dict(
    task="teacher", depth=2, width=16, hidden=16, train_size=64, test_size=64, batch_size=32, epochs=1,
    diagnostic_samples=32,
)  # fmt: skip


def tiny_experiment(**fields):
    variants = (Variant("frozen", Config(**{**TINY, "method": "frozen", **fields})),)
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
        (["--task", "imagenet"], ["imagenet", "cifar10"]),
        (["--learnin-rate", "1"], ["--learnin-rate", "--learning-rate"]),
        (["--learning-rate", "-1"], ["learning_rate", "-1"]),
        (["--learning-rate", "nan"], ["learning_rate", "nan"]),
        (["--learning-rate", "inf"], ["learning_rate", "inf"]),
        (["--learning-rate", "fast"], ["--learning-rate", "fast"]),
        (["--depth", "0"], ["depth", "0"]),
        (["--noise-samples", "0"], ["noise_samples", "0"]),
        (["--width", "1.5"], ["--width", "1.5"]),
        (["--flips", "maybe"], ["maybe", "true or false"]),
        (["--seeds", "1", "2", "1"], ["1", "more than once"]),
        (["--seeds", "-1"], ["-1"]),
        (["--seeds", "x"], ["x"]),
        (["--batch-size", "4096"], ["4096", "64"]),
        (["--seeds-per-batch", "0"], ["0", "auto"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, tmp_path, argv, named):
    message = fails(capsys, tmp_path, *argv)
    assert all(word in message for word in named), message
    assert not list(tmp_path.rglob("rows.jsonl"))


def test_bad_data_directories_are_one_line_and_status_2(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JCREDIT_CACHE", str(tmp_path / "cache"))
    images = tiny_experiment(task="cifar10")
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
    assert (place / "table.md").read_text() in shown
    assert ".349" in shown and "±" in shown and "none: readout only" in shown
    assert (place / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert [r["seed"] for r in results.read_rows(place / "rows.jsonl")] == [0, 1]
    described = json.loads((place / "config.json").read_text())
    assert described["variants"][0]["config_hash"] == results.read_rows(place / "rows.jsonl")[0]["config_hash"]


def test_overridden_fields_get_a_directory_of_their_own(tmp_path):
    main(tiny_experiment(), ["--results-dir", str(tmp_path), "--no-progress", "--seeds", "0", "--width", "8"])
    [rows] = tmp_path.rglob("rows.jsonl")
    assert rows.parent.name == "quick+width=8" == preset_name("quick", {"width": 8})
    assert results.read_rows(rows)[0]["config"]["width"] == 8


def test_every_config_field_is_an_option_with_help():
    parser = experiment._parser(tiny_experiment())
    options = {s for action in parser._actions for s in action.option_strings}
    for name, text in field_help().items():
        assert "--" + name.replace("_", "-") in options and len(text) > 10
    assert set(field_help()) == set(Config.__dataclass_fields__)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_scripts_are_experiments(path):
    found = load(path)
    assert found.name == path.stem and set(found.presets) == {"smoke", "quick", "full"}
    for name, preset in found.presets.items():
        keys = [v.hash for v in preset.variants]
        assert len(set(keys)) == len(keys), f"{name} holds the same configuration twice"
        names = [(v.block, v.label) for v in preset.variants]
        assert len(set(names)) == len(names)
    known = {label for v in found.presets["full"].variants for label in (v.label, f"{v.block} | {v.label}")}
    assert set(found.table.study) <= known, "a figure of the study that no line shows"


def test_help_explains(tmp_path):
    shown = subprocess.run(
        [sys.executable, ROOT / "experiments/toy_lq.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "closed form" in shown and "--estimator-learning-rate" in shown and "quick:" in shown
