"""Rows survive what can happen to a file, and tables and frames say what the rows say."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jcredit as jc
from jcredit import files
from jcredit.config import config_hash, described
from jcredit.report import rows as results
from jcredit.report.rows import ResultsError, Rows
from jcredit.report.tables import (
    DEPTH_NOTE,
    INTERVAL_NOTE,
    P_NOTE,
    RATIO_NOTE,
    Column,
    TableSpec,
    render_table,
    with_study,
)
from jcredit.study.scripts import load_experiment


def make_row(label="DFA", seed=0, block="", status="ok", flags=(), config_hash=None, config=None, **metrics):
    return {
        "schema": 2, "experiment": "ladder", "preset": "quick", "method": "dfa", "label": label, "tier": "tier 0",
        "block": block, "config": config or {"network": {"network": "ladder_mlp", "depth": 4}},
        "config_hash": config_hash or f"{label}{block}", "seed": seed, "status": status, "flags": list(flags),
        "epochs": 2, "metrics": metrics, "layers": {"gamma": [0.1, 0.4]}, "curves": {}, "timing": {}, "versions": {},
        "git_commit": None, "device": "cpu",
    }  # fmt: skip


# --- files ------------------------------------------------------------------------------------------------------------


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "ladder" / "quick" / "rows.jsonl"
    assert results.read_rows(path) == []
    first, second, third = make_row(seed=0, gamma=0.1), make_row(seed=1, gamma=0.2), make_row("BP\u2028ü", gamma=1.0)
    results.append_rows(path, [first, second])
    results.append_rows(path, [])
    results.append_rows(path, [third])
    assert results.read_rows(path) == [first, second, third]
    assert results.finished(results.read_rows(path)) == {("DFA", 0), ("DFA", 1), ("BP\u2028ü", 0)}
    assert not list(path.parent.glob("*.tmp")) + list(path.parent.glob(".*.tmp"))


def test_plain_turns_arrays_into_strict_json():
    value = {
        "a": np.float32(0.5), "b": jnp.arange(3), "c": (1, True, None, "x"), "d": float("nan"), 5: np.inf,
        "e": jnp.asarray([1.5, jnp.nan], jnp.bfloat16), "f": np.bool_(True), "g": jnp.float32(2),
    }  # fmt: skip
    expected = {
        "a": 0.5, "b": [0, 1, 2], "c": [1, True, None, "x"], "d": None, "5": None, "e": [1.5, None], "f": True, "g": 2.0
    }  # fmt: skip
    assert files.plain(value) == expected
    json.dumps(files.plain(value), allow_nan=False)
    with pytest.raises(files.FileError, match="of type object"):
        files.plain(object())


def test_numbers_that_are_not_finite_are_stored_as_null(tmp_path):
    results.append_rows(tmp_path / "rows.jsonl", [make_row(gamma=float("nan"), rho=np.float32(np.inf))])
    assert '"metrics": {"gamma": null, "rho": null}' in (tmp_path / "rows.jsonl").read_text()


def test_a_run_is_recorded_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append_rows(path, [make_row(seed=3)])
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="seed=3 is already there"):
        results.append_rows(path, [make_row(seed=4), make_row(seed=3)])
    with pytest.raises(ResultsError, match="seed=5 is already there"):
        results.append_rows(path, [make_row(seed=5), make_row(seed=5)])
    assert path.read_bytes() == before


def test_a_torn_line_is_named_and_left_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append_rows(path, [make_row(seed=0), make_row(seed=1)])
    torn = path.read_bytes()[:-40]
    path.write_bytes(torn)
    for attempt in (lambda: results.read_rows(path), lambda: results.append_rows(path, [make_row(seed=2)])):
        with pytest.raises(ResultsError, match=r"rows\.jsonl line 2: torn.*move the file away") as raised:
            attempt()
        assert "\n" not in str(raised.value)
        assert path.read_bytes() == torn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "line 1: schema is 3, not 2"),
        ({"seed": "0"}, "line 1: seed='0' must be of type int"),
        ({"seed": True}, "line 1: seed=True must be of type int"),
        ({"metrics": None}, "line 1: metrics=None must be of type dict"),
        ({"status": "fine"}, "line 1: status='fine'"),
        ({"block": 4}, "line 1: block=4 must be of type str"),
        ({"from": {}}, r"line 1: from=\{\} must be of type str"),
        ({"flags": "slow"}, "line 1: flags='slow' must be of type list"),
    ],
)
def test_a_foreign_row_is_named(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**make_row(), **change}) + "\n")
    with pytest.raises(ResultsError, match=message):
        results.read_rows(path)
    with pytest.raises(ResultsError, match="new row"):
        results.append_rows(tmp_path / "other.jsonl", [{**make_row(), **change}])
    assert not (tmp_path / "other.jsonl").exists()


def test_a_file_of_schema_1_is_named_with_the_fix(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**make_row(), "schema": 1}) + "\n")
    with pytest.raises(ResultsError, match=r"rows\.jsonl line 1: a row of schema 1.*move the file away") as raised:
        results.read_rows(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[1, 2]\n", "NaN\n", '{"schema": NaN}\n', "\x00\n", "[" * 10**5 + "\n"])
def test_what_is_no_row_is_named(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ResultsError, match=r"rows\.jsonl line 1"):
        results.read_rows(tmp_path / "rows.jsonl")


def test_a_flipped_bit_changes_no_row_unseen(tmp_path):
    path, rows = tmp_path / "rows.jsonl", [make_row(seed=i, gamma=0.1 + i, rho=None) for i in range(3)]
    results.append_rows(path, rows)
    whole, refused = path.read_bytes(), 0
    for bit in np.random.default_rng(0).choice(8 * len(whole), 500, replace=False):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        try:
            found = results.read_rows(path)
        except ResultsError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # it hit the name of the digest, and no number
            assert [{name: row[name] for name in rows[0]} for row in found] == rows
    assert refused > 450


def test_a_changed_row_is_named_until_its_digest_goes(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append_rows(path, [make_row(gamma=0.125), make_row(seed=1)])
    path.write_text(path.read_text().replace("0.125", "0.625"))
    with pytest.raises(ResultsError, match=r"line 1: its content does not have its digest; delete the line"):
        results.read_rows(path)
    bare = [{k: v for k, v in json.loads(line).items() if k != "sha256"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert [row["metrics"] for row in results.read_rows(path)] == [{"gamma": 0.625}, {}]


def test_a_folder_where_rows_should_be_is_named(tmp_path):
    with pytest.raises(ResultsError, match="cannot be read"):
        results.read_rows(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ResultsError, match=r"rows\.jsonl: not UTF-8"):
        results.read_rows(tmp_path / "rows.jsonl")


def test_rows_of_another_experiment_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append_rows(path, [make_row()])
    with pytest.raises(ResultsError, match="a row of ladder/paper among rows of ladder/quick"):
        results.append_rows(path, [{**make_row(seed=1), "preset": "paper"}])
    with pytest.raises(ResultsError, match="a row of ladder/quick among rows of cifar10/quick"):
        results.read_rows(path, experiment="cifar10", preset="quick")


def test_a_file_whose_last_newline_is_missing_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(make_row(seed=0)))
    results.append_rows(path, [make_row(seed=1)])
    assert [r["seed"] for r in results.read_rows(path)] == [0, 1]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_write_killed_at_any_moment_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "rows.jsonl"
    results.append_rows(path, [make_row(seed=0)])
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, moment, killed)
    with pytest.raises(KeyboardInterrupt):
        results.append_rows(path, [make_row(seed=1)])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
    results.append_rows(path, [make_row(seed=1)])  # the lock was let go
    assert len(results.read_rows(path)) == 2


def _append_many(path, label):
    for seed in range(8):
        results.append_rows(path, [make_row(label, seed)])


def test_two_processes_lose_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(path, label)) for label in ("A", "B")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(results.finished(results.read_rows(path))) == 16


def test_write_json_is_strict(tmp_path):
    files.write_json(tmp_path / "a" / "config.json", {"x": float("nan"), "y": [np.float32(0.25)]})
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == {"x": None, "y": [0.25]}


# --- questions to rows ------------------------------------------------------------------------------------------------


def test_number_at_follows_dotted_paths():
    row = make_row(gamma=0.5, word="x", missing=None)
    assert results.number_at(row, "metrics.gamma") == 0.5
    assert results.number_at(row, "layers.gamma.-1") == 0.4
    assert results.number_at(row, "config.network.depth") == 4.0
    for path in ("metrics.word", "metrics.missing", "metrics.other", "layers.gamma.2", "layers.gamma", "seed.x"):
        assert results.number_at(row, path) is None


def test_reference_is_the_same_seed_and_the_same_block_first():
    rows = [
        make_row("DFA", 0, "L=4", gamma=0.25), make_row("DFA", 1, "L=4", gamma=0.5),
        make_row("DFA", 0, "L=8", gamma=0.125), make_row("DFA", 2, "L=8", gamma=None),
        make_row("CB", 0, "L=8", gamma=1.0), make_row("CB", 1, "L=8", gamma=1.0),
        make_row("CB", 2, "L=8", gamma=1.0), make_row("CB", 0, "L=4", gamma=None),
    ]  # fmt: skip
    out = results.with_reference(rows, "metrics.gamma", "DFA", "S1")
    # Seed 0 of L=8 has its own reference, seed 1 only that of L=4, seed 2 none; the last row has no number of its own.
    assert [r["metrics"].get("S1") for r in out[4:]] == [0.875, 0.5, None, None]
    assert out[0]["metrics"]["S1"] == 0.0
    ratios = results.with_reference(rows, "metrics.gamma", "DFA", "ratio", ratio=True)
    assert [r["metrics"].get("ratio") for r in ratios] == [1.0, 1.0, 1.0, None, 8.0, 2.0, None, None]
    zero = [make_row("DFA", gamma=0.0), make_row("CB", gamma=1.0)]
    assert all(
        "ratio" not in r["metrics"] for r in results.with_reference(zero, "metrics.gamma", "DFA", "ratio", ratio=True)
    )
    assert all("S1" not in r["metrics"] for r in rows)


# --- tables -----------------------------------------------------------------------------------------------------------


def cells(table, line):
    return [c.strip() for c in table.splitlines()[line].strip("|").split("|")]


def test_table_by_hand():
    rows = [
        make_row("BP", 0, test_accuracy=0.5, gamma=1.0),
        make_row("DFA", 0, test_accuracy=0.25, gamma=0.1), make_row("BP", 1, test_accuracy=0.7, gamma=1.0),
        make_row("DFA", 1, test_accuracy=0.35, gamma=0.3), make_row("CB", 0, test_accuracy=0.4),
    ]  # fmt: skip
    columns = (
        Column("accuracy", "metrics.test_accuracy", ".1f", 100),
        Column("Gamma", "metrics.gamma"),
        Column("S1", "metrics.gamma", ".2f", paired_with="DFA"),
    )
    spec = TableSpec("Ladder", columns, study={"DFA": {"Gamma": ".03"}}, notes=("two seeds",))
    table = render_table(rows, spec)
    assert table.startswith("# Ladder\n\n| label")
    assert cells(table, 2) == ["label", "tier", "seeds", "accuracy", "Gamma", "study", "S1"]
    assert [rule[-1] for rule in cells(table, 3)] == ["-", "-", ":", ":", ":", ":", ":"]
    # The half width of two values is half their distance times t(1) = 12.706: 10 -> 127.1, 5 -> 63.5, .1 -> 1.27.
    # Three digits of it are shown, so Gamma loses a decimal; signs that agree at two seeds have p = 2 / 2^2.
    assert cells(table, 4)[3:] == ["60 ± 127", "1.000 ± 0.000", "–", "0.80 ± 1.27, p=.50"]  # noqa: RUF001
    assert cells(table, 5)[3:] == ["30.0 ± 63.5", "0.20 ± 1.27", ".03", "reference"]
    assert cells(table, 6) == ["CB", "tier 0", "1", "40.0", "–", "–", "–"]  # noqa: RUF001
    assert table.endswith(f"\n\n- {INTERVAL_NOTE}\n- {P_NOTE}\n- two seeds\n")
    assert len({len(line) for line in table.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("format", "values", "cell"),
    [
        (".3f", [1, 2, 3], "2.00 ± 2.48"),  # t(2) = 4.303, sd 1: 4.303 / sqrt 3 = 2.484
        (".3f", [0.1, 0.2, 0.3], "0.200 ± 0.248"),
        (".2f", [90, 110], "100 ± 127"),
        (".2f", [8000, 13000], "1.0e+04 ± 3.2e+04"),
        (".2f", [1000, 2000], "1.5e+03 ± 6.4e+03"),
        (".2f", [12345.678], "1.2e+04"),
        (".2f", [1767.73], "1768"),
        (".2f", [5, 5], "5.00 ± 0.00"),
        ("+.1e", [0.01, 0.03], "+2.0e-02 ± 1.3e-01"),
        ("+.4f", [0.0], "+0.0000"),
        (",.1f", [1234.5, 1234.5], "1,234.5 ± 0.0"),  # other formats are taken as they are
    ],
)
def test_cells_are_compact(format, values, cell):
    rows = [make_row(seed=i, x=v) for i, v in enumerate(values)]
    assert cells(render_table(rows, TableSpec("", (Column("x", "metrics.x", format),))), 2)[-1] == cell


def test_differences_have_an_exact_p():
    # Differences 3, 1, -2: six of eight sign patterns reach the observed 2. The half width is 4.303 x 2.517 / sqrt 3.
    column = (Column("S1", "metrics.gamma", "+.3f", paired_with="DFA"),)
    rows = [make_row("DFA", i, gamma=0.5) for i in range(4)]
    rows += [make_row("CB", i, gamma=g) for i, g in enumerate((3.5, 1.5, -1.5, None))]
    assert cells(render_table(rows, TableSpec("", column)), 3)[-1] == "+0.67 ± 6.25, p=.75 (n=3)"
    agree = [make_row(label, i, gamma=g) for i in range(6) for label, g in (("DFA", 0.0), ("CB", 1.0 + i))]
    assert ", p=.031" in render_table(agree, TableSpec("", column))
    many = [make_row(label, i, gamma=g) for i in range(21) for label, g in (("DFA", 0.0), ("CB", 1.0))]
    assert cells(render_table(many[:40], TableSpec("", column)), 3)[-1] == "+1.000 ± 0.000, p<.001"
    assert cells(render_table(many, TableSpec("", column)), 3)[-1] == "+1.000 ± 0.000"  # 2^21 patterns: no p


def test_a_table_shows_the_sequential_depth_beside_the_tier_where_it_is_known():
    rows = [make_row("chain", gamma=0.9) | {"depth": 4}, make_row("mine", gamma=0.1) | {"depth": None}]
    spec = TableSpec("", (Column("Gamma", "metrics.gamma"),))
    table = render_table(rows, spec)
    assert [cells(table, i) for i in (0, 2, 3)] == [
        ["label", "tier", "depth", "seeds", "Gamma"], ["chain", "tier 0", "4", "1", "0.900"],
        ["mine", "tier 0", "–", "1", "0.100"],  # noqa: RUF001
    ]  # fmt: skip
    assert table.endswith(f"- {DEPTH_NOTE}\n")
    assert "depth" not in render_table([make_row(gamma=0.9)], spec)


def test_ratios_are_taken_at_each_seed():
    rows = [make_row("SB", i, gamma=g) for i, g in enumerate((0.5, 0.25, 0.2))]
    rows += [make_row("CB", i, gamma=g) for i, g in enumerate((0.5, 0.5, 0.6))]
    table = render_table(
        rows, TableSpec("", (Column("CB / SB", "metrics.gamma", ".2f", paired_with="SB", ratio=True),))
    )
    assert cells(table, 2)[-1] == "reference"
    assert cells(table, 3)[-1] == "2.00 ± 2.48"  # of 1, 2, 3; the ratio of the means would be 1.68
    assert RATIO_NOTE in table and P_NOTE not in table


def test_groups_of_columns_are_tables_of_each_block():
    rows = [make_row(label, 0, block, flags=["slow"], gamma=0.1) for block in ("L=4", "L=8") for label in ("DFA", "CB")]
    columns = {
        "Credit": (Column("Gamma", "metrics.gamma"),),
        "Gains": (Column("S1", "metrics.gamma", paired_with="DFA"),),
    }
    spec = TableSpec("T", columns, study={"L=8 | CB": {"S1": ".2"}})
    headings = [line for line in render_table(rows, spec).splitlines() if line.startswith("#")]
    assert headings == ["# T", "## L=4", "### Credit", "### Gains", "## L=8", "### Credit", "### Gains"]
    tables = [cells(part.lstrip(), 0) for part in render_table(rows, spec).split("###")[1:]]
    assert len(tables) == 4
    titles = [cells(line, 0)[3:] for line in render_table(rows, spec).splitlines() if line.startswith("| label")]
    assert titles == [["Gamma", "flags"], ["S1"], ["Gamma", "flags"], ["S1", "study"]]  # flags are counted once
    plain = render_table([make_row(gamma=0.1)], TableSpec("T", columns))
    assert "\n## Credit\n" in plain and "±" not in plain  # one seed: nothing to explain


@pytest.mark.parametrize(
    ("figure", "number"),
    [
        (".592±.004 (12 blocks)", 0.592), (".945±.002", 0.945), ("-2.2e-05", -2.2e-5), ("+.042", 0.042), ("0", 0.0),
        ("1.000", 1.0), (".34 ± .10", 0.34), (".006 / .005", None), ("+.079, +.059, +.135", None), ("≈0", None),
        ("near .1", None), ("as M=4", None), ("(0.39)", None), ("2 to 6", None), ("1/7 to 1/3", None), ("", None),
    ],
)  # fmt: skip
def test_a_figure_of_the_study_that_is_one_number_can_be_marked(figure, number):
    columns = (
        Column("accuracy", "metrics.test_accuracy", ".1f", 100),
        Column("S1", "metrics.gamma", paired_with="DFA"),
    )
    spec = TableSpec("T", columns, {"L=4 | CB": {"accuracy": figure, "S1": figure}})
    rows = [make_row("CB", block="L=4"), make_row("CB", block="L=8")]
    marked, other = with_study(rows, spec)
    expected = {} if number is None else {"test_accuracy": number / 100, "S1": number}
    assert marked["study"] == pytest.approx(expected) and other["study"] == {} and "study" not in rows[0]


SCRIPTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_tables_of_scripts_can_be_read(path):
    spec = load_experiment(path).table
    groups = list(spec.columns.values()) if isinstance(spec.columns, dict) else [spec.columns]
    assert max(map(len, groups)) <= 10
    titles = [column.title for group in groups for column in group]
    assert len(set(titles)) == len(titles)
    assert {title for figures in spec.study.values() for title in figures} <= set(titles)


def test_blocks_have_tables_of_their_own():
    rows = [make_row("DFA", 0, "L=4", gamma=0.1), make_row("CB", 0, "L=8", gamma=0.2), make_row("DFA", 0, "L=8")]
    spec = TableSpec(
        "T", (Column("Gamma", "metrics.gamma"),), study={"DFA": {"Gamma": ".1"}, "L=8 | CB": {"Gamma": ".2"}}
    )
    table = render_table(rows, spec)
    four, eight = table.split("## L=4")[1].split("## L=8")
    assert "CB" not in four
    assert [c.strip() for c in eight.splitlines()[4].split("|")[1:-1]] == ["CB", "tier 0", "1", "0.200", ".2"]
    assert [c.strip() for c in four.splitlines()[4].split("|")[1:-1]] == ["DFA", "tier 0", "1", "0.100", ".1"]


def test_diverged_runs_and_flags_are_counted():
    rows = [
        make_row("CB", 0, status="diverged", flags=["estimator_diverged"], gamma=None),
        make_row("CB", 1, flags=["estimator_diverged"], gamma=0.5), make_row("CB", 2, gamma=0.5), make_row("a|b", 0),
    ]  # fmt: skip
    table = render_table(rows, TableSpec("T", (Column("Gamma", "metrics.gamma", ".1f"),)))
    assert cells(table, 2)[-1] == "flags"
    assert cells(table, 4)[2:] == ["3", "0.5 ± 0.0 (n=2)", "diverged 1/3, estimator_diverged 2/3"]
    assert table.splitlines()[5].startswith("| a\\|b ")


def test_a_label_stands_for_one_config():
    spec = TableSpec("T", (Column("Gamma", "metrics.gamma"),))
    with pytest.raises(ResultsError, match=r"'DFA' stands for 2 configs \(aa, bb\)"):
        render_table([make_row(config_hash="aa"), make_row(seed=1, config_hash="bb")], spec)
    with pytest.raises(ResultsError, match="2 rows for seed 0"):
        render_table([make_row(), make_row()], spec)


def test_a_table_says_when_its_rows_come_from_different_code():
    spec = TableSpec("T", (Column("Gamma", "metrics.gamma"),), notes=("own note",))
    rows = [make_row(label, seed) | {"git_commit": "abc123"} for label in ("BP", "DFA") for seed in (0, 1)]
    assert render_table(rows, spec).endswith("\n\n- own note\n")
    rows += [make_row(f"v{i}") | {"git_commit": "def456+"} for i in range(6)] + [make_row("DFA", 2)]
    assert render_table(rows, spec).splitlines()[-1] == (
        "- Rows come from 3 commits of the code: abc123 (BP, DFA), def456+ (v0, v1, v2, v3, ...), an unknown one (DFA)."
    )


def test_a_table_says_which_rows_were_copied():
    spec = TableSpec("T", (Column("Gamma", "metrics.gamma"),))
    rows = [make_row("BP", seed) | {"from": "cifar10/full"} for seed in (0, 1)]
    rows += [make_row("frozen") | {"from": "online_scan/full"}, make_row()]
    assert render_table(rows, spec).splitlines()[-1] == (
        "- 2 rows are those of cifar10/full; 1 row is that of online_scan/full."
    )


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


def test_rows_are_an_immutable_sequence():
    rows = swept()
    assert len(rows) == 6 and [r["seed"] for r in rows] == [0, 1] * 3
    assert rows[-1]["label"] == "bridge" and rows[-1] in rows
    assert isinstance(rows[:2], Rows) and rows[:2] + rows[2:] == rows != rows[:2]
    assert rows[:2] + list(rows[2:]) == rows
    with pytest.raises(TypeError):
        rows[0] = rows[1]


def test_the_usual_table_shows_what_there_is():
    assert cells(swept().table(), 2) == ["label", "tier", "seeds", "Gamma", "rho", "RMS(h_L)", "loss"]
    rows = Rows([make_row("BP", test_accuracy=0.5, test_loss=1.5), make_row("frozen", test_accuracy=0.25)])
    table = rows.table()
    assert table.startswith("# ladder/quick\n")
    assert cells(table, 2)[3:] == ["accuracy", "depth utility", "Gamma", "rho", "RMS(h_L)", "loss"]
    assert cells(table, 4)[3:] == ["0.500", "+0.250", "–", "–", "–", "1.500"]  # noqa: RUF001
    assert "depth utility" not in rows[:1].table()
    spec = TableSpec("Own", (Column("Gamma", "metrics.gamma"),))
    assert rows.table(spec) == render_table(rows, spec)


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
    frame = Rows(make_row(f"v{i}", config=described(jc.Config(credit=c))) for i, c in enumerate(credits_)).frame()
    assert frame["credit.directions"].tolist() == [2, 4]
    assert frame["credit.trunk.hidden"].tolist() == [8, 16]
    assert not {"credit", "credit.trunk", "credit.learning_rate"} & set(frame.columns)


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
    assert len(rows.where(label="nobody")) == 0
    with pytest.raises(ResultsError, match=r"'learning_rat' is in none of 6 rows; did you mean 'learning_rate'\?"):
        rows.where(learning_rat=1)


def test_rows_plot_their_overview(tmp_path):
    swept().plot(tmp_path / "figure.png", "title")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_rows_may_need_loads_when_it_is_needed():
    late = ("pandas", "matplotlib", "tensorflow_datasets", "orbax", "scipy", "jax")
    code = f"import sys, jcredit.report.rows; print([m for m in {late} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
