"""The site's tutorial, followed word for word: its files are written, its commands run, its table is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/tutorial.md"


def blocks():
    """(language, file to write or "", text) of the page's fenced blocks, in their order."""
    fenced = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(fenced) == PAGE.read_text(encoding="utf-8").count("\n```") / 2  # none is left out
    return fenced


def test_every_block_is_a_file_or_a_command():
    assert [language for language, _, _ in blocks()].count("bash") >= 4
    for language, title, _ in blocks():
        assert (language == "python") == bool(title) and language in ("python", "bash")


@pytest.mark.slow
def test_the_tutorial_ends_in_a_table_with_the_new_estimator(tmp_path):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")  # what a clone has, beside what the reader writes
    venv = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{venv}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JCREDIT_CACHE": str(tmp_path / "cache"),
    }
    printed = []
    for language, title, text in blocks():
        if language == "python":
            (tmp_path / title).write_text(text, encoding="utf-8")
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    check, compared, rates, ladder, report = printed
    assert check == ""
    labels = ("bp", "frozen", "broadcast", "learned tail", "learned tail, shuffled")
    assert [label for label in labels if re.search(rf"^\| {label} +\|", compared, re.M)] == list(labels)
    assert re.search(r"^\| learned tail +\| 2: loss under perturbation .*\| +3 \|", compared, re.M)
    assert (tmp_path / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert "| tail credit.learning_rate=0.01 " in rates
    assert re.search(r"^learned_tail +2 +1 +1 ", ladder, re.M)  # tier, depth, n
    assert (tmp_path / "runs/synth_ladder").is_dir() and "rebuilt from" in report
