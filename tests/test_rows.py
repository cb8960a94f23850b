"""What rows answer: values by path, references at the same seed, and the table, frame and figure of ``Rows``."""

import re
import subprocess
import sys

import numpy as np
import pytest
from made_rows import line_of, make_row

import jcredit as jc
from jcredit.config import config_hash, described
from jcredit.files import FileError
from jcredit.report import rows as results
from jcredit.report.rows import ResultsError, Rows, append_rows, read_rows
from jcredit.report.schema import worse_than_nothing
from jcredit.report.tables import Column, TableSpec


def test_number_at_follows_dotted_paths():
    row = make_row(gamma=0.5, word="x", missing=None)
    assert results.number_at(row, "metrics.gamma") == 0.5
    assert results.number_at(row, "layers.gamma.-1") == 0.4
    assert results.number_at(row, "config.network.depth") == 4.0
    for path in ("metrics.word", "metrics.missing", "metrics.other", "layers.gamma.2", "layers.gamma", "seed.x"):
        assert results.number_at(row, path) is None


def test_reference_is_the_same_seed_and_the_same_block_first():
    rows = [
        make_row("DFA", 0, "raw", gamma=0.25), make_row("DFA", 1, "raw", gamma=0.5),
        make_row("DFA", 0, "RMS", gamma=0.125), make_row("DFA", 2, "RMS", gamma=None),
        make_row("CB", 0, "RMS", gamma=1.0), make_row("CB", 1, "RMS", gamma=1.0),
        make_row("CB", 2, "RMS", gamma=1.0), make_row("CB", 0, "raw", gamma=None),
    ]  # fmt: skip
    out = results.with_reference(rows, "metrics.gamma", "DFA", "S1")
    # RMS has a reference of its own, at seed 0 and, without a number, at 2: that of raw is none, at whatever seed.
    assert [r["metrics"].get("S1") for r in out[4:]] == [0.875, None, None, None]
    assert out[0]["metrics"]["S1"] == 0.0
    alone = results.with_reference([*rows[:2], rows[5]], "metrics.gamma", "DFA", "S1")
    assert alone[2]["metrics"]["S1"] == 0.5, "where a block has no such line, that of another stands in"
    ratios = results.with_reference(rows, "metrics.gamma", "DFA", "ratio", ratio=True)
    assert [r["metrics"].get("ratio") for r in ratios] == [1.0, 1.0, 1.0, None, 8.0, None, None, None]
    zero = [make_row("DFA", gamma=0.0), make_row("CB", gamma=1.0)]
    assert all(
        "ratio" not in r["metrics"] for r in results.with_reference(zero, "metrics.gamma", "DFA", "ratio", ratio=True)
    )
    assert all("S1" not in r["metrics"] for r in rows)


def test_a_label_of_ones_own_that_looks_varied_is_a_line_of_its_own():
    """``jc.sweep(vary=...)`` adds settings; "tgw" is none, though somebody's label says so."""
    rates = [make_row(f"{label} learning_rate={r}", x=x + r) for label, x in (("sb", 0), ("cb", 1)) for r in (0.1, 0.5)]
    nested = make_row("sb network.depth=4", x=7.0)
    for row in (*rates, nested):
        row["config"] = {"learning_rate": 0.1, "network": {"network": "ladder_mlp", "depth": 4}}
    rows = [make_row("sb", x=0.25), make_row("sb tgw=0", x=0.5), make_row("cb tgw=0", x=2.0), *rates, nested]
    found = [row["metrics"]["above"] for row in results.with_reference(rows, "metrics.x", "sb", "above")]
    assert found == pytest.approx([0.0, 0.25, 1.75, 0.0, 0.0, 1.0, 1.0, 0.0])
    table = Rows(rows[:3]).table(metrics=["x"], against="sb")
    line = next(line for line in table.splitlines() if line.startswith("| sb tgw=0"))
    assert "+0.250" in line and "reference" not in line
    with pytest.raises(ResultsError, match="against='sb' is none of the lines"):
        Rows(rows[1:3]).table(against="sb")


