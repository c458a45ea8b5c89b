"""The Triton kernels of ordered_topk against a stable sort in NumPy, each way that they go through a row."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton_support import only_on_triton

from moegate.ops import ordered_topk, topk_by_key

pytestmark = [only_on_triton, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, -np.nan]
SUBNORMAL = [0.0, 2.0**-133, -(2.0**-133), 3 * 2.0**-133, 2.0**-126]
POOLS = {
    "special": SPECIAL,
    "subnormal": SUBNORMAL,
    "equal": [1.0],
    "few": [-1.0, 0.0, 2.0],
    "nan": [np.nan, -np.nan],
    "lost": [-np.inf],
}


def values_of(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Values of a kind; the first row is always one of numbers that differ."""
    values = torch.randn(shape)
    if kind != "distinct":
        values[1:] = torch.from_numpy(np.random.choice(POOLS[kind], size=(shape[0] - 1, shape[1])))
    return values.to(dtype)


def sorted_first(values: Tensor, k: int, excluded: Tensor | None) -> NDArray[np.int64]:
    """The contract, by a stable sort of three keys: excluded or not, NaN or not, the value."""
    wide = values.double().numpy()
    spoiled = np.isnan(wide)
    outside = np.zeros_like(spoiled) if excluded is None else excluded.numpy()
    # What is excluded keeps the order of its indices.
    falling = np.where(spoiled | outside, 0.0, -wide)
    return np.lexsort((falling, spoiled & ~outside, outside), axis=-1)[:, :k]


def check(values: Tensor, k: int, excluded: Tensor | None = None) -> None:
    np.testing.assert_array_equal(ordered_topk(values, k, excluded).numpy(), sorted_first(values, k, excluded))


@pytest.mark.parametrize("kind", ["distinct", *POOLS])
@pytest.mark.parametrize(
    ("size", "k"),
    [
        (1, 1),
        (13, 13),
        (257, 16),  # the most that rounds take
        (1024, 1),
        (131, 17),  # candidates, in one block
        (311, 64),
        (60, 60),  # every lane has its element, and all of them are wanted
        (5003, 9),  # several blocks
        (4099, 30),
    ],
)
def test_values(size: int, k: int, kind: str) -> None:
    narrow = {"few": torch.bfloat16, "subnormal": torch.bfloat16, "special": torch.float16}
    dtype = narrow.get(kind, torch.float32)
    values = values_of(kind, (2, size), dtype)
    check(values, k)
    check(values, k, torch.rand(values.shape) < 0.4)


@pytest.mark.parametrize(("size", "k"), [(33, 5), (300, 40), (4500, 30)])
@pytest.mark.parametrize("share", [0.97, 1.0])
def test_more_are_wanted_than_are_not_excluded(size: int, k: int, share: float) -> None:
    check(values_of("special", (2, size), torch.float32), k, torch.rand(2, size) < share)


@pytest.mark.parametrize(("size", "k"), [(64, 4), (300, 20), (4500, 30)])
def test_any_strides(size: int, k: int) -> None:
    values, excluded = values_of("few", (2, size), torch.bfloat16), torch.rand(2, size) < 0.3
    check(values.mT.contiguous().mT, k, excluded)
    check(values.repeat(1, 2)[:, ::2], k, excluded.mT.contiguous().mT)
    check(values[:1].expand(2, size), k, excluded[:1].expand(2, size))


def test_ties_at_the_threshold_go_to_the_first() -> None:
    """Far more equals than there is room for, some greater ones behind them, and NaN between."""
    values = torch.full((2, 4800), 0.25)
    values[0, 4000:4003] = torch.tensor([7.0, float("nan"), 5.0])
    values[1, ::2] = 0.5
    check(values, 20)


@pytest.mark.parametrize(("size", "k"), [(3000, 600), (9001, 5000)])
def test_many(size: int, k: int) -> None:
    """More than a program sorts, and more than candidates are looked for."""
    check(values_of("few", (2, size), torch.float32), k, torch.rand(2, size) < 0.2)


@pytest.mark.parametrize(("size", "k"), [(40, 3), (300, 17), (5000, 90)])
@pytest.mark.parametrize(("low", "high"), [(-(2**31), 2**31), (-2, 2), (-(2**31), -(2**31) + 1)])
def test_keys(size: int, k: int, low: int, high: int) -> None:
    key = np.random.default_rng(size).integers(low, high, size=(2, size))
    expected = np.argsort(-key, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(topk_by_key(torch.from_numpy(key).int(), k).numpy(), expected)


@pytest.mark.parametrize("shape", [(0, 5), (3, 5)])
def test_nothing(shape: tuple[int, int]) -> None:
    for k in (0, 2):
        assert ordered_topk(torch.zeros(shape), k).shape == (shape[0], k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_registration(dtype: torch.dtype) -> None:
    excluded = torch.rand(3, 40) < 0.3
    torch.library.opcheck(torch.ops.moegate.ordered_topk.default, (torch.randn(3, 40, dtype=dtype), 20, excluded))


@pytest.mark.parametrize(
    ("values", "k", "excluded", "sentence"),
    [
        (torch.zeros(3), 1, None, "values must have 2 dimensions, got 1."),
        (torch.zeros(2, 3), 4, None, "k=4 is out of range: the rows have 3 elements."),
        (torch.zeros(2, 3), 1, torch.zeros(2, 3), r"excluded must be bool in the shape of the values, \[2, 3\]; got"),
        (torch.zeros(2, 3), 1, torch.zeros(2, 2).bool(), "excluded must be bool in the shape of the values"),
    ],
)
def test_sentences_of_the_operator(values: Tensor, k: int, excluded: Tensor | None, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{sentence}"):
        torch.ops.moegate.ordered_topk(values, k, excluded)


def test_keys_must_be_integers_of_32_bits() -> None:
    with pytest.raises(RuntimeError, match=r"^key must be int32, got torch\.int64\.$"):
        torch.ops.moegate.topk_by_key(torch.zeros(2, 3, dtype=torch.int64), 1)
