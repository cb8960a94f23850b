"""``python -m jcredit reproduce``: what is left, a walk that stops and goes on, lists that name what there is not."""

import os
import signal
import time
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest
from made_rows import without_times

from jcredit import __main__ as command
from jcredit.files import write_sealed
from jcredit.report.rows import read_rows
from jcredit.study import reproduce
from jcredit.study.scripts import load_experiments
from jcredit.sweeps import program, run
from jcredit.sweeps.engine import InProcess

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")

ROOT = Path(__file__).parent.parent
SCRIPT = """
import test_command as t
long = t.TINY.replace(epochs=3)
lines = [t.Variant(name, long.replace(credit=getattr(t.jc, name)()), "second") for name in ("dfa", "broadcast")]
EXPERIMENT = t.tiny_experiment({lines}, epochs=3)._replace(name={name!r})
"""
LIST = """
[[item]]
name = "first"
script = "one"
blocks = [""]
hours = 1.0
why = "the start"

[[item]]
name = "more"
script = "one"
seeds = [0]
lines = ["second | dfa", "frozen"]
hours = 3
why = "a line of another block"

[[item]]
name = "shared"
script = "two"
hours = 2.0
why = "the same runs elsewhere"
"""


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Two experiments that share runs, and a list; the folder above is the current one."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "one.py").write_text(SCRIPT.format(lines="*lines", name="one"))
    (folder / "two.py").write_text(SCRIPT.format(lines="lines[0]", name="two"))
    (folder / "reproduce.toml").write_text(LIST)
    monkeypatch.chdir(tmp_path)
    return folder


def out(capsys, *argv, status=0):
    """What ``reproduce`` prints; it exits with this status."""
    try:
        command.main(["reproduce", "--no-progress", *argv])
    except SystemExit as exit_:
        assert exit_.code == status
    else:
        assert status == 0
    text = capsys.readouterr()
    return text.out if status == 0 else text.err


def rows_of(name, results="results"):
    return read_rows(Path(results) / name / "full/rows.jsonl")


def test_no_hours_print_what_is_left_and_run_nothing(capsys, scripts):
    text = out(capsys, "--hours", "0")
    lines = [line.split() for line in text.splitlines()]
    assert [line[:5] for line in lines[1:4]] == [
        ["first", "0", "/", "2", "1.00"], ["more", "0", "/", "2", "3.00"], ["shared", "0", "/", "4", "2.00"],
    ]  # fmt: skip
    assert "left: 3 of 3 items, about 6.0 hours" in text and "the start" in text and "times the share" in text
    assert not Path("results").exists()
    alone = out(
        capsys, "--hours", "0", "--only", "more"
    )  # one of its two runs is priced by the item that lists it first
    assert "left: 1 of 1 items, about 3.5 hours" in alone


@pytest.mark.slow
def test_an_item_that_was_cut_off_after_its_last_row_gets_its_table(capsys, scripts):
    out(capsys, "--only", "first")
    table = Path("results/one/full/table.md")
    whole = table.read_text()
    for stale in ("STALE", None):
        table.write_text(stale) if stale else table.unlink()
        assert "first: done, 2 runs" in out(capsys, "--only", "first") and table.read_text() == whole


@pytest.mark.slow
def test_a_walk_shares_runs_and_leaves_what_the_commands_leave(capsys, scripts):
    assert "left: 0 of 1" in out(capsys, "--only", "first")
    text = out(capsys, "--hours", "0")
    assert "2 / 2" in text and "1 / 2" in text and "2 / 4" in text  # a frozen run is wanted by more, two by shared
    assert "left: 2 of 3 items, about 5.0 hours" in text
    text = out(capsys)
    assert "first: done, 2 runs" in text and "more: 1 of 2 runs to make" in text and "shared: 1 of 4 runs" in text
    assert [(r["label"], r["seed"]) for r in rows_of("one")] == [("frozen", 0), ("frozen", 1), ("dfa", 0)]
    assert sorted(str(r.get("from")) for r in rows_of("two")) == ["None", "one/full", "one/full", "one/full"]
    assert all((Path("results/two/full") / name).exists() for name in ("table.md", "figure.png", "config.json"))
    before = {p: p.read_bytes() for p in Path("results").rglob("*.jsonl")}
    assert "shared: done, 4 runs\nleft: 0 of 3 items" in out(capsys)
    assert before == {p: p.read_bytes() for p in before}
    command.main(["report", "--check"])