def test_another_experiments_line_and_one_on_another_copy_of_the_data_are_no_reference():
    frozen, mine = make_row("frozen", 0, x=0.2), make_row("mine", 0, x=0.5)
    for label, others, data in (("wide", {"experiment": "b"}, None), ("copies", {}, "bbbb")):
        rows = [frozen | {"data": "aaaa"}, mine | others | ({"data": data} if data else {})]
        rows[0]["config"], rows[1]["config"] = {"epochs": 1}, {"epochs": 1 if data else 2}
        found = results.with_reference(rows, "metrics.x", "frozen", "above")
        assert "above" not in found[1]["metrics"], label
    same = results.with_reference([frozen, mine], "metrics.x", "frozen", "above")
    assert same[1]["metrics"]["above"] == pytest.approx(0.3)


def test_another_network_or_another_length_is_no_reference():
    deep = {"network": {"network": "ladder_mlp", "depth": 8}}
    rows = [
        make_row("DFA", 0, "L=4", gamma=0.25), make_row("CB", 0, "L=8", gamma=1.0, config=deep),
        make_row("CB", 0, "longer", gamma=1.0, config=make_row()["config"] | {"epochs": 9}),
        make_row("CB", 0, "a snapshot", gamma=1.0) | {"start": {"key": "abc", "epoch": 1}},
        make_row("CB", 0, "the same", gamma=1.0),
    ]  # fmt: skip
    out = results.with_reference(rows, "metrics.gamma", "DFA", "S1")
    assert [r["metrics"].get("S1") for r in out[1:]] == [None, None, None, 0.75]


# --- Rows -------------------------------------------------------------------------------------------------------------


def swept():
    """Two lines over two seeds: DFA with two learning rates, and a bridge."""
    configs = {
        "dfa": jc.Config(credit=jc.dfa()),
        "dfa fast": jc.Config(credit=jc.dfa(), learning_rate=3e-3),
        "bridge": jc.Config(credit=jc.state_bridge()),
    }
    return Rows(
        make_row(label, seed, config=described(config), config_hash=config_hash(config), gamma=0.25 * i + seed)
        for i, (label, config) in enumerate(configs.items())
        for seed in (0, 1)
    )


def test_an_estimator_is_judged_on_evaluation_samples(tmp_path):
    for name in ("directional", "unexplained", "start_unexplained", "state_error"):
        assert worse_than_nothing({name: 0.5, f"test_{name}": 1.01}, {}) and worse_than_nothing({name: 1.01}, {})
        assert not worse_than_nothing({name: 1.5, f"test_{name}": 0.9}, {}) and not worse_than_nothing({name: 1.0}, {})
        assert not worse_than_nothing({name: None}, {})
    # Rows from before were flagged by their last epoch of training alone.
    overfitted, none = {"directional": 0.9, "test_directional": 1.8}, {"directional": 0.9}
    rows = [
        make_row("a", metrics=overfitted),
        make_row("b", metrics=overfitted, status="diverged"),
        make_row("c", metrics=none),
        make_row("d", metrics=overfitted, flags=["estimator_diverged"]),
    ]
    append_rows(tmp_path / "rows.jsonl", rows)
    found = [row.get("flags", []) for row in read_rows(tmp_path / "rows.jsonl")]
    assert found == [["worse_than_nothing"], [], [], ["estimator_diverged", "worse_than_nothing"]]


