"""The kernels of the experts' forward against float64, and what they promise about bits and memory."""

import numpy as np
import pytest
import torch
from forward_cases import Case, assert_right, case, every_activation, every_dtype, every_isa, needs_kernels, oracle

from moegate.ops.experts import experts
from moegate.ops.library import available_isas, forced_isa

pytestmark = needs_kernels

LAYOUTS = {
    "few rows": [2, 3, 7],
    "experts without rows": [0, 5, 5, 6, 6],
    "all rows to one": [0, 150, 150],
    "full tiles": [16, 144, 208],
    "no row": [0, 0],
}


@pytest.mark.parametrize("ends", LAYOUTS.values(), ids=LAYOUTS.keys())
@every_activation
@every_dtype
@every_isa
def test_against_float64(ends: list[int], activation: str, dtype: torch.dtype, isa: str) -> None:
    given = case(ends, 40, 24, activation, dtype=dtype)
    assert_right(given, given.run(isa)[0])


@pytest.mark.parametrize("hidden", [1, 3, 17, 1000])
@pytest.mark.parametrize("width", [1, 3, 17, 131])
@every_dtype
@every_isa
def test_odd_sizes(hidden: int, width: int, dtype: torch.dtype, isa: str) -> None:
    for activation in ("swiglu", "relu"):
        given = case([1, 4, 27], hidden, width, activation, dtype=dtype)
        assert_right(given, given.run(isa)[0])


@pytest.mark.parametrize(("hidden", "width"), [(1024, 520), (513, 1500), (1536, 1), (2050, 33)])
@every_dtype
@every_isa
def test_reductions_of_several_chunks(hidden: int, width: int, dtype: torch.dtype, isa: str) -> None:
    given = case([3, 35, 36], hidden, width, dtype=dtype)
    assert_right(given, given.run(isa)[0])


@pytest.mark.parametrize(("hidden", "width"), [(2048, 48), (72, 2048), (64, 1024), (1024, 40)])
@every_dtype
@every_isa
def test_columns_that_crowd_the_first_cache(hidden: int, width: int, dtype: torch.dtype, isa: str) -> None:
    """A multiple of 4 KiB apart, they are copied where more than a few rows go by; one row alone has the same bits."""
    given = case([8, 17, 34, 99], hidden, width, dtype=dtype)
    out = given.run(isa)[0]
    assert_right(given, out)
    for row, ends in ((12, [0, 1, 1, 1]), (98, [0, 0, 0, 1])):
        assert given.take([row], ends).run(isa)[0].equal(out[[row]])


@pytest.mark.parametrize(("hidden", "width"), [(0, 5), (5, 0), (0, 0)])
@every_isa
def test_empty_dimensions(hidden: int, width: int, isa: str) -> None:
    given = case([1, 4], hidden, width, "relu", num_rows=6)
    out, pre = given.run(isa, keep=True)
    assert out.shape == (6, hidden) and pre.shape == (6, width)
    assert not out.any() and not pre.any()


@every_isa
def test_no_experts(isa: str) -> None:
    given = Case(
        torch.ones(3, 4), torch.ones(0, 10, 4), torch.ones(0, 4, 5), torch.tensor([], dtype=torch.int64), "swiglu"
    )
    assert not given.run(isa)[0].any()


@every_dtype
@every_isa
def test_rows_beyond_the_last_offset_give_zeros(dtype: torch.dtype, isa: str) -> None:
    given = case([2, 5], 20, 12, num_rows=9, dtype=dtype)
    given.rows[5:] = float("nan")
    out, pre = given.run(isa, keep=True)
    assert not out[5:].any() and not pre[5:].any()
    assert out[:5].isfinite().all()


