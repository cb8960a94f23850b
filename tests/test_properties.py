"""Whatever is given, it runs or it is refused in one line: configurations, command lines, rows and config.json.

A short form runs by default; ``pytest -m faults tests/test_properties.py`` tries 2,000 cases.  They are drawn from the
properties themselves: each run tries the same ones.  Image data sets, which are not everywhere, are left out.
"""

import contextlib
import io
import json
import math
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from helpers import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jcredit as jc
from jcredit import config as configuration
from jcredit.config import PARTS, config_hash, described, digest, static_key
from jcredit.parts import Arrays, Factory, Part
from jcredit.report.rows import ResultsError, Rows, append_rows, read_rows
from jcredit.report.tables import TableSpec
from jcredit.settings import Setting
from jcredit.study.command import options_of
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.found import found_in
from jcredit.sweeps import plan, program, run
from jcredit.sweeps.variants import Variant
from jcredit.tasks.classification import arrays_task
from jcredit.training import check_run, make_run

pytestmark = pytest.mark.faults


@pytest.fixture
def holds(request):
    """Tries a property: in the default run a short form of it, with ``-m faults`` all cases."""

    def attempt(prop, short, all_cases):
        count = all_cases if "faults" in request.config.getoption("markexpr").split() else short
        cases = settings(
            max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        cases(prop)()

    return attempt


def says_one_line(text, *named):
    assert text and len(text.splitlines()) == 1 and len(text) < 1500, text
    assert all(word in text for word in named), (text, named)


# --- values -----------------------------------------------------------------------------------------------------------

SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal numbers of float32
IMAGES = np.random.default_rng(0).normal(size=(24, 8, 8, 1)).astype(np.float32)
LABELS = np.arange(24, dtype=np.int32) % 3
ARRAYS, VECTORS = (Arrays((x[:16], LABELS[:16], x[16:], LABELS[16:])) for x in (IMAGES, IMAGES.reshape(24, 64)[:, :12]))
DATA = st.sampled_from([ARRAYS, VECTORS])

FACTORIES: dict[str, list[Factory]] = {}
for found in [*(getattr(jc, name) for name in jc.__all__), jc.tasks.teacher, jc.tasks.lq, arrays_task]:
    if isinstance(found, Factory):
        FACTORIES.setdefault(found.kind, []).append(found)
WRAPPERS = [
    f for f in FACTORIES["estimator"] if any(s.kind and s.kind.name == "estimator" for s in f.settings.values())
]


def admits(setting: Setting, value) -> bool:
    """Whether a plain value is one of a setting's kind, as ``parts`` documents the kinds."""
    low, high, excluded, _ = setting.bound
    if setting.choices:
        return any(type(choice) is type(value) and choice == value for choice in setting.choices)
    if setting.type is int:
        return type(value) is int and low <= value <= min(high, 2**31 - 1) and not (excluded and value == low)
    if setting.type is float:
        if type(value) not in (int, float) or (isinstance(value, float) and not math.isfinite(value)):
            return False
        inside = low <= value <= high and not (excluded and value == low)
        return inside and (value == 0 or SMALLEST <= abs(value) <= LARGEST)
    return type(value) is setting.type


@st.composite
def good(draw, setting: Setting, level=0):
    """A value of a setting's kind; sizes are small, numbers anything that float32 holds."""
    low, high, _, _ = setting.bound
    if setting.choices:
        return draw(st.sampled_from(setting.choices))
    if setting.kind is not None:
        optional = [] if setting.type is Part else [st.none()]
        return draw(st.one_of(*optional, parts(setting.kind.name, level + 1)))
    if setting.type is bool:
        return draw(st.booleans())
    if setting.type is int:
        least = int(max(low, -3))
        return draw(st.integers(least, least + 4))
    if setting.type is float:
        usual = st.sampled_from([x for x in (0.0, 1e-3, 0.3, 1.0, 7) if admits(setting, x)])
        number = st.floats(max(low, -LARGEST), min(high, LARGEST), width=32, allow_subnormal=False)
        return draw(usual | number.filter(lambda x: admits(setting, x)))
    if setting.type is Arrays:
        return draw(DATA)
    assert setting.type is str, setting
    return draw(st.text(max_size=5))


@st.composite
def parts(draw, kind: str, level=0):
    """A part of a kind, some of its settings given."""
    factory = draw(st.sampled_from([f for f in FACTORIES[kind] if level < 2 or f not in WRAPPERS]))
    if factory is arrays_task:
        return factory(data=draw(DATA), classes=3, normalise=draw(st.booleans()))
    chosen = {s.name: draw(good(s, level)) for s in factory.settings.values() if level == 0 or draw(st.booleans())}
    for setting in factory.settings.values():  # those without a default
        if setting.kind and setting.kind.name == "estimator" and setting.name not in chosen:
            chosen[setting.name] = draw(good(setting, level))
    return factory(**chosen)


@st.composite
def configs(draw):
    """A configuration of good values; what fits together is for jcredit to say."""
    changes = {name: draw(parts(kind)) for name, kind in PARTS.items() if draw(st.booleans())}
    if draw(st.integers(0, 4)):  # most of them fit together
        spatial = "network" in changes and changes["network"].name in ("image_cnn", "image_mixer")
        if spatial:
            changes["network"] = changes["network"].replace(patch=draw(st.sampled_from([2, 4])))
            changes["task"] = arrays_task(data=ARRAYS, classes=3)
        if "task" in changes and changes["task"].name == "lq":
            changes["steps_per_epoch"] = 2
    own = [setting for name, setting in configuration.settings().items() if name not in PARTS]
    changes |= {s.name: draw(good(s)) for s in draw(st.lists(st.sampled_from(own), max_size=4, unique=True))}
    return jc.Config(**{"task": jc.tasks.teacher(train_size=64, test_size=16), "batch_size": 2, **changes})


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4),
    st.lists(st.integers(), max_size=2), st.sampled_from([
        10**400, -(10**5000), 2**31, -1, 0, 1e39, 1e-60, 1e-45, -0.0, math.nan, math.inf, "1", "nan", "\n", "a\nb",
        "x" * 500, "raw", jc.dfa, {}, (), object,
    ])
)  # fmt: skip


