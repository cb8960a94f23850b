"""Cases of the properties: values of every kind of setting, parts, configurations, and what would be none."""

import math
from typing import Any

import numpy as np
from helpers import FACTORIES, tiny
from hypothesis import strategies as st

import jcredit as jc
from jcredit import config as configuration
from jcredit.config import PARTS
from jcredit.parts import Arrays, Factory, Part
from jcredit.report.tables import TableSpec
from jcredit.settings import Setting
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure
from jcredit.sweeps.variants import Variant
from jcredit.tasks.classification import arrays_task
from jcredit.tasks.targets import regression_task


def says_one_line(text, *named):
    assert text and len(text.splitlines()) == 1 and len(text) < 1500, text
    assert all(word in text for word in named), (text, named)


# --- values -----------------------------------------------------------------------------------------------------------

SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal numbers of float32
IMAGES = np.random.default_rng(0).normal(size=(24, 8, 8, 1)).astype(np.float32)
LABELS = np.arange(24, dtype=np.int32) % 3
ARRAYS, VECTORS = (Arrays((x[:16], LABELS[:16], x[16:], LABELS[16:])) for x in (IMAGES, IMAGES.reshape(24, 64)[:, :12]))
DATA = st.sampled_from([ARRAYS, VECTORS])
ONE_HOT = np.eye(3, dtype=np.float32)
TARGETS = [Arrays((x, ONE_HOT[y], u, ONE_HOT[v])) for x, y, u, v in (ARRAYS, VECTORS)]
OF_ARRAYS: dict[Factory, dict[str, Any]] = {
    arrays_task: {"data": ARRAYS, "classes": 3},
    regression_task: {"data": TARGETS[0], "outputs": 3},
}

BY_KIND: dict[str, list[Factory]] = {}
for found in FACTORIES:
    if found not in (jc.tasks.cifar10, jc.tasks.fashion_mnist):
        BY_KIND.setdefault(found.kind, []).append(found)
WRAPPERS = [f for f in BY_KIND["estimator"] if any(s.kind and s.kind.name == "estimator" for s in f.settings.values())]


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
    factory = draw(st.sampled_from([f for f in BY_KIND[kind] if level < 2 or f not in WRAPPERS]))
    if factory in OF_ARRAYS:
        data = draw(DATA if factory is arrays_task else st.sampled_from(TARGETS))
        return factory(**OF_ARRAYS[factory] | {"data": data, "normalise": draw(st.booleans())})
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


# --- an experiment ----------------------------------------------------------------------------------------------------

LEARNER = jc.scalar_bridge(trunk=jc.mlp(hidden=16))
BASE = tiny(jc.frozen(), depth=2, train_size=64, test_size=64, batch_size=32, epochs=1, diagnostic_samples=32)
PRESET = Preset((0, 1), (Variant("frozen", BASE), Variant("learner", BASE.replace(credit=LEARNER))), "a moment")
EXPERIMENT = Experiment(
    "tiny", "?", "0", "A tiny experiment.", {"smoke": PRESET, "quick": PRESET}, TableSpec("Tiny", credit_columns()),
    default_figure("Tiny"),
)  # fmt: skip
