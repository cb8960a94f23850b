"""What is committed under results/: every row has the key of its line of today's grid, every table is its rows'."""

import json
from pathlib import Path

import pytest

from jcredit.config import described
from jcredit.report.rows import Rows, read_rows
from jcredit.report.tables import markdown
from jcredit.study.experiment import in_grid, reported
from jcredit.study.reproduce import read_list

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "results").glob("*/*/rows.jsonl"))


def holds(today, then):
    """Whether a configuration of today says all that one of then said; settings may have been added since."""
    if isinstance(then, dict):
        return all(name in today and holds(today[name], value) for name, value in then.items())
    return today == then


@pytest.fixture(scope="module")
def items(experiments):
    """The list of runs that ``reproduce`` walks."""
    return read_list(ROOT / "experiments/reproduce.toml", experiments)


@pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(p.parts[-3:-1]))
def test_rows_belong_to_the_grid_and_the_table_is_theirs(path, experiments, items):
    name, preset = path.parts[-3:-1]
    experiment = experiments[name]
    variants = {}
    for variant in experiment.presets[preset].variants:  # frozen blocks read no rule: one run stands in several blocks
        variants.setdefault(variant.hash, []).append(variant)
    rows = read_rows(path, name, preset)
    for row in rows:
        lines = variants[row["config_hash"]]
        [variant, *_] = [v for v in lines if holds(json.loads(json.dumps(described(v.config))), row["config"])]
        assert row["method"] == variant.config.credit.name
        assert (row.get("start") or {}).get("key") == (variant.start and variant.start.key)
    assert len(rows) == len({(row["config_hash"], row["seed"]) for row in rows})
    planned = [item for item in items if (item.experiment.name, item.preset, item.overrides) == (name, preset, {})]
    for key in {row["config_hash"] for row in rows}:  # every line at all seeds of its preset, or of an item of the list
        whole = [set(item.seeds) for item in planned if key in {variant.hash for variant in item.wanted}]
        assert {row["seed"] for row in rows if row["config_hash"] == key} in [
            set(experiment.presets[preset].seeds),
            *whole,
        ]
    mine = in_grid(rows, experiment.presets[preset].variants)
    assert list(Rows.read(path.parent)) == mine, "whoever reads them has the lines of the table"
    table = markdown(reported(experiment, mine))
    assert (path.parent / "table.md").read_bytes() == table.encode()


def test_there_is_something_to_check():
    assert len(FILES) >= 15
