"""Tables say what their rows say."""

from pathlib import Path

import pytest
from made_rows import line_of, make_row, markdown_of

from jcredit.report.rows import ResultsError
from jcredit.report.tables import (
    DEPTH_NOTE,
    DIVERGED_NOTE,
    INTERVAL_NOTE,
    P_NOTE,
    RATIO_NOTE,
    WORSE_NOTE,
    Column,
    TableSpec,
    with_study,
)
from jcredit.study.scripts import load_experiment


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
    table = markdown_of(rows, spec)
    assert table.startswith("# Ladder\n\n| label")
    assert line_of(table, 2) == ["label", "tier", "seeds", "accuracy", "Gamma", "study", "S1"]
    assert [rule[-1] for rule in line_of(table, 3)] == ["-", "-", ":", ":", ":", ":", ":"]
    # The half width of two values is half their distance times t(1) = 12.706: 10 -> 127.1, 5 -> 63.5, .1 -> 1.27.
    # Three digits of it are shown, so Gamma loses a decimal; signs that agree at two seeds have p = 2 / 2^2.
    assert line_of(table, 4)[3:] == ["60 ± 127", "1.000 ± 0.000", "–", "0.80 ± 1.27, p=.50"]  # noqa: RUF001
    assert line_of(table, 5)[3:] == ["30.0 ± 63.5", "0.20 ± 1.27", ".03", "reference"]
    assert line_of(table, 6) == ["CB", "tier 0", "1", "40.0", "–", "–", "–"]  # noqa: RUF001
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
    assert line_of(markdown_of(rows, TableSpec("", (Column("x", "metrics.x", format),))), 2)[-1] == cell


def test_differences_have_an_exact_p():
    # Differences 3, 1, -2: six of eight sign patterns reach the observed 2. The half width is 4.303 x 2.517 / sqrt 3.
    column = (Column("S1", "metrics.gamma", "+.3f", paired_with="DFA"),)
    rows = [make_row("DFA", i, gamma=0.5) for i in range(4)]
    rows += [make_row("CB", i, gamma=g) for i, g in enumerate((3.5, 1.5, -1.5, None))]
    assert line_of(markdown_of(rows, TableSpec("", column)), 3)[-1] == "+0.67 ± 6.25, p=.75 (n=3)"
    agree = [make_row(label, i, gamma=g) for i in range(6) for label, g in (("DFA", 0.0), ("CB", 1.0 + i))]
    assert ", p=.031" in markdown_of(agree, TableSpec("", column))
    many = [make_row(label, i, gamma=g) for i in range(21) for label, g in (("DFA", 0.0), ("CB", 1.0))]
    assert line_of(markdown_of(many[:40], TableSpec("", column)), 3)[-1] == "+1.000 ± 0.000, p<.001"
    over = markdown_of(many, TableSpec("", column))
    assert (
        line_of(over, 3)[-1] == "+1.000 ± 0.000" and "No p where a difference has more than 20" in over
    )  # 2^21 of them
    assert "No p" not in markdown_of(many[:40], TableSpec("", column))


SIMPLE = TableSpec("", (Column("x", "metrics.x"),))


def test_labels_that_markdown_would_read_stay_in_their_cells():
    table = markdown_of([make_row("a<b>c|d\ne", 0), make_row("x < y", 0)], SIMPLE)
    assert "| a&lt;b>c\\|d e " in table and "| x < y " in table


def test_lines_without_a_block_do_not_stand_below_another_blocks_heading():
    table = markdown_of([make_row("bp", 0, "L = 4"), make_row("bp", 0)], SIMPLE)
    assert [line for line in table.splitlines() if line.startswith("#")] == ["## L = 4", "## no block"]


def test_a_table_shows_the_sequential_depth_beside_the_tier_where_it_is_known():
    rows = [make_row("chain", gamma=0.9) | {"depth": 4}, make_row("mine", gamma=0.1) | {"depth": None}]
    spec = TableSpec("", (Column("Gamma", "metrics.gamma"),))
    table = markdown_of(rows, spec)
    assert [line_of(table, i) for i in (0, 2, 3)] == [
        ["label", "tier", "depth", "seeds", "Gamma"], ["chain", "tier 0", "4", "1", "0.900"],
        ["mine", "tier 0", "–", "1", "0.100"],  # noqa: RUF001
    ]  # fmt: skip
    assert table.endswith(f"- {DEPTH_NOTE}\n")
    assert "depth" not in markdown_of([make_row(gamma=0.9)], spec)


