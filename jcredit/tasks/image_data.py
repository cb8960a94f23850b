"""CIFAR-10 and Fashion-MNIST as uint8 arrays on the host: found or prepared through tfds, decoded once, then cached.

TensorFlow is never imported.  tfds's own builders read raw archives and encode pixels through TensorFlow, so preparing
goes through subclasses of them that replace those two steps; downloads, checksums, shuffling and files stay tfds's.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import logging
import os
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from jcredit.files import (
    FileError,
    cache_directory,
    cause,
    own_path,
    private_directory,
    remove_leftovers,
    replacing,
    set_aside,
)

ImageSet = Literal["cifar10", "fashion_mnist"]
CLASSES = 10
_SHAPES = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1)}
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
}
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# The addresses under which tfds records its checksums; another address would be downloaded unchecked.
_URLS = {
    "cifar10": {"archive": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"},
    "fashion_mnist": {
        "train_images": _FASHION + "train-images-idx3-ubyte.gz",
        "train_labels": _FASHION + "train-labels-idx1-ubyte.gz",
        "test_images": _FASHION + "t10k-images-idx3-ubyte.gz",
        "test_labels": _FASHION + "t10k-labels-idx1-ubyte.gz",
    },
}
_CONNECT_SECONDS = 15
_DECODE_BATCH = 500
_CACHE_FAULTS = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


class DataError(ValueError):
    """Image data that can neither be found nor downloaded; one line that names the value and the fix."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class ImageArrays(NamedTuple):
    """A whole data set on the host: images (N, H, W, C) uint8 in 0..255, labels (N,) int32 in 0..9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def channel_statistics(name: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the training pixels, scaled to 0..1 (CIFAR-10: the study's).

    Raises:
      DataError: ``name`` is not a known data set.
    """
    _check_name(name)
    return _STATISTICS[name]


def load_images(
    name: ImageSet,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> ImageArrays:
    """Returns all training and test images of ``name``, in tfds's own fixed order.

    Decoding (10 to 30 s) happens once: the arrays are cached under a name that holds the version and a hash of the
    prepared files.  The cache never outlives its source; with the prepared files gone this raises.

    Args:
      name: ``"cifar10"`` (32x32x3; 50,000 + 10,000) or ``"fashion_mnist"`` (28x28x1; 60,000 + 10,000).
      data_dir: folder that holds tfds's prepared data.  None: ``TFDS_DATA_DIR`` if set, else ``~/tensorflow_datasets``.
        The latter, or an empty folder, is filled by a download when it lacks ``name``.
      cache_dir: where decoded arrays are kept.  None: ``JCREDIT_CACHE``, else ``XDG_CACHE_HOME/jcredit``, else
        ``~/.cache/jcredit``.  A corrupt entry is set aside and rebuilt, an unwritable folder done without, each
        with a warning; what killed processes left half written there is removed.
      progress: whether to show progress bars (on standard error).

    Raises:
      DataError: no such data set or folder, a folder without it, a failed download, unreadable or inconsistent files.
    """
    _check_name(name)
    root, setting = _data_root(data_dir)
    with _quiet_tfds(progress) as tfds:
        builder = _open(tfds, name, root, setting)
        counts, folder = _counts(builder), _cache_dir(cache_dir)
        if folder is not None:
            remove_leftovers(folder)
        cache = folder and folder / f"{name}-{builder.version}-{_fingerprint(tfds, builder)}.npz"
        arrays = cache and _read_cache(cache, name, counts)
        if arrays is None:
            arrays = _check(_decode(builder, name, progress), name, counts)
            if cache is not None:
                _write_cache(cache, arrays)
    return arrays


def _check_name(name: str) -> None:
    if name not in _SHAPES:
        raise DataError(f"image data set {name!r} is unknown; choose one of: {', '.join(_SHAPES)}")


@contextlib.contextmanager
def _quiet_tfds(progress: bool) -> Iterator[Any]:
    """Yields the tfds module, its chatter below ERROR silenced and its prints sent to standard error meanwhile."""
    import tensorflow_datasets as tfds  # half a second or more, and synthetic tasks never need it

    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    if not progress:
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield tfds
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not progress:
            tfds.enable_progress_bar()


# --- finding and preparing -------------------------------------------------------------------------------------------


def _data_root(data_dir: str | Path | None) -> tuple[Path, str]:
    """The folder, and how the user named it ('' when nobody did)."""
    # Read here and not by tfds, which looks at the variable only once, when it is imported.
    for name, given in (("data_dir", data_dir), ("TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR") or None)):
        if given is not None:
            try:
                return own_path(given), f"{name}={str(given)!r}"
            except FileError as error:
                raise DataError(f"{name}={error}") from None
    return Path.home() / "tensorflow_datasets", ""


