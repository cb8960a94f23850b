"""Whatever is given, it runs or it is refused in one line: configurations, rows, config.json and command lines.

A short form runs by default; ``pytest -m faults tests/test_properties.py tests/test_command_properties.py`` tries 2,000
cases.  They are drawn from the properties themselves: each run tries the same ones.  Image data sets, which are not
everywhere, are left out.
"""

import json
import math
from collections import Counter

import pytest
from drawn import BASE, BY_KIND, EXPERIMENT, OF_ARRAYS, PLAIN, WRAPPERS, admits, configs, good, says_one_line
from hypothesis import given, strategies as st

import jcredit as jc
from jcredit import config as configuration
from jcredit.checking import check_run
from jcredit.config import PARTS, config_hash, described, digest
from jcredit.parts import Part
from jcredit.report.rows import ResultsError, Rows, append_rows, read_rows
from jcredit.study.found import found_in
from jcredit.sweeps import plan
from jcredit.training import make_run

pytestmark = pytest.mark.faults

# --- configurations ---------------------------------------------------------------------------------------------------

SETTINGS = [(factory, s) for kind in BY_KIND.values() for factory in kind for s in factory.settings.values()]
SETTINGS += [(None, s) for name, s in configuration.settings().items() if name not in PARTS]


def test_a_setting_takes_what_its_kind_admits_and_refuses_all_else(holds):
    @given(st.sampled_from(SETTINGS), st.data())
    def prop(where, data):
        factory, setting = where
        value = data.draw(PLAIN | good(setting) if setting.kind is None else PLAIN)
        others = {"of": jc.dfa()} if factory in WRAPPERS else {}
        others |= OF_ARRAYS.get(factory, {})
        make = jc.Config if factory is None else factory
        admitted = admits(setting, value) or (value is None and setting.kind is not None and setting.type is not Part)
        try:
            made = make(**{**others, setting.name: value})
        except jc.ConfigError as error:
            assert not admitted, error
            says_one_line(str(error), setting.name)
            if type(value) in (int, float) and abs(value) < 1e9:
                says_one_line(str(error), f"{value!r}")
        else:
            assert admitted, (setting, value)
            kept = getattr(made, setting.name) if factory is None else made.settings[setting.name]
            assert kept == value and (setting.type is not float or type(kept) is float)

    holds(prop, 100, 600)


def test_a_configuration_of_good_values_is_traced_or_refused(holds, monkeypatch):
    monkeypatch.setattr(plan, "cost_of", lambda run, **_: plan.Cost((), 1, 1, 1.0, 1, 1, 1))  # would compile
    seen = Counter()

    @given(configs())
    def prop(config):
        text = json.dumps(described(config))
        assert digest(described(config)) == digest(json.loads(text))  # JSON holds all of it
        try:
            one = make_run(config)
            plan.check_fits(one)
            check_run(one)
        except jc.ConfigError as error:
            seen["refused"] += 1
            says_one_line(str(error))
            assert error.__cause__ is None, error  # said on purpose, not caught
        else:
            seen["traced"] += 1

    holds(prop, 20, 400)
    assert seen["traced"] >= seen["refused"] / 2, seen


def test_a_configuration_that_is_traced_trains_to_a_row(holds):
    """One epoch of a few steps: every number finite, or the row flagged ``diverged``."""
    seen = Counter()

    @given(configs())
    def prop(config):
        config = config.replace(epochs=1, steps_per_epoch=2, batch_size=2)
        try:
            [row] = jc.sweep({"a": config}, [0], progress=False)
        except jc.ConfigError as error:
            says_one_line(str(error))
            return
        seen[row["status"]] += 1
        if row["status"] == "ok":
            assert all(math.isfinite(value) for curve in ("train_loss", "test_loss") for value in row["curves"][curve])
        else:
            assert row["status"] == "diverged" and row["metrics"] == {}

    holds(prop, 2, 20)
    assert seen["ok"] >= 1, seen


# --- rows and config.json ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROW = {
    "schema": 2, "experiment": "tiny", "preset": "quick", "method": "frozen", "label": "frozen", "tier": "none",
    "block": "", "config": described(BASE), "config_hash": config_hash(BASE), "seed": 0, "status": "ok", "flags": [],
    "epochs": 1, "metrics": {"test_accuracy": 0.5, "gamma": 0.1}, "layers": {"gamma": [0.1, 0.2]},
    "curves": {"train_loss": [1.0], "test_accuracy": [0.5]},
}  # fmt: skip


def test_the_row_that_is_spoilt_is_a_good_one(tmp_path):
    append_rows(tmp_path / "rows.jsonl", [ROW])
    [row] = read_rows(tmp_path / "rows.jsonl", "tiny", "quick")
    assert "frozen" in Rows([row]).table()


def test_rows_of_any_content_are_read_and_shown_or_refused_by_name(holds, tmp_path):
    path, seen = tmp_path / "rows.jsonl", Counter()

    @given(st.sampled_from([*ROW, "metrics.gamma", "curves.train_loss"]), JSON, st.integers(0, 2000), st.integers(0, 9))
    def prop(where, value, place, how):
        row = json.loads(json.dumps(ROW))
        inner, _, last = where.rpartition(".")
        (row[inner] if inner else row)[last] = value
        line = json.dumps(row).encode()
        if how == 0:
            line = line[: place % len(line)]
        elif how == 1:
            line = line[: place % len(line)] + bytes([place % 256]) + line[place % len(line) :]
        path.write_bytes(line + b"\n")
        try:
            found = read_rows(path, "tiny", "quick")
            Rows(found).table() if found else None
        except ResultsError as error:
            seen["refused"] += 1
            says_one_line(str(error), str(path))
        else:
            seen["shown"] += 1

    holds(prop, 60, 200)
    assert min(seen.values()) >= 10 and len(seen) == 2, seen


def test_a_config_json_of_any_content_is_used_or_refused_by_name(holds, tmp_path):
    directory = tmp_path / "tiny" / "quick+depth=2"
    directory.mkdir(parents=True)
    seen = Counter()

    @given(
        JSON | st.sampled_from([2, [], {}, {"depth": 2}, "quick"]),
        st.sampled_from(["all", "preset", "overrides", "own", "a setting"]),
        st.integers(0, 300),
    )
    def prop(value, where, place):
        whole = {"preset": "quick", "overrides": {"depth": 2}, "own": []}
        if where == "a setting":
            whole["overrides"]["depth"] = value
        text = json.dumps(value if where == "all" else whole if where == "a setting" else {**whole, where: value})
        (directory / "config.json").write_text(text if place > 30 else text[:place])
        append_rows(directory / "rows.jsonl", [{**ROW, "preset": directory.name}], known="leave")
        try:
            found_in(directory, {"tiny": EXPERIMENT})
        except jc.ConfigError as error:
            seen["refused"] += 1
            says_one_line(str(error))
        else:
            seen["used"] += 1

    holds(prop, 40, 100)
    assert seen["refused"] >= 10 and seen["used"] >= 1, seen
