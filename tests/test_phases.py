"""What is special in each script of the study's phases."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_scene, quick, shapes_of, small, start, tiny
from made_rows import cells

import jcredit as jc
from jcredit.config import described
from jcredit.estimators import fields
from jcredit.report import stats
from jcredit.report.rows import read_rows
from jcredit.report.series import profile_points
from jcredit.study.experiment import run
from jcredit.study.frozen import FIXED, LEARNED, SMOKE_NET, fits
from jcredit.study.scripts import load_experiment
from jcredit.study.settings import ORACLE, lines, named
from jcredit.sweeps.variants import Snapshot
from jcredit.tasks import image_data, images
from jcredit.training import make_run

pytest_plugins = ["imagined"]
FOLDER = Path(__file__).parent.parent / "experiments"


def of(name):
    return load_experiment(FOLDER / f"{name}.py")


def configs(name, preset="full"):
    return {(v.block, v.label): v.config for v in of(name).presets[preset].variants}


def network(config, name):
    return config.network.settings[name]


def credit(config, name):
    """A setting of the credit or of its trunk."""
    own = config.credit.settings
    return own[name] if name in own else own["trunk"].settings[name]


def code_width(config):
    """Width of the conditioning code: what the trunk's first layer has beside a state and nine features of time."""
    shapes = jc.Shapes(4, network(config, "width"), 10, None)
    trunk = config.credit.settings["trunk"].build()
    params, _ = jax.eval_shape(lambda key: trunk.init(key, shapes, 1), jax.random.key(0))
    return params["params"]["Dense_0"]["kernel"].shape[0] - shapes.width - 9


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_the_steps_of_every_preset_fit_its_data(name):
    sizes = {"cifar10": 50_000, "fashion_mnist": 60_000, "teacher": 8192}
    for preset in of(name).presets.values():
        for variant in preset.variants:
            config, task = variant.config, variant.config.task
            if task.name != "lq":  # its batches are drawn afresh
                held_out = 5000 if task.settings.get("evaluate_on") == "validation" else 0
                samples = task.settings["train_size"] or sizes[task.name] - held_out
                assert max(1, config.steps_per_epoch) * config.batch_size <= samples, variant.label


def shown(tmp_path, name, *argv):
    """Rows and table of a smoke run."""
    run(of(name), ["--preset", "smoke", "--results-dir", str(tmp_path), *argv])
    directory = tmp_path / name / "smoke"
    return read_rows(directory / "rows.jsonl"), (directory / "table.md").read_text(encoding="utf-8")


def without(config, *names):
    """The configuration but for the settings of these names, wherever they are."""

    def rest(value):
        return {k: rest(v) for k, v in value.items() if k not in names} if isinstance(value, dict) else value

    return rest(described(config))


# --- lines of a grid ------------------------------------------------------------------------------------------------


def test_fields_reach_every_line_that_has_the_setting_but_none_that_sets_it():
    table = {
        "bp": {"credit": jc.bp()},
        "free": {"credit": jc.vector_field()},
        "inner": {"credit": jc.exact_terminal(of=jc.vector_field(directions=8)), "warmup_ratio": 0.2},
        "wide": {"credit": jc.state_bridge(trunk=jc.mlp(hidden=512))},
    }
    fields = {"hidden": 16, "directions": 2, "warmup_ratio": 0.1, "depth": 3, "credit.clip": 0.5}
    found = {v.label: v.config for v in lines(jc.Config(), table, "block", **fields)}
    assert {network(c, "depth") for c in found.values()} == {3}
    assert [c.warmup_ratio for c in found.values()] == [0.1, 0.1, 0.2, 0.1]
    small = jc.mlp(hidden=16)
    assert found["bp"].credit == jc.bp()
    assert found["free"].credit == jc.vector_field(directions=2, trunk=small, clip=0.5)
    assert found["inner"].credit == jc.exact_terminal(of=jc.vector_field(directions=8, trunk=small, clip=0.5))
    assert found["wide"].credit == jc.state_bridge(trunk=jc.mlp(hidden=512), clip=0.5)
    assert [v.label for v in lines(jc.Config(), table, only=("wide", "bp"), **fields)] == ["bp", "wide"]


def test_a_field_that_no_line_has_is_refused():
    with pytest.raises(jc.ConfigError, match="'hidden' is unknown"):
        lines(jc.Config(), named("bp", "dfa"), hidden=16)


def test_what_is_fitted_on_a_frozen_network_is_kept_at_the_end_of_its_own_epochs():
    # Followups of other scripts start there: an earlier fit has learned less than its row says.
    found = fits(Snapshot(SMOKE_NET, 2), epochs=5)
    assert {v.label for v in found} == {*FIXED, *LEARNED}
    for v in found:
        assert v.keep == (1 if v.label in FIXED else 5,) and v.config.epochs == v.keep[0], v.label


