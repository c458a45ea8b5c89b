"""npu_moe_init_routing_v2 against the specification: ranges, counts, row indices, capacity, int8."""

import itertools
from typing import Any

import cases
import golden_rows as golden
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moegate import ascend

DROPLESS_MODES = list(itertools.product((0, 1, 2), (0, 1)))


def call(x: Tensor, expert_idx: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return ascend.npu_moe_init_routing_v2(x, expert_idx, expert_tokens_num_flag=True, **options)


@pytest.mark.parametrize("dtype", (*cases.DTYPES, torch.int8), ids=str)
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_dropless(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    num_tokens, top_k, width, num_experts = shape
    generator = np.random.default_rng(2)
    x = cases.random_rows(generator, num_tokens, width, dtype=dtype)
    expert_idx = cases.random_experts(generator, num_tokens, top_k, num_experts)
    scale = cases.random_rows(generator, num_tokens)
    ranges = {(0, num_experts), (0, num_experts // 2), (num_experts // 2, num_experts), (num_experts, num_experts)}
    for (start, end), (kind, scatter) in itertools.product(ranges, DROPLESS_MODES):
        for active_num in (-1, 0, 1, num_tokens * top_k, num_tokens * top_k + 1):
            rows, index, counts, row_scale = call(
                x, expert_idx, scale=scale, active_num=active_num, expert_num=num_experts,
                expert_tokens_num_type=kind, active_expert_range=[start, end], row_idx_type=scatter,
            )  # fmt: skip
            wanted = golden.init_routing_dropless(
                cases.widened(x), expert_idx.numpy(), start, end, active_num, bool(scatter)
            )
            assert cases.same_bits(rows, wanted[0]) and rows.dtype == dtype
            assert cases.same_bits(index, wanted[1]) and index.dtype == torch.int32
            assert cases.same_bits(counts, golden.counts(expert_idx.numpy(), start, end, num_experts, kind))
            assert counts.dtype == torch.int64
            carried = np.zeros(len(wanted[0]), np.float32)
            carried[: len(wanted[2])] = scale.numpy()[wanted[2]]
            assert cases.same_bits(row_scale, carried) and row_scale.dtype == torch.float32


@pytest.mark.parametrize("dtype", (*cases.DTYPES, torch.int8), ids=str)
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_drop_pad(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    num_tokens, top_k, width, num_experts = shape
    generator = np.random.default_rng(4)
    x = cases.random_rows(generator, num_tokens, width, dtype=dtype)
    expert_idx = cases.random_experts(generator, num_tokens, top_k, num_experts + 1)
    scale = cases.random_rows(generator, num_tokens)
    for capacity in sorted({1, 2, max(1, num_tokens)}):
        rows, index, counts, row_scale = call(
            x, expert_idx, scale=scale, expert_capacity=capacity, expert_num=num_experts, drop_pad_mode=1,
            expert_tokens_num_type=1,
        )  # fmt: skip
        wanted = golden.init_routing_drop_pad(cases.widened(x), expert_idx.numpy(), num_experts, capacity)
        assert cases.same_bits(rows, wanted[0]) and rows.dtype == dtype
        assert cases.same_bits(index, wanted[1])
        assert cases.same_bits(counts, golden.counts(expert_idx.numpy(), 0, num_experts, num_experts, 1))
        token = wanted[2]
        carried = np.where(token < 0, 0, scale.numpy()[token.clip(0)] if num_tokens else 0)
        assert cases.same_bits(row_scale, carried.astype(np.float32))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("scale", (0.5, 30.0, 1e-8, 60000.0))
def test_static_int8(dtype: torch.dtype, scale: float) -> None:
    generator = np.random.default_rng(5)
    x = cases.random_rows(generator, 9, 7, dtype=dtype)
    x[0, :3] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    expert_idx = cases.random_experts(generator, 9, 3, 6)
    rows, index, _, row_scale = call(
        x, expert_idx, scale=torch.tensor([scale]), offset=torch.tensor([-3.5]), expert_num=6, quant_mode=0,
        active_expert_range=[1, 5], active_num=20,
    )  # fmt: skip
    plain, wanted_index, token, _ = golden.init_routing_dropless(cases.widened(x), expert_idx.numpy(), 1, 5, 20, False)
    wanted = golden.static_int8(plain, scale, -3.5)
    wanted[len(token) :] = 0
    assert rows.dtype == torch.int8 and torch.equal(rows, torch.from_numpy(wanted))
    assert cases.same_bits(index, wanted_index) and not row_scale.any()


def test_static_int8_with_a_capacity_leaves_padding_zero() -> None:
    x, expert_idx = torch.ones(2, 3), torch.tensor([[0], [0]], dtype=torch.int32)
    rows, *_ = call(
        x, expert_idx, scale=torch.tensor([2.0]), offset=torch.tensor([5.0]), expert_num=2, quant_mode=0,
        drop_pad_mode=1, expert_capacity=2,
    )  # fmt: skip
    assert rows.tolist() == [[[7] * 3, [7] * 3], [[0] * 3, [0] * 3]]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", ("none", "one", "each"))
def test_dynamic_int8(dtype: torch.dtype, smoothing: str) -> None:
    generator = np.random.default_rng(6)
    x = cases.random_rows(generator, 11, 5, dtype=dtype)
    x[3] = 0
    expert_idx = cases.random_experts(generator, 11, 3, 8)
    start, end = 2, 7
    smooth = None
    if smoothing != "none":
        smooth = cases.random_rows(generator, 1 if smoothing == "one" else end - start, 5)
    rows, index, counts, row_scale = call(
        x, expert_idx, scale=smooth, expert_num=8, quant_mode=1, active_expert_range=[start, end],
        expert_tokens_num_type=2,
    )  # fmt: skip
    plain, wanted_index, token, expert = golden.init_routing_dropless(
        cases.widened(x), expert_idx.numpy(), start, end, -1, False
    )
    for place in range(len(plain)):
        if place >= len(token):
            assert not rows[place].any() and row_scale[place] == 0
            continue
        used = None if smooth is None else smooth.numpy()[0 if smoothing == "one" else expert[place]]
        wanted_row, wanted_scale = golden.dynamic_int8(plain[place], used)
        assert rows[place].tolist() == wanted_row.tolist()
        assert float(row_scale[place]) == float(wanted_scale)
    assert cases.same_bits(index, wanted_index)
    assert cases.same_bits(counts, golden.counts(expert_idx.numpy(), start, end, 8, 2))


def test_dynamic_int8_with_a_capacity() -> None:
    generator = np.random.default_rng(7)
    x, expert_idx = cases.random_rows(generator, 6, 4), cases.random_experts(generator, 6, 2, 3)
    smooth = cases.random_rows(generator, 3, 4)
    rows, index, _, row_scale = call(
        x, expert_idx, scale=smooth, expert_num=3, quant_mode=1, drop_pad_mode=1, expert_capacity=3
    )
    _, wanted_index, token = golden.init_routing_drop_pad(x.numpy(), expert_idx.numpy(), 3, 3)
    assert cases.same_bits(index, wanted_index)
    for place, source in enumerate(token):
        row, scale = (np.zeros(4, np.int8), 0.0)
        if source >= 0:
            row, scale = golden.dynamic_int8(x.numpy()[source], smooth.numpy()[place // 3])
        assert rows.view(9, 4)[place].tolist() == row.tolist() and float(row_scale[place]) == float(scale)


@pytest.mark.parametrize("case", ("low latency", "large batch", "documented"))
def test_the_shapes_that_have_templates_of_their_own(case: str) -> None:
    generator = np.random.default_rng(8)
    num_tokens, width, top_k, num_experts, start, end = {
        "low latency": (1, 7168, 8, 256, 0, 256),
        "large batch": (384, 16, 8, 256, 32, 64),
        "documented": (1, 613, 475, 226, 23, 35),
    }[case]
    x = cases.random_rows(generator, num_tokens, width, dtype=torch.bfloat16)
    expert_idx = cases.random_experts(generator, num_tokens, top_k, num_experts)
    options: dict[str, Any] = {"row_idx_type": 1, "expert_tokens_num_type": 1}
    if case == "low latency":
        options = {"quant_mode": 1, "expert_tokens_num_type": 2, "scale": cases.random_rows(generator, 256, width)}
    rows, index, counts, _ = call(
        x, expert_idx, expert_num=num_experts, active_expert_range=[start, end], active_num=num_tokens * top_k,
        strict=True, **options,
    )  # fmt: skip
    scatter = "row_idx_type" in options
    plain, wanted_index, token, expert = golden.init_routing_dropless(
        cases.widened(x), expert_idx.numpy(), start, end, -1, scatter
    )
    assert cases.same_bits(index, wanted_index)
    kind = options["expert_tokens_num_type"]
    assert cases.same_bits(counts, golden.counts(expert_idx.numpy(), start, end, num_experts, kind))
    if scatter:
        assert cases.same_bits(rows, plain)
    else:
        wanted = [golden.dynamic_int8(plain[p], options["scale"].numpy()[expert[p]])[0] for p in range(len(token))]
        assert torch.equal(rows, torch.from_numpy(np.stack(wanted)))


@cases.thorough
@given(st.data())
def test_any_legal_dropless_call(data: st.DataObject) -> None:
    num_tokens, top_k, num_experts = (data.draw(st.integers(*bounds)) for bounds in ((0, 9), (1, 5), (1, 7)))
    start = data.draw(st.integers(0, num_experts))
    end = data.draw(st.integers(start, num_experts))
    active_num, scatter = data.draw(st.integers(-1, 50)), data.draw(st.booleans())
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    # Ids that no expert has, such as the marks of finished tokens, have no row.
    expert_idx = torch.from_numpy(generator.integers(-1, num_experts + 2, (num_tokens, top_k)).astype(np.int32))
    x = cases.random_rows(generator, num_tokens, 2)
    rows, index, counts, _ = call(
        x, expert_idx, expert_num=num_experts, active_num=active_num, active_expert_range=[start, end],
        row_idx_type=int(scatter),
    )  # fmt: skip
    wanted = golden.init_routing_dropless(x.numpy(), expert_idx.numpy(), start, end, active_num, scatter)
    assert cases.same_bits(rows, wanted[0]) and cases.same_bits(index, wanted[1])
    assert cases.same_bits(counts, golden.counts(expert_idx.numpy(), start, end, num_experts, 0))


def test_strides_do_not_matter() -> None:
    generator = np.random.default_rng(9)
    x, expert_idx = cases.random_rows(generator, 8, 6), cases.random_experts(generator, 8, 4, 5)
    spread = call(x.t().contiguous().t()[::2], expert_idx.t().contiguous().t()[::2], expert_num=5)
    packed = call(x[::2].contiguous(), expert_idx[::2].contiguous(), expert_num=5)
    assert all(torch.equal(left, right) for left, right in zip(spread, packed, strict=True))


def test_without_the_flag_nothing_is_counted_but_the_shapes_stay() -> None:
    x, expert_idx = torch.ones(2, 1), torch.tensor([[1], [2]], dtype=torch.int32)
    for kind, shape in ((0, (2,)), (1, (2,)), (2, (4, 2))):
        counts = ascend.npu_moe_init_routing_v2(
            x, expert_idx, expert_num=4, expert_tokens_num_type=kind, active_expert_range=[1, 3]
        )[2]
        assert counts.shape == shape and not counts.any() and counts.dtype == torch.int64


@pytest.mark.parametrize("drop_pad", (0, 1))
def test_gradients_skip_what_was_dropped(drop_pad: int) -> None:
    generator = np.random.default_rng(10)
    x = cases.random_rows(generator, 5, 3, dtype=torch.float64).requires_grad_()
    scale = cases.random_rows(generator, 5, dtype=torch.float64).requires_grad_()
    expert_idx = cases.random_experts(generator, 5, 2, 3)
    options: dict[str, Any] = (
        {"drop_pad_mode": 1, "expert_capacity": 2} if drop_pad else {"active_num": 6, "active_expert_range": [0, 2]}
    )

    def run(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        rows, _, _, row_scale = call(x, expert_idx, scale=scale, expert_num=3, **options)
        return rows, row_scale

    assert torch.autograd.gradcheck(run, (x, scale))
    rows, index, *_ = call(x, expert_idx, expert_num=3, **options)
    grad = torch.randn_like(rows)
    rows.backward(grad)
    wanted, flat = torch.zeros_like(x), grad.reshape(-1, 3)
    for slot, place in enumerate(index.tolist()):
        if 0 <= place < len(flat):
            wanted[slot // 2] += flat[place]
    assert x.grad is not None and torch.allclose(x.grad, wanted, rtol=0, atol=1e-12)


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    x = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    expert_idx = torch.arange(9, dtype=torch.int32)[None]
    rows, *_ = call(x, expert_idx, expert_num=9)
    grad = torch.full((9, 1), 1.0, dtype=torch.bfloat16)
    grad[0] = 256.0
    rows.backward(grad)
    assert x.grad is not None and x.grad.item() == 264.0  # one at a time in bfloat16, 256 + 1 is 256


def test_quantised_rows_have_no_gradient() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    rows, _, _, scale = call(x, torch.zeros(2, 1, dtype=torch.int32), expert_num=1, quant_mode=1)
    assert not rows.requires_grad and not scale.requires_grad


@pytest.mark.parametrize("bounds", ([0, 0], [3, 3], [8, 8]))
def test_no_active_expert_has_no_rows_to_quantise(bounds: list[int]) -> None:
    rows, places, counts, scales = ascend.npu_moe_init_routing_v2(
        torch.ones(4, 3), torch.ones(4, 2, dtype=torch.int32), expert_num=8, active_expert_range=bounds,
        scale=torch.ones(0, 3), quant_mode=1, expert_tokens_num_flag=True,
    )  # fmt: skip
    assert rows.shape == (8, 3) and rows.dtype == torch.int8 and not rows.any() and not scales.any()
    assert places.tolist() == [-1] * 8 and counts.shape == (0,)


X, IDS = torch.zeros(4, 3), torch.zeros(4, 2, dtype=torch.int32)
ONE = torch.ones(1)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"expert_idx": IDS[:2]}, ValueError, r"expert_idx must be \[4, experts per token\], got \(2, 2\)"),
    ({"expert_idx": IDS.float()}, TypeError, "expert_idx must be int32"),
    ({"x": torch.zeros(4)}, ValueError, r"x must be \[tokens, hidden size\]"),
    ({"expert_num": -1}, ValueError, "Pass expert_num, or active_expert_range"),
    ({"expert_num": -2}, ValueError, "expert_num must be at least -1"),
    ({"active_expert_range": [1]}, ValueError, r"must be \[start, end\], got \[1\]"),
    ({"active_expert_range": [2, 9]}, ValueError, r"must lie in \[0, expert_num=8\]"),
    ({"active_expert_range": [-1, 2]}, ValueError, "must lie in"),
    ({"active_expert_range": [3, 2]}, ValueError, "not end before it starts"),
    ({"drop_pad_mode": 2}, ValueError, "drop_pad_mode must be one of 0, 1; got 2"),
    ({"expert_tokens_num_type": 3}, ValueError, "expert_tokens_num_type must be one of 0, 1, 2"),
    ({"row_idx_type": -1}, ValueError, "row_idx_type must be one of 0, 1; got -1"),
    ({"quant_mode": 2}, ValueError, "8-bit and 4-bit floats of the Ascend 950 are not offered"),
    ({"drop_pad_mode": 1}, ValueError, "expert_capacity, in drop-pad mode, must be at least 1"),
    ({"drop_pad_mode": 1, "expert_capacity": 2, "active_expert_range": [0, 4]}, ValueError, "takes all experts"),
    ({"drop_pad_mode": 1, "expert_capacity": 2, "row_idx_type": 1}, ValueError, "row_idx_type must be 0"),
    ({"scale": torch.ones(3)}, ValueError, r"scale, one per token, must be \[4\], got \(3,\)"),
    ({"offset": ONE}, ValueError, "offset belongs to static quantisation"),
    ({"quant_mode": 0, "scale": ONE}, TypeError, "offset, for static quantisation, must be a tensor"),
    ({"quant_mode": 0, "offset": ONE}, TypeError, "scale, for static quantisation, must be a tensor"),
    ({"quant_mode": 0, "scale": torch.ones(2), "offset": ONE}, ValueError, r"must be \[1\], got \(2,\)"),
    ({"quant_mode": 1, "scale": torch.ones(7, 3)}, ValueError, r"dynamic quantisation of 8 experts, must be \[8, 3\]"),
    ({"quant_mode": 1, "x": X.to(torch.int8)}, TypeError, "quantises floating-point rows, but x is torch.int8"),
    ({"x_dtype": torch.uint8}, ValueError, "x_dtype=torch.uint8 reinterprets x"),
    ({"active_expert_range": [0.0, 4.0]}, TypeError, "A bound of active_expert_range must be an integer, got 0.0"),
    ({"active_expert_range": torch.tensor([0, 4])}, TypeError, "must be a list .start, end., got tensor"),
    ({"active_expert_range": 3}, TypeError, "must be a list .start, end., got 3"),
    ({"quant_mode": True}, ValueError, "quant_mode must be -1"),
    ({"expert_tokens_num_flag": "yes"}, TypeError, "expert_tokens_num_flag must be true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_arguments_that_do_not_fit(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"x": X, "expert_idx": IDS, "expert_num": 8} | changed
    with pytest.raises(error, match=message):
        ascend.npu_moe_init_routing_v2(**arguments)


LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"x": X.double()}, "161002.*x as float16, bfloat16, float32, int8"),
    ({"expert_idx": IDS.long()}, "expert_idx as int32"),
    ({"expert_num": 10241}, "561002.*expert_num from 0 to 10240, got 10241"),
    ({"expert_num": 5121, "expert_tokens_num_type": 2}, "expert_num from 0 to 5120 for pairs"),
    ({"expert_idx": IDS + 8}, "expert ids below expert_num, got 8"),
    ({"scale": torch.ones(4, dtype=torch.float64)}, "scale as float32"),
    ({"drop_pad_mode": 1, "expert_capacity": 5}, "a capacity up to the number of tokens, got 5"),
    (
        {"drop_pad_mode": 1, "expert_capacity": 4, "expert_tokens_num_flag": True},
        "only counts, expert_tokens_num_type=1, in drop-pad mode",
    ),
]


@pytest.mark.parametrize(("changed", "message"), LIMITS, ids=lambda value: str(value)[:40])
def test_limits_of_the_hardware_are_lifted_unless_strict(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": X, "expert_idx": IDS, "expert_num": 8} | changed
    ascend.npu_moe_init_routing_v2(**arguments)
    with pytest.raises(RuntimeError, match=message):
        ascend.npu_moe_init_routing_v2(**arguments, strict=True)


def test_the_range_alone_says_how_many_experts() -> None:
    rows, _, counts, _ = call(
        torch.ones(1, 1), torch.tensor([[2]]), active_expert_range=[1, 3], expert_tokens_num_type=2
    )
    assert rows.tolist() == [[1.0]] and counts.tolist() == [[2, 1], [0, 0], [0, 0]]


def test_the_default_range_is_that_of_each_call() -> None:
    # op-plugin keeps the first expert_num it ever saw as the default range.
    x, expert_idx = torch.ones(1, 1), torch.tensor([[5]])
    assert call(x, expert_idx, expert_num=2, expert_tokens_num_type=1)[2].tolist() == [0, 0]
    assert call(x, expert_idx, expert_num=6, expert_tokens_num_type=1)[2].tolist() == [0, 0, 0, 0, 0, 1]