# --- configurations ---------------------------------------------------------------------------------------------------

SETTINGS = [(factory, s) for kind in FACTORIES.values() for factory in kind for s in factory.settings.values()]
SETTINGS += [(None, s) for name, s in configuration.settings().items() if name not in PARTS]


def test_a_setting_takes_what_its_kind_admits_and_refuses_all_else(holds):
    @given(st.sampled_from(SETTINGS), st.data())
    def prop(where, data):
        factory, setting = where
        value = data.draw(PLAIN | good(setting) if setting.kind is None else PLAIN)
        others = {"of": jc.dfa()} if factory in WRAPPERS else {}
        others |= {"data": ARRAYS, "classes": 3} if factory is arrays_task else {}
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
    monkeypatch.setattr(plan, "program_of", lambda run: plan.Program((), 1, 1, 1.0, 1, 1))  # would compile
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


# --- command lines ----------------------------------------------------------------------------------------------------

LEARNER = jc.scalar_bridge(trunk=jc.mlp(hidden=16))
BASE = tiny(jc.frozen(), depth=2, train_size=64, test_size=64, batch_size=32, epochs=1, diagnostic_samples=32)
PRESET = Preset((0, 1), (Variant("frozen", BASE), Variant("learner", BASE.replace(credit=LEARNER))), "a moment")
EXPERIMENT = Experiment(
    "tiny", "?", "0", "A tiny experiment.", {"smoke": PRESET, "quick": PRESET}, TableSpec("Tiny", credit_columns()),
    default_figure("Tiny"),
)  # fmt: skip
OPTIONS = list(options_of([variant.config for variant in PRESET.variants]))
JUNK = st.sampled_from([
    "", " ", "nan", "inf", "-inf", "1e39", "1e-60", "1e400", "0", "-1", "-1e-3", "9" * 400, "9" * 5000, "1.5", "true",
    "²", "\u0661", "1_0", "0x10", "--", "-", "--x", "../x", "/dev/null/x", "a\nb", "\udcff", "%s", "{}", "None", "=",
    "\0", "x" * 300,
]) | st.text(max_size=6)  # fmt: skip
OF_RUNS = {
    "--preset": ["smoke", "quick"], "--seeds": ["0", "7"], "--methods": ["frozen", "learner"],
    "--seeds-per-batch": ["auto", "2"], "--batch-runs": ["auto", "1"], "--devices": ["1", "64"],
    "--device-gib": ["16", "0.5"], "--device-gflops": ["10", "1e5"], "--results-dir": ["."], "--data-dir": ["."],
    "--estimator": [], "--learnin-rate": [], "--task": [],
}  # fmt: skip


