"""The page as HTML: what it is, the claims, every experiment's tables and charts, every run.

All text from rows is escaped.  The tables are complete without scripts; scripts sort, filter and draw.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from importlib.metadata import version
from typing import Any, NamedTuple

from jcredit.report.page.data import Facts, Section, charts_of, facts_of, rounded
from jcredit.report.page.ledger import claims
from jcredit.report.page.markup import hidden, opening
from jcredit.report.schema import Row, grouped, number_at
from jcredit.report.styles import label_styles, on_dark
from jcredit.report.tables import MISSING, Cell, Table

EXTRA = "the page's charts need vl-convert-python: pip install 'jcredit[html]'"
RUN_COLUMNS = {
    "accuracy": "test_accuracy", "Gamma": "gamma", "rho": "rho", "nudge": "nudge", "RMS(h_L)": "h_rms_last",
    "loss": "test_loss",
}  # fmt: skip
OPENING, CLOSING = '<script id="charts">', "</script><!-- charts -->"
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
"""Nothing is ever loaded; Vega compiles expressions."""


class Bundle(NamedTuple):
    """Vega, Vega-Lite and Vega-Embed as one script, and the versions that the page names."""

    script: str
    versions: str


def bundle() -> Bundle:
    """The charts' script from its package.

    Raises:
      ImportError: it is not installed; the message names the extra.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise ImportError(EXTRA) from error
    versions = (
        f"Vega {vl_convert.get_vega_version()}, Vega-Lite {vl_convert.get_vegalite_versions()[-1]}, Vega-Embed"
        f" {vl_convert.get_vega_embed_version()}, bundled by vl-convert-python {version('vl-convert-python')}"
    )
    script = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]  # its stub lacks the default
    return Bundle(script.replace("</script", "<\\/script"), versions)


def bundle_of(page: str) -> Bundle:
    """The charts' script that a page contains, so that the rest can be compared where the package is not installed."""
    script = page.partition(OPENING)[2].partition(CLOSING)[0]
    versions = re.search(r'<meta name="generator" content="([^"]*)">', page)
    return Bundle(script, versions[1] if versions else "")


def page(sections: Sequence[Section], verdicts: Sequence[Mapping[str, Any]], charts: Bundle) -> str:
    """The whole page.

    Args:
      sections: the experiments, in the order shown.
      verdicts: the ledger of claims, as in claims.json.
      charts: the script that draws.
    """
    ids = _ids(sections)
    data = {key: charts_of(section) for key, section in ids.items()}
    facts = [facts_of(s, [row]) for s in sections for row in s.rows]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f'<meta name="generator" content="{escape(charts.versions)}">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>jcredit: results</title><style>{_asset('page.css')}</style></head><body>",
        '<a class="skip" href="#results">Skip to the results</a>',
        *_head(ids, facts),
        *_filters(facts),
        '<main id="results" tabindex="-1">',
        *claims(verdicts),
        *(part for key, section in ids.items() for part in _section(key, section)),
        *_runs(sections),
        "</main>",
        f"<footer><p>Charts: {escape(charts.versions)}.</p><details><summary>Their licence</summary>"
        f"<pre>{escape(_asset('charts.txt'))}</pre></details></footer>",
        f'<script type="application/json" id="data">{_json(data)}</script>',
        f"{OPENING}{charts.script}{CLOSING}",
        f"<script>{_asset('page.js')}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _asset(name: str) -> str:
    return resources.files("jcredit.report.page").joinpath(name).read_text(encoding="utf-8").strip()


def _json(value: Any) -> str:
    """JSON that cannot end a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _ids(sections: Sequence[Section]) -> dict[str, Section]:
    """An anchor for each section: its experiment's name, with the preset where that is not quick."""
    found: dict[str, Section] = {}
    for section in sections:
        key = section.name if section.preset == "quick" else f"{section.name}-{section.preset}"
        key = re.sub(r"[^A-Za-z0-9_-]+", "-", key)
        found[key if key not in found else f"{key}-{len(found)}"] = section
    return found


# --- head and filters -------------------------------------------------------------------------------------------------


