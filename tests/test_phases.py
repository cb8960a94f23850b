"""What is special in each script of the study's phases, and the commands over all of them."""

import dataclasses
import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_scene, quick, shapes_of, start, tiny

from jcredit import experiment, plots, results
from jcredit.__main__ import TOOLS, load_experiment, main
from jcredit.config import as_dict, hparams
from jcredit.estimators import make_estimator, vector_field
from jcredit.experiment import run
from jcredit.tasks import image_data, images, make_task
from jcredit.training import code_width, make_run

FOLDER = Path(__file__).parent.parent / "experiments"


def of(name):
    return load_experiment(FOLDER / f"{name}.py")


def configs(name, preset="full"):
    return {(v.block, v.label): v.config for v in of(name).presets[preset].variants}


@pytest.fixture
def imagined(monkeypatch):
    """Sweeps that write rows with made-up numbers: what is tested here is what becomes of them."""

    def sweep(variants, seeds, place, **_):
        wanted = [(variant, seed) for variant in variants for seed in seeds]
        results.append_rows(place.rows, [made_up(variant, seed, place) for variant, seed in wanted])

    monkeypatch.setattr(experiment, "run_sweep", sweep)


def made_up(variant, seed, place):
    layers = np.random.default_rng([seed, int(variant.hash, 16)]).normal(size=variant.config.depth)
    scores = {name: scale * layers.mean() for name, scale in (("gamma", 1.0), ("rho", 0.5), ("test_accuracy", 0.1))}
    return {
        "schema": 1, "experiment": place.experiment, "preset": place.preset, "method": variant.config.method,
        "label": variant.label, "block": variant.block, "config": as_dict(variant.config), "config_hash": variant.hash,
        "seed": seed, "status": "ok", "epochs": 2, "metrics": scores, "layers": {"gamma": layers},
        "curves": {"test_accuracy": [0.1, scores["test_accuracy"]]},
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in TOOLS))
def test_the_steps_of_every_preset_fit_its_data(name):
    sizes = {"cifar10": 50_000, "fashion_mnist": 60_000, "teacher": 8192}
    for preset in of(name).presets.values():
        for variant in preset.variants:
            config = variant.config
            if config.task != "lq":  # its batches are drawn afresh
                held_out = 5000 if config.evaluate_on == "validation" else 0
                samples = config.train_size or sizes[config.task] - held_out
                assert max(1, config.steps_per_epoch) * config.batch_size <= samples, variant.label


def shown(tmp_path, name, *argv):
    """Rows and table of a smoke run."""
    table = run(of(name), ["--preset", "smoke", "--results-dir", str(tmp_path), *argv])
    return results.read_rows(tmp_path / name / "smoke/rows.jsonl"), table


def cells(table):
    return [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line[:1] == "|"]


def without(config, *names):
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in names}


# --- one test for each script ---------------------------------------------------------------------------------------


def test_boundary_ablation_covers_codes_weights_and_warmups():
    found = configs("boundary_ablation")
    bridges = [c for c in found.values() if c.method == "scalar_bridge"]
    assert all((c.alpha, c.depth) == (1.0, 4) for c in found.values())
    assert {c.code: code_width(c) for c in bridges} == {"eT": 10, "deltaL": 128, "eT_hL": 42, "deltaL_hL": 160}
    scales = {(c.code, c.projection_scale) for c in bridges if c.code.endswith("hL")}
    assert scales == {(code, scale) for code in ("eT_hL", "deltaL_hL") for scale in ("unit", "fan_in")}
    assert {c.terminal_weight for c in bridges if c.code == "eT" and c.warmup_ratio == 0.2} == {0, 0.25, 1, 4}
    for code in ("eT", "deltaL"):
        assert {c.warmup_ratio for c in bridges if c.code == code and c.terminal_weight == 1} == {0, 0.05, 0.2, 0.5}


