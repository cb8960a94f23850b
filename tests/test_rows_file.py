"""Rows survive what can happen to a file."""

import json
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from made_rows import make_row

from jcredit import files
from jcredit.report import rows as results
from jcredit.report.rows import ResultsError


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "ladder" / "quick" / "rows.jsonl"
    assert results.read_rows(path) == []
    first, second, third = make_row(seed=0, gamma=0.1), make_row(seed=1, gamma=0.2), make_row("BP\u2028ü", gamma=1.0)
    results.append_rows(path, [first, second])
    results.append_rows(path, [])
    results.append_rows(path, [third])
    assert results.read_rows(path) == [first, second, third]
    assert results.finished(results.read_rows(path)) == {("DFA", 0), ("DFA", 1), ("BP\u2028ü", 0)}
    assert not list(path.parent.glob("*.tmp")) + list(path.parent.glob(".*.tmp"))


def test_plain_turns_arrays_into_strict_json():
    value = {
        "a": np.float32(0.5), "b": jnp.arange(3), "c": (1, True, None, "x"), "d": float("nan"), 5: np.inf,
        "e": jnp.asarray([1.5, jnp.nan], jnp.bfloat16), "f": np.bool_(True), "g": jnp.float32(2),
    }  # fmt: skip
    expected = {
        "a": 0.5, "b": [0, 1, 2], "c": [1, True, None, "x"], "d": None, "5": None, "e": [1.5, None], "f": True, "g": 2.0
    }  # fmt: skip
    assert files.plain(value) == expected
    json.dumps(files.plain(value), allow_nan=False)
    with pytest.raises(files.FileError, match="of type object"):
        files.plain(object())


def test_numbers_that_are_not_finite_are_stored_as_null(tmp_path):
    results.append_rows(tmp_path / "rows.jsonl", [make_row(gamma=float("nan"), rho=np.float32(np.inf))])
    assert '"metrics": {"gamma": null, "rho": null}' in (tmp_path / "rows.jsonl").read_text()


def test_processes_that_try_a_new_folder_at_once_do_not_disturb_each_other(tmp_path):
    folder = tmp_path / "new" / "sweep"
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: files.check_writable(folder), range(400)):
            pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(files.FileError, match="cannot hold results"):
        files.check_writable(tmp_path / ("long" * 100) / "sweep")


def test_a_run_is_recorded_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append_rows(path, [make_row(seed=3)])
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="seed=3 is already there"):
        results.append_rows(path, [make_row(seed=4), make_row(seed=3)])
    with pytest.raises(ResultsError, match="seed=5 is already there"):
        results.append_rows(path, [make_row(seed=5), make_row(seed=5)])
    assert path.read_bytes() == before


def test_a_torn_line_is_named_and_left_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append_rows(path, [make_row(seed=0), make_row(seed=1)])
    torn = path.read_bytes()[:-40]
    path.write_bytes(torn)
    for attempt in (lambda: results.read_rows(path), lambda: results.append_rows(path, [make_row(seed=2)])):
        with pytest.raises(ResultsError, match=r"rows\.jsonl line 2: torn.*move the file away") as raised:
            attempt()
        assert "\n" not in str(raised.value)
        assert path.read_bytes() == torn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "line 1: schema is 3, not 2"),
        ({"seed": "0"}, "line 1: seed='0' must be of type int"),
        ({"seed": True}, "line 1: seed=True must be of type int"),
        ({"metrics": None}, "line 1: metrics=None must be of type dict"),
        ({"status": "fine"}, "line 1: status='fine'"),
        ({"block": 4}, "line 1: block=4 must be of type str"),
        ({"from": {}}, r"line 1: from=\{\} must be of type str"),
        ({"flags": "slow"}, "line 1: flags='slow' must be of type list"),
    ],
)
def test_a_foreign_row_is_named(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**make_row(), **change}) + "\n")
    with pytest.raises(ResultsError, match=message):
        results.read_rows(path)
    with pytest.raises(ResultsError, match="new row"):
        results.append_rows(tmp_path / "other.jsonl", [{**make_row(), **change}])
    assert not (tmp_path / "other.jsonl").exists()


def test_a_file_of_schema_1_is_named_with_the_fix(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**make_row(), "schema": 1}) + "\n")
    with pytest.raises(ResultsError, match=r"rows\.jsonl line 1: a row of schema 1.*move the file away") as raised:
        results.read_rows(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[1, 2]\n", "NaN\n", '{"schema": NaN}\n', "\x00\n", "[" * 10**5 + "\n"])
def test_what_is_no_row_is_named(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ResultsError, match=r"rows\.jsonl line 1"):
        results.read_rows(tmp_path / "rows.jsonl")


def test_a_flipped_bit_changes_no_row_unseen(tmp_path):
    path, rows = tmp_path / "rows.jsonl", [make_row(seed=i, gamma=0.1 + i, rho=None) for i in range(3)]
    results.append_rows(path, rows)
    whole, refused = path.read_bytes(), 0
    for bit in np.random.default_rng(0).choice(8 * len(whole), 500, replace=False):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        try:
            found = results.read_rows(path)
        except ResultsError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # it hit the name of the digest, and no number
            assert [{name: row[name] for name in rows[0]} for row in found] == rows
    assert refused > 450


def test_a_changed_row_is_named_until_its_digest_goes(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append_rows(path, [make_row(gamma=0.125), make_row(seed=1)])
    path.write_text(path.read_text().replace("0.125", "0.625"))
    with pytest.raises(ResultsError, match=r"line 1: its content does not have its digest; delete the line"):
        results.read_rows(path)
    bare = [{k: v for k, v in json.loads(line).items() if k != "sha256"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert [row["metrics"] for row in results.read_rows(path)] == [{"gamma": 0.625}, {}]


def test_a_folder_where_rows_should_be_is_named(tmp_path):
    with pytest.raises(ResultsError, match="cannot be read"):
        results.read_rows(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ResultsError, match=r"rows\.jsonl: not UTF-8"):
        results.read_rows(tmp_path / "rows.jsonl")


def test_rows_of_another_experiment_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append_rows(path, [make_row()])
    with pytest.raises(ResultsError, match="a row of ladder/paper among rows of ladder/quick"):
        results.append_rows(path, [{**make_row(seed=1), "preset": "paper"}])
    with pytest.raises(ResultsError, match="a row of ladder/quick among rows of cifar10/quick"):
        results.read_rows(path, experiment="cifar10", preset="quick")


def test_a_file_whose_last_newline_is_missing_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(make_row(seed=0)))
    results.append_rows(path, [make_row(seed=1)])
    assert [r["seed"] for r in results.read_rows(path)] == [0, 1]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_write_killed_at_any_moment_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "rows.jsonl"
    results.append_rows(path, [make_row(seed=0)])
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, moment, killed)
    with pytest.raises(KeyboardInterrupt):
        results.append_rows(path, [make_row(seed=1)])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
    results.append_rows(path, [make_row(seed=1)])  # the lock was let go
    assert len(results.read_rows(path)) == 2


def _append_many(path, label):
    for seed in range(8):
        results.append_rows(path, [make_row(label, seed)])


def test_two_processes_lose_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(path, label)) for label in ("A", "B")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(results.finished(results.read_rows(path))) == 16


def test_write_json_is_strict(tmp_path):
    files.write_json(tmp_path / "a" / "config.json", {"x": float("nan"), "y": [np.float32(0.25)]})
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == {"x": None, "y": [0.25]}
