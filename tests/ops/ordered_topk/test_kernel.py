"""The kernels of ordered_topk and topk_by_key against the reference, on every instruction set."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from triton_support import examples

from moegate.ops import library, ordered_topk, topk_by_key
from moegate.ops.ordered_topk.reference import ordered_topk_reference, topk_by_key_reference

ISAS = library.available_isas()
pytestmark = pytest.mark.skipif(not ISAS, reason=f"needs the CPU kernels: {library.KERNELS.reason}")
VALUES = [0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"), -float("nan")]
KINDS = ("distinct", "special", "equal", "few")


def values_of(kind: str, shape: tuple[int, int], generator: np.random.Generator) -> torch.Tensor:
    if kind == "distinct":
        return torch.from_numpy(generator.permutation(shape[0] * shape[1]).reshape(shape)).float()
    pools = {"special": VALUES, "equal": [1.0], "few": [-1.0, 0.0, 2.0]}
    return torch.from_numpy(generator.choice(pools[kind], size=shape)).float()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(80), deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_values(isa: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    size = data.draw(st.sampled_from([1, 5, 16, 31, 32, 33, 64, 100, 129, 500, 2000]))
    k = data.draw(st.sampled_from(sorted({min(k, size) for k in (0, 1, 2, 15, 16, 17, 30, 100)} | {size})))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    values = values_of(data.draw(st.sampled_from(KINDS)), (3, size), generator).to(dtype)
    values = values.mT.contiguous().mT if data.draw(st.booleans()) else values
    share = data.draw(st.sampled_from([None, 0.0, 0.5, 0.99, 1.0]))
    excluded = None if share is None else torch.from_numpy(generator.random((3, size)) < share)
    with library.forced_isa(isa):
        ours = ordered_topk(values, k, excluded)
    assert ours.equal(ordered_topk_reference(values, k, excluded))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("size", "k"), [(40, 3), (300, 17), (5000, 340), (5000, 342), (3000, 3000), (70_000, 64)])
@pytest.mark.parametrize("kind", ["all bits", "few bits", "least"])
def test_keys(isa: str, size: int, k: int, kind: str) -> None:
    generator = np.random.default_rng(size)
    low, high = {"all bits": (-(2**31), 2**31), "few bits": (-2, 2), "least": (-(2**31), -(2**31) + 1)}[kind]
    key = torch.from_numpy(generator.integers(low, high, size=(2, size))).to(torch.int32)
    with library.forced_isa(isa):
        assert topk_by_key(key, k).equal(topk_by_key_reference(key, k))
        assert topk_by_key(key.mT.contiguous().mT, k).equal(topk_by_key_reference(key, k))


@pytest.mark.parametrize("isa", ISAS)
def test_many_leading_dimensions_on_two_threads(isa: str) -> None:
    values = torch.randn(4, 50, 6, 40)
    torch.set_num_threads(2)
    with library.forced_isa(isa):
        assert ordered_topk(values, 5).equal(ordered_topk_reference(values, 5))
        row = torch.arange(40) % 2 == 0
        assert ordered_topk(values, 5, row).equal(ordered_topk_reference(values, 5, row))


def test_registration() -> None:
    excluded = torch.rand(3, 9) < 0.3
    torch.library.opcheck(torch.ops.moegate.ordered_topk.default, (torch.randn(3, 9), 4, excluded))
    torch.library.opcheck(torch.ops.moegate.topk_by_key.default, (torch.zeros(3, 9, dtype=torch.int32), 4))


@pytest.mark.parametrize(
    ("values", "k", "excluded", "sentence"),
    [
        (torch.zeros(3), 1, None, "values must have 2 dimensions, got 1."),
        (torch.zeros(2, 3).double(), 1, None, "values must be float32, bfloat16 or float16, got Double."),
        (torch.zeros(2, 3), 4, None, "k=4 is out of range: the rows have 3 elements."),
        (torch.zeros(2, 3), -1, None, "k=-1 is out of range: the rows have 3 elements."),
        (torch.zeros(2, 3), 1, torch.zeros(2, 3), "excluded must be Bool, got Float."),
        (torch.zeros(2, 3), 1, torch.zeros(2, 2).bool(), r"excluded must have the shape .* got \[2, 2\]."),
        (torch.zeros(2, 3), 1, torch.zeros(3).bool(), "excluded must have 2 dimensions, got 1."),
    ],
)
def test_sentences_of_the_operator(values: torch.Tensor, k: int, excluded: torch.Tensor | None, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{sentence}$"):
        torch.ops.moegate.ordered_topk(values, k, excluded)


def test_keys_must_be_integers_of_32_bits() -> None:
    with pytest.raises(RuntimeError, match=r"^key must be Int, got Long\.$"):
        torch.ops.moegate.topk_by_key(torch.zeros(2, 3, dtype=torch.int64), 1)
