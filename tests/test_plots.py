"""Figures are deterministic PNG files, whatever is missing, and what they draw is what the rows say."""

import pytest
from made_rows import make_row

from jcredit import estimators
from jcredit.report import plots, styles
from jcredit.report.rows import grouped
from jcredit.report.series import Series, curve_points, over_seeds, profile_points


def row_of(label="DFA", seed=0, block="", **given):
    return make_row(label, seed, block, **{"method": "own", "layers": {}, "epochs": 3, **given})


ROWS = [
    row_of(
        label, seed, block, metrics={"test_accuracy": 0.2 + 0.1 * seed, "gamma": -0.1 + 0.4 * seed},
        curves={"test_accuracy": [0.1, 0.2, 0.2 + 0.1 * seed]}, layers={"gamma": [0.1, 0.2, 0.3 + seed]},
    )
    for block in ("L=2", "L=4")
    for label in ("BP", "a label so long that it must be broken over lines")
    for seed in (0, 1)
]  # fmt: skip
INCOMPLETE = [
    row_of("BP", 0),
    row_of("BP", 1, status="diverged", metrics={"gamma": None}, curves={"test_accuracy": [None] * 3}),
    row_of("DFA", 0, metrics={"gamma": 0.5}, curves={"test_accuracy": [0.1]}, layers={"gamma": [None, 0.5]}),
    row_of("CB", 0, "other block"),
]  # fmt: skip

FIGURES = {
    "bars": lambda rows, path: plots.bars(rows, ["test_accuracy", "gamma"], path, "title"),
    "layer_profile": lambda rows, path: plots.layer_profile(rows, "gamma", path),
    "against": lambda rows, path: plots.against(rows, "test_accuracy", [0.1, 1, 10], path, "title", "step size"),
    "overview": lambda rows, path: plots.overview(rows, path, "title"),
}


