"""Figures are deterministic PNG files, whatever is missing, and what they draw is what the rows say."""

import pytest

from jcredit.report import plots
from jcredit.report.rows import grouped


def make_row(label="DFA", seed=0, block="", status="ok", metrics=None, curves=None, layers=None, epochs=3):
    return {
        "label": label, "seed": seed, "block": block, "status": status, "epochs": epochs,
        "metrics": metrics or {}, "curves": curves or {}, "layers": layers or {},
    }  # fmt: skip


ROWS = [
    make_row(
        label, seed, block, metrics={"test_accuracy": 0.2 + 0.1 * seed, "gamma": -0.1 + 0.4 * seed},
        curves={"test_accuracy": [0.1, 0.2, 0.2 + 0.1 * seed]}, layers={"gamma": [0.1, 0.2, 0.3 + seed]},
    )
    for block in ("L=2", "L=4")
    for label in ("BP", "a label so long that it must be broken over lines")
    for seed in (0, 1)
]  # fmt: skip
INCOMPLETE = [
    make_row("BP", 0),
    make_row("BP", 1, status="diverged", metrics={"gamma": None}, curves={"test_accuracy": [None] * 3}),
    make_row("DFA", 0, metrics={"gamma": 0.5}, curves={"test_accuracy": [0.1]}, layers={"gamma": [None, 0.5]}),
    make_row("CB", 0, "other block"),
]  # fmt: skip

FIGURES = {
    "bars": lambda rows, path: plots.bars(rows, ["test_accuracy", "gamma"], path, "title"),
    "layer_profile": lambda rows, path: plots.layer_profile(rows, "gamma", path),
    "against": lambda rows, path: plots.against(rows, "test_accuracy", [0.1, 1, 10], path, "title", "step size"),
    "overview": lambda rows, path: plots.overview(rows, path, "title"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_rows_give_the_same_bytes(tmp_path, name):
    for path in (tmp_path / "a.png", tmp_path / "b.png"):
        FIGURES[name](ROWS, path)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("rows", [INCOMPLETE, [], INCOMPLETE[:1]], ids=["incomplete", "empty", "bare"])
@pytest.mark.filterwarnings("error")
def test_missing_numbers_are_left_out(tmp_path, name, rows):
    FIGURES[name](rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()


def test_series_is_mean_and_range_over_the_seeds_that_are_there():
    series = plots.over_seeds([{1.0: 0.25, 2.0: 0.5}, {1.0: 0.75}])
    assert series == plots.Series([1.0, 2.0], [0.5, 0.5], [0.25, 0.5], [0.75, 0.5])
    assert plots.over_seeds([{}, {}]).x == []


def test_curves_count_epochs_from_one_unless_they_begin_before_training():
    assert plots._curve(make_row(curves={"c": [5, None, 7]}), "c") == {1.0: 5.0, 3.0: 7.0}
    assert plots._curve(make_row(curves={"c": [4, 5, 6, 7]}), "c") == {0.0: 4.0, 1.0: 5.0, 2.0: 6.0, 3.0: 7.0}
    assert plots._curve(make_row(), "c") == {}


def test_profiles_end_at_depth_one():
    layers = {"gamma": [4, 0], "h_rms": [1, 2, 3], "weight_cosine": [2, 3]}
    row = make_row(layers=layers)
    assert plots._profile(row, "gamma") == {0.0: 4.0, 0.5: 0.0}  # of h_0 .. h_{L-1}
    assert plots._profile(row, "h_rms") == {0.0: 1.0, 0.5: 2.0, 1.0: 3.0}
    assert plots._profile(row, "weight_cosine") == {0.5: 2.0, 1.0: 3.0}  # of the blocks
    assert plots._profile(make_row(layers={"h_rms": [1, 2, 3]}), "h_rms") == {0.0: 1.0, 0.5: 2.0, 1.0: 3.0}


def test_the_studys_number_is_a_diamond(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: figures.append(figure))
    rows = [
        {**row, "study": {"gamma": 0.45}} if row["label"] == "BP" and row["block"] == "L=2" else row for row in ROWS
    ]
    plots.overview(rows, tmp_path / "a.png")
    plots.bars(rows, ["gamma"], tmp_path / "b.png")
    plots.overview(ROWS, tmp_path / "c.png")

    def marks(figure):
        lines = [line for axis in figure.axes for line in axis.lines if line.get_marker() == "D"]
        return [(*line.get_xdata(), *line.get_ydata()) for line in lines]

    assert list(map(marks, figures)) == [[(0.45, 0)], [(0.45, 0)], []]
    legends = [[text.get_text() for legend in figure.legends for text in legend.get_texts()] for figure in figures]
    assert legends == [["the study"], ["the study"], []]


def test_a_logarithmic_axis_has_no_mark_at_zero():
    row = {**make_row(), "study": {"h_rms_last": 0.0, "gamma": 0.0}}
    assert plots.study_mark([row], "h_rms_last") is None and plots.study_mark([row], "gamma") == 0.0
    assert plots.study_mark([make_row()], "gamma") is None


def test_labels_of_one_block_differ_and_keep_their_style():
    blocks = {"L=2": [f"v{i}" for i in range(12)], "L=4": ["v3", "new"], "L=8": ["BP L=8"]}
    rows = [make_row(label, block=block) for block, labels in blocks.items() for label in labels]
    styles = plots.label_styles(grouped(rows))
    assert len({styles[label] for label in blocks["L=2"]}) == 12
    assert styles["v3"] != styles["new"]
    assert styles["v0"] == styles["BP L=8"]  # never in one panel, so the clearest colours are used again