# --- one test for each script ---------------------------------------------------------------------------------------


def test_boundary_ablation_covers_codes_weights_and_warmups():
    found = configs("boundary_ablation")
    bridges = [c for c in found.values() if c.credit.name == "scalar_bridge"]
    assert all((network(c, "alpha"), network(c, "depth")) == (1.0, 4) for c in found.values())
    widths = {credit(c, "code"): code_width(c) for c in bridges}
    assert widths == {"eT": 10, "deltaL": 128, "eT_hL": 42, "deltaL_hL": 160}
    scales = {(credit(c, "code"), credit(c, "projection_scale")) for c in bridges if credit(c, "code").endswith("hL")}
    assert scales == {(code, scale) for code in ("eT_hL", "deltaL_hL") for scale in ("unit", "fan_in")}
    seen = {(credit(c, "code"), credit(c, "terminal_weight"), c.warmup_ratio) for c in bridges}
    assert {w for code, w, warmup in seen if (code, warmup) == ("eT", 0.2)} == {0, 0.25, 1, 4}
    for code in ("eT", "deltaL"):
        assert {warmup for own, w, warmup in seen if (own, w) == (code, 1)} == {0, 0.05, 0.2, 0.5}


def test_cifar_depth_scan_shows_layer_zero_beside_what_the_study_implies(tmp_path, imagined):
    found = configs("cifar_depth_scan")
    assert {network(c, "depth") for c in found.values()} == {2, 4, 6, 8, 12}
    assert {network(c, "width") for c in found.values()} == {512}
    for depth in (2, 12):
        here = {label for block, label in found if block == f"L = {depth}"}
        assert here == {ORACLE, "frozen", "broadcast", "dfa", "scalar_bridge"}
    (dfa, *_), table = shown(tmp_path, "cifar_depth_scan", "--methods", "dfa")
    titles, _, line = [cells(text) for text in table.splitlines() if text[:1] == "|"][:3]
    at = titles.index("Gamma, l = 0")
    assert line[at : at + 2] == [f"{dfa['layers']['gamma'][0]:.3f}", "(0.39)"]  # the study's: 2 x .196


def test_gamma_is_the_mean_of_its_layers():
    config = tiny(jc.dfa())
    run_ = make_run(config)
    scores = quick(run_.diagnose)(*start(run_, config))
    layers = np.asarray(scores["layers"]["gamma"])
    assert layers.shape == (3,)
    np.testing.assert_allclose(scores["metrics"]["gamma"], layers.mean(), rtol=1e-5)
    np.testing.assert_allclose(scores["metrics"]["gamma_deep"], layers[1:].mean(), rtol=1e-5)


def test_profiles_of_credit_start_at_layer_zero():
    row = {"config": {"depth": 2}, "layers": {"gamma": [0.4, 0.0], "weight_cosine": [0.3, 0.2]}}
    assert profile_points(row, "gamma") == {0.0: 0.4, 0.5: 0.0}
    assert profile_points(row, "weight_cosine") == {0.5: 0.3, 1.0: 0.2}


def test_cifar_delta_code_differs_in_the_code_alone():
    found = configs("cifar_delta_code")
    error, delta = (found["", f"scalar_bridge {code}"] for code in ("eT", "deltaL"))
    assert (code_width(error), code_width(delta)) == (10, 512)
    assert without(error, "code") == without(delta, "code")


def test_online_scan_gains_are_paired_with_dfa_of_the_same_seed(tmp_path, imagined):
    scanned = [c for c in configs("online_scan").values() if "trunk" in c.credit.settings]
    found = {
        (c.credit.name, credit(c, "code"), c.warmup_ratio, c.credit.settings.get("terminal_weight")) for c in scanned
    }
    for r in (0.0, 0.05, 0.2):
        assert ("state_bridge", "eT", r, None) in found
        assert {("scalar_bridge", code, r, w) for code in ("eT", "deltaL") for w in (1.0, 4.0)} <= found
    label = "cb_eT wr=0.2 tgw=1"
    rows, table = shown(tmp_path, "online_scan")
    gamma = {(row["label"], row["seed"]): row["metrics"]["gamma"] for row in rows}
    gains = [gamma[label, seed] - gamma["dfa", seed] for seed in (42, 123)]
    titles, *lines = [cells(text) for text in table.splitlines() if text[:1] == "|"]
    [line] = [line for line in lines if line[0] == label]
    s = stats.summary(gains)
    mean, half = map(float, line[titles.index("S1")].split(", p")[0].split(" ± "))
    # three digits of the half width, the mean to the same place
    assert half == pytest.approx(s.high - s.mean, rel=0.01) and mean == pytest.approx(s.mean, abs=half / 100)
    assert line[titles.index("S1") + 1] == "+.079, +.059, +.135"