@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
@pytest.mark.parametrize("name", FIGURES)
def test_the_same_rows_give_the_same_bytes(tmp_path, monkeypatch, name, kind, begins):
    first, second = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    FIGURES[name](ROWS, first)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")  # another day, as matplotlib is told of it
    FIGURES[name](ROWS, second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(begins)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a.{kind}", f"b.{kind}"]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("rows", [INCOMPLETE, [], INCOMPLETE[:1]], ids=["incomplete", "empty", "bare"])
@pytest.mark.filterwarnings("error")
def test_missing_numbers_are_left_out(tmp_path, name, rows):
    FIGURES[name](rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()


def test_series_is_mean_and_range_over_the_seeds_that_are_there():
    series = over_seeds([{1.0: 0.25, 2.0: 0.5}, {1.0: 0.75}])
    assert series == Series([1.0, 2.0], [0.5, 0.5], [0.25, 0.5], [0.75, 0.5])
    assert over_seeds([{}, {}]).x == []


def test_curves_count_epochs_from_one_unless_they_begin_before_training():
    assert curve_points(row_of(curves={"c": [5, None, 7]}), "c") == {1.0: 5.0, 3.0: 7.0}
    searched = row_of(curves={"dl_held_all": [5, None, 7], "dl_held_eta1e-01": [1, 2]})
    searched["followup"] = {"etas": [0.001, 0.1, 10.0]}
    assert curve_points(searched, "dl_held_all") == {-3.0: 5.0, 1.0: 7.0}
    assert curve_points(searched, "dl_held_eta1e-01") == {1.0: 1.0, 2.0: 2.0}
    assert curve_points(row_of(curves={"c": [4, 5, 6, 7]}), "c") == {0.0: 4.0, 1.0: 5.0, 2.0: 6.0, 3.0: 7.0}
    assert curve_points(row_of(), "c") == {}


def test_profiles_end_at_depth_one():
    layers = {"gamma": [4, 0], "gamma_clamped": [3, 1], "h_rms": [1, 2, 3], "weight_cosine": [2, 3]}
    row = row_of(layers=layers)
    assert profile_points(row, "gamma") == {0.0: 4.0, 0.5: 0.0}  # of h_0 .. h_{L-1}
    assert profile_points(row, "gamma_clamped") == {0.0: 3.0, 0.5: 1.0}
    assert profile_points(row, "h_rms") == {0.0: 1.0, 0.5: 2.0, 1.0: 3.0}
    assert profile_points(row, "weight_cosine") == {0.5: 2.0, 1.0: 3.0}  # of the blocks
    assert profile_points(row_of(layers={"h_rms": [1, 2, 3]}), "h_rms") == {0.0: 1.0, 0.5: 2.0, 1.0: 3.0}


def test_the_studys_number_is_a_diamond(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "write_figure", lambda figure, path: figures.append(figure))
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
    assert [("the study" in texts) for texts in legends] == [True, True, False]
    assert all("a seed, in its line's marker (2 seeds)" in texts for texts in legends)


def test_a_logarithmic_axis_has_no_mark_at_zero():
    row = {**row_of(), "study": {"h_rms_last": 0.0, "gamma": 0.0}}
    assert plots.study_mark([row], "h_rms_last") is None and plots.study_mark([row], "gamma") == 0.0
    assert plots.study_mark([row_of()], "gamma") is None


def test_bars_have_the_interval_of_their_mean(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "write_figure", lambda figure, path: figures.append(figure))
    seeds = [row_of(seed=seed, metrics={"gamma": value}) for seed, value in enumerate((0.4, 0.6))]
    plots.bars(seeds, ["gamma"], tmp_path / "a.png")
    plots.bars(seeds[:1], ["gamma"], tmp_path / "b.png")
    two, one = (
        [line.get_xdata() for line in f.axes[0].lines if (line.get_marker(), line.get_color()) == ("|", "black")]
        for f in figures
    )
    half = 12.706204736 * 0.1  # Student's t for one degree of freedom, times sd / sqrt(2)
    assert [list(x) for x in two] == [pytest.approx([0.5 - half, 0.5 + half])] and one == []
    assert figures[0].axes[0].get_xlim()[1] < 1  # two seeds leave much open; the bars stay readable


def keys(rows):
    return styles.label_styles(grouped(rows))


def test_an_estimator_has_one_colour_and_marker_in_all_blocks():
    wrapped = {"credit": {"estimator": "exact_terminal", "of": {"estimator": "vector_field", "directions": 4}}}
    first = keys([row_of("x", method="bp"), row_of("y", method="vector_field"), row_of("z", block="b")])
    second = keys([row_of("m", method="exact_terminal") | {"config": wrapped}, row_of("bp", method="bp")])
    assert second["bp", "bp"] == first["bp", "x"] and second["vector_field", "m"] == first["vector_field", "y"]
    colors = [color for color, _ in (*styles.ESTIMATORS.values(), *styles.OTHERS)]
    assert len(set(colors)) == len(colors) and first["own", "z"].color == styles.OTHERS[0][0]
    wrappers = {"exact_at", "exact_terminal", "unbiased_residual", "mlp"}
    assert set(styles.ESTIMATORS) == set(estimators.__all__) - wrappers  # no look of ours depends on its company


def test_a_label_is_drawn_as_it_is(tmp_path):
    odd = [row_of(label, metrics={"gamma": 0.5}, layers={"gamma": [0.1, 0.2]}) for label in ("cost $x^$ y", "_mine")]
    plots.bars(odd, ["gamma"], tmp_path / "a.png", title="$5 to $6")
    plots.layer_profile(odd, "gamma", tmp_path / "b.png")
    named = plots._named("_mine", odd[1:])
    assert named.endswith("_mine") and not named.startswith("_")  # else in no legend


def test_a_curve_that_leaves_the_panel_counts_where_it_is_inside(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "write_figure", lambda figure, path: figures.append(figure))
    rows = [row_of(seed=seed, curves={"dl": [0.1, value]}) for seed, value in enumerate((0.1, 0.9))]
    plots.against(rows, "dl", [0.0, 1.0], tmp_path / "a.png", "", "x", top=0.3)
    [axis] = [axis for axis in figures[0].axes if axis.lines]
    assert list(axis.lines[0].get_ydata()) == [0.1, 0.5] and axis.get_ylim()[1] == 0.3  # the mean of both seeds


def test_labels_of_one_block_differ_and_keep_their_style():
    looks = [styles._style("#0072B2", "o", slot) for slot in range(12)]
    assert len({(look.color, look.hatch) for look in looks}) == 12  # all that bars have
    assert len({(look.color, look.dash, look.filled) for look in looks}) == 12
    blocks = {"L=2": [f"v{i}" for i in range(12)], "L=4": ["v3", "new"], "L=8": ["BP L=8"]}
    found = keys([row_of(label, block=block) for block, labels in blocks.items() for label in labels])
    assert len({found["own", label] for label in blocks["L=2"]}) == 12
    assert found["own", "v3"] != found["own", "new"]
    assert found["own", "v0"] == found["own", "BP L=8"]  # never in one panel, so the clearest look is used again


def test_colours_can_be_seen_on_a_dark_ground():
    assert styles.luminance("#FFFFFF") == pytest.approx(1) and styles.luminance("#000000") == 0
    colors = [color for color, _ in (*styles.ESTIMATORS.values(), *styles.OTHERS)]
    assert len({styles.on_dark(color) for color in colors}) == len(colors)
    for color in colors:
        assert (styles.luminance(styles.on_dark(color)) + 0.05) / 0.05 >= 6  # against black
