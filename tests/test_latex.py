"""A table as LaTeX says what the markdown says."""

import pytest
from made_rows import cells, make_row, markdown_of

from jcredit.report.rows import ResultsError, Rows
from jcredit.report.tables import Column, TableSpec

ROWS = Rows([
    *(make_row("50% of a_l & more", seed, gamma=value) for seed, value in enumerate((0.1, 0.2, 0.3))),
    *(make_row("[bp]", seed, gamma=value) for seed, value in enumerate((0.1, 0.3, 0.2))),
    make_row("once", 0, gamma=12345.678), make_row("never", 0),
])  # fmt: skip


def lines_of(text):
    return [[cell.strip() for cell in line.removesuffix(r" \\").split(" & ")] for line in text.splitlines()
            if line.endswith(r" \\")]  # fmt: skip


def test_a_tabular_by_hand():
    # Mean .2 and deviation .1 of three: the half width is t(2) .1 / sqrt 3 = 4.303 x .0577 = .248.  The differences at
    # each seed are 0, -.1, .1: t(2) .1 / sqrt 3 again, and every pattern of signs reaches a sum of 0.
    text = ROWS.table(metrics=["gamma"], against="[bp]", format="latex")
    assert text.splitlines()[:4] == ["% ladder/quick", "", r"\begin{tabular}{llrrr}", r"\toprule"]
    assert text.splitlines()[5] == r"\midrule" and "\n\\bottomrule\n\\end{tabular}\n\n% Mean over seeds ±" in text
    assert lines_of(text) == [
        ["label", "tier", "seeds", "gamma", "gamma - {[}bp]"],
        [r"50\% of a\_l \& more", "tier 0", "3", r"$0.200 \pm 0.248$", r"$+0.000 \pm 0.248$, $p=1$"],
        ["{[}bp]", "tier 0", "3", r"$0.200 \pm 0.248$", "reference"],
        ["once", "tier 0", "1", r"$1.2 \times 10^{4}$", r"$+1.2 \times 10^{4}$"],
        ["never", "tier 0", "1", "--", "--"],
    ]


def test_signs_that_tex_reads_are_escaped():
    label = r"a\b{c}~^<d>|#$_*[é"
    [_, [found, *_]] = lines_of(Rows([make_row(label, gamma=1.0)]).table(metrics=["gamma"], format="latex"))
    assert found == (
        r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}\textless{}d\textgreater{}\textbar{}\#\$\_{*}{[}é"
    )


@pytest.mark.parametrize("against", [None, "DFA"])
def test_it_has_the_lines_blocks_and_columns_of_the_markdown(against):
    rows = [
        make_row(label, seed, block, gamma=0.1 * seed + i, test_loss=10.0**i, flags=["slow"])
        for block in ("L = 4", "", "L = 8") for i, label in enumerate(("DFA", "x y", "bp")) for seed in range(2)
    ]  # fmt: skip
    markdown, latex = (Rows(rows).table(against=against, format=format) for format in ("markdown", "latex"))
    assert Rows(rows).table(against=against) == markdown
    wanted = [cells(line) for line in markdown.splitlines() if line.startswith("| ") and "---" not in line]
    plain = latex.replace(r" \pm ", " ± ").replace("$", "").replace(r"\_", "_").replace("--", "–")  # noqa: RUF001
    assert lines_of(plain) == wanted and latex.count("tabular}{") == 3
    assert [line for line in latex.splitlines() if line.startswith("% L") or "no block" in line] == [
        "% L = 4", "% no block", "% L = 8",
    ]  # fmt: skip
    spec = TableSpec("T", (Column("Gamma", "metrics.gamma"),))
    assert markdown_of(rows, spec).count("0.05") == Rows(rows).table(spec, format="latex").count("0.05")


def test_another_format_is_refused():
    with pytest.raises(ResultsError, match="format='tex' must be one of 'markdown', 'latex'"):
        ROWS.table(format="tex")  # type: ignore[arg-type]
