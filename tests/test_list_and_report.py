"""The commands ``list`` and ``report``, over all scripts of a folder."""

import re
from pathlib import Path

import pytest
from made_rows import make_row

from jcredit.__main__ import main
from jcredit.report.rows import append_rows
from jcredit.study.experiment import run
from jcredit.study.scripts import load_experiment

pytest_plugins = ["imagined"]
FOLDER = Path(__file__).parent.parent / "experiments"

SCRIPT = """
import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure
from jcredit.study.settings import lines, named

BASE = jc.Config(task=jc.tasks.teacher(train_size=64, test_size=64), network=jc.ladder_mlp(depth=2, width=16),
                 batch_size=32, epochs=1, diagnostic_samples=32, learning_rate=1e-3)
PRESET = Preset((0, 1), lines(BASE, named("frozen", "dfa")), "a moment")
EXPERIMENT = Experiment("tiny", "Is it small?", "0", None, dict.fromkeys(("smoke", "quick", "full"), PRESET),
                        TableSpec("Tiny", credit_columns()), default_figure("Tiny"))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/tiny.py").write_text(SCRIPT)
    return tmp_path / "scripts"


def report(tmp_path, folder, *options):
    main(["report", "--experiments", str(folder), "--results-dir", str(tmp_path / "results"), *options])


def test_list_shows_every_experiment(capsys):
    main(["list", "--experiments", str(FOLDER)])
    text = capsys.readouterr().out
    for script in FOLDER.glob("*.py"):
        found = load_experiment(script)
        assert found.question in text and re.search(rf"^{found.name}  \(phase", text, re.M)
    assert "66 runs (22 configurations x 3 seeds)" in text and "20 minutes" in text and "docs/method.md" in text


def test_the_folder_of_scripts_is_named_or_lies_in_the_current_directory(capsys, tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["list"])  # not those beside the package
    text = capsys.readouterr()
    assert str(tmp_path / "experiments") in text.err and "--experiments DIR" in text.err and text.out == ""
    main(["list", "--experiments", "scripts"])
    assert "Is it small?" in capsys.readouterr().out
    folder.rename(tmp_path / "experiments")
    main(["list"])
    assert "Is it small?" in capsys.readouterr().out


def test_report_rebuilds_the_same_bytes_from_rows_alone(capsys, tmp_path, folder, imagined):
    options = ["--results-dir", str(tmp_path / "results"), "--no-progress", "--seeds", "0"]
    run(load_experiment(folder / "tiny.py"), [*options, "--methods", "dfa"])
    run(load_experiment(folder / "tiny.py"), [*options, "--width", "8", "--learning-rate", "0.01"])
    made = {path: path.read_bytes() for path in tmp_path.glob("results/*/*/*") if path.suffix in (".md", ".png")}
    assert len(made) == 4
    for path in made:
        path.unlink()
    report(tmp_path, folder)
    assert {path: path.read_bytes() for path in made} == made
    text = capsys.readouterr().out
    assert "tiny/quick: rebuilt from 1 rows; 1 of 2 configurations have no rows yet" in text
    assert "tiny/quick+learning_rate=0.01+width=8: rebuilt from 2 rows\n" in text
    for path in made:
        path.unlink()
    report(tmp_path, folder, "--only", "tiny/quick")
    assert {path: path.read_bytes() for path in made if path.exists()} == {
        path: data for path, data in made.items() if path.parent.name == "quick"
    }
    report(tmp_path, folder, "--only", "tiny")
    assert {path: path.read_bytes() for path in made} == made


def test_report_says_which_rows_do_not_belong_and_leaves_them(capsys, tmp_path, folder, imagined):
    run(load_experiment(folder / "tiny.py"), ["--results-dir", str(tmp_path / "results"), "--no-progress"])
    table = tmp_path / "results/tiny/quick/table.md"
    (folder / "tiny.py").write_text(SCRIPT.replace('"frozen", "dfa"', '"frozen"'))
    report(tmp_path, folder)
    assert "2 rows do not belong to the present grid" in capsys.readouterr().out and "dfa" not in table.read_text()
    before = table.read_bytes()
    (folder / "tiny.py").write_text(SCRIPT.replace("1e-3", "2e-3"))
    with pytest.raises(SystemExit, match="2"):
        report(tmp_path, folder)
    assert "none of its 4 rows belongs to the present grid" in capsys.readouterr().err and table.read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["lst"], ["lst", "list"]),
        (["report", "--results-dr", "x"], ["--results-dr"]),
        (["list", "--experiments", "nowhere"], ["nowhere", "--experiments"]),
        (["report", "--experiments", str(FOLDER), "--results-dir", "nowhere"], ["nowhere", "--results-dir"]),
        (["report", "--only", "toylq", "--results-dir", str(FOLDER.parent / "results")], ["toylq", "toy_lq"]),
        (["report", "--only", "toy_lq", "--check"], ["--only", "--check"]),
        (["report", "--check", "--html"], ["--check", "--html"]),
        (["report", "--quotes", "docs/quotes.toml"], ["--quotes", "--check"]),
    ],
)
def test_wrong_commands_are_one_line_and_status_2(capsys, argv, named):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    text = capsys.readouterr()
    assert text.out == "" and len(text.err.strip().splitlines()) == 1 and all(word in text.err for word in named)


def test_rows_of_ones_own_are_reported_where_there_is_no_script(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("mine/own/sweep/rows.jsonl")
    append_rows(path, [make_row("dfa", seed, experiment="own", preset="sweep") for seed in (0, 1)])
    main(["report", "--results-dir", "mine"])
    assert "jc.sweep's table and figure rebuilt from 2 rows" in capsys.readouterr().out
    Path("docs").mkdir()
    Path("docs/quotes.toml").write_text("what is quoted of other rows")
    main(["report", "--results-dir", "mine", "--check"])
    assert "0 quoted numbers" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert re.fullmatch(r"jcredit \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_script_without_an_experiment_is_named(capsys, tmp_path, folder):
    (folder / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(SystemExit, match="2"):
        main(["list", "--experiments", str(folder)])
    text = capsys.readouterr().err
    assert "broken.py" in text and "nothing_of_this_name" in text and len(text.strip().splitlines()) == 1


def test_torn_rows_are_named_and_the_rest_is_rebuilt(capsys, tmp_path, folder, imagined):
    run(
        load_experiment(folder / "tiny.py"),
        ["--results-dir", str(tmp_path / "results"), "--no-progress", "--seeds", "0"],
    )
    stranger = tmp_path / "results/other/quick"
    stranger.mkdir(parents=True)
    (stranger / "rows.jsonl").write_text("{torn")
    torn = tmp_path / "results/tiny/smoke"
    torn.mkdir()
    (torn / "rows.jsonl").write_text("{torn")
    with pytest.raises(SystemExit, match="2"):
        report(tmp_path, folder)
    text = capsys.readouterr()
    assert "tiny/quick: rebuilt" in text.out
    assert "'other'" in text.err and "tiny/smoke/rows.jsonl" in text.err
    assert (torn / "rows.jsonl").read_text() == "{torn"