class Started(Exception):
    """The command got as far as compiling or running something."""


def admits_text(setting: Setting, text: str) -> bool:
    """Whether a text stands for a value of a setting's kind."""
    if setting.choices:
        return text in map(str, setting.choices)
    if setting.type is bool:
        return text.lower() in ("true", "false")
    try:
        return admits(setting, setting.type(text))
    except ValueError:
        return False


@st.composite
def command_lines(draw):
    """Arguments: some good settings, a few options of the run, and often something bad; and what must be refused."""
    argv, bad = [], []
    for option in draw(st.lists(st.sampled_from(OPTIONS), max_size=3, unique_by=lambda option: option.name)):
        if draw(st.integers(0, 3)):
            value = draw(good(option.settings[0]))
            text = str(value).lower() if isinstance(value, bool) else str(value)
        else:
            text = draw(JUNK)
        if not any(admits_text(setting, text) for setting in option.settings):
            bad.append((option.flag, option.settings[0].name, text))
        argv += [option.flag, text]
    for flag in draw(st.lists(st.sampled_from(sorted(OF_RUNS)), max_size=2, unique=True)):
        fine = OF_RUNS[flag]
        if fine and draw(st.integers(0, 3)):
            argv += [flag, draw(st.sampled_from(fine))]
        else:
            argv += [flag, draw(JUNK)]
    if draw(st.booleans()):
        argv.append("--plan")
    return argv, bad


@contextlib.contextmanager
def nothing_is_compiled(traced):
    """Whatever would compile or run raises ``Started``; programs that have been traced are not traced again."""

    def check_once(one):
        if static_key(one.config) not in traced:
            check_run(one)
            traced.add(static_key(one.config))

    def start(*_, **__):
        raise Started

    with contextlib.ExitStack() as stack:
        for owner, name in ((program, "_compile"), (plan, "program_of"), (plan, "this_device"), (run, "run_all")):
            stack.enter_context(mock.patch.object(owner, name, start))
        stack.enter_context(mock.patch.object(run, "check_run", check_once))
        yield


def answer(argv):
    """What the command says when it refuses; None where it goes on."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(EXPERIMENT, argv)
        except Started:
            assert not err.getvalue() and not out.getvalue()
            return None
        except SystemExit as exit_:
            assert exit_.code == 2 and not out.getvalue(), (exit_.code, err.getvalue(), out.getvalue())
            return err.getvalue()
    raise AssertionError("neither refused nor started")


def test_a_command_line_is_refused_in_one_line_or_goes_on(holds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen, traced = Counter(), set()

    @given(command_lines())
    def prop(line):
        argv, bad = line
        with nothing_is_compiled(traced):
            said = answer(["--no-compile-cache", "--no-progress", *argv])
        seen["went on" if said is None else "refused"] += 1
        if said is not None:
            says_one_line(said, "tiny.py: error: ")
            assert "Error)" not in said and "Traceback" not in said, said
            if len(bad) == 1 and len(argv) == 2:
                flag, name, text = bad[0]
                assert flag in said or name in said, said
                assert text.startswith("--") or repr(text)[1:-1][:40] in said, said
        else:
            assert not bad, argv
        assert not list(tmp_path.rglob("rows.jsonl"))

    holds(prop, 60, 680)
    assert min(seen["went on"], seen["refused"]) >= 10, seen


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
        st.sampled_from(["all", "preset", "overrides", "estimators", "a setting"]),
        st.integers(0, 300),
    )
    def prop(value, where, place):
        whole = {"preset": "quick", "overrides": {"depth": 2}, "estimators": []}
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