def test_cifar_depth_scan_shows_layer_zero_beside_what_the_study_implies(tmp_path, imagined):
    found = configs("cifar_depth_scan")
    assert {c.depth for c in found.values()} == {2, 4, 6, 8, 12} and {c.width for c in found.values()} == {512}
    for depth in (2, 12):
        here = {label for block, label in found if block == f"L = {depth}"}
        assert here == {"bp", "frozen", "broadcast", "dfa", "scalar_bridge"}
    (dfa, *_), table = shown(tmp_path, "cifar_depth_scan", "--methods", "dfa")
    titles, _, line = cells(table)[:3]
    at = titles.index("Gamma, l = 0")
    assert line[at : at + 2] == [f"{dfa['layers']['gamma'][0]:.3f}", "(0.39)"]  # the study's: 2 x .196


def test_gamma_is_the_mean_of_its_layers():
    config = tiny(method="dfa")
    run_ = make_run(config)
    scores = quick(run_.diagnose)(*start(run_, config))
    layers = np.asarray(scores["layers"]["gamma"])
    assert layers.shape == (3,)
    np.testing.assert_allclose(scores["metrics"]["gamma"], layers.mean(), rtol=1e-5)
    np.testing.assert_allclose(scores["metrics"]["gamma_deep"], layers[1:].mean(), rtol=1e-5)


def test_profiles_of_credit_start_at_layer_zero():
    row = {"config": {"depth": 2}, "layers": {"gamma": [0.4, 0.0], "weight_cosine": [0.3, 0.2]}}
    assert plots._profile(row, "gamma") == {0.0: 0.4, 0.5: 0.0}
    assert plots._profile(row, "weight_cosine") == {0.5: 0.3, 1.0: 0.2}


def test_cifar_delta_code_differs_in_the_code_alone():
    found = configs("cifar_delta_code")
    error, delta = (found["", f"scalar_bridge {code}"] for code in ("eT", "deltaL"))
    assert (code_width(error), code_width(delta)) == (10, 512)
    assert without(error, "code") == without(delta, "code")


def test_online_scan_gains_are_paired_with_dfa_of_the_same_seed(tmp_path, imagined):
    scanned = {(c.method, c.code, c.warmup_ratio, c.terminal_weight) for c in configs("online_scan").values()}
    for r in (0.0, 0.05, 0.2):
        assert ("state_bridge", "eT", r, 1.0) in scanned
        assert {("scalar_bridge", code, r, w) for code in ("eT", "deltaL") for w in (1.0, 4.0)} <= scanned
    label = "cb_eT wr=0.2 tgw=1"
    rows, table = shown(tmp_path, "online_scan")
    gamma = {(row["label"], row["seed"]): row["metrics"]["gamma"] for row in rows}
    gains = [gamma[label, seed] - gamma["dfa", seed] for seed in (42, 123)]
    titles, *lines = cells(table)
    [line] = [line for line in lines if line[1] == label]
    assert line[titles.index("S1")] == f"{np.mean(gains):+.3f} ± {np.std(gains, ddof=1):.3f}"
    assert line[titles.index("S1") + 1] == "+.079, +.059, +.135"


def test_vector_pilot_lines_differ_in_the_number_of_directions():
    found = configs("vector_pilot")
    assert {c.depth for c in found.values()} == {4, 8} and {c.alpha for c in found.values()} == {1.0}
    four, eight = found["L = 8", "vector M=4"], found["L = 8", "vector M=8"]
    assert (four.directions, eight.directions) == (4, 8)
    assert without(four, "directions") == without(eight, "directions")