@pytest.mark.parametrize("estimator", [jc.scalar_bridge, jc.vector_field])
def test_a_terminal_gradient_is_judged_where_the_estimator_is_fitted_to_it(estimator):
    def config(credit):
        return described(jc.Config(credit=credit))

    wrong = {"test_terminal_gradient": 1.02, "test_estimator_loss": 5.0}
    assert worse_than_nothing(wrong, config(estimator())) and worse_than_nothing(
        wrong, config(estimator(terminal_weight=0.25))
    )
    assert not worse_than_nothing(wrong | {"test_terminal_gradient": 0.98}, config(estimator()))
    assert not worse_than_nothing(wrong, config(estimator(terminal_weight=0.0)))
    for replaced in (jc.exact_terminal(of=estimator()), jc.unbiased_residual(of=jc.exact_terminal(of=estimator()))):
        assert not worse_than_nothing(wrong, config(replaced)), "delta_L stands in for it"
    assert worse_than_nothing(wrong, config(jc.unbiased_residual(of=estimator()))), "which leaves a_L as it is"
    for other in (2, "often", {"network": "mlp"}):  # settings of one's own that are called so
        own = {"credit": {"estimator": "mine.lag", "terminal_weight": 1.0, "of": other}}
        assert worse_than_nothing(wrong, own) and not worse_than_nothing(wrong, {"credit": {"of": other}})


def test_rows_are_an_immutable_sequence():
    rows = swept()
    assert len(rows) == 6 and [r["seed"] for r in rows] == [0, 1] * 3
    assert rows[-1]["label"] == "bridge" and rows[-1] in rows
    assert isinstance(rows[:2], Rows) and rows[:2] + rows[2:] == rows != rows[:2]
    assert rows[:2] + list(rows[2:]) == rows
    with pytest.raises(TypeError):
        rows[0] = rows[1]


def test_the_usual_table_shows_what_there_is():
    assert line_of(swept().table(), 2) == ["label", "tier", "seeds", "Gamma", "rho", "RMS(h_L)", "loss"]
    rows = Rows(
        [make_row("BP", test_accuracy=0.5, test_loss=1.5), make_row("frozen", test_accuracy=0.25, method="frozen")]
    )
    table = rows.table()
    assert table.startswith("# ladder/quick\n")
    assert line_of(table, 2)[3:] == ["accuracy", "depth utility", "Gamma", "rho", "RMS(h_L)", "loss"]
    assert line_of(table, 4)[3:] == ["0.500", "+0.250", "–", "–", "–", "1.500"]  # noqa: RUF001
    assert "depth utility" not in rows[:1].table()
    spec = TableSpec("Own", (Column("Gamma", "metrics.gamma"),))
    assert rows.table(spec).startswith("# Own\n")
    assert line_of(rows.table(spec), 2) == ["label", "tier", "seeds", "Gamma"]


def test_rows_show_as_their_table():
    rows = swept()
    assert rows._repr_markdown_() == rows.table()
    assert all(text in repr(rows) for text in ("ladder/quick", "dfa", "Gamma")) and "|" not in repr(rows)
    assert repr(Rows()) == "no rows"
    assert repr(rows + rows[:1]).startswith("7 rows: label 'dfa' has 2 rows for seed 0")


def test_a_frame_has_a_line_per_run_and_the_settings_that_differ():
    diverged = make_row("bridge", 2, config=swept()[-1]["config"], status="diverged", rho=1.0)
    rows = swept() + Rows([diverged])
    frame = rows.frame()
    assert list(frame.columns) == [
        "label", "block", "seed", "status", "tier", "credit", "learning_rate", "metrics.gamma", "metrics.rho",
    ]  # fmt: skip
    assert frame["credit"].tolist() == ["dfa"] * 4 + ["state_bridge"] * 3
    assert frame["learning_rate"].tolist() == [1e-3, 1e-3, 3e-3, 3e-3, 1e-3, 1e-3, 1e-3]
    assert frame["metrics.gamma"].tolist()[:6] == [0.0, 1.0, 0.25, 1.25, 0.5, 1.5]
    assert np.isnan(frame["metrics.gamma"].iloc[-1]) and frame["status"].iloc[-1] == "diverged"
    assert frame["metrics.rho"].dtype == float
    assert len(Rows().frame()) == 0


