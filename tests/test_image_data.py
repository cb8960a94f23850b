"""Image data: exact pixels through prepared files, downloads and the cache, and one clear line for every fault."""

import functools
import gzip
import http.server
import io
import json
import os
import shutil
import sys
import tarfile
import threading
import time

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

import jcredit as jc
from jcredit.files import remove_leftovers, replacing
from jcredit.tasks import image_data
from jcredit.tasks.image_data import DataError, ImageArrays, channel_statistics, load_images
from jcredit.training import make_run

SHAPES = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1)}
VERSIONS = {"cifar10": "3.0.2", "fashion_mnist": "3.0.1"}
NAMES = tuple(SHAPES)


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch, tmp_path):
    for variable in ("TFDS_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JCREDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def random_arrays(name, train=13, test=5, seed=0):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (n, *SHAPES[name]), np.uint8) for n in (train, test)]
    labels = [rng.integers(0, 10, n).astype(np.int32) for n in (train, test)]
    return ImageArrays(images[0], labels[0], images[1], labels[1])


def write_prepared(root, name, arrays, described=None):
    """Writes a folder as tfds lays it out; ``described`` are the counts its metadata claims."""
    folder = root / name / VERSIONS[name]
    folder.mkdir(parents=True)
    features = tfds.builder(name, data_dir=root.parent / "none").info.features
    splits = []
    for i, split in enumerate(("train", "test")):
        images, labels = arrays[2 * i], arrays[2 * i + 1]
        path = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for image, label in zip(images, labels, strict=True):
            png = cv2.imencode(".png", image[..., ::-1].copy())[1].tobytes()
            example = {"image": png, "label": int(label)} | ({"id": b"x"} if name == "cifar10" else {})
            writer.write(features.serialize_example(example))
        writer.close()
        length = (described or (len(arrays.train_labels), len(arrays.test_labels)))[i]
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": split, "filepathTemplate": template, "numBytes": "1", "shardLengths": [str(length)]})
    info = {"name": name, "version": VERSIONS[name], "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features.save_config(folder)
    return folder


def assert_equal(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    for part in parts:
        assert str(part) in message


def only_cache_file(tmp_path):
    (path,) = (tmp_path / "cache/images").iterdir()  # a single file also means: no temporary one is left
    return path


@pytest.mark.parametrize("name", NAMES)
def test_pixels_labels_and_order_survive_exactly(tmp_path, name):
    want = random_arrays(name, train=1203)  # more than two decoding batches
    write_prepared(tmp_path / "data", name, want)
    assert_equal(load_images(name, tmp_path / "data", progress=False), want)
    assert_equal(load_images(name, tmp_path / "data", progress=False), want)  # and out of the cache


def test_a_run_knows_which_copy_of_the_images_it_was_given(tmp_path):
    for folder, seed in (("one", 0), ("same", 0), ("other", 1)):
        write_prepared(tmp_path / folder, "fashion_mnist", random_arrays("fashion_mnist", seed=seed))
    config = jc.Config(task=jc.tasks.fashion_mnist(), batch_size=2, diagnostic_samples=1)
    one, same, other = (make_run(config, data_dir=tmp_path / name).origin for name in ("one", "same", "other"))
    assert one == same != other and len(one) == 16
    assert make_run(jc.Config()).origin == ""


def test_second_load_reads_the_cache_which_never_outlives_its_source(tmp_path):
    folder = write_prepared(tmp_path / "data", "fashion_mnist", random_arrays("fashion_mnist"))
    load_images("fashion_mnist", tmp_path / "data", progress=False)
    marked = random_arrays("fashion_mnist", seed=1)
    np.savez(only_cache_file(tmp_path), **marked._asdict())
    assert_equal(load_images("fashion_mnist", tmp_path / "data", progress=False), marked)
    shutil.rmtree(folder.parent)
    (tmp_path / "data" / "notes.txt").touch()
    with pytest.raises(DataError) as error:
        load_images("fashion_mnist", tmp_path / "data", progress=False)
    one_line(error, "holds no prepared fashion_mnist/3.0.1", "notes.txt")


def test_changed_source_is_decoded_again(tmp_path):
    first, second = random_arrays("fashion_mnist"), random_arrays("fashion_mnist", seed=1)
    for want in (first, second):  # same counts and, padded, the same file sizes
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        write_prepared(tmp_path / "data", "fashion_mnist", want)
        assert_equal(load_images("fashion_mnist", tmp_path / "data", progress=False), want)


@pytest.mark.parametrize("damage", ["truncated", "flipped byte", "empty", "foreign", "other shapes"])
def test_corrupt_cache_is_set_aside_and_rebuilt(tmp_path, damage, caplog):
    want = random_arrays("fashion_mnist")
    write_prepared(tmp_path / "data", "fashion_mnist", want)
    load_images("fashion_mnist", tmp_path / "data", progress=False)
    cache = only_cache_file(tmp_path)
    raw = cache.read_bytes()
    if damage == "other shapes":
        np.savez(cache, **random_arrays("fashion_mnist", train=4)._asdict())
    elif damage == "foreign":
        np.savez(cache, something=np.zeros(3))
    else:
        flipped = raw[:3000] + bytes([raw[3000] ^ 1]) + raw[3001:]
        cache.write_bytes({"truncated": raw[: len(raw) // 2], "flipped byte": flipped, "empty": b""}[damage])
    assert_equal(load_images("fashion_mnist", tmp_path / "data", progress=False), want)
    [warning] = caplog.messages
    assert str(cache) in warning and "corrupt" in warning and "decoded again" in warning and "\n" not in warning
    [aside] = cache.parent.glob(f"{cache.name}.damaged-*")
    assert aside.name in warning and cache.stat().st_size == len(raw)
    aside.unlink()
    assert_equal(load_images("fashion_mnist", tmp_path / "data", progress=False), want)


def test_what_a_killed_process_left_of_a_cache_goes_and_what_a_living_one_writes_stays(tmp_path, monkeypatch):
    write_prepared(tmp_path / "data", "fashion_mnist", random_arrays("fashion_mnist"))
    written, save = [], np.savez

    def save_while_another_starts(file, **arrays):
        [temporary] = (tmp_path / "cache/images").iterdir()
        remove_leftovers(tmp_path / "cache/images")
        written.append(temporary.name)
        assert temporary.exists()
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", save_while_another_starts)
    load_images("fashion_mnist", tmp_path / "data", progress=False)
    left = tmp_path / "cache/images" / written[0]  # as a killed process leaves it, beside a cache that is whole
    left.write_bytes(b"half")
    with replacing(tmp_path / "cache/images/another.npz"):
        load_images("fashion_mnist", tmp_path / "data", progress=False)
        assert not left.exists() and len(list((tmp_path / "cache/images").iterdir())) == 2
    assert (
        sorted(path.suffix for path in (tmp_path / "cache/images").iterdir()) == [".npz", ".npz"] and len(written) == 1
    )


def test_unwritable_cache_only_warns(tmp_path):
    want = random_arrays("fashion_mnist")
    write_prepared(tmp_path / "data", "fashion_mnist", want)
    (tmp_path / "file").touch()  # permissions would not stop root; a file in the way does
    with pytest.warns(UserWarning, match="JCREDIT_CACHE"):
        got = load_images("fashion_mnist", tmp_path / "data", cache_dir=tmp_path / "file" / "cache", progress=False)
    assert_equal(got, want)


def test_variables_choose_the_folders(tmp_path, monkeypatch):
    want = random_arrays("fashion_mnist")
    write_prepared(tmp_path / "data", "fashion_mnist", want)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("JCREDIT_CACHE")
    assert_equal(load_images("fashion_mnist", progress=False), want)
    assert len(list((tmp_path / "home/.cache/jcredit/images").glob("fashion_mnist-3.0.1-*.npz"))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_images("fashion_mnist", progress=False)
    assert len(list((tmp_path / "xdg/jcredit/images").iterdir())) == 1
    shared = tmp_path / "shared"  # a folder of other things, too: who may read it is not ours to say
    shared.mkdir(0o755)
    monkeypatch.setenv("JCREDIT_CACHE", str(shared))
    load_images("fashion_mnist", progress=False)
    assert shared.stat().st_mode & 0o777 == 0o755 and (shared / "images").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "absent"))
    with pytest.raises(DataError) as error:
        load_images("fashion_mnist", progress=False)
    one_line(error, f"TFDS_DATA_DIR='{tmp_path / 'absent'}'", "does not exist")


def test_wrong_folders_are_named_in_one_line(tmp_path):
    write_prepared(tmp_path / "data", "fashion_mnist", random_arrays("fashion_mnist"))
    (tmp_path / "file").touch()
    for folder, what in (("absent", "does not exist"), ("file", "is a file"), ("data", "found: fashion_mnist")):
        with pytest.raises(DataError) as error:
            load_images("cifar10", tmp_path / folder, progress=False)
        one_line(error, f"data_dir='{tmp_path / folder}'", what)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "file"]  # and nothing was created
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["fashion_mnist"]


def test_half_prepared_folder_is_refused(tmp_path):
    folder = write_prepared(tmp_path / "data", "fashion_mnist", random_arrays("fashion_mnist"))
    (folder / "dataset_info.json").unlink()
    with pytest.raises(DataError) as error:
        load_images("fashion_mnist", tmp_path / "data", progress=False)
    one_line(error, "found: fashion_mnist/3.0.1")
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError) as error:
        load_images("fashion_mnist", tmp_path / "data", progress=False)
    one_line(error, tmp_path / "data", "cannot be read")


@pytest.mark.parametrize("fault", ["record file missing", "too few records", "bad label", "not an image", "tfrecord"])
def test_inconsistent_files_are_refused(tmp_path, fault):
    arrays = random_arrays("fashion_mnist")
    if fault == "bad label":
        arrays.test_labels[2] = -1  # tfds's way to say unknown
    folder = write_prepared(tmp_path / "data", "fashion_mnist", arrays, (20, 5) if fault == "too few records" else None)
    train, info = folder / "fashion_mnist-train.array_record-00000-of-00001", folder / "dataset_info.json"
    if fault == "record file missing":
        train.unlink()
    elif fault == "not an image":
        features = tfds.builder("fashion_mnist", data_dir=tmp_path).info.features
        writer = ArrayRecordWriter(str(train), "group_size:1")
        for _ in range(13):
            writer.write(features.serialize_example({"image": b"no image", "label": 3}))
        writer.close()
    elif fault == "tfrecord":
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError) as error:
        load_images("fashion_mnist", tmp_path / "data", progress=False)
    one_line(error, "fashion_mnist", "prepare")
    assert not (tmp_path / "cache").exists()


def test_unknown_names():
    for call in (load_images, channel_statistics):
        with pytest.raises(DataError, match=r"'mnist' is unknown; choose one of: cifar10, fashion_mnist"):
            call("mnist")  # type: ignore[arg-type]
    assert channel_statistics("cifar10") == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert channel_statistics("fashion_mnist") == ((0.2860,), (0.3530,))


# --- downloads, from a real server on this machine -------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """Address and folder of a web server."""
    (tmp_path / "www").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/", tmp_path / "www"
        httpd.shutdown()


def write_raw(folder, name, arrays):
    """Writes the files in which the data sets are published."""
    if name == "fashion_mnist":
        for part, header in (("images", 16), ("labels", 8)):
            for split in ("train", "test"):
                data = getattr(arrays, f"{split}_{part}").astype(np.uint8).tobytes()
                (folder / f"{split}_{part}").write_bytes(gzip.compress(bytes(header) + data))
        return
    members = {"batches.meta.txt": "\n".join(f"class{i}" for i in range(10)).encode()}
    for split, files in (("train", [f"data_batch_{i}.bin" for i in range(1, 6)]), ("test", ["test_batch.bin"])):
        images, labels = (np.array_split(getattr(arrays, f"{split}_{p}"), len(files)) for p in ("images", "labels"))
        for file, x, y in zip(files, images, labels, strict=True):
            records = zip(x, y, strict=True)
            members[file] = b"".join(bytes([b]) + a.transpose(2, 0, 1).tobytes() for a, b in records)
    with tarfile.open(folder / "archive", "w:gz") as tar:
        for file, data in members.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("explicit", [True, False])
def test_download_into_an_empty_or_the_default_folder(tmp_path, server, monkeypatch, capsys, name, explicit):
    address, www = server
    published = random_arrays(name)
    write_raw(www, name, published)
    monkeypatch.setitem(image_data._URLS, name, {key: address + key for key in image_data._URLS[name]})
    root = tmp_path / "data" if explicit else tmp_path / "home" / "tensorflow_datasets"
    root.mkdir(parents=True)
    got = load_images(name, root if explicit else None, progress=False)
    assert capsys.readouterr().out == ""
    assert "tensorflow" not in sys.modules
    for i in (0, 2):  # tfds shuffles while it prepares: the same pairs, in another order
        pairs = [sorted((x.tobytes(), int(y)) for x, y in zip(a[i], a[i + 1], strict=True)) for a in (got, published)]
        assert pairs[0] == pairs[1]
    assert (root / name / VERSIONS[name] / "dataset_info.json").exists()
    shutil.rmtree(www)
    assert_equal(load_images(name, root, progress=False), got)


def test_failed_downloads_are_one_line_and_can_be_repeated(tmp_path, server, monkeypatch):
    address, www = server
    (tmp_path / "data").mkdir()
    urls = image_data._URLS["fashion_mnist"]
    monkeypatch.setitem(image_data._URLS, "fashion_mnist", {key: "http://127.0.0.1:1/" + key for key in urls})
    start = time.monotonic()
    with pytest.raises(DataError) as error:
        load_images("fashion_mnist", progress=False)
    one_line(error, "fashion_mnist", "http://127.0.0.1:1/train_images", "cannot be reached", "TFDS_DATA_DIR")
    assert time.monotonic() - start < 10 and not (tmp_path / "home").exists()
    monkeypatch.setitem(image_data._URLS, "fashion_mnist", {key: address + key for key in urls})
    with pytest.raises(DataError) as error:
        load_images("fashion_mnist", tmp_path / "data", progress=False)
    one_line(error, "fashion_mnist", address, "404", "TFDS_DATA_DIR")
    write_raw(www, "fashion_mnist", random_arrays("fashion_mnist"))  # what the failure left is no obstacle
    assert load_images("fashion_mnist", tmp_path / "data", progress=False).train_images.shape == (13, 28, 28, 1)


@pytest.mark.parametrize("name", NAMES)
def test_addresses_are_those_with_registered_checksums(name):
    assert set(image_data._URLS[name].values()) == set(tfds.builder_cls(name).url_infos)
    assert image_data._tensorflow_free(tfds, name).url_infos == tfds.builder_cls(name).url_infos


# --- the real data ---------------------------------------------------------------------------------------------------

REAL = os.environ.get("TFDS_DATA_DIR", "")  # read at import: the fixture above unsets it


@pytest.mark.slow
@pytest.mark.skipif(
    not (REAL and os.path.isdir(os.path.join(REAL, "cifar10"))), reason="TFDS_DATA_DIR holds no cifar10"
)
def test_real_cifar10(tmp_path):
    start = time.monotonic()
    first = load_images("cifar10", REAL, progress=False)
    decoding = time.monotonic() - start
    assert first.train_images.shape == (50_000, 32, 32, 3) and first.test_images.shape == (10_000, 32, 32, 3)
    assert (np.bincount(first.train_labels) == 5000).all() and (np.bincount(first.test_labels) == 1000).all()
    mean = first.train_images.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, (0.4913, 0.4821, 0.4465), atol=1e-3)
    start = time.monotonic()
    second = load_images("cifar10", REAL, progress=False)
    assert time.monotonic() - start < decoding / 2  # measured: 0.1 to 0.7 s against 6 s
    assert_equal(second, first)
    shutil.rmtree(tmp_path / "cache")  # 185 MB, and pytest keeps the folders of its last runs


def test_the_home_of_somebody_unknown_is_said():
    with pytest.raises(DataError, match="data_dir='~nobody-here/x': Could not determine home directory"):
        load_images("cifar10", data_dir="~nobody-here/x")
