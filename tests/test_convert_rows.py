"""The committed rows are those of schema 1 under new keys: keys, configurations, numbers and figures agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BEFORE = "49d5777"  # the last commit with rows of schema 1
sys.path.insert(0, str(ROOT))


def before(path):
    found = subprocess.run(["git", "show", f"{BEFORE}:{path}"], cwd=ROOT, capture_output=True)
    if found.returncode:
        pytest.skip(f"commit {BEFORE} is not in this clone")
    return found.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*/quick/rows.jsonl")), ids=lambda p: p.parts[-3])
def test_the_committed_rows_are_the_converted_ones(path):
    import convert_rows
    from jcredit.__main__ import load_experiment
    from jcredit.config import config_hash, described

    experiment = load_experiment(ROOT / "experiments" / f"{path.parts[-3]}.py")
    variants = {(v.block, v.label): v for v in experiment.presets["quick"].variants}
    old = [json.loads(line) for line in before(path.relative_to(ROOT)).decode().splitlines()]
    carried = [row for row in old if not convert_rows.is_stale(row)]
    found = {(r["config_hash"], r["seed"]): r for r in map(json.loads, path.read_text().splitlines())}
    assert carried
    for a in carried:
        b = found[variants[a["block"], a["label"]].hash, a["seed"]]
        assert convert_rows.convert(a, variants) == b
        built = convert_rows.config_of(a["config"])  # from the flat configuration alone
        assert config_hash(built) == config_hash(variants[b["block"], b["label"]].config)
        assert described(variants[b["block"], b["label"]].config) == b["config"]
        assert {k: a[k] for k in ("metrics", "layers", "curves", "seed", "timing", "git_commit")} == {
            k: b[k] for k in ("metrics", "layers", "curves", "seed", "timing", "git_commit")
        }
    if len(carried) == len(old):
        assert before(path.parent.relative_to(ROOT) / "figure.png") == (path.parent / "figure.png").read_bytes()
