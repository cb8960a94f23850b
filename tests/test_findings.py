"""The figures of findings: made of rows alone, the same bytes each time, and every one of them on a page."""

from pathlib import Path

import pytest

from jcredit.__main__ import main
from jcredit.study import findings

ROOT = Path(__file__).parent.parent


def test_every_finding_has_rows_and_its_figure_is_on_the_page(experiments, tmp_path):
    pages = "".join((ROOT / page).read_text() for page in ("docs/findings.md", "results/online/README.md"))
    made = findings.draw(ROOT / "results", experiments, tmp_path)
    assert [path.stem for path in made] == [f.name for f in findings.FINDINGS]
    for path in made:
        assert f"findings/{path.name})" in pages
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_figure_shows_its_rows(experiments, tmp_path, monkeypatch):
    """Changing one number changes the figures of its experiment, and no others."""
    before = {path.name: path.read_bytes() for path in findings.draw(ROOT / "results", experiments, tmp_path / "a")}
    honest = findings.rows_of

    def edited(results_dir, known, name, preset):
        rows, preset = honest(results_dir, known, name, preset)
        if name != "boundary_ablation":
            return rows, preset
        return [{**row, "metrics": {**row["metrics"], "gamma": 0.3}} for row in rows], preset

    monkeypatch.setattr(findings, "rows_of", edited)
    after = {path.name: path.read_bytes() for path in findings.draw(ROOT / "results", experiments, tmp_path / "b")}
    assert {name for name in before if before[name] != after[name]} == {"projection.png"}


def test_a_figure_none_of_whose_lines_has_rows_is_left_out(experiments, tmp_path, monkeypatch):
    honest = findings.rows_of

    def without(*args):
        rows, preset = honest(*args)
        return [row for row in rows if row["label"] not in ("dfa", *findings.BRIDGES)], preset

    monkeypatch.setattr(findings, "rows_of", without)
    names = {path.stem for path in findings.draw(ROOT / "results", experiments, tmp_path)}
    assert {f.name for f in findings.FINDINGS} - names == {"dilution", "order"}


def test_a_figure_of_one_block_is_handed_its_rows_alone(experiments, tmp_path, monkeypatch):
    shown, late = [], next(f for f in findings.FINDINGS if f.block)
    keep = late._replace(draw=lambda axes, rows: shown.extend(rows))
    monkeypatch.setattr(findings, "FINDINGS", (keep, keep._replace(block="")))
    findings.draw(ROOT / "results", experiments, tmp_path)
    blocks = [row["block"] for row in shown]
    assert late.block and set(blocks[: (alone := blocks.count(late.block) // 2)]) == {late.block}
    assert len(set(blocks[alone:])) > 1


def test_without_rows_nothing_is_drawn(experiments, tmp_path):
    assert findings.draw(tmp_path, experiments, tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("long", "short", "shown"), [("a", "ab", "quick"), ("ab", "ab", "full"), ("", "a", "quick"), ("abc", "ab", "full")]
)
def test_a_long_run_that_has_begun_does_not_take_lines_from_a_figure(experiments, monkeypatch, long, short, shown):
    rows = {"full": long, "quick": short}
    monkeypatch.setattr(findings, "in_grid", lambda rows, grid: rows)
    monkeypatch.setattr(
        findings, "read_rows", lambda path, name, preset: [{"block": "one", "label": label} for label in rows[preset]]
    )
    found, preset = findings.rows_of(Path(), experiments, "boundary_ablation")
    assert preset == shown and [row["label"] for row in found] == list(rows[shown])


def test_the_check_names_a_figure_that_was_touched(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    for name in ("boundary_ablation", "matplotlib.txt"):
        (tmp_path / "results" / name).symlink_to(ROOT / "results" / name)
    (tmp_path / "results/findings").mkdir()
    (tmp_path / "results/findings/projection.png").write_bytes(b"not this")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["report", "--check", "--experiments", str(ROOT / "experiments")])
    assert "findings: projection.png is not what its rows give" in capsys.readouterr().err