@pytest.mark.parametrize("layers", ["random", "all"])
def test_vector_audit_shuffles_targets_within_the_batch_and_keeps_directions(monkeypatch, layers):
    audited = configs("vector_audit")
    plain, shuffled = audited["L = 4", "vector M=4"], audited["L = 4", "shuffled"]
    assert shuffled.shuffled and without(plain, "shuffled") == without(shuffled, "shuffled")
    scene = make_scene("ladder", method="vector_field", terminal_weight=0.0, direction_layers=layers)
    hp = hparams(scene.config, 10)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(scene.config.directions, 8)), jnp.float32)
    module = importlib.import_module(vector_field.__module__)  # its name in the package is the function's
    seen = {
        "directions": lambda v, g: jnp.sum(v * weights[..., None]),
        "targets of each direction": lambda v, g: jnp.sum(jnp.sort(g, axis=1) * weights),
        "whose target it is": lambda v, g: jnp.sum(g * weights),
    }

    def measured(what, is_shuffled):
        monkeypatch.setattr(module, "directional_loss", lambda a, v, g: seen[what](v, g))
        estimator = make_estimator(dataclasses.replace(scene.config, shuffled=is_shuffled))
        state = estimator.init(jax.random.key(0), shapes_of(scene))
        assert estimator.loss is not None
        return float(estimator.loss(state.params, state, scene.ctx, scene.env, hp, jax.random.key(1))[0])

    for what in ("directions", "targets of each direction"):
        np.testing.assert_allclose(measured(what, True), measured(what, False), rtol=1e-4)
    mine, others = measured("whose target it is", False), measured("whose target it is", True)
    assert abs(mine - others) > 1e-2 * abs(mine)


def test_vector_audit_scores_rho_by_jvp_on_all_lines():
    audited = configs("vector_audit")
    assert {c.rho_scheme for c in audited.values()} == {"jvp"}
    assert audited["L = 8", "one-sided"].scheme == "one_sided"
    assert (
        audited["L = 8", "no terminal"].terminal_weight
        == 0
        == audited["L = 8", "shuffled, no terminal"].terminal_weight
    )


def test_online_vector_has_the_studys_line_and_its_controls():
    found = configs("online_vector")
    line = found["", "vec wr=0.2 tw=1"]
    assert (line.task, line.depth, line.width, line.epochs) == ("cifar10", 4, 256, 100)
    assert (line.normalise, line.clip, line.warmup_ratio, line.terminal_weight) == ("rms", 1.0, 0.2, 1.0)
    control = found["", "vec shuffled wr=0.2 tw=0"]
    assert without(found["", "vec wr=0.2 tw=0"], "shuffled") == without(control, "shuffled")


def test_fashion_mnist_has_the_blocks_of_cifar10_on_grey_images(monkeypatch):
    found, cifar10 = configs("fashion_mnist"), configs("cifar10")
    assert list(found) == list(cifar10)
    changed = ("task", "crops", "flips", "epochs")
    assert all(without(found[key], *changed) == without(cifar10[key], *changed) for key in found)
    pixels = np.zeros((64, 28, 28, 1), np.uint8)
    labels = np.zeros(64, np.int32)
    fake = image_data.ImageArrays(pixels, labels, pixels, labels)
    monkeypatch.setattr(images, "_loaded", lambda name, *_: fake if name == "fashion_mnist" else pytest.fail(name))
    config = dataclasses.replace(configs("fashion_mnist", "smoke")["jcredit's rule: raw credit", "dfa"], train_size=32,
                                 test_size=32)  # fmt: skip
    task = make_task(config)
    assert task.shared is not None and task.shared.train_x.shape == (32, 28, 28, 1)
    x_B, _ = task.batch(task.shared, jnp.arange(4), jax.random.key(0))
    network = task.network(hparams(config, 1))
    params = network.init(jax.random.key(0))
    assert x_B.shape == (4, 28, 28, 1) and network.embed(params.embed, x_B).shape == (4, config.width)


# --- list and report ------------------------------------------------------------------------------------------------

