"""Entries of the cache of compiled programs: torn, changed or foreign ones are set aside, whole ones stay."""

import os
import time
import zlib
from types import SimpleNamespace

import jax
import pytest
from helpers import tiny
from jax.experimental.compilation_cache import compilation_cache

import jcredit as jc
from jcredit.sweeps import batch, door
from jcredit.sweeps.compiled import NOTED, set_damaged_aside, trim
from jcredit.sweeps.layout import compiled_programs_are_kept, programs_kept

PROGRAM = zlib.compress(bytes(range(256)) * 9)


@pytest.fixture
def entry(tmp_path):
    """Writes an entry that is old enough to be complete."""

    def write(data, name="jit_f-0123-cache", age=3600.0):
        path = tmp_path / name
        path.write_bytes(data)
        os.utime(path, (time.time() - age,) * 2)
        return path

    return write


def aside(folder):
    return sorted(path.name.partition(".damaged-")[0] for path in folder.glob("*.damaged-*"))


def test_whole_entries_stay_and_are_noted(tmp_path, entry):
    path = entry(PROGRAM)
    for _ in range(2):
        set_damaged_aside(tmp_path)
        assert path.read_bytes() == PROGRAM and not aside(tmp_path)
    assert path.name in (tmp_path / NOTED).read_text()
    set_damaged_aside(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("data", [b"", PROGRAM[:-1], PROGRAM[:9], b"foreign", PROGRAM[:40] + b"!" + PROGRAM[41:]])
def test_a_torn_or_foreign_entry_is_set_aside_at_once(tmp_path, entry, data, caplog):
    path = entry(data)
    set_damaged_aside(tmp_path)
    assert not path.exists() and aside(tmp_path) == [path.name]
    [warning] = caplog.messages
    assert str(path) in warning and "compiled again" in warning and "\n" not in warning


def test_an_entry_that_changed_is_set_aside_however_it_is_compressed(tmp_path, entry):
    zstandard = bytes.fromhex("28b52ffd") + bytes(99)  # its decompressor is not asked
    paths = [entry(PROGRAM, "a-cache"), entry(zstandard, "b-cache")]
    set_damaged_aside(tmp_path)
    assert not aside(tmp_path)
    for path in paths:
        path.write_bytes(path.read_bytes()[:-9] + b"\1" + path.read_bytes()[-8:])
    set_damaged_aside(tmp_path)
    assert aside(tmp_path) == ["a-cache", "b-cache"]
    entry(PROGRAM, "a-cache")  # compiled again
    set_damaged_aside(tmp_path)
    assert aside(tmp_path) == ["a-cache", "b-cache"] and (tmp_path / "a-cache").exists()


def test_an_entry_that_may_still_be_under_way_is_left_alone(tmp_path, entry):
    path = entry(PROGRAM[:9], age=1.0)
    set_damaged_aside(tmp_path)
    assert path.exists() and not aside(tmp_path)


def test_damaged_notes_are_set_aside(tmp_path, entry):
    entry(PROGRAM)
    (tmp_path / NOTED).write_text("{")
    set_damaged_aside(tmp_path)
    assert aside(tmp_path) == [NOTED] and "jit_f" in (tmp_path / NOTED).read_text()


def test_what_was_used_longest_ago_goes_until_the_rest_fits(tmp_path, entry):
    for age, name in enumerate(["new-cache", "used-cache", "old-cache", "older-cache"]):
        entry(bytes(100), name, age=1000.0 * (age + 1))
    others = [tmp_path / NOTED, tmp_path / "old-cache.damaged-1"]
    for path in others:
        path.write_bytes(bytes(1000))
    long_ago = (tmp_path / "older-cache").stat().st_mtime
    os.utime(tmp_path / "used-cache", (time.time(), long_ago - 1000.0))  # read just now, written before all others
    trim(tmp_path, 400)
    assert len(list(tmp_path.glob("*-cache"))) == 4
    trim(tmp_path, 299)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"new-cache", "used-cache"}
    assert all(path.exists() for path in others)
    trim(tmp_path / "missing", 0)


def test_a_check_is_not_a_use(tmp_path, entry):
    path = entry(PROGRAM, age=3 * 86400.0)
    before = path.stat()
    for _ in range(2):  # noted, then compared
        set_damaged_aside(tmp_path)
        after = path.stat()
        assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)


# --- jc.sweep, in a process of its user's -----------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where programs go, of a JAX that keeps none so far."""
    before, least = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("JCREDIT_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path / "xla"
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    compilation_cache.reset_cache()


def compile_one(factor):
    """Compiles a function that JAX has not seen in this process."""
    jax.jit(lambda x: factor * x).lower(1.0).compile()


def test_a_sweep_keeps_programs_and_leaves_jax_as_it_was(cache):
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    with programs_kept():
        compile_one(3.5)
    [entry] = cache.glob("*-cache")
    written = entry.stat().st_mtime_ns
    with programs_kept():
        compile_one(3.5)
        assert [path.stat().st_mtime_ns for path in cache.glob("*-cache")] == [written]  # found, not written again
        compile_one(4.5)
    assert len(list(cache.glob("*-cache"))) == 2
    compile_one(5.5)
    assert len(list(cache.glob("*-cache"))) == 2 and not compiled_programs_are_kept()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == least


def test_a_users_choice_about_programs_stays(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "users"))
    with programs_kept():
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "users")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "users")
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with programs_kept():
            assert not compiled_programs_are_kept()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not cache.exists()


def test_a_worker_keeps_a_folder_of_its_own(cache, tmp_path, monkeypatch):
    """A thread of the user's process is one, too."""
    monkeypatch.setattr(batch.owners, "exists", lambda *_: True)
    monkeypatch.setattr(batch, "use_all_cores", lambda: None)
    asked = SimpleNamespace(
        compile_cache=True, results_dir=tmp_path, sweep="s", whole=("program", 1), seeds_per_batch=None,
        checkpoint_seconds=1.0,
    )  # fmt: skip
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "users"))
    batch._session_elsewhere(asked)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "users")
    jax.config.update("jax_compilation_cache_dir", None)
    batch._session_elsewhere(asked)
    assert jax.config.jax_compilation_cache_dir == str(cache)


def test_a_sweep_runs_where_programs_cannot_be_kept(cache, caplog):
    cache.mkdir()
    cache.chmod(0o777)
    with programs_kept():
        assert not compiled_programs_are_kept()
    [warning] = caplog.messages
    assert "programs are not kept" in warning and "written by others" in warning


def test_programs_are_kept_while_a_sweep_runs(cache, monkeypatch):
    seen = []
    monkeypatch.setattr(door, "programs_kept", programs_kept)
    monkeypatch.setattr(door, "_labelled", lambda rows, variants, seeds: rows)
    monkeypatch.setattr(door, "run_sweep", lambda *_, **__: seen.append(jax.config.jax_compilation_cache_dir))
    jc.sweep({"bp": tiny()}, [0])
    assert seen == [str(cache)] and not compiled_programs_are_kept()