def test_vector_pilot_lines_differ_in_the_number_of_directions():
    found = configs("vector_pilot")
    assert {(network(c, "depth"), network(c, "alpha")) for c in found.values()} == {(4, 1.0), (8, 1.0)}
    four, eight = found["L = 8", "vector M=4"], found["L = 8", "vector M=8"]
    assert (credit(four, "directions"), credit(eight, "directions")) == (4, 8)
    assert without(four, "directions") == without(eight, "directions")


@pytest.mark.parametrize("layers", ["one", "all"])
def test_vector_audit_shuffles_targets_within_the_batch_and_keeps_directions(monkeypatch, layers):
    audited = configs("vector_audit")
    plain, shuffled = audited["L = 4", "vector M=4"], audited["L = 4", "shuffled"]
    assert credit(shuffled, "shuffled") and without(plain, "shuffled") == without(shuffled, "shuffled")
    scene = make_scene("ladder")
    field = small(jc.vector_field, terminal_weight=0.0, layers=layers)
    samples = 8 if layers == "one" else 3 * 8
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(field.settings["directions"], samples)), jnp.float32)
    by_layer = lambda g: g.reshape(g.shape[0], -1, 8)  # noqa: E731
    seen = {
        "directions": lambda v, g: jnp.sum(v * weights[..., None]),
        "targets of each direction": lambda v, g: jnp.sum(jnp.sort(by_layer(g)) * by_layer(weights)),
        "whose target it is": lambda v, g: jnp.sum(g * weights),
    }

    def measured(what, is_shuffled):
        monkeypatch.setattr(fields, "directional_loss", lambda a, v, g, *_: seen[what](v, g))
        estimator = field.replace(shuffled=is_shuffled).build()
        state = estimator.init(jax.random.key(0), shapes_of(scene))
        assert estimator.loss is not None
        return float(estimator.loss(state, scene.ctx, scene.env, jax.random.key(1))[0])

    for what in ("directions", "targets of each direction"):
        np.testing.assert_allclose(measured(what, True), measured(what, False), rtol=1e-4)
    mine, others = measured("whose target it is", False), measured("whose target it is", True)
    assert abs(mine - others) > 1e-2 * abs(mine)


def test_vector_audit_has_lines_without_terminal_loss_and_with_one_sided_differences():
    audited = configs("vector_audit")
    assert credit(audited["L = 8", "one-sided"], "scheme") == "one_sided"
    for label in ("no terminal", "shuffled, alone"):
        assert credit(audited["L = 8", label], "terminal_weight") == 0


def test_online_vector_has_the_studys_line_and_its_controls():
    found = configs("online_vector")
    line = found["", "vec wr=0.2 tw=1"]
    assert (line.task, line.network, line.epochs) == (jc.tasks.cifar10(), jc.image_mlp(depth=4, width=256), 100)
    assert (line.normalise, line.clip, line.warmup_ratio) == ("rms", 1.0, 0.2) and line.credit == jc.vector_field()
    control = found["", "vec shuffled wr=0 tw=0"]  # neither warm-up nor terminal loss teaches it anything
    assert control.warmup_ratio == 0 and credit(control, "terminal_weight") == 0 and credit(control, "shuffled")


def test_fashion_mnist_has_the_blocks_of_cifar10_on_grey_images(monkeypatch):
    found, cifar10 = configs("fashion_mnist"), configs("cifar10")
    assert list(found) == list(cifar10)
    changed = ("task", "epochs")
    assert {c.task for c in found.values()} == {jc.tasks.fashion_mnist()}  # no crops, no flips
    assert all(without(found[key], *changed) == without(cifar10[key], *changed) for key in found)
    pixels = np.zeros((64, 28, 28, 1), np.uint8)
    labels = np.zeros(64, np.int32)
    fake = image_data.ImageArrays(pixels, labels, pixels, labels)
    monkeypatch.setattr(images, "_loaded", lambda name, *_: fake if name == "fashion_mnist" else pytest.fail(name))
    config = configs("fashion_mnist", "smoke")["jcredit's rule: raw credit", "dfa"]
    run_ = make_run(config.replace(train_size=32, test_size=32, batch_size=32))
    task, net, *_ = run_.built(run_.hparams(run_.config))
    assert isinstance(task.data, jc.Data) and task.data.train_x.shape == (32, 28, 28, 1)
    x_B, _ = task.batch(task.data, jnp.arange(4), jax.random.key(0))
    params = net.init(jax.random.key(0))
    assert x_B.shape == (4, 28, 28, 1) and net.embed(params.embed, x_B).shape == (4, network(config, "width"))
