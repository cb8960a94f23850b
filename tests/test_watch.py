"""Watching from outside: what a real sweep leaves is shown, and nothing that happens to the files disturbs anybody."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers import small, tiny

import jcredit as jc
from jcredit.config import ConfigError
from jcredit.sweeps import program, status, watch
from jcredit.sweeps.layout import Layout
from jcredit.sweeps.record import Progress
from jcredit.sweeps.run import run_sweep
from jcredit.sweeps.variants import Folder, Request, Variant

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")

BRIDGE = Variant("bridge [x]", tiny(small(jc.scalar_bridge), **{"network.depth": 2, "epochs": 3}))


def text_of(view):
    from rich.console import Console

    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(watch.render(view))
    return console.export_text()


@pytest.fixture
def views(tmp_path, monkeypatch):
    """What is seen after every write of a real sweep; every epoch is written."""
    monkeypatch.setattr(status, "SHARE", float("inf"))
    seen, write = [], status.Reporter.write

    def watched(reporter, progress):
        write(reporter, progress)
        seen.append(watch.look(tmp_path / "mine" if len(seen) % 2 and (tmp_path / "mine").exists() else tmp_path))

    monkeypatch.setattr(status.Reporter, "write", watched)
    rows = run_sweep([BRIDGE], (0, 1), Folder(tmp_path, "mine", "smoke"), progress=False)
    return seen, rows


def test_a_sweep_is_seen_at_every_epoch_and_leaves_only_rows(tmp_path, views):
    seen, rows = views
    assert [view.programs[0]["epoch"] for view in seen] == [0, 1, 2, 3]
    assert all(view.sweeps[0]["run_epochs"] == 6 and not view.rows for view in seen)
    means = [sum(row["curves"]["train_loss"][epoch] for row in rows) / 2 for epoch in range(3)]
    assert seen[-1].programs[0]["curves"]["train_loss"] == pytest.approx(means)
    middle = text_of(seen[2])
    assert "mine/smoke: bridge [x]" in middle and "2/3" in middle and "4 of 6 run-epochs" in middle
    assert "train_loss" in middle and "compiling" in text_of(seen[0])
    assert not status.folder(tmp_path).exists()
    after = watch.look(tmp_path)
    assert not after.programs and not after.cut_off and len(after.rows) == 2
    assert not any(view.cut_off for view in seen)
    assert "no sweep is under way" in text_of(after) and "bridge [x]" in text_of(after)


def test_a_sweep_that_was_interrupted_is_seen_until_it_goes_on(tmp_path, monkeypatch):
    real, cut = program._one_epoch, Folder(tmp_path, "mine", "smoke")
    with monkeypatch.context() as patch:
        patch.setattr(program, "_one_epoch", lambda *args: os.kill(os.getpid(), signal.SIGINT) or real(*args))
        with pytest.raises(program.Stopped):
            run_sweep([BRIDGE], (0, 1), cut, progress=False)
    for directory in (tmp_path, tmp_path / "mine", tmp_path / "mine/smoke"):
        view = watch.look(directory)
        [left] = view.cut_off
        assert (left.where, left.runs) == ("mine/smoke", 2) and 0 <= view.now - left.saved < 600
    dead = {"pid": gone(), "host": socket.gethostname()}  # killed, it would have left its status
    [path] = (tmp_path / "mine/smoke/cache").glob("*/program.json")
    status._write(status.folder(tmp_path) / f"{path.parent.name}.json", dead)
    assert watch.look(tmp_path).cut_off[0][:2] == ("mine/smoke", 2)
    text = text_of(view)
    assert "no sweep is under way" in text and "the same command goes on from" in text and "mine/smoke" in text
    run_sweep([BRIDGE], (0, 1), cut, progress=False)
    assert not watch.look(tmp_path).cut_off


def test_a_sweep_leaves_the_finished_programs_of_another(tmp_path):
    for labels, stays in (["theirs"], True), ([BRIDGE.label], False):
        done = {"epochs": 1, "epoch": 1, "began": time.time() + 60, "labels": labels, "host": "elsewhere", "pid": 1}
        path = status.folder(tmp_path) / "done.json"
        with status.announced(tmp_path, [[Request(BRIDGE, 0)]]):
            path.write_text(json.dumps(done))
        assert path.exists() == stays


def test_the_time_left_is_what_the_sweep_says_less_the_time_since():
    process = {"pid": os.getpid(), "host": "here", "began": 100.0}
    sweep = {**process, "runs": 4, "run_epochs": 40, "done": 10, "updated": 120.0}
    shown = lambda left: text_of(watch.View([], [], [sweep | {"left": left}], 130.0))  # noqa: E731
    assert "10 of 40 run-epochs after 30 s; about 55 s left" in shown(65.0)
    assert "about 0 s left" in shown(5.0) and "about ? left" in shown(None)


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_into_a_file_there_is_a_view_for_everything_new_and_none_for_the_time(tmp_path, monkeypatch, capsys):
    process = {"pid": os.getpid(), "host": "here", "began": 100.0, "updated": 120.0}
    at = {**process, "where": "a/b", "labels": ["bp"], "runs": 1, "epochs": 9, "curves": {}}
    sweep = {**process, "runs": 1, "run_epochs": 9, "done": 2, "left": None, "host": socket.gethostname()}
    views = iter(
        [(1, []), (1, []), (1, []), (2, []), (2, []), (2, [sweep]), (2, [sweep]), (2, [{**sweep, "pid": gone()}])]
    )

    def look(directory):
        epoch, sweeps = next(views, (0, []))
        if not epoch:
            raise KeyboardInterrupt
        return watch.View([], [{**at, "epoch": epoch}], sweeps, time.time())

    monkeypatch.setattr(watch, "look", look)
    with pytest.raises(KeyboardInterrupt):
        watch.follow(tmp_path, seconds=0.0)
    text = capsys.readouterr().out
    assert text.count("no sweep is under way") == 2 and text.index("1/9") < text.index("2/9")
    assert text.count("2 of 9 run-epochs") == 2 and text.index("about ? left") < text.index("ended without a word")


def test_writing_takes_its_share_at_most(tmp_path, monkeypatch):
    """On a clock of our own: a write of 1 s is not repeated within 100 s, whatever epochs take, but for the last."""
    clock, written = [0.0], []
    monkeypatch.setattr(status.time, "monotonic", lambda: clock[0])

    def slow(path, value):
        clock[0] += 1.0
        written.append(value["epoch"])

    monkeypatch.setattr(status, "_write", slow)
    group = [Request(BRIDGE._replace(config=BRIDGE.config.replace(epochs=95)), 0)]
    report = status.Reporter(tmp_path, tmp_path / "a/b/cache", "name", group)
    progress = Progress(Layout(1, 1), None)
    for _ in range(95):
        clock[0] += 10.0
        progress = progress.after({"train_loss": [1.0]}, {}, 10.0)
        report.write(progress)
    assert written == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 95]


def test_a_status_costs_a_hundredth_of_an_epoch_or_less(tmp_path):
    """A real clock: writes of a progress of 200 epochs in a loop that does nothing else but sleep 5 ms.

    What is spent is this thread's own time: other processes may hold it up for as long as they like.
    """
    group = [Request(BRIDGE._replace(config=BRIDGE.config.replace(epochs=1000)), 0)]
    report, spent = status.Reporter(tmp_path, tmp_path / "a/b/cache", "name", group), 0.0
    progress = Progress(Layout(1, 1), None, tuple({"train_loss": [1.0], "gamma": [0.5]} for _ in range(200)))
    report.write(progress)
    began = time.perf_counter()
    while time.perf_counter() - began < 1.0:
        time.sleep(0.005)
        start = time.thread_time()
        report.write(progress)
        spent += time.thread_time() - start
    assert spent < 0.1  # a hundredth, and room for the loop itself


def test_where_a_status_cannot_be_written_the_sweep_goes_on(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    report = status.Reporter(tmp_path, tmp_path / "a/b/cache", "name", [Request(BRIDGE, 0)])
    report.write(Progress(Layout(1, 1), None))
    with status.announced(tmp_path, [[Request(BRIDGE, 0)]]):
        pass
    assert (tmp_path / "cache").read_text() == "in the way"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"where": 1}', "\x00"])
def test_torn_files_are_left_out(tmp_path, text):
    for path in (status.folder(tmp_path) / "x.json", tmp_path / "a/b/rows.jsonl"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    view = watch.look(tmp_path)
    assert (view.rows, view.programs, view.sweeps) == ([], [], [])


def test_a_dead_process_is_told(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with status.announced(tmp_path, [[Request(BRIDGE, 0)]]):
        [path] = status.folder(tmp_path).glob("sweep-*.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": gone.pid}))
        assert "ended without a word" in text_of(watch.look(tmp_path))


def test_the_word_on_a_killed_sweep_goes_with_the_next(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    files = {
        "sweep-dead": {"pid": gone.pid, "host": socket.gethostname()},
        "sweep-living": {"pid": os.getppid(), "host": socket.gethostname()},
        "sweep-elsewhere": {"pid": gone.pid, "host": "another"},
        "torn": {},
    }
    status.folder(tmp_path).mkdir(parents=True)
    for name, value in files.items():
        (status.folder(tmp_path) / f"{name}.json").write_text(json.dumps(value))
    with status.announced(tmp_path, []):  # all its rows were there already
        pass
    left = {path.stem for path in status.folder(tmp_path).iterdir()}
    assert left == {"sweep-living", "sweep-elsewhere", "torn"}


def test_files_that_are_replaced_while_they_are_read_disturb_nobody(tmp_path):
    report = status.Reporter(tmp_path, tmp_path / "a/b/cache", "name", [Request(BRIDGE, 0)])
    stop, progress = threading.Event(), Progress(Layout(1, 1), None)

    def rewrite():
        while not stop.is_set():
            report._file._again = 0.0
            report.write(progress)
            (status.folder(tmp_path) / "name.json").unlink()

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        looks = [watch.look(tmp_path).programs for _ in range(300)]
    finally:
        stop.set()
        writer.join()
    assert {len(programs) for programs in looks} == {0, 1}  # whole, or not there
    assert all(programs[0]["where"] == "a/b" for programs in looks if programs)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([1.0, None, 0.0], "█ ▁"),
        ([2, 2], "▁▁"),
        ([], ""),
        ([None], ""),
        ([0] * 40 + [1] * 40, "▁" * 12 + "█" * 12),
    ],
)
def test_sparklines(values, line):
    assert watch.sparkline(values) == line


def test_curves_go_to_tensorboard_once_each(tmp_path, views):
    seen, rows = views
    events = watch.EventFiles(tmp_path / "board")
    for view in (seen[1], seen[2], seen[2], watch.look(tmp_path), watch.look(tmp_path)):
        events.add(view)
    from tensorboardX.proto.event_pb2 import Event

    def scalars(folder):
        for file in sorted(folder.glob("events*")):
            data, at = file.read_bytes(), 0
            while at < len(data):  # TFRecord: length, its checksum, the message, its checksum
                size = int.from_bytes(data[at : at + 8], "little")
                event = Event.FromString(data[at + 12 : at + 12 + size])
                yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)
                at += 16 + size

    for row in rows:
        found = list(scalars(tmp_path / f"board/mine/smoke/bridge _x_/seed {row['seed']}"))
        wanted = [(k, i + 1, v) for k, c in row["curves"].items() for i, v in enumerate(c) if v is not None]
        assert sorted(f[:2] for f in found) == sorted(w[:2] for w in wanted)
        by_place = {(k, i): v for k, i, v in found}
        assert all(by_place[k, i] == pytest.approx(v, rel=1e-6) for k, i, v in wanted)
    under_way = [(k, i) for k, i, _ in scalars(tmp_path / "board/under way/mine/smoke/bridge _x_")]
    assert under_way.count(("train_loss", 1)) == under_way.count(("train_loss", 2)) == 1


def test_names_of_event_folders_stay_inside():
    assert watch._folder_name("../a/..b/$(x)/.") == "_/a/b/_(x)/_"


def test_the_command_says_what_it_cannot_do(tmp_path, capsys, monkeypatch):
    from jcredit.__main__ import main

    with pytest.raises(ConfigError, match="does not exist"):
        watch.look(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for arguments in (
        ["watch", str(tmp_path / "nowhere"), "--once"],
        ["watch", str(tmp_path), "--once", "--tensorboard", str(tmp_path / "full")],
        ["watch", str(tmp_path), "--seconds", "0"],
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        said = capsys.readouterr().err
        assert end.value.code == 2 and len(said.strip().splitlines()) == 1, said
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"jcredit\[tensorboard\]"):
        watch.EventFiles(tmp_path / "new")
    main(["watch", str(tmp_path), "--once"])
    assert "no sweep is under way" in capsys.readouterr().out
