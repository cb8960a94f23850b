"""The notebook runs from its first cell to its last, on nothing but what is in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "notebooks/first_picture.py"
pytest.importorskip("marimo", reason="the notebook's packages: pip install -e '.[notebook]'")


@pytest.mark.slow
def test_it_runs_to_the_first_picture(tmp_path):
    script = (
        "import runpy, sys\n"
        f"app = runpy.run_path({str(NOTEBOOK)!r})['app']\n"
        "outputs, names = app.run()\n"
        "assert len(outputs) <= 10 and len(names['rows']) == 12, (len(outputs), len(names['rows']))\n"
        "means = names['frame'].groupby('label')['metrics.gamma'].mean()\n"
        "assert abs(means['bp'] - 1) < 1e-4 and means['frozen'] == 0 and means['dfa'] < means['broadcast'] < 1\n"
    )
    environment = os.environ | {"JCREDIT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/first_picture.png").read_bytes()[:4] == b"\x89PNG"


def test_it_has_ten_cells_at_most_and_every_name_once():
    assert NOTEBOOK.read_text(encoding="utf-8").count("@app.cell") <= 10
    checked = subprocess.run([sys.executable, "-m", "marimo", "check", str(NOTEBOOK)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