SCRIPT = """
from jcredit.bases import lines, named
from jcredit.config import Config
from jcredit.experiment import Experiment, Preset, credit_columns, default_figure
from jcredit.tables import TableSpec

BASE = Config(task="teacher", depth=2, width=16, train_size=64, test_size=64, batch_size=32, epochs=1,
              diagnostic_samples=32, learning_rate=1e-3)
PRESET = Preset((0, 1), lines(BASE, named("frozen", "dfa")), "a moment")
EXPERIMENT = Experiment("tiny", "Is it small?", "0", None, dict.fromkeys(("smoke", "quick", "full"), PRESET),
                        TableSpec("Tiny", credit_columns()), default_figure("Tiny"))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/tiny.py").write_text(SCRIPT)
    return tmp_path / "scripts"


def report(tmp_path, folder):
    main(["report", "--experiments", str(folder), "--results-dir", str(tmp_path / "results")])


def test_list_shows_every_experiment(capsys):
    main(["list"])
    text = capsys.readouterr().out
    for script in FOLDER.glob("*.py"):
        if script.stem in TOOLS:
            continue
        found = load_experiment(script)
        assert found.question in text and re.search(rf"^{found.name}  \(phase", text, re.M)
    assert "57 runs (19 configurations x 3 seeds)" in text and "16 minutes" in text


def test_report_rebuilds_the_same_bytes_from_rows_alone(capsys, tmp_path, folder, imagined):
    options = ["--results-dir", str(tmp_path / "results"), "--no-progress", "--seeds", "0"]
    run(load_experiment(folder / "tiny.py"), [*options, "--methods", "dfa"])
    run(load_experiment(folder / "tiny.py"), [*options, "--width", "8", "--learning-rate", "0.01"])
    made = {path: path.read_bytes() for path in tmp_path.glob("results/*/*/*") if path.suffix in (".md", ".png")}
    assert len(made) == 4
    for path in made:
        path.unlink()
    report(tmp_path, folder)
    assert {path: path.read_bytes() for path in made} == made
    text = capsys.readouterr().out
    assert "tiny/quick: rebuilt from 1 rows; 1 of 2 configurations have no rows yet" in text
    assert "tiny/quick+width=8+learning_rate=0.01: rebuilt from 2 rows\n" in text


def test_report_says_which_rows_do_not_belong_and_leaves_them(capsys, tmp_path, folder, imagined):
    run(load_experiment(folder / "tiny.py"), ["--results-dir", str(tmp_path / "results"), "--no-progress"])
    table = tmp_path / "results/tiny/quick/table.md"
    (folder / "tiny.py").write_text(SCRIPT.replace('"frozen", "dfa"', '"frozen"'))
    report(tmp_path, folder)
    assert "2 rows do not belong to the present grid" in capsys.readouterr().out and "dfa" not in table.read_text()
    before = table.read_bytes()
    (folder / "tiny.py").write_text(SCRIPT.replace("1e-3", "2e-3"))
    with pytest.raises(SystemExit, match="2"):
        report(tmp_path, folder)
    assert "none of its 4 rows belongs to the present grid" in capsys.readouterr().err and table.read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["lst"], ["lst", "list"]),
        (["report", "--results-dr", "x"], ["--results-dr"]),
        (["list", "--experiments", "nowhere"], ["nowhere", "--experiments"]),
        (["report", "--results-dir", "nowhere"], ["nowhere", "--results-dir"]),
    ],
)
def test_wrong_commands_are_one_line_and_status_2(capsys, argv, named):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    text = capsys.readouterr()
    assert text.out == "" and len(text.err.strip().splitlines()) == 1 and all(word in text.err for word in named)


def test_a_script_without_an_experiment_is_named(capsys, tmp_path, folder):
    (folder / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(SystemExit, match="2"):
        main(["list", "--experiments", str(folder)])
    text = capsys.readouterr().err
    assert "broken.py" in text and "nothing_of_this_name" in text and len(text.strip().splitlines()) == 1


def test_torn_rows_are_named_and_the_rest_is_rebuilt(capsys, tmp_path, folder, imagined):
    run(
        load_experiment(folder / "tiny.py"),
        ["--results-dir", str(tmp_path / "results"), "--no-progress", "--seeds", "0"],
    )
    stranger = tmp_path / "results/other/quick"
    stranger.mkdir(parents=True)
    (stranger / "rows.jsonl").write_text("{torn")
    torn = tmp_path / "results/tiny/smoke"
    torn.mkdir()
    (torn / "rows.jsonl").write_text("{torn")
    with pytest.raises(SystemExit, match="2"):
        report(tmp_path, folder)
    text = capsys.readouterr()
    assert "tiny/quick: rebuilt" in text.out
    assert "'other'" in text.err and "tiny/smoke/rows.jsonl" in text.err
    assert (torn / "rows.jsonl").read_text() == "{torn"