def test_a_frame_names_settings_of_parts_by_their_paths():
    credits_ = [jc.vector_field(directions=d, trunk=jc.mlp(hidden=h)) for d, h in ((2, 8), (4, 16))]
    rows = Rows(make_row(f"v{i}", config=described(jc.Config(credit=c))) for i, c in enumerate(credits_))
    frame = rows.frame()
    assert frame["credit.directions"].tolist() == [2, 4]
    assert frame["credit.trunk.hidden"].tolist() == [8, 16]
    assert not {"credit", "credit.trunk", "credit.learning_rate"} & set(frame.columns)
    whole = rows.frame(constants=True)
    assert whole["credit.learning_rate"].nunique() == 1 and set(whole["credit"]) == {"vector_field"}
    assert set(frame.columns) < set(whole.columns)


def test_a_frame_has_a_line_per_epoch_or_per_layer_of_each_run():
    trained = make_row("dfa", 1) | {
        "epochs": 2,
        "curves": {"test_accuracy": [0.1, 0.5, 0.6], "gamma": [None, 0.25], "dl_rms": [0.5, 0.5], "dl_eta1": [1, 2, 3]},
        "layers": {"gamma": [0.25, None], "h_rms": [1.0, 2.0, 3.0], "weight_cosine": [0.5, 0.75]},
    }
    rows = Rows([trained, make_row("bp", 1) | {"curves": {}, "layers": {"gamma": [1.0, 1.0]}}])
    epochs = rows.frame(per="epoch")
    assert list(epochs.columns[-3:]) == ["epoch", "curves.test_accuracy", "curves.gamma"]
    assert epochs["label"].tolist() == ["dfa"] * 3 and epochs["epoch"].tolist() == [0, 1, 2]  # before training, too
    assert epochs["curves.test_accuracy"].tolist() == [0.1, 0.5, 0.6]
    assert np.isnan(epochs["curves.gamma"].tolist()).tolist() == [True, True, False]
    layers = rows.frame(per="layer").set_index(["label", "layer"])
    assert layers.index.tolist() == [("dfa", 0), ("dfa", 1), ("dfa", 2), ("bp", 0), ("bp", 1)]
    assert layers.loc["dfa", "layers.h_rms"].tolist() == [1.0, 2.0, 3.0]
    # A block's number stands at its output: that of the first block at h_1.
    np.testing.assert_array_equal(layers.loc["dfa", "layers.weight_cosine"], [np.nan, 0.5, 0.75])
    np.testing.assert_array_equal(layers["layers.gamma"], [0.25, np.nan, np.nan, 1.0, 1.0])
    assert list(Rows().frame(per="epoch").columns[-1:]) == ["epoch"]
    with pytest.raises(ResultsError, match=r"per='seed' must be one of 'run', 'epoch', 'layer'"):
        rows.frame(per="seed")  # type: ignore[arg-type]


def test_a_frame_without_pandas_names_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'jcredit\[frames\]'"):
        swept().frame()