def _open(tfds: Any, name: str, root: Path, setting: str) -> Any:
    """A tfds builder whose prepared files are on disk."""
    if setting and not os.path.isdir(root):  # unlike Path.is_dir, False where a parent may not be entered
        what = "is a file, not a folder" if os.path.exists(root) else "does not exist or may not be entered"
        raise DataError(f"{setting} {what}; give the folder that holds {name}/, or create it empty to download into it")
    try:
        builder = tfds.builder(name, data_dir=root)
        if builder.is_prepared():
            return builder
        others = _contents(root, name) if setting else []
    except Exception as error:
        raise DataError(f"{setting or root} cannot be read ({cause(error)}); use a readable data_dir") from error
    if others:
        fix = "point it at a folder that does, or at an empty one to download into it"
        found = ", ".join(others[:5])
        raise DataError(f"{setting} holds no prepared {name}/{builder.version} (found: {found}); {fix}")
    if setting and not os.access(root, os.W_OK):
        raise DataError(f"{setting} is empty and cannot be written; make it writable or use another data_dir")
    _prepare(tfds, name, root)
    return tfds.builder(name, data_dir=root)


def _contents(root: Path, name: str) -> list[str]:
    """What a folder holds, without that which tfds leaves behind when preparing ``name`` breaks off."""
    top = [entry for entry in sorted(os.listdir(root)) if entry not in (name, "downloads")]
    inner = sorted(os.listdir(root / name)) if (root / name).is_dir() else []
    return [f"{name}/{entry}" for entry in inner if not entry.startswith("incomplete.")] + top


def _prepare(tfds: Any, name: str, root: Path) -> None:
    """Downloads ``name`` and writes it under ``root`` as array_record files, which can be read without TensorFlow."""
    import requests  # tfds's own downloader

    url = next(iter(_URLS[name].values()))
    fix = f"connect to the network, or point TFDS_DATA_DIR at a folder that holds a prepared {name}"
    try:
        # Asked first because tfds retries an unreachable host for more than three minutes.
        requests.head(url, timeout=_CONNECT_SECONDS).close()
    except requests.RequestException as error:
        raise DataError(
            f"{name} is not in {root} and {url} cannot be reached ({type(error).__name__}); {fix}"
        ) from error
    try:
        builder = _tensorflow_free(tfds, name)(data_dir=root)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise DataError(f"{name} could not be prepared in {root} from {url} ({cause(error)}); {fix}") from error


def _tensorflow_free(tfds: Any, dataset: str) -> Any:
    """tfds's builder class for ``dataset`` with raw files read by numpy and images encoded by OpenCV."""
    import cv2

    base: Any = tfds.builder_cls(dataset)

    class TensorFlowFree(base, skip_registration=True):  # type: ignore[call-arg]  # registered, it would replace base
        name = dataset
        url_infos = base.url_infos  # checksums; tfds would look for them beside this file

        def _split_generators(self, dl_manager):
            files = dl_manager.download(_URLS[dataset])
            splits, names = (_read_cifar10 if dataset == "cifar10" else _read_fashion_mnist)(files)
            if names:
                self.info.features["label"].names = names
            return {split: self._generate_examples(split, *arrays) for split, arrays in splits.items()}

        def _generate_examples(self, split, images, labels):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                # OpenCV expects BGR; PNG is lossless.
                png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
                extra = {"id": f"{split}_{i:05d}"} if dataset == "cifar10" else {}
                yield i, {"image": png, "label": int(label), **extra}

    return TensorFlowFree