def test_ratios_are_taken_at_each_seed():
    rows = [make_row("SB", i, gamma=g) for i, g in enumerate((0.5, 0.25, 0.2))]
    rows += [make_row("CB", i, gamma=g) for i, g in enumerate((0.5, 0.5, 0.6))]
    table = markdown_of(rows, TableSpec("", (Column("CB / SB", "metrics.gamma", ".2f", paired_with="SB", ratio=True),)))
    assert line_of(table, 2)[-1] == "reference"
    assert line_of(table, 3)[-1] == "2.00 ± 2.48"  # of 1, 2, 3; the ratio of the means would be 1.68
    assert RATIO_NOTE in table and P_NOTE not in table


def test_groups_of_columns_are_tables_of_each_block():
    rows = [make_row(label, 0, block, flags=["slow"], gamma=0.1) for block in ("L=4", "L=8") for label in ("DFA", "CB")]
    columns = {
        "Credit": (Column("Gamma", "metrics.gamma"),),
        "Gains": (Column("S1", "metrics.gamma", paired_with="DFA"),),
    }
    spec = TableSpec("T", columns, study={"L=8 | CB": {"S1": ".2"}})
    headings = [line for line in markdown_of(rows, spec).splitlines() if line.startswith("#")]
    assert headings == ["# T", "## L=4", "### Credit", "### Gains", "## L=8", "### Credit", "### Gains"]
    tables = [line_of(part.lstrip(), 0) for part in markdown_of(rows, spec).split("###")[1:]]
    assert len(tables) == 4
    titles = [line_of(line, 0)[3:] for line in markdown_of(rows, spec).splitlines() if line.startswith("| label")]
    assert titles == [["Gamma", "flags"], ["S1"], ["Gamma", "flags"], ["S1", "study"]]  # flags are counted once
    plain = markdown_of([make_row(gamma=0.1)], TableSpec("T", columns))
    assert "\n## Credit\n" in plain and "±" not in plain  # one seed: nothing to explain


def test_groups_of_columns_without_a_number_are_left_out_but_the_first():
    rows = [make_row("DFA", 0, "L=4", gamma=0.1), make_row("DFA", 0, "L=8", gamma=0.1, rho=0.2)]
    columns = {"Cost": (Column("s", "timing.none"),), "Credit": (Column("rho", "metrics.rho"),)}
    table = markdown_of(rows, TableSpec("T", columns, study={"DFA": {"rho": ".2"}}))
    assert [line for line in table.splitlines() if line.startswith("###")] == ["### Cost", "### Cost", "### Credit"]


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
    table = markdown_of(rows, spec)
    four, eight = table.split("## L=4")[1].split("## L=8")
    assert "CB" not in four
    assert [c.strip() for c in eight.splitlines()[4].split("|")[1:-1]] == ["CB", "tier 0", "1", "0.200", ".2"]
    assert [c.strip() for c in four.splitlines()[4].split("|")[1:-1]] == ["DFA", "tier 0", "1", "0.100", ".1"]


def test_diverged_runs_and_flags_are_counted():
    rows = [
        make_row("CB", 0, status="diverged", flags=["estimator_diverged"], gamma=None),
        make_row("CB", 1, flags=["estimator_diverged"], gamma=0.5), make_row("CB", 2, gamma=0.5), make_row("a|b", 0),
    ]  # fmt: skip
    table = markdown_of(rows, TableSpec("T", (Column("Gamma", "metrics.gamma", ".1f"),)))
    assert line_of(table, 2)[-1] == "flags"
    assert line_of(table, 4)[2:] == ["3", "0.5 ± 0.0 (n=2)", "diverged 1/3, estimator_diverged 2/3"]
    assert DIVERGED_NOTE in table and WORSE_NOTE not in table
    assert table.splitlines()[5].startswith("| a\\|b ")


def test_a_label_stands_for_one_config():
    spec = TableSpec("T", (Column("Gamma", "metrics.gamma"),))
    with pytest.raises(ResultsError, match=r"'DFA' stands for 2 configs \(aa, bb\)"):
        markdown_of([make_row(config_hash="aa"), make_row(seed=1, config_hash="bb")], spec)
    with pytest.raises(ResultsError, match="2 rows for seed 0; leave out the duplicates"):
        markdown_of([make_row(), make_row()], spec)
    for differs in ({}, {"config_hash": "bb"}):
        with pytest.raises(ResultsError, match=r"; choose one preset's with rows.where\(preset='a'\)"):
            markdown_of([make_row(preset="a"), make_row(preset="b", **differs)], spec)
    assert "| DFA " in markdown_of([make_row(preset="a"), make_row(seed=1, preset="b")], spec), "two sweeps' seeds"


