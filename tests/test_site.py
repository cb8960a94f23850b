"""The site: every experiment, module and example has its page, links lead somewhere, nothing comes from afar."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("mkdocs", reason="the site's packages: pip install -e '.[docs]'")


def loaded(name):
    """A module beside the pages, which MkDocs loads by its path."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = loaded("site")


@pytest.mark.parametrize(
    ("page", "link", "wanted"),
    [
        ("docs/index.md", "../results/toy_lq/quick/table.md", "experiments/toy_lq.md"),
        ("docs/index.md", "../results/toy_lq/quick/figure.png", "figures/toy_lq-quick.png"),
        ("docs/index.md", "method.md#6-diagnostics", "method.md#6-diagnostics"),
        ("results/CLAIMS.md", "toy_lq/quick/table.md", "experiments/toy_lq.md"),
        ("results/toy_lq/quick/table.md", "../../CLAIMS.md#lq1", "../claims.md#lq1"),
        ("README.md", "jcredit/sweeps/door.py", "reference/jcredit.sweeps.door.md"),
    ],
)
def test_links_into_the_repository_lead_to_the_page_that_shows_it(page, link, wanted):
    uri = "experiments/toy_lq.md" if page.endswith("table.md") else "page.md"
    assert site.relinked(f"see [it]({link}).", (ROOT / page).parent, uri) == f"see [it]({wanted})."


def test_a_link_that_no_page_shows_is_a_warning(caplog):
    text = "[x](../pyproject.toml) and [y](https://example.org/a)"
    assert site.relinked(text, ROOT / "docs", "page.md") == text
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "pyproject.toml" in caplog.text


def test_docstrings_are_markdown_in_which_stars_are_stars():
    shown = site.prose("Loss ||y - y*||^2, ``a*b`` and y*.\n\n    y * z\n")
    assert shown == "Loss \\|\\|y - y\\*\\|\\|^2, ``a*b`` and y\\*.\n\n    y * z"


def test_angles_in_docstrings_are_text():
    plain = pytest.importorskip("griffe") and loaded("docstrings").plain
    text = "Fits <a, v> to ``<g>``.\n\n    x < y\n\nArgs:\n  a: (<b>\n    and <c>)."
    assert plain(text) == "Fits \\<a, v> to ``<g>``.\n\n    x < y\n\nArgs:\n  a: (\\<b>\n    and \\<c>)."


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("material"), pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's own news
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    pages = {str(path.relative_to(tmp_path)): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    for script in (ROOT / "experiments").glob("*.py"):
        page = pages[f"experiments/{script.stem}.html"]
        tables = sorted((ROOT / "results" / script.stem).glob("*/table.md"))
        assert ("figures/" in page) == ('id="preset-' in page) == bool(tables), script
        for table in tables:
            assert f"Preset {table.parent.name}" in page
            [first, *_] = re.findall(r"^\|[-:| ]+\|\n\| ([^|]+?) +\|", table.read_text(encoding="utf-8"), re.M)
            assert f">{html.escape(first, quote=False)}</td>" in page, (script, first)
    for example in (ROOT / "experiments/examples").glob("*.py"):
        assert f"examples/{example.stem}.html" in pages
    assert 'id="jcredit.sweeps.door.sweep"' in pages["reference/jcredit.sweeps.door.html"]
    assert 'id="lq1-' in pages["claims.html"]
    for name, page in pages.items():
        fetched = re.findall(r'<(?:script|img|iframe|link(?! rel="canonical"))[^>]+?(?:src|href)="([^"]+)"', page)
        assert not [url for url in fetched if re.match(r"(https?:)?//", url)], name
        assert "googletagmanager" not in page and "fonts.googleapis" not in page


@pytest.mark.slow
def test_the_tour_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/tour.md").read_text(encoding="utf-8"), re.S | re.M)
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), "tour.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "chain learning_rate=0.003" in printed and (tmp_path / "tour.png").exists()