def _read_cifar10(files: dict[str, Any]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Splits and class names of the binary archive: records of one label byte and 3 x 32 x 32 channel-first pixels."""
    with tarfile.open(files["archive"]) as tar:
        members = {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    splits = {}
    for split, parts in {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}.items():
        records = np.frombuffer(b"".join(members[p] for p in parts), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        splits[split] = (records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0])
    return splits, members["batches.meta.txt"].decode().split()


def _read_fashion_mnist(files: dict[str, Any]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Splits of the four IDX files (headers of 16 and 8 bytes); the class names are the builder's own."""
    raw = {key: np.frombuffer(gzip.decompress(Path(path).read_bytes()), np.uint8) for key, path in files.items()}
    return {s: (raw[f"{s}_images"][16:].reshape(-1, 28, 28, 1), raw[f"{s}_labels"][8:]) for s in ("train", "test")}, []


# --- decoding and caching --------------------------------------------------------------------------------------------


def _decode(builder: Any, name: str, progress: bool) -> ImageArrays:
    """Reads and decodes every record of both splits."""
    parts = []
    try:
        sources = builder.as_data_source(split=["train", "test"])
        seldom = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log keeps every state of a bar
        total, what = sum(map(len, sources)), f"decoding {name}"
        with tqdm(total=total, desc=what, unit="image", mininterval=seldom, disable=not progress) as bar:
            for source in sources:
                images, labels = np.empty((len(source), *_SHAPES[name]), np.uint8), np.empty(len(source), np.int32)
                for start in range(0, len(source), _DECODE_BATCH):
                    index = range(start, min(start + _DECODE_BATCH, len(source)))
                    for i, example in zip(index, source.__getitems__(list(index)), strict=True):
                        images[i], labels[i] = example["image"], example["label"]
                    bar.update(len(index))
                parts += [images, labels]
    except ImportError as error:
        missing = (error.name or "array_record").partition(".")[0]
        package = {"cv2": "opencv-python-headless"}.get(missing, missing)
        raise DataError(f"{name} cannot be decoded ({cause(error)}); pip install {package}") from error
    except Exception as error:
        fix = "it must hold complete array_record files: delete it and prepare it again, or use another data_dir"
        raise DataError(f"{builder.data_dir} cannot be decoded ({cause(error)}); {fix}") from error
    return ImageArrays(*parts)


def _counts(builder: Any) -> tuple[int, int]:
    """Numbers of training and test images by the data set's own description."""
    splits = builder.info.splits
    if not {"train", "test"} <= set(splits):
        raise DataError(f"{builder.data_dir} lacks a train or test split; delete it and prepare it again")
    return splits["train"].num_examples, splits["test"].num_examples


def _check(arrays: ImageArrays, name: str, counts: tuple[int, int]) -> ImageArrays:
    """Returns ``arrays`` unless counts, shapes, types or labels contradict the data set's description."""
    for images, labels, count in zip(arrays[::2], arrays[1::2], counts, strict=True):
        want = ((count, *_SHAPES[name]), np.uint8, (count,), np.int32)
        have = (images.shape, images.dtype, labels.shape, labels.dtype)
        if have != want:
            raise DataError(f"{name}: {have} where {want} are described; prepare the data set again")
        if count == 0 or labels.min() < 0 or labels.max() >= CLASSES:
            raise DataError(f"{name}: no labels, or labels outside 0..{CLASSES - 1}; prepare the data set again")
    return arrays


def _cache_dir(cache_dir: str | Path | None) -> Path | None:
    """Where decoded images are kept; None, with a warning, where the folder is not the user's alone."""
    try:
        folder = cache_directory() / "images" if cache_dir is None else Path(cache_dir).expanduser()
        return private_directory(folder) if os.path.exists(folder) else folder  # made when there is something to keep
    except FileError as error:
        warnings.warn(f"no image cache: {error}", stacklevel=3)
        return None


def _fingerprint(tfds: Any, builder: Any) -> str:
    """Hash over the prepared files, and over the version of tfds that decodes them.

    Contents and not sizes alone: array_record files are padded to 64 KiB, so that different data can be equally long.
    """
    digest = hashlib.sha256(tfds.__version__.encode())
    try:
        for path in sorted(p for p in Path(builder.data_dir).iterdir() if p.is_file()):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise DataError(f"{builder.data_dir} cannot be read ({cause(error)}); make it readable") from error
    return digest.hexdigest()[:16]


def _read_cache(path: Path, name: str, counts: tuple[int, int]) -> ImageArrays | None:
    """Cached arrays, or None when there are none or they are torn and set aside; zip checks a CRC."""
    if not os.path.isfile(path):  # False, and no exception, for a folder that may not be searched
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return _check(ImageArrays(**stored), name, counts)
    except _CACHE_FAULTS as error:
        set_aside(path, f"cached images are corrupt ({cause(error)})", "they are decoded again")
        return None


def _write_cache(path: Path, arrays: ImageArrays) -> None:
    """Writes atomically; a folder that cannot be written costs the next run a decoding, nothing else."""
    try:
        private_directory(path.parent)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **arrays._asdict())
    except (OSError, FileError) as error:
        warnings.warn(f"no image cache in {path.parent} ({cause(error)}); set JCREDIT_CACHE", stacklevel=3)