def _head(ids: Mapping[str, Section], facts: Sequence[Facts]) -> Iterator[str]:
    lines = sum(len(labels) for s in ids.values() for labels in grouped(s.rows).values())
    runs = len({(row["config_hash"], row["seed"]) for s in ids.values() for row in s.rows})  # lines share some
    experiments = len({s.name for s in ids.values()})
    seeds = sorted({seed for fact in facts for seed in fact.seeds})
    counts = [len(rows) for s in ids.values() for labels in grouped(s.rows).values() for rows in labels.values()]
    span = f"{min(counts)} to {max(counts)}" if counts and min(counts) < max(counts) else str(max(counts, default=0))
    presets = ", ".join(dict.fromkeys(section.preset for section in ids.values()))
    yield (
        '<header><div class="bar"><h1>jcredit: results</h1>'
        '<button type="button" id="theme" aria-pressed="false">Dark</button></div>'
        "<p>Each hidden layer of a network gets an estimate of the gradient of the loss, made without back-propagating"
        " through any hidden block; this page shows how good such <em>learned credit</em> is and what is learned with"
        " it, beside the figures of the study that is reimplemented and beside controls.</p>"
        f"<p><strong>{runs} runs</strong>, as {len(facts)} rows of {lines} lines, in {experiments} experiments, {span}"
        " seeds a line"
        f" ({', '.join(map(str, seeds))}); presets: {escape(presets)}."
        + (
            " Quick rows are far shorter than the study, and two or three seeds decide no difference: the exact"
            " sign-flip test cannot give p below .25 with three, .05 needs six."
            if any(section.preset == "quick" for section in ids.values())
            else ""
        )
        + " Numbers are means over seeds with 95% t intervals; Gamma is the cosine with the true credit (1 is exact),"
        " rho how well credit predicts true effects, accuracy a fraction of the test set, RMS(h_L) the size of the last"
        " hidden state. A black or white diamond is the study's own figure.</p>"
    )
    links = "".join(
        f'<li><a href="#{key}">{escape(section.name)}{_preset(section)}</a></li>' for key, section in ids.items()
    )
    yield (
        '<nav aria-label="Contents"><ul><li><a href="#claims">claims</a></li>'
        f'{links}<li><a href="#runs">every run</a></li></ul></nav></header>'
    )


def _preset(section: Section) -> str:
    return "" if section.preset == "quick" else f" ({escape(section.preset)})"


BLOCKS = "L, blocks"
"""How the page calls a network's depth; the depth of a credit is a column of the tables."""


def _filters(facts: Sequence[Facts]) -> Iterator[str]:
    """One form for all tables and charts."""
    choices = {
        "experiment": dict.fromkeys(f.experiment for f in facts),
        "block": dict.fromkeys(f.block for f in facts if f.block),
        "method": sorted({f.method for f in facts}),
        "tier": sorted({f.tier for f in facts}),
        "depth": sorted({f.depth for f in facts}, key=lambda d: (not d.isdigit(), int(d) if d.isdigit() else 0)),
        "seed": [str(s) for s in sorted({s for f in facts for s in f.seeds})],
    }
    fields = "".join(
        f'<div><label for="by-{name}">{BLOCKS if name == "depth" else name}</label>'
        f'<select id="by-{name}" name="{name}"><option value="">all</option>'
        + "".join(f'<option value="{escape(v)}">{escape(v)}</option>' for v in values)
        + "</select></div>"
        for name, values in choices.items()
    )
    yield (
        '<details class="filters" open><summary>Filter <output id="count" aria-live="polite"></output></summary>'
        '<form role="search" aria-label="Filter all tables and charts">'
        '<div><label for="by-text">text</label>'
        '<input id="by-text" type="search" name="text" placeholder="label, block ..." autocomplete="off"></div>'
        f'{fields}<div><label for="by-least">seeds, at least</label>'
        '<input id="by-least" type="number" name="least" min="1" max="99" placeholder="1"></div>'
        '<button type="reset">Clear</button></form></details>'
    )


def _attributes(facts: Facts, label: str) -> str:
    """What a table's row is filtered by."""
    values = {
        "experiment": facts.experiment, "block": facts.block, "method": facts.method, "tier": facts.tier,
        "depth": facts.depth, "seed": " ".join(map(str, facts.seeds)), "label": label,
    }  # fmt: skip
    return "".join(f' data-{name}="{escape(value)}"' for name, value in values.items())


# --- tables -----------------------------------------------------------------------------------------------------------


def _swatch(color: str, kind: str) -> str:
    return f'<i class="{kind}" style="--c:{color};--d:{on_dark(color)}"></i>'