def test_a_table_says_when_its_rows_come_from_different_code():
    spec = TableSpec("T", (Column("Gamma", "metrics.gamma"),), notes=("own note",))
    rows = [make_row(label, seed) | {"git_commit": "abc123"} for label in ("BP", "DFA") for seed in (0, 1)]
    assert markdown_of(rows, spec).endswith("\n\n- own note\n")
    rows += [make_row(f"v{i}") | {"git_commit": "def456+"} for i in range(6)] + [make_row("DFA", 2)]
    assert markdown_of(rows, spec).splitlines()[-1] == (
        "- Rows come from 3 commits of the code: abc123 (BP, DFA), def456+ (v0, v1, v2, v3, ...), an unknown one (DFA)."
    )


def test_a_table_says_which_lines_were_run_on_another_kind_of_device():
    spec = TableSpec("T", (Column("Gamma", "metrics.gamma"),), notes=("own note",))
    cpu, gpu = {"device": "cpu: cpu"}, {"device": "gpu: A"}
    rows = [make_row("BP", seed, block="L = 4") | cpu for seed in (0, 1, 2)] + [
        make_row("DFA", block="L = 4", device=None)
    ]
    assert markdown_of(rows, spec).endswith("\n\n- own note\n")  # DFA's does not say where
    newer = gpu | {"versions": {"jax": "9"}}
    moved = make_row("FA", block="L = 4", device="cpu: cpu, gpu: A")
    rows += [make_row("BP", block="L = 2", config_hash="x") | gpu, make_row("DFA", 1, block="L = 4") | gpu, moved]
    rows += [make_row("FA", 1, block="L = 4") | newer]
    assert markdown_of(rows, spec).splitlines()[-3:] == [
        "- Run on gpu: A, not on cpu: DFA (1 of 2 seeds), BP (L = 2).",
        "- Run on cpu, then gpu: A, not on cpu: FA (1 of 2 seeds).",
        "- Run on gpu: A with JAX 9, not on cpu: FA (1 of 2 seeds).",
    ]


def test_a_table_says_when_its_rows_come_from_different_versions():
    spec = TableSpec("T", (Column("Gamma", "metrics.gamma"),), notes=("own note",))

    def made(label, seed, jcredit, jax, device="cpu: cpu"):
        return make_row(label, seed) | {"versions": {"jcredit": jcredit, "jax": jax}, "device": device}

    rows = [made("BP", 0, "0.2.0", "1"), made("BP", 1, "0.2.0", "1"), make_row("FA") | {"device": "cpu: cpu"}]
    assert markdown_of(rows, spec).endswith("\n\n- own note\n")  # FA's does not say
    rows += [made("BP", 2, "0.3.0", "1"), made("DFA", 0, "0.3.0", "2"), made("DFA", 1, "0.3.0", "3", "gpu: A")]
    assert markdown_of(rows, spec).splitlines()[-3:] == [
        "- Rows come from 2 versions of jcredit: 0.2.0 (BP), 0.3.0 (BP, DFA).",
        "- Rows come from 2 versions of JAX: 1 (BP), 2 (DFA).",
        "- Run on gpu: A with JAX 3, not on cpu: DFA (1 of 2 seeds).",
    ]


def test_a_table_warns_of_rows_from_different_copies_of_the_images():
    spec = TableSpec("T", (Column("Gamma", "metrics.gamma"),))
    cifar, mnist = ({"task": {"task": name}} for name in ("cifar10", "fashion_mnist"))
    rows = [make_row("BP", config=cifar, config_hash="a") | {"data": "aaaaaaaabb"}]
    rows += [make_row("DFA", config=cifar, config_hash="b")]  # from before it was kept
    rows += [make_row("FA", config=mnist, config_hash="c") | {"data": "cccccccccc"}]
    assert "copies" not in markdown_of(rows, spec)
    rows += [make_row("DFA", 1, config=cifar, config_hash="b") | {"data": "bbbbbbbbbb"}]
    warning = "- Rows come from 2 different copies of cifar10, do not compare them: aaaaaaaa (BP), bbbbbbbb (DFA)."
    assert markdown_of(rows, spec).splitlines()[-1] == warning


def test_a_table_says_which_rows_were_copied():
    spec = TableSpec("T", (Column("Gamma", "metrics.gamma"),))
    rows = [make_row("BP", seed) | {"from": "cifar10/full"} for seed in (0, 1)]
    rows += [make_row("frozen") | {"from": "online_scan/full"}, make_row()]
    assert markdown_of(rows, spec).splitlines()[-1] == (
        "- 2 rows are those of cifar10/full; 1 row is that of online_scan/full."
    )
