"""Copies of data that no key tells: rows and checkpoints say on which they were made, and another one is told of."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers import measured, sweep_into, variant

import jcredit as jc
from jcredit import parts
from jcredit.sweeps import copies, program
from jcredit.sweeps.run import Stopped
from jcredit.sweeps.variants import Snapshot

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.usefixtures("shared_programs")


@parts.task(jc.ladder_mlp(depth=2, width=16))
def folder_task(data_dir: str | Path | None, /) -> jc.Task:
    """Samples that are those of a folder."""
    x = np.random.default_rng(len(os.listdir(data_dir))).normal(size=(32, 8)).astype(np.float32)  # type: ignore[arg-type]
    y = np.arange(32) % 4
    return jc.tasks.arrays(x, y, x, y, normalise=False).build()._replace(origin=Path(data_dir).name)  # type: ignore[arg-type]


TASK = folder_task().name
LINE = variant("dfa", task=folder_task(), network=jc.ladder_mlp(depth=2, width=16), epochs=2)


@pytest.fixture
def folders(tmp_path):
    """Two copies, and a folder that is still empty."""
    for name, files in (("one", 1), ("other", 2), ("empty", 0)):
        (tmp_path / name).mkdir()
        for i in range(files):
            (tmp_path / name / str(i)).touch()
    return {name: tmp_path / name for name in ("one", "other", "empty")}


def test_rows_of_another_copy_are_found_and_told_of(tmp_path, folders, caplog):
    rows = sweep_into(tmp_path / "runs", [LINE], data_dir=folders["one"])
    assert {row["data"] for row in rows} == {"one"}
    assert sweep_into(tmp_path / "runs", [LINE], data_dir=folders["one"]) == rows
    assert sweep_into(tmp_path / "runs", [LINE], data_dir=folders["empty"]) == rows  # nothing to compare with
    assert not caplog.messages
    told = (
        f"rows of dfa are there already, made on another copy of {TASK}, one, than is here, other;"
        " another results_dir, or --fresh, makes runs on this copy"
    )
    assert sweep_into(tmp_path / "runs", [LINE], data_dir=folders["other"]) == rows
    assert caplog.messages == [told]
    more = sweep_into(tmp_path / "runs", [LINE], (0, 1, 2), data_dir=folders["other"])
    assert [row["data"] for row in more] == ["one", "one", "other"] and caplog.messages == [told, told]


def test_a_folder_without_the_images_has_no_copy_to_compare_with(folders):
    assert copies._origin(jc.tasks.cifar10(), folders["one"]) == ""


def test_a_checkpoint_of_another_copy_is_set_aside(tmp_path, folders, caplog):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="epoch 1 of 2"):
        real = program._compile
        patch.setattr(program, "_compile", lambda *a: os.kill(os.getpid(), signal.SIGTERM) or real(*a))
        sweep_into(tmp_path / "cut", [LINE], data_dir=folders["one"])
    resumed = sweep_into(tmp_path / "cut", [LINE], data_dir=folders["other"])
    [warning] = caplog.messages
    assert f"begun on another copy of {TASK}, one, than is here, other; set aside as" in warning
    fresh = sweep_into(tmp_path / "fresh", [LINE], data_dir=folders["other"])
    assert [measured(row) for row in resumed] == [measured(row) for row in fresh]
    assert {row["data"] for row in resumed} == {"other"}


def test_what_a_network_was_trained_on_stands_in_the_row_of_whoever_takes_it(tmp_path, folders, caplog):
    fit = LINE._replace(label="fit", config=LINE.config.replace(trains="nothing"), start=Snapshot(LINE.config, 2))
    sweep_into(tmp_path, [fit], (0,), "fits", data_dir=folders["one"])
    assert not caplog.messages
    [row] = sweep_into(tmp_path, [LINE], (0,), "table", data_dir=folders["other"])
    assert row["data"] == "one" and row["timing"]["compile_s"] == 0
    [warning] = caplog.messages
    assert warning.startswith(f"networks that dfa takes were trained on another copy of {TASK}, one, than is here")
