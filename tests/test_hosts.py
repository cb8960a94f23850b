"""Two processes of one sweep give the rows of one process."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jcredit.report.rows import read_rows
from jcredit.sweeps.hosts import HostsError, join, shares

SCRIPT = Path(__file__).parent.parent / "experiments/synth_ladder.py"
ARGS = ["--preset", "smoke", "--methods", "frozen", "--seeds", "0", "1", "2", "--no-progress"]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(directory, *extra):
    command = [sys.executable, SCRIPT, *ARGS, "--results-dir", directory, *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(tmp_path):
    group = ["--coordinator", f"localhost:{free_port()}", "--num-processes", "2", "--process-id"]
    runs = [start(tmp_path / "two", *group, "0"), start(tmp_path / "two", *group, "1"), start(tmp_path / "one")]
    outputs = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], [err for _, err in outputs]
    two, one = (read_rows(tmp_path / name / "synth_ladder/smoke/rows.jsonl") for name in ("two", "one"))
    measured = lambda rows: {  # noqa: E731
        r["seed"]: [r[k] for k in ("config_hash", "status", "epochs", "metrics", "layers", "curves")] for r in rows
    }
    assert measured(two) == measured(one) and len(one) == 3
    # Process 0 alone reports; its runs really were only a share.
    assert "frozen" in outputs[0][0] and "frozen" not in outputs[1][0]
    assert {r["timing"]["runs_in_program"] for r in two} == {1, 2}


def test_every_run_belongs_to_one_process_and_the_odd_one_rotates():
    groups = [list("abc"), list("de"), list("f")]
    split = shares(groups, 2)
    assert [sorted(x for part in wave for x in part) for wave in split] == groups
    assert all(abs(len(wave[0]) - len(wave[1])) <= 1 for wave in split)
    assert [len(wave[0]) for wave in split] == [2, 1, 1] and shares(groups, 1) == [[g] for g in groups]
    assert [len(wave[0]) for wave in shares([["a"], ["b"]], 2)] == [1, 0]


@pytest.mark.parametrize(
    ("given", "named"),
    [(("localhost:1", None, None), "--num-processes"), (("localhost:1", 2, 2), "--process-id 2")],
)
def test_incomplete_groups_are_said(given, named):
    with pytest.raises(HostsError, match=named):
        join(*given)