def _section(key: str, section: Section) -> Iterator[str]:
    yield f'<section id="{key}" class="experiment" data-key="{key}" aria-labelledby="{key}-title">'
    yield f'<h2 id="{key}-title">{escape(section.tables.title or section.name)}</h2>'
    source = f"{section.name}, {section.preset} rows, {len(section.rows)} runs"
    yield f"<p>{escape(section.question)} <small>({escape(source)})</small></p>"
    if section.tables.summary:
        summary = f"<pre>{escape(section.tables.summary)}</pre>"
        yield f'<div class="scroll" role="region" tabindex="0" aria-label="Summary">{summary}</div>'
    colors = {label: look.color for (_, label), look in label_styles(grouped(section.rows)).items()}
    for i, table in enumerate(section.tables.tables):
        yield from _table(f"{key}-{i}", section, table, colors)
    yield from _chart_frames(key, section)
    if section.tables.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in section.tables.notes)
        yield f"<details><summary>Notes to the tables</summary><ul>{notes}</ul></details>"
    yield "</section>"


def _table(key: str, section: Section, table: Table, colors: Mapping[str, str]) -> Iterator[str]:
    of = ""
    header: list[tuple[str, str]] = []
    for title, kind in zip(table.header, table.kinds, strict=True):
        of = title if kind == "number" else of
        header.append((escape(title), hidden(f"on {of}") if kind == "study" else ""))
    caption = ", ".join(filter(None, (table.block, table.heading))) or section.tables.title or section.name
    yield opening(key, escape(caption), header)
    for line in table.lines:
        label = line.cells[0].text
        cells = "".join(
            f'<td class="{kind}"{_value(cell)}>{escape(cell.text)}</td>'
            for cell, kind in zip(line.cells[1:], table.kinds[1:], strict=True)
        )
        yield (
            f'<tr class="line"{_attributes(facts_of(section, line.rows), label)}><th scope="row">'
            f"{_swatch(colors[label], 'dot')}{escape(label)}</th>{cells}</tr>"
        )
    yield "</tbody></table></div>"


def _value(cell: Cell) -> str:
    value = rounded(cell.value)
    return "" if value is None else f' data-v="{value}"'


def _chart_frames(key: str, section: Section) -> Iterator[str]:
    """Empty frames; the script draws what is seen."""
    blocks = list(grouped(section.rows))
    choice = "".join(f'<option value="{escape(block)}">{escape(block)}</option>' for block in blocks)
    hide = " hidden" if len(blocks) < 2 else ""
    yield f'<div class="charts"><div class="choice"{hide}><label for="{key}-block">block of the charts</label>'
    yield f'<select id="{key}-block" class="block">{choice}</select></div>'
    for kind, title in (("metrics", "Means"), ("curves", "Over training"), ("layers", "Over depth")):
        yield (
            f'<figure data-kind="{kind}" hidden><figcaption><label for="{key}-{kind}">{title}: </label>'
            f'<select id="{key}-{kind}" class="metric"></select></figcaption><div class="chart"></div>'
            '<details class="numbers"><summary>The numbers of this chart</summary></details></figure>'
        )
    yield "</div>"


def _runs(sections: Sequence[Section]) -> Iterator[str]:
    """One line for each run."""
    yield '<section id="runs" aria-labelledby="runs-title"><h2 id="runs-title">Every run</h2>'
    names = ("label", "experiment", "block", "method", "tier", BLOCKS, "seed", "status", *RUN_COLUMNS)
    yield opening("runs", "One line for each run of every experiment", ((name, "") for name in names), "long")
    for section in sections:
        for row in section.rows:
            yield _run(section, row)
    yield "</tbody></table></div></section>"


def _run(section: Section, row: Row) -> str:
    facts = facts_of(section, [row])
    texts = (facts.experiment, facts.block or MISSING, facts.method, facts.tier.partition(":")[0], facts.depth)
    numbers = [rounded(number_at(row, f"metrics.{name}")) for name in RUN_COLUMNS.values()]
    cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    cells += f'<td class="number">{row["seed"]}</td><td>{escape(row["status"])}</td>'
    cells += "".join(f'<td class="number">{MISSING if v is None else v}</td>' for v in numbers)
    return f'<tr class="run"{_attributes(facts, row["label"])}><th scope="row">{escape(row["label"])}</th>{cells}</tr>'