@every_activation
@every_dtype
@every_isa
def test_what_is_kept_for_the_backward(activation: str, dtype: torch.dtype, isa: str) -> None:
    given = case([3, 3, 50], 70, 19, activation, dtype=dtype)
    out, pre = given.run(isa, keep=True)
    plain, nothing = given.run(isa)
    assert out.equal(plain) and nothing.shape == (0, given.up.shape[1])
    np.testing.assert_allclose(
        pre.double(), oracle(given)[1], rtol=2e-6 if dtype is torch.float32 else 2**-8, atol=1e-5
    )


@every_dtype
@every_isa
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype, isa: str) -> None:
    given = case([37, 170], 1030, 80, dtype=dtype)
    out, pre = given.run(isa, keep=True)
    for chosen in ([0], [36, 37], [3, 1, 2, 60], [*range(30, 55)], [169, *range(37, 100)]):
        few, few_pre = given.take(chosen, [sum(row < 37 for row in chosen), len(chosen)]).run(isa, keep=True)
        assert few.equal(out[chosen]) and few_pre.equal(pre[chosen])


@every_dtype
@every_isa
def test_the_bits_do_not_depend_on_the_threads(dtype: torch.dtype, isa: str) -> None:
    given = case([1, 90, 300], 257, 300, dtype=dtype)
    alone = given.run(isa)[0]
    torch.set_num_threads(2)
    for _ in range(3):
        assert given.run(isa)[0].equal(alone)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@every_dtype
@every_isa
def test_what_is_not_finite_stays_in_its_row(bad: float, dtype: torch.dtype, isa: str) -> None:
    given = case([5, 37], 35, 21, dtype=dtype)
    clean = given.run(isa)[0]
    given.rows[6, 3] = bad
    out = given.run(isa)[0]
    others = [row for row in range(37) if row != 6]
    assert out[others].equal(clean[others]) and not out[6].isfinite().any()


@every_activation
@every_isa
def test_extreme_values_as_torch_has_them(activation: str, isa: str) -> None:
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, 1e30, -1e30])
    given = case([14], 1, 1, activation)
    up, down = torch.ones_like(given.up), torch.ones(1, 1, 1)
    found = Case(values[:, None], up, down, given.offsets, activation).run(isa)[0]
    expected = experts(values[:, None].double(), up, down, given.offsets, activation).float()
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=1e-37)


def hidden_in_nan(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a slice of a larger tensor that is NaN everywhere else."""
    around = torch.full([size + 3 for size in tensor.shape], float("nan"), dtype=tensor.dtype)
    inside = around[tuple(slice(1, size + 1) for size in tensor.shape)]
    return inside.copy_(tensor)


@pytest.mark.parametrize(
    "change",
    [
        hidden_in_nan,
        lambda tensor: tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
        lambda tensor: tensor[..., None].expand(*tensor.shape, 2).contiguous()[..., 1],
    ],
    ids=["slices", "transposed", "strided"],
)
@every_dtype
@every_isa
def test_other_memory_layouts(change: object, dtype: torch.dtype, isa: str) -> None:
    assert callable(change)
    given = case([4, 41], 1030, 26, dtype=dtype)
    moved = Case(change(given.rows), change(given.up), change(given.down), given.offsets, given.activation)
    assert not moved.up.is_contiguous()
    assert moved.run(isa)[0].equal(given.run(isa)[0])


@every_isa
def test_expanded_tensors(isa: str) -> None:
    given = case([4, 9], 30, 8)
    same = Case(
        given.rows[:1].expand(9, 30), given.up[:1].expand(2, 16, 30), given.down[:1].expand(2, 30, 8),
        torch.stack([given.offsets, given.offsets], 1)[:, 0], given.activation,
    )  # fmt: skip
    out = same.run(isa)[0]
    assert_right(same, out)
    assert out.equal(out[:1].expand(9, 30))


def test_instruction_sets_agree() -> None:
    given = case([40, 77], 600, 48)
    outs = [given.run(isa)[0] for isa in available_isas()]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-4, atol=1e-5)
    with forced_isa(available_isas()[-1]):
        assert given.run()[0].equal(outs[-1])
