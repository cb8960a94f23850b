"""Carries rows of schema 1 (one flat configuration) over to schema 2 (parts that own their settings).

    python convert_rows.py results

Every row is matched with the line of today's grid that has its block and label.  What its flat configuration says is
built anew from parts, independently of the grid, and both must have the same key; only then is the row rewritten, with
its numbers, commit and versions untouched.

Rows of vector fields that measured one layer per sample are left out: their loss was pooled over layers, and is now the
mean over layers whatever is measured (their setting ``layers`` is called ``one`` now, so that no old key is theirs).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jcredit as jc
from jcredit.__main__ import load_experiment
from jcredit.config import Config, config_hash, described, settings
from jcredit.files import write_text
from jcredit.parts import Part

SAME = [name for name in settings() if name not in ("task", "network", "credit", "rule")]


def task_of(c: dict[str, Any]) -> tuple[Part, Part]:
    """Task and network of a flat configuration."""
    if c["task"] == "lq":
        sizes = {"test_size": c["test_size"]} if c["test_size"] else {}
        task = jc.tasks.lq(c["width"], c["classes"], c["process_noise"], **sizes)
        return task, jc.lq_dynamics(c["depth"])
    if c["task"] == "teacher":
        assert c["teacher_layer_norm"]
        sizes = {name: c[name] for name in ("train_size", "test_size") if c[name]}
        return jc.tasks.teacher(c["classes"], **sizes), jc.ladder_mlp(c["depth"], c["width"], c["alpha"])
    fields = {name: c[name] for name in ("crops", "flips", "train_size", "test_size", "evaluate_on")}
    return getattr(jc.tasks, c["task"])(**fields), jc.image_mlp(c["depth"], c["width"])


def credit_of(c: dict[str, Any]) -> Part:
    """Estimator of a flat configuration."""
    trunk = jc.mlp(c["hidden"], c["hidden_layers"], c["code"], c["projection_dim"], c["projection_scale"])
    fit = {"learning_rate": c["estimator_learning_rate"], "clip": c["estimator_clip"]}
    tangent = {"samples": c["tangent_samples"], "shuffled": c["shuffled"], **fit}
    assert c["field_form"] == "mlp" and c["tangent_target"] == "state" and not c["residual_directions"]
    factories = {
        "state_bridge": lambda: jc.state_bridge(c["state_loss"], trunk, **fit),
        "scalar_bridge": lambda: jc.scalar_bridge(
            c["bridge_noise"], c["noise_samples"], c["bridge_target"], c["sigma"], c["softmin_lambda"], c["ema"],
            c["value_weight"], c["terminal_weight"], trunk=trunk, **fit,
        ),
        "vector_field": lambda: jc.vector_field(
            c["directions"], {"random": "one"}.get(c["direction_layers"], "all"), c["scheme"], c["epsilon"],
            c["shuffled"], c["terminal_weight"], trunk=trunk, **fit,
        ),
        "tangent_gate": lambda: jc.tangent_gate(rank=c["gate_rank"], **tangent),
        "tangent_mask": lambda: jc.tangent_mask(**tangent),
        "tangent_chain": lambda: jc.tangent_chain(**tangent),
    }  # fmt: skip
    part = factories.get(c["method"], lambda: getattr(jc, c["method"])())()
    return jc.exact_terminal(of=part) if c["exact_terminal"] else part


def config_of(c: dict[str, Any]) -> Config:
    """The configuration made of parts that a flat one describes."""
    task, network = task_of(c)
    rule = {"inner_product": jc.inner_product, "cosine": jc.cosine_rule}.get(c["rule"])
    assert c["rho_scheme"] == "jvp"
    own = {name: c[name] for name in SAME}
    return Config(task, network, credit_of(c), jc.target_shift(c["shift_eta"]) if rule is None else rule(), **own)


def is_stale(row: dict[str, Any]) -> bool:
    """Whether a row's loss was another than its line's of today."""
    return row["config"]["method"] == "vector_field" and row["config"]["direction_layers"] == "random"


def convert(row: dict[str, Any], variants: dict[tuple[str, str], Any]) -> dict[str, Any]:
    """The row under schema 2."""
    variant = variants[row["block"], row["label"]]
    mine = config_hash(config_of(row["config"]))
    assert mine == config_hash(variant.config), (row["experiment"], row["block"], row["label"])
    new = {**row, "schema": 2, "method": variant.config.credit.name, "config": described(variant.config)}
    new["config_hash"] = variant.hash
    if "start" in row:
        assert config_hash(config_of(row["start"]["config"])) == config_hash(variant.start.config)
        assert row["start"]["epoch"] == variant.start.epoch
        new["start"] = {
            "key": variant.start.key, "epoch": variant.start.epoch, "config": described(variant.start.config)
        }  # fmt: skip
    if "measure" in row:
        assert row["measure"]["name"] == variant.followup.name
        del new["measure"]
        new["followup"] = variant.followup.described()
    assert all(new[name] == row[name] for name in ("metrics", "layers", "curves", "seed", "status", "git_commit"))
    return new


def main(results: Path) -> None:
    """Converts every rows.jsonl below a folder."""
    for path in sorted(results.glob("*/*/rows.jsonl")):
        experiment = load_experiment(Path("experiments") / f"{path.parent.parent.name}.py")
        variants = {(v.block, v.label): v for v in experiment.presets[path.parent.name].variants}
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        new = [convert(row, variants) for row in rows if not is_stale(row)]
        write_text(path, "".join(json.dumps(r, allow_nan=False, ensure_ascii=False) + "\n" for r in new))
        print(f"{path}: {len(new)} of {len(rows)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
