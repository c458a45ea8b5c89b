"""npu_moe_finalize_routing against the specification: four modes, skips, biases, scales, special experts."""

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

MODES = (0, 1, 2, 3)
PARTS = ("skip1", "skip2", "bias", "scales")
ALL_PARTS = frozenset(PARTS)
SETS_OF_PARTS = [
    frozenset(chosen)
    for size in range(5)
    for chosen in itertools.combinations(PARTS, size)
    if "skip2" not in chosen or "skip1" in chosen
]


def arguments(
    seed: int,
    shape: tuple[int, int, int, int],
    mode: int,
    parts: frozenset[str] = ALL_PARTS,
    dtype: torch.dtype = torch.float32,
    repeats: bool = False,
) -> dict[str, Any]:
    """A legal call. In the drop-pad modes some slots have no row; with ``repeats`` slots may share rows."""
    num_tokens, top_k, width, num_experts = shape
    generator = np.random.default_rng(seed)
    num_slots, capacity = num_tokens * top_k, max(1, (num_tokens * top_k) // num_experts)
    padded = mode in (1, 3)
    num_rows = num_experts * capacity if padded else num_slots
    places = generator.permutation(max(num_rows, num_slots))[:num_slots]
    if repeats and num_rows:
        places = generator.integers(0, num_rows, num_slots)
    if padded:
        places = np.where((places >= num_rows) | (generator.random(num_slots) < 0.2), -1, places)
    rows = cases.random_rows(generator, num_rows, width, dtype=dtype)
    made = {
        "skip1": cases.random_rows(generator, num_tokens, width, dtype=dtype),
        "skip2": cases.random_rows(generator, num_tokens, width, dtype=dtype),
        "bias": cases.random_rows(generator, num_experts, width, dtype=dtype),
        "scales": cases.random_rows(generator, num_tokens, top_k, dtype=dtype),
    }
    return {name: made[name] if name in parts else None for name in PARTS} | {
        "expanded_permuted_rows": rows.view(num_experts, capacity, width) if padded else rows,
        "expanded_src_to_dst_row": torch.from_numpy(places.astype(np.int32)),
        "expert_for_source_row": cases.random_experts(generator, num_tokens, top_k, num_experts),
        "drop_pad_mode": mode,
        "k": top_k,
    }


def wanted(call: dict[str, Any], dtype: type = np.float32, special: dict[str, Any] | None = None) -> cases.Array:
    """The golden in the type of the rows, or in another."""
    rows = cases.widened(call["expanded_permuted_rows"])
    rows = rows.astype(np.promote_types(rows.dtype, dtype))
    experts = call["expert_for_source_row"]
    return golden.finalize_routing(
        rows,
        *(cases.optional(call[name]) for name in PARTS),
        call["expanded_src_to_dst_row"].numpy(),
        None if experts is None else experts.numpy(),
        call["drop_pad_mode"],
        call["k"],
        special,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_modes_types_and_shapes(shape: tuple[int, int, int, int], dtype: torch.dtype, mode: int) -> None:
    for repeats in (False, True):
        call = arguments(1, shape, mode, dtype=dtype, repeats=repeats)
        found = ascend.npu_moe_finalize_routing(**call)
        assert found.dtype == dtype and cases.same_bits(found, wanted(call))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parts", SETS_OF_PARTS, ids=lambda parts: "+".join(sorted(parts)) or "rows alone")
def test_every_set_of_parts(parts: frozenset[str], mode: int) -> None:
    for repeats in (False, True):
        call = arguments(2, (6, 3, 5, 4), mode, parts, repeats=repeats)
        assert cases.same_bits(ascend.npu_moe_finalize_routing(**call), wanted(call))
    call = arguments(2, (6, 3, 5, 4), mode, parts, dtype=torch.bfloat16)
    assert cases.same_bits(ascend.npu_moe_finalize_routing(**call), wanted(call))


@pytest.mark.parametrize("mode", MODES)
def test_float32_is_as_near_to_the_exact_sum_as_its_terms_allow(mode: int) -> None:
    call = arguments(3, (8, 8, 16, 8), mode)
    exact = wanted(call, np.float64)
    with_magnitudes = {
        name: value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in call.items()
    }
    assert cases.within_two_ulp(ascend.npu_moe_finalize_routing(**call), exact, wanted(with_magnitudes, np.float64))


@pytest.mark.parametrize("scales_dtype", cases.DTYPES, ids=str)
def test_scales_may_have_a_type_of_their_own(scales_dtype: torch.dtype) -> None:
    call = arguments(4, (6, 3, 5, 4), 2, frozenset({"scales"}), torch.bfloat16)
    call["scales"] = call["scales"].float().to(scales_dtype)
    assert cases.same_bits(ascend.npu_moe_finalize_routing(**call), wanted(call))


def test_without_scales_or_k_every_row_is_a_tokens_own() -> None:
    rows = torch.tensor([[1.0], [2.0]])
    found = ascend.npu_moe_finalize_routing(rows, None, None, None, None, torch.tensor([1, 0]), None, 2)
    assert found.flatten().tolist() == [2.0, 1.0]


def test_the_two_layouts_are_each_others_transpose() -> None:
    call = arguments(5, (7, 3, 4, 5), 0)
    by_row = call["expanded_src_to_dst_row"].view(3, 7).t().reshape(-1)
    found = ascend.npu_moe_finalize_routing(**call)
    assert torch.equal(
        found, ascend.npu_moe_finalize_routing(**call | {"expanded_src_to_dst_row": by_row, "drop_pad_mode": 2})
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_slot_without_a_row_still_adds_its_bias(mode: int) -> None:
    rows = torch.full((1, 1), float("nan"))
    found = ascend.npu_moe_finalize_routing(
        rows, torch.tensor([[1.0]]), None, torch.tensor([[3.0]]), torch.tensor([[2.0]]), torch.tensor([-1]),
        torch.tensor([[0]]), mode,
    )  # fmt: skip
    assert found.item() == 7.0


def test_a_row_that_active_num_cut_off_adds_nothing() -> None:
    rows = torch.tensor([[1.0]])
    found = ascend.npu_moe_finalize_routing(
        rows, None, None, torch.tensor([[3.0]]), torch.tensor([[2.0], [5.0]]), torch.tensor([1, 0]),
        torch.tensor([[0], [0]]), 2,
    )  # fmt: skip
    assert found.flatten().tolist() == [0.0, 20.0]


@pytest.mark.parametrize("sentinel", (-1, 4, 9))
def test_an_expert_without_a_bias_adds_none(sentinel: int) -> None:
    call = arguments(6, (5, 2, 3, 4), 2)
    call["expert_for_source_row"][1] = sentinel
    assert cases.same_bits(ascend.npu_moe_finalize_routing(**call), wanted(call))


# --- special experts --------------------------------------------------------------------------------------------------


def special_call(seed: int, mode: int, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """Experts 0..3 have weights, 4 gives nothing, 5 and 6 copy, 7 to 9 are constant; all have a bias."""
    generator = np.random.default_rng(seed)
    call = arguments(seed, (9, 3, 5, 4), mode, dtype=dtype)
    call["bias"] = cases.random_rows(generator, 10, 5, dtype=dtype)
    call["expert_for_source_row"] = cases.random_experts(generator, 9, 3, 10)
    tensors = {name: cases.random_rows(generator, 3, 5, dtype=dtype) for name in ("alpha1", "alpha2", "v")}
    tensors["x"] = cases.random_rows(generator, 9, 5, dtype=dtype)
    ranges = {"zero": [4, 5], "copy": [5, 7], "constant": [7, 10]}
    call |= tensors | {f"{kind}_expert_range": bounds for kind, bounds in ranges.items()}
    wide = np.float64 if dtype == torch.float64 else np.float32
    return call, ranges | {name: cases.widened(value).astype(wide) for name, value in tensors.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_zero_copy_and_constant_experts(dtype: torch.dtype, mode: int) -> None:
    call, special = special_call(7, mode, dtype)
    assert cases.same_bits(ascend.npu_moe_finalize_routing(**call), wanted(call, special=special))
    call["bias"] = None
    assert cases.same_bits(ascend.npu_moe_finalize_routing(**call), wanted(call, special=special))


def test_a_special_experts_row_is_not_looked_at() -> None:
    call, special = special_call(8, 2, torch.float32)
    is_special = call["expert_for_source_row"].reshape(-1) >= 4
    places, kept = call["expanded_src_to_dst_row"], int((~is_special).sum())
    used = torch.where(is_special, 27, places).unique()[:kept]
    rows = call["expanded_permuted_rows"][used.long()]
    for elsewhere in (-1, 26):
        # Only the rows of ordinary experts are there; the slots of the others point nowhere.
        moved = torch.where(is_special, elsewhere, torch.searchsorted(used, places)).to(torch.int32)
        found = ascend.npu_moe_finalize_routing(
            **call | {"expanded_src_to_dst_row": moved, "expanded_permuted_rows": rows}
        )
        assert cases.same_bits(found, wanted(call, special=special))


def test_ranges_that_are_none() -> None:
    call = arguments(9, (4, 2, 3, 4), 2)
    plain = ascend.npu_moe_finalize_routing(**call)
    for none in (None, [], [-1, -1]):
        given_none = ascend.npu_moe_finalize_routing(**call, zero_expert_range=none, copy_expert_range=none)
        assert torch.equal(plain, given_none)


# --- any legal call, gradients, errors --------------------------------------------------------------------------------


@cases.thorough
@given(st.data())
def test_any_legal_call(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(*bounds)) for bounds in ((0, 7), (1, 5), (1, 4), (1, 6)))
    mode, parts = data.draw(st.sampled_from(MODES)), data.draw(st.sampled_from(SETS_OF_PARTS))
    dtype, repeats = data.draw(st.sampled_from(cases.DTYPES)), data.draw(st.booleans())
    call = arguments(data.draw(st.integers(0, 1000)), shape, mode, parts, dtype, repeats)  # type: ignore[arg-type]
    assert cases.same_bits(ascend.npu_moe_finalize_routing(**call), wanted(call))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parts", (frozenset({"scales"}), ALL_PARTS), ids=("scales", "all"))
def test_gradients_against_finite_differences(parts: frozenset[str], mode: int) -> None:
    for repeats in (False, True):
        call = arguments(10, (4, 2, 3, 3), mode, parts, torch.float64, repeats)
        names = ["expanded_permuted_rows", *sorted(parts)]
        leaves = [call[name].requires_grad_() for name in names]
        run = lambda *values: ascend.npu_moe_finalize_routing(**call | dict(zip(names, values, strict=True)))  # noqa: B023, E731
        assert torch.autograd.gradcheck(run, leaves)


def test_gradients_of_special_experts_against_finite_differences() -> None:
    call, _ = special_call(11, 3, torch.float64)
    names = ["expanded_permuted_rows", "skip1", "skip2", "bias", "scales", "x", "alpha1", "alpha2", "v"]
    leaves = [call[name].requires_grad_() for name in names]
    run = lambda *values: ascend.npu_moe_finalize_routing(**call | dict(zip(names, values, strict=True)))  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_against_the_documented_formulas(mode: int) -> None:
    call = arguments(12, (5, 2, 3, 3), mode, frozenset({"scales", "bias"}))
    for name in ("expanded_permuted_rows", "scales"):
        call[name].requires_grad_()
    out = ascend.npu_moe_finalize_routing(**call)
    grad = torch.randn_like(out)
    out.backward(grad)
    rows = call["expanded_permuted_rows"].detach().reshape(-1, 3)
    grad_rows, grad_scales = torch.zeros_like(rows), torch.zeros(5, 2)
    for i, j in itertools.product(range(5), range(2)):
        place = int(call["expanded_src_to_dst_row"][j * 5 + i if mode in (0, 1) else i * 2 + j])
        bias = call["bias"][call["expert_for_source_row"][i, j]]
        row = rows[place] if place >= 0 else torch.zeros(3)
        grad_scales[i, j] = ((row + bias) * grad[i]).sum()
        if place >= 0:
            grad_rows[place] = call["scales"].detach()[i, j] * grad[i]
    found_rows = call["expanded_permuted_rows"].grad.reshape(-1, 3)
    assert torch.allclose(found_rows, grad_rows, atol=1e-6) and torch.allclose(
        call["scales"].grad, grad_scales, atol=1e-5
    )


def test_nan_in_unused_rows_reaches_neither_output_nor_gradients() -> None:
    call = arguments(13, (5, 2, 3, 3), 3, frozenset({"scales", "bias"}))
    rows = call["expanded_permuted_rows"].view(-1, 3)
    unused = torch.ones(len(rows), dtype=torch.bool)
    used = call["expanded_src_to_dst_row"][call["expanded_src_to_dst_row"] >= 0].long()
    unused[used] = False
    unused[0] = True
    call["expanded_src_to_dst_row"][call["expanded_src_to_dst_row"] == 0] = -1
    rows[unused] = float("nan")
    call["scales"].requires_grad_()
    out = ascend.npu_moe_finalize_routing(**call)
    out.sum().backward()
    assert out.isfinite().all() and call["scales"].grad.isfinite().all()


GOOD = arguments(14, (4, 2, 3, 3), 2)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"drop_pad_mode": 4}, ValueError, "drop_pad_mode must be one of 0, 1, 2, 3; got 4"),
    ({"expanded_permuted_rows": torch.zeros(8)}, ValueError, r"must be \[rows, H\] or \[E, C, H\], got \(8,\)"),
    ({"expanded_permuted_rows": torch.zeros(8, 3, dtype=torch.int8)}, TypeError, "must be a floating-point tensor"),
    ({"expanded_src_to_dst_row": torch.zeros(8)}, TypeError, "expanded_src_to_dst_row must be int32"),
    ({"expanded_src_to_dst_row": torch.zeros(7, dtype=torch.int32)}, ValueError, "has 7 slots, which are not 4 tokens"),
    ({"scales": None, "k": 3}, ValueError, "has 8 slots, which are not 2 tokens with 3 each"),
    ({"scales": None, "k": 0}, ValueError, "k must be at least 1"),
    ({"scales": torch.zeros(8)}, ValueError, r"scales must be \[tokens, experts per token\]"),
    ({"skip1": None}, ValueError, "skip2 needs skip1"),
    ({"skip1": torch.zeros(3, 3)}, ValueError, r"skip1 must be \[4, 3\], got \(3, 3\)"),
    ({"skip2": torch.zeros(4, 2)}, ValueError, r"skip2 must be \[4, 3\], got \(4, 2\)"),
    ({"bias": torch.zeros(3, 4)}, ValueError, r"bias must be \[experts, 3\]"),
    ({"expert_for_source_row": None}, ValueError, "A bias, and zero, copy and constant experts, need"),
    ({"expert_for_source_row": torch.zeros(4, 3, dtype=torch.int32)}, ValueError, r"must be \[4, 2\], got \(4, 3\)"),
    ({"expanded_src_to_dst_row": torch.full((8,), -2)}, ValueError, "must hold rows, or -1 for none"),
    ({"expanded_src_to_dst_row": torch.full((8,), 8)}, ValueError, "so values from -1 to 7; got values from 8 to 8"),
    ({"copy_expert_range": [0, 1]}, ValueError, "x, which copy and constant experts give, must be a tensor"),
    ({"constant_expert_range": [0, 1], "x": torch.zeros(4, 3)}, TypeError, "alpha1, of the constant experts,"),
    ({"zero_expert_range": [2, 1]}, ValueError, r"zero_expert_range must be \[start, end\]"),
    (
        {"zero_expert_range": [0, 2], "copy_expert_range": [1, 3], "x": torch.zeros(4, 3)},
        ValueError,
        "must not overlap",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_arguments_that_do_not_fit(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises((error, TypeError), match=message):
        ascend.npu_moe_finalize_routing(**GOOD | changed)


LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"expanded_permuted_rows": torch.zeros(8, 3, dtype=torch.float64)}, "161002.*as float16, bfloat16, float32"),
    ({"skip1": torch.zeros(4, 3, dtype=torch.float16)}, "skip1 as float32"),
    ({"bias": torch.zeros(3, 3, dtype=torch.bfloat16)}, "bias as float32"),
    ({"expanded_src_to_dst_row": torch.arange(8)}, "expanded_src_to_dst_row as int32"),
    ({"expert_for_source_row": torch.zeros(4, 2, dtype=torch.int64)}, "expert_for_source_row as int32"),
    ({"drop_pad_mode": 3}, r"\[E, C, H\] in the modes 1 and 3"),
    ({"expanded_permuted_rows": torch.zeros(2, 4, 3)}, r"else \[rows, H\]"),
    ({"expanded_src_to_dst_row": torch.full((8,), -1, dtype=torch.int32)}, r"mode 3 takes -1\), got -1"),
    ({"bias": torch.zeros(1, 3)}, "at least as many experts as a token has, 2, got 1"),
    ({"expert_for_source_row": torch.full((4, 2), 3, dtype=torch.int32)}, "expert ids below 3, got 3"),
]


@pytest.mark.parametrize(("changed", "message"), LIMITS, ids=lambda value: str(value)[:40])
def test_limits_of_the_hardware_are_lifted_unless_strict(changed: dict[str, Any], message: str) -> None:
    ascend.npu_moe_finalize_routing(**GOOD, strict=True)
    ascend.npu_moe_finalize_routing(**GOOD | changed)
    with pytest.raises(RuntimeError, match=message):
        ascend.npu_moe_finalize_routing(**GOOD | changed, strict=True)