def test_where_chooses_by_field_and_by_setting():
    rows = swept()
    assert rows.where(label="dfa", seed=1) == rows[1:2]
    assert rows.where(learning_rate=3e-3) == rows.where(**{"learning_rate": 3e-3}) == rows[2:4]
    assert rows.where(credit="state_bridge") == rows[4:]
    hidden = rows[4]["config"]["credit"]["trunk"]["hidden"]
    assert rows.where(hidden=hidden) == rows.where(**{"credit.trunk.hidden": hidden}) == rows[4:]
    assert rows.where(seed=[1], label="dfa") == rows[1:2] and rows.where(seed=[0, 1]) == rows
    assert rows.where(learning_rate=np.float32(3e-3)) == rows[2:4] and not rows.where(status="diverged")
    assert rows.where(seed=range(2)) == rows.where(seed=np.arange(2)) == rows.where(seed={0, 1}) == rows
    assert rows.where(label=np.str_("dfa")) == rows.where(label="dfa")
    dated = Rows(make_row("dfa", seed) for seed in (20240101, 20240102))
    assert dated.where(seed=20240101) == dated[:1]  # whole numbers are what they are
    listed = Rows([make_row("fit", config={"etas": [0.1, 0.2]}), make_row("fit", 1, config={"etas": [0.3]})])
    assert listed.where(etas=[(0.1, 0.2), (0.3,)]) == listed
    flagged = Rows(make_row("x", seed, config={"flag": flag}) for seed, flag in enumerate((True, False, 1)))
    assert flagged.where(flag=1) == flagged[2:] and flagged.where(flag=np.bool_(True)) == flagged[:1]
    assert listed.where(etas=[0.1, 0.2]) == listed.where(etas=(0.1, 0.2)) == listed[:1]
    assert rows.where(config_hash=rows[0]["config_hash"]) == rows.where(label="dfa", learning_rate=1e-3)
    for wrong, said in (
        (dict(label="dfaa"), "label='dfaa' is in none of the rows; did you mean 'dfa'?"),
        (dict(learning_rate=[1e-3, 7]), "learning_rate=7 is in none of the rows; there are 0.001, 0.003"),
    ):
        with pytest.raises(ResultsError, match=re.escape(said)):
            rows.where(**wrong)
    for show in (Rows().table, lambda: Rows().plot("figure.png")):
        with pytest.raises(ResultsError, match="no rows to make a"):
            show()
    with pytest.raises(ResultsError, match=r"'learning_rat' is in none of 6 rows; did you mean 'learning_rate'\?"):
        rows.where(learning_rat=1)


def test_a_table_shows_the_metrics_that_are_asked_for():
    rows = Rows(make_row("own", seed, mine=0.25 + seed / 2, gamma=0.5, tiny=1e-5) for seed in (0, 1))
    header, _, line = rows.table(metrics=["mine", "gamma"]).splitlines()[2:5]
    assert [title.strip() for title in header.split("|")[-3:-1]] == ["mine", "gamma"] and "0.500 ±" in line
    assert "1.00e-05 ±" in rows.table(metrics=["tiny"])
    assert rows.table(metrics="mine") == rows.table(metrics=["mine"]) == rows.table(metrics=iter(["mine"]))
    with pytest.raises(ResultsError, match=r"metrics=\[\] shows nothing; the rows have gamma, mine"):
        rows.table(metrics=[])
    with pytest.raises(ResultsError, match=r"metric 'a\.b' cannot be a column"):
        Rows([make_row(metrics={"a.b": 1.0})]).table(metrics=["a.b"])
    with pytest.raises(TypeError, match="spec, or metrics"):
        rows.table(TableSpec("", ()), metrics=["mine"])
    with pytest.raises(ResultsError, match="metric 'min' is in none of 2 rows; did you mean 'mine'"):
        rows.table(metrics=["min"])