@pytest.mark.slow
def test_a_walk_that_is_out_of_time_goes_on_to_the_same_rows(capsys, scripts):
    out(capsys, "--results-dir", "whole")
    text = out(capsys, "--hours", "1e-9")
    assert "first: stopped at epoch 1 of 3, with a checkpoint" in text and "goes on from there" in text
    assert not rows_of("one") and list(Path("results/one/full").rglob("program.json"))
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    for _ in range(12):
        if "over; the same command" not in out(capsys, "--hours", "1e-9"):
            break
    for name in ("one", "two"):
        assert without_times(rows_of(name)) == without_times(rows_of(name, "whole"))
        assert (Path("results") / name / "full/table.md").read_text() == (
            Path("whole") / name / "full/table.md"
        ).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_130_or_143_with_a_checkpoint(capsys, scripts, monkeypatch, number):
    real = program._compile
    with monkeypatch.context() as patch:
        patch.setattr(program, "_compile", lambda *a: os.kill(os.getpid(), number) or real(*a))
        text = out(capsys, "--hours", "5", status=128 + number)
    assert "stopped at epoch 1 of 3" in text and list(Path("results").rglob("program.json"))
    assert "left: 0 of 3" in out(capsys)


def test_rows_that_a_killed_walk_left_are_in_the_table(capsys, scripts):
    out(capsys, "--only", "first")
    place = Path("results/one/full")
    write_sealed(place / "cache/0123456789ab/rows.json", {"rows": rows_of("one")})
    for name in ("rows.jsonl", "table.md"):
        (place / name).unlink()
    assert "first: done, 2 runs" in out(capsys, "--only", "first")
    assert "frozen" in (place / "table.md").read_text() and len(rows_of("one")) == 2


def test_time_that_is_up_after_an_interrupt_leaves_the_epoch_its_end():
    with reproduce._alarm(0.01 / 3600) as alarm, run._stop_signal() as stop:
        stop(signal.SIGINT, None)
        time.sleep(0.1)  # a second signal would raise KeyboardInterrupt
    assert stop.number == signal.SIGINT and not alarm.rang and alarm.is_over()


def test_an_item_that_fails_is_named_and_the_rest_runs(capsys, scripts):
    torn = Path("results/one/full/rows.jsonl")
    torn.parent.mkdir(parents=True)
    torn.write_text('{"torn')
    text = out(capsys, status=2)
    assert text.count("error: ") == 2 and "first: error: results/one/full/rows.jsonl line 1: torn" in text
    assert len(rows_of("two")) == 4 and torn.read_text() == '{"torn'


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('script = "two"', 'script = "tow"', ["shared", "script 'tow'", "two"]),
        ("seeds = [0]", "seeds = [-1]", ["more", "seed -1"]),
        ("seeds = [0]", "seeds = [0, 0]", ["more", "seed 0", "more than once"]),
        ("seeds = [0]", 'seeds = ["0"]', ["more", "seed '0'"]),
        ("seeds = [0]", 'preset = "fool"', ["more", "preset 'fool'", "full"]),
        ('"frozen"]', '"frosen"]', ["more", "line 'frosen'", "frozen"]),
        ("second | dfa", "secnd | dfa", ["more", "line 'secnd | dfa'", "second | dfa"]),
        ('blocks = [""]', 'blocks = ["secod"]', ["first", "block 'secod'", "second"]),
        ("hours = 3", "hours = -3", ["more", "hours=-3"]),
        ("hours = 3", "hous = 3", ["more", "field 'hous'", "hours"]),
        ("hours = 3", "", ["more", "hours is missing"]),
        ("hours = 3", 'hours = "3"', ["more", "hours='3'"]),
        ("hours = 3", "hours = 3\noverrides = { widht = 8 }", ["more", "widht", "width"]),
        ('name = "more"', 'name = "first"', ["'first'", "another item"]),
        ('name = "more"', "name = more", ["reproduce.toml", "not a list"]),
    ],
)
def test_what_a_list_names_wrongly_is_one_line_and_status_2(capsys, scripts, old, new, named):
    assert old in LIST
    (scripts / "reproduce.toml").write_text(LIST.replace(old, new, 1))
    text = out(capsys, status=2)
    assert len(text.strip().splitlines()) == 1 and all(word in text for word in named), text
    assert not Path("results").exists()


