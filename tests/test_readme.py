"""What the README shows is run."""

import re
from pathlib import Path

import pytest

from jcredit.__main__ import main

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_ten_lines_of_python(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    shown = next(block for block in blocks if "jc.sweep(" in block)
    monkeypatch.chdir(tmp_path)
    exec(compile(shown, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    tables, means = printed.split("label\n")
    assert tables.count("learning_rate=0.003") == 4 * 2 and "accuracy - bp" in tables  # the sweep's, and one beside bp
    assert "oracle: back-propagation" in tables
    assert means.count("learning_rate=") == 8
    assert (tmp_path / "mine.png").read_bytes()[:4] == b"\x89PNG"
    assert len((tmp_path / "runs/sweep/sweep/rows.jsonl").read_text().splitlines()) == 4 * 4 * 2
    main(["report", "--results-dir", "runs", "--experiments", str(ROOT / "experiments")])
    assert "jc.sweep's table and figure rebuilt from 32 rows" in capsys.readouterr().out
    assert (tmp_path / "runs/sweep/sweep/table.md").read_text() in printed


@pytest.mark.parametrize("name", ["main", "test"])
def test_its_commands_name_what_there_is(name):
    text = (ROOT / "README.md").read_text()
    command = re.search(rf"<!-- {name} command -->\n```bash\n(.*?)\n```", text, re.S)
    assert command is not None and command[1].startswith("python3 -m venv .venv && ")
    for script in re.findall(r"experiments/\w+\.py", command[1]):
        assert (ROOT / script).exists()


def test_every_link_into_the_repository_leads_somewhere():
    for page in (ROOT / "README.md", ROOT / "docs/method.md", ROOT / "experiments/SCALING.md"):
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        for link in links:
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"
