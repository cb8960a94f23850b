"""No file from elsewhere can run code or lead results astray; what is run as it lies there is its user's alone."""

import ast
import os
import re
import stat
from pathlib import Path

import jax
import numpy as np
import pytest

import jcredit as jc
from jcredit import files
from jcredit.study.experiment import preset_name
from jcredit.sweeps.layout import keep_compiled_programs
from jcredit.sweeps.variants import Folder
from jcredit.tasks import image_data

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "jcredit").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
"""Modules that make objects, or code, of bytes."""
CALLS = {"eval", "exec", "compile", "__import__", "load_pickle", "read_pickle"}


def dangers(text):
    """What of a source could make code of data: (line, what)."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [(node.module or "").split(".")[0]]
        else:
            names = []
        yield from ((node.lineno, name) for name in names if name in MODULES)
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else None
            constant = called == "__import__" and all(isinstance(arg, ast.Constant) for arg in node.args)
            if called in CALLS and not constant:
                yield node.lineno, called
            whole = ast.unparse(node.func)
            if whole in ("torch.load", "np.load", "numpy.load", "jnp.load"):
                safe = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) == "False"]
                if whole == "torch.load" or not safe:
                    yield node.lineno, whole
            if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
                yield node.lineno, "allow_pickle"


@pytest.mark.parametrize(
    "text",
    [
        "__import__(name)", "import pickle", "from cloudpickle import loads", "eval('1')", "exec(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)", "np.save(path, x, allow_pickle=True)", "torch.load(path)", "import yaml",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(text):
    assert list(dangers(text))


@pytest.mark.parametrize("text", ["np.load(path, allow_pickle=False)", "lowered.compile()", "re.compile('a')"])
def test_the_search_leaves_the_rest_alone(text):
    assert not list(dangers(text))


def test_no_source_makes_code_of_data():
    assert len(SOURCES) > 50
    assert not {str(p.relative_to(ROOT)): found for p in SOURCES if (found := list(dangers(p.read_text())))}


# --- paths ------------------------------------------------------------------------------------------------------------

CONFIGS = {"frozen": jc.Config(credit=jc.frozen())}


def refused(call, *named):
    with pytest.raises((jc.ConfigError, files.FileError)) as raised:
        call()
    text = str(raised.value)
    assert "\n" not in text and all(word in text for word in named), text


@pytest.mark.parametrize("name", ["../out", "a/b", "/elsewhere/out", "..", "", ".", "a\0b"])
def test_names_with_a_path_in_them_are_refused(tmp_path, name):
    inside = tmp_path / "results"
    refused(Folder(inside, name, "quick").check, "plain name")
    refused(Folder(inside, "mine", name).check, "plain name")
    refused(lambda: jc.sweep(CONFIGS, [0], results_dir=inside, name=name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["mine", "mine/quick", "mine/quick/rows.jsonl", "mine/quick/cache", "cache"])
def test_a_link_that_leads_out_is_refused(tmp_path, place):
    inside, outside = tmp_path / "results", tmp_path / "outside"
    outside.mkdir()
    (inside / place).parent.mkdir(parents=True, exist_ok=True)
    (inside / place).symlink_to(outside / "rows" if place.endswith("jsonl") else outside)
    refused(Folder(inside, "mine", "quick").check, "leads out of", str(outside))
    assert not list(outside.iterdir())
    (inside / place).unlink()
    Folder(inside, "mine", "quick").check()


def test_a_results_directory_that_is_a_link_itself_is_the_users_choice(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "there")
    Folder(tmp_path / "results", "mine", "quick").check()


def test_a_value_with_a_path_in_it_stays_a_name():
    name = preset_name("quick", {"how": "../../etc"})
    assert name == os.path.basename(name) and preset_name("quick", {"width": 8}) == "quick+width=8"


def test_places_that_take_no_files_are_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place, named in {
        tmp_path / "file": "file", tmp_path / "file/below": "file", tmp_path / ("n" * 300): "too long",
        Path("/proc/nowhere"): "/proc/nowhere", Path("/dev/null/x"): "/dev/null",
    }.items():  # fmt: skip
        refused(Folder(place, "mine", "quick").check, named, "results_dir=")
        refused(lambda place=place: jc.sweep(CONFIGS, [0], results_dir=place), named)
    Folder(tmp_path / "new/deep", "mine", "quick").check()
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_one_may_not_write_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        refused(Folder(tmp_path / "results", "mine", "quick").check, "ermission")
    finally:
        tmp_path.chmod(0o700)


# --- what is private --------------------------------------------------------------------------------------------------


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [None, 0o755, 0o700])
def test_a_private_folder_is_its_owners_alone(tmp_path, before):
    path = tmp_path / "a" / "cache"
    if before:
        path.mkdir(parents=True)
        path.chmod(before)
    old = os.umask(0)
    try:
        assert files.private_directory(path) == path and mode(path) == 0o700
    finally:
        os.umask(old)


@pytest.mark.parametrize("wrong", [0o777, 0o775, 0o1777])
def test_a_folder_that_others_may_write_is_refused(tmp_path, wrong):
    path = tmp_path / "cache"
    path.mkdir()
    path.chmod(wrong)
    refused(lambda: files.private_directory(path), str(path), "written by others", "JCREDIT_CACHE")
    assert mode(path) == wrong


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    refused(lambda: files.private_directory(tmp_path), str(tmp_path), "not to you")


def test_compiled_programs_are_neither_read_nor_written_where_others_may_write(tmp_path, monkeypatch, caplog):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JCREDIT_CACHE", str(tmp_path))
    (tmp_path / "xla").mkdir()
    (tmp_path / "xla").chmod(0o777)
    keep_compiled_programs()
    [said] = caplog.messages
    assert "compiled programs are not kept" in said and "written by others" in said
    assert jax.config.jax_compilation_cache_dir == before


def test_images_are_decoded_anew_where_others_may_write_the_cache(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.warns(UserWarning, match="no image cache: .* written by others"):
        assert image_data._cache_dir(tmp_path / "cache") is None
    one = np.zeros(1)
    image_data._write_cache(
        image_data._cache_dir(tmp_path / "mine") / "x.npz", image_data.ImageArrays(one, one, one, one)
    )
    assert mode(tmp_path / "mine") == 0o700 and (tmp_path / "mine/x.npz").exists()


# --- what is downloaded -----------------------------------------------------------------------------------------------


def test_every_address_has_a_checksum_that_tfds_checks():
    tfds = pytest.importorskip("tensorflow_datasets")
    for name, files_ in image_data._URLS.items():
        known = tfds.builder_cls(name).url_infos
        for url in files_.values():
            assert re.fullmatch("[0-9a-f]{64}", known[url].checksum), url


def test_nothing_else_is_asked_for_over_the_network():
    network = re.compile(r"\b(urllib\.request|urlopen|urlretrieve|requests\.get|httpx|aiohttp|ftplib)\b")
    assert not [p for p in SOURCES if network.search(p.read_text())]