def test_a_table_against_a_line_has_the_differences_at_each_seed():
    scores = {"bp": (0.5, 0.6, 0.7), "dfa": (0.4, 0.3, 0.1), "own": (0.6, 0.8, 1.0)}
    rows = Rows(
        make_row(label, seed, test_accuracy=value, gamma=value / 2)
        for label, values in scores.items() for seed, value in enumerate(values)
    )  # fmt: skip

    def cells(text):
        header, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:7]]
        return [dict(zip(header, line, strict=True)) for line in lines]

    bp, dfa, own = cells(rows.table(against="bp"))
    assert [title for title in bp if title[:5] in ("accur", "Gamma")] == [
        "accuracy", "accuracy - bp", "Gamma", "Gamma - bp",
    ]  # fmt: skip
    # Differences .1, .2, .3 have mean .2 and deviation .1; t at 2 degrees of freedom is 4.303; 2 of 8 signs as far.
    assert bp["accuracy - bp"] == "reference" and own["accuracy - bp"] == "+0.200 ± 0.248, p=.25"
    assert dfa["accuracy - bp"].startswith("-0.333 ±") and own["Gamma - bp"] == "+0.100 ± 0.124, p=.25"
    alone = cells(rows.table(against="own", metrics=["gamma"]))[0]
    assert list(alone)[-2:] == ["gamma", "gamma - own"]
    with pytest.raises(ResultsError, match="against='bpp' is none of the lines; did you mean 'bp'"):
        rows.table(against="bpp")
    with pytest.raises(ResultsError, match="against=3 is none of the lines"):
        rows.table(against=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not both"):
        rows.table(TableSpec("", ()), against="bp")


def test_a_figure_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        swept().plot(tmp_path / "file" / "figure.png")


def test_nothing_is_above_a_line_of_another_task_or_of_another_credit():
    other = {"network": {"network": "ladder_mlp", "depth": 9}}
    rows = Rows(
        [make_row("mine", test_accuracy=0.5), make_row("frozen", method="frozen", config=other, test_accuracy=0.1)]
    )
    assert "+0.400" not in rows.table() and "reference" in rows.table()
    named = Rows([make_row("mine", test_accuracy=0.5), make_row("frozen", method="bp", test_accuracy=0.1)])
    assert "depth utility" not in named.table()


def test_depth_utility_is_over_the_frozen_line_of_the_same_values():
    accuracy = {"frozen": (0.2, 0.3), "dfa": (0.5, 0.9)}
    rows = Rows(
        make_row(f"{name} learning_rate={rate}", 0, test_accuracy=accuracy[name][i], method=name)
        | {"config": {"learning_rate": rate}}
        for name in accuracy
        for i, rate in enumerate((0.001, 0.003))
    )
    table = rows.table()
    assert "depth utility" in table and table.count("reference") == 2 and "+0.300" in table and "+0.600" in table


def test_rows_are_read_from_a_file_and_from_all_files_below_a_folder(tmp_path):
    rows = [{**row, "experiment": name} for name, row in zip("ab", swept(), strict=False)]
    for row in rows:
        append_rows(tmp_path / row["experiment"] / "quick" / "rows.jsonl", [{**row, "preset": "quick"}])
    append_rows(tmp_path / "fresh-1/a/quick/rows.jsonl", [{**rows[0], "preset": "quick"}])
    found = Rows.read(tmp_path)
    assert [row["experiment"] for row in found] == ["a", "b"] and found.table()
    assert Rows.read(tmp_path / "fresh-1") == Rows.read(tmp_path / "a") == found.where(experiment="a") == found[:1]
    assert Rows.read(str(tmp_path / "b" / "quick" / "rows.jsonl")) == found[1:]
    for nothing in (tmp_path / "c", tmp_path / "a" / "quick" / "none.jsonl"):
        with pytest.raises(ResultsError, match=r"no rows.jsonl there; give one, or a folder"):
            Rows.read(nothing)


def test_of_a_sweep_under_way_without_a_row_it_is_said_that_there_is_one(tmp_path):
    for own in ("a/quick/cache/0123456789ab", "b/cache/unfinished/0123456789ab"):
        (tmp_path / own).mkdir(parents=True)
        (tmp_path / own / "program.json").touch()
    for folder in (tmp_path / "a", tmp_path / "a/quick", tmp_path / "b", tmp_path):
        with pytest.raises(ResultsError, match=f"no run of the sweep there has finished; .* watch {folder} shows"):
            Rows.read(folder)


def test_a_figure_refuses_what_a_table_refuses(tmp_path):
    two = Rows([make_row("bp", 0, x=1.0), make_row("bp", 1, x=2.0, config_hash="another")])
    for show in (two.table, lambda: two.plot(tmp_path / "a.png")):
        with pytest.raises(ResultsError, match="stands for 2 config"):
            show()
    assert not (tmp_path / "a.png").exists()


def test_rows_plot_their_overview(tmp_path):
    swept().plot(tmp_path / "figure.png", "title")
    with pytest.raises(FileError, match=r"figure.jpg': figures are PNGs, PDFs or SVGs; end its name in .png, .pdf or"):
        swept().plot(tmp_path / "figure.jpg")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_rows_may_need_loads_when_it_is_needed():
    late = ("pandas", "matplotlib", "tensorflow_datasets", "orbax", "scipy", "jax")
    code = f"import sys, jcredit.report.rows; print([m for m in {late} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