def test_items_that_are_no_tables_are_one_line_and_status_2(capsys, scripts):
    (scripts / "reproduce.toml").write_text('item = ["first"]')
    text = out(capsys, status=2)
    assert len(text.strip().splitlines()) == 1 and "item 1: 'first' must be a table" in text


def test_wrong_options_are_one_line_and_status_2(capsys, scripts):
    for argv, word in ((["--hours", "-1"], "-1"), (["--hours", "nan"], "nan"), (["--only", "frist"], "first")):
        text = out(capsys, *argv, status=2)
        assert len(text.strip().splitlines()) == 1 and word in text
    (scripts / "reproduce.toml").unlink()
    assert "reproduce.toml: not found" in out(capsys, status=2)


def test_overridden_settings_have_a_folder_of_their_own(capsys, scripts):
    (scripts / "reproduce.toml").write_text(LIST.replace("hours = 1.0", "hours = 1.0\noverrides = { width = 8 }"))
    out(capsys, "--only", "first")
    [rows] = Path("results").rglob("rows.jsonl")
    assert rows.parent.name == "full+width=8" and read_rows(rows)[0]["config"]["network"]["width"] == 8
    command.main(["report"])
    assert "rebuilt from 2 rows" in capsys.readouterr().out


def test_the_list_of_the_study_names_what_there_is():
    path = ROOT / "experiments" / reproduce.LIST
    items = reproduce.read_list(path, load_experiments(path.parent))
    assert len(items) == len(tomllib.loads(path.read_text())["item"]) >= 20
    assert len(next(item for item in items if item.name == "boundary").seeds) == 6
    i, item = next((i, item) for i, item in enumerate(items) if item.name == "depth-utility")  # shares runs with none
    left = reproduce.what_is_left(items, {(v.hash, seed) for v in item.wanted for seed in item.seeds[:1]})
    assert left[i].done * 2 == left[i].runs and left[i].hours == pytest.approx(item.hours / 2)
    assert all(each.hours > 0 for each in left), "an item whose runs are all made above it"


def test_a_cluster_may_run_the_list_and_its_scheduler_must_answer(scripts, capsys, monkeypatch):
    sent = []

    class Cluster(InProcess):
        """What runs here bears the names of its batches."""

        def submit(self, fn, /, *args):
            sent.append(args[0].name)
            return super().submit(fn, *args)

    def cluster(address):
        assert address == "tcp://there:1"
        return nullcontext(Cluster())

    monkeypatch.setattr(command, "dask_cluster", cluster)
    out(capsys, "--only", "shared", "--scheduler", "tcp://there:1", "--batch-runs", "1")
    assert len(sent) == len(rows_of("two")) > 1 and all(name.startswith("two/full: ") for name in sent)
    monkeypatch.undo()
    monkeypatch.chdir(scripts.parent)
    [line] = out(capsys, "--scheduler", "nonsense", status=2).splitlines()
    assert "--scheduler 'nonsense'" in line and "start one with `dask scheduler`" in line
