"""The gate's Triton kernels: where rough keys suffice, where they must not, and what only a kernel can get wrong."""

import mmap
from typing import Any

import gate_oracle
import pytest
import torch
from torch import Tensor
from triton_support import only_on_triton

from moegate.ops.topk_gate import Gated, topk_gate
from moegate.ops.topk_gate.options import SCORES, Options, options_for
from moegate.ops.topk_gate.reference import topk_gate_backward_reference

triton = pytest.importorskip("triton")
tl = triton.language
gpu_kernel = pytest.importorskip("moegate.ops.topk_gate.gpu_kernel")
gpu_operator = pytest.importorskip("moegate.ops.topk_gate.gpu_operator")

RULE = {
    "top_k": 4, "score": "identity", "num_groups": 1, "groups_kept": 1, "group_score": "max", "renormalize": False,
    "eps": 1e-20, "scale": 1.0, "rank_by": "logits",
}  # fmt: skip


@pytest.fixture
def ranked_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one for each token that is ranked by exact keys."""
    calls: list[int] = []
    exactly_chosen = gpu_kernel.exactly_chosen

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return exactly_chosen(*arguments)

    monkeypatch.setattr(gpu_kernel, "exactly_chosen", counted)
    return calls


def checked(logits: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, **choices: Any) -> Gated:
    """The gate, compared with sorts in Python and weights in float64."""
    rule = {**RULE, **choices}
    gated = topk_gate(logits, bias_E=bias, token_mask_T=mask, with_counts=True, **rule)
    expected = gate_oracle.gated(logits, bias, mask, rule)
    assert gated.index.tolist() == expected.index
    assert gated.counts is not None and gated.counts.tolist() == expected.counts
    assert gate_oracle.distance_in_ulp(gated.weights.numpy(), expected.weights, rule["scale"]) <= 2
    return gated


def spread(num_tokens: int, num_experts: int) -> Tensor:
    """Rows in random order of values that no rough key confuses, and no rough score."""
    order = torch.rand(num_tokens, num_experts).argsort(dim=-1)
    return order * (4.0 / num_experts) - 2.0 + 1e-3 * torch.rand(num_tokens, 1)


# --- where rough keys suffice -------------------------------------------------------------------------------------


@only_on_triton
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_apart_are_ranked_once(score: str, with_bias: bool, ranked_again: list[int]) -> None:
    logits = spread(3, 48).abs() if score == "relu" else spread(3, 48)
    bias = torch.arange(48) % 2 * 0.04 if with_bias else None
    checked(logits, bias, score=score)
    assert not ranked_again


@only_on_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("again_wide", [False, True])
def test_ties_of_narrow_logits_are_ranked_once(dtype: torch.dtype, again_wide: bool, ranked_again: list[int]) -> None:
    """Nothing lies below a rough key of theirs, be they float32 by now."""
    half = spread(5, 50).to(dtype)
    logits = torch.cat([half, half], dim=-1)
    checked(logits.float() if again_wide else logits, top_k=8)
    assert not ranked_again


@only_on_triton
def test_masked_tokens_are_never_in_doubt(ranked_again: list[int]) -> None:
    logits = spread(4, 40)
    logits[1], logits[2] = float("nan"), 1 / 3
    checked(logits, mask=torch.tensor([True, False, False, True]))
    assert not ranked_again


@only_on_triton
def test_excluded_experts_of_logits_minus_infinity(ranked_again: list[int]) -> None:
    """As long as enough others are left they are no doubt."""
    logits = spread(2, 40).masked_fill(torch.arange(40) % 8 != 0, float("-inf"))
    checked(logits, top_k=5)
    assert not ranked_again


# --- where they do not --------------------------------------------------------------------------------------------


@only_on_triton
@pytest.mark.parametrize("at", [1.0, -1.0, 1e-30, 3e38, -3e38])
def test_values_that_differ_below_a_rough_key(at: float, ranked_again: list[int]) -> None:
    """By one unit in the last place, the greatest last; and their tie broken by the index."""
    close = torch.tensor([at]).repeat(64).view(torch.int32) + torch.arange(64) // 2
    logits = close.view(torch.float32)[None, :]
    checked(logits)
    checked(logits.flip(-1), top_k=8)
    assert len(ranked_again) == 2


@only_on_triton
@pytest.mark.parametrize("num_groups", [1, 8])
def test_the_boundary_alone_is_in_doubt(num_groups: int, ranked_again: list[int]) -> None:
    """The last that is chosen, or the last group that stays, against the best that is not."""
    logits = spread(1, 64)
    best = logits[0].topk(64).values
    logits[logits < best[20]] = -5.0
    if num_groups == 1:
        logits[0] = torch.full((64,), -4.0)
        logits[0, [3, 40, 50]] = torch.tensor([3.0, 2.0, 1.0])
        logits[0, 60] = logits[0, 50] + 2**-23
        checked(logits, top_k=3)
    else:
        logits[0] = torch.arange(64.0) / 64 - 9.0
        logits[0, 0::8] = torch.tensor([8.0, 7.0, 6.0, 5.0, 5.0 + 2**-21, 3.0, 2.0, 1.0])
        checked(logits, num_groups=8, groups_kept=4, top_k=3)
    assert len(ranked_again) == 1


@only_on_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chosen_may_all_lie_in_one_column(dtype: torch.dtype, ranked_again: list[int]) -> None:
    """Of which a rough order knows three."""
    for first in (0, 8, 120):
        logits = -spread(1, 256).abs().to(dtype) - 1
        logits[0, first : first + 8] = torch.arange(8).to(dtype) + 1
        ranked_again.clear()
        checked(logits, top_k=8)
        assert ranked_again


@only_on_triton
@pytest.mark.parametrize("score", ["sigmoid", "softmax", "sqrt_softplus"])
@pytest.mark.parametrize("grouped", [False, True])
def test_saturated_scores(score: str, grouped: bool) -> None:
    """With a bias these are equal, or nearly so, whatever the logits are; without one, the logits still differ."""
    logits = torch.tensor([14.0, 15.0, 17.5, 40.0, 200.0, -40.0, -41.0, -200.0]).repeat(4)[torch.randperm(32)][None, :]
    groups = {"num_groups": 4, "groups_kept": 2, "group_score": "top2_sum"} if grouped else {}
    for bias in (None, torch.zeros(32), torch.arange(32) % 3 * 1e-7, torch.arange(32) % 5 * 100.0):
        checked(logits, bias, score=score, renormalize=True, **groups)


# --- what rough keys must tell apart ------------------------------------------------------------------------------


@only_on_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_minus_infinity_and_what_is_excluded(dtype: torch.dtype) -> None:
    """A kept group that holds nothing else is still chosen whole, -inf before NaN, and no dropped expert with it."""
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor(
        [[nan, -inf, -nan, 9.0, 1.0, 1.0, 1.0, 1.0], [-inf, -inf, 2.0, -inf, -inf, -inf, -inf, 1.0], [nan] * 8]
    ).to(dtype)
    gated = checked(logits, top_k=4, num_groups=2, groups_kept=1)
    assert gated.index.tolist() == [[3, 1, 0, 2], [2, 0, 1, 3], [0, 1, 2, 3]]
    assert gated.weights[[0, 2]].isnan().all()
    checked(logits[:, 2:], top_k=6, score="sigmoid", renormalize=True)
    checked(logits, torch.tensor([nan, inf, -inf, 0.0] * 2), score="relu")


@only_on_triton
def test_a_nan_in_a_dropped_group_spoils_the_weights() -> None:
    for bias in (None, torch.zeros(32)):
        logits = spread(2, 32)
        logits[0, 0:8], logits[0, 3] = -50.0, float("nan")
        gated = checked(logits, bias, num_groups=4, groups_kept=2, score="sigmoid")
        assert gated.weights[0].isnan().all() and gated.weights[1].isfinite().all()


@only_on_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", [(0, 1), (0, 7), (3, 60)])
def test_two_experts_tied_for_the_greatest_of_a_group_count_twice(dtype: torch.dtype, places: tuple[int, int]) -> None:
    logits = torch.full((1, 256), -3.0, dtype=dtype)
    logits[0, list(places)] = 1.0  # together twice sigmoid(1) = 1.46
    for group in (1, 2, 3):
        logits[0, 64 * group : 64 * group + 2] = torch.tensor([2.0, 0.0], dtype=dtype)  # together 1.38
    gated = checked(
        logits, torch.zeros(256), score="sigmoid", num_groups=4, groups_kept=1, group_score="top2_sum", top_k=2
    )
    assert gated.index.tolist() == [list(places)]


# --- sizes and layouts --------------------------------------------------------------------------------------------


@only_on_triton
@pytest.mark.parametrize(
    ("num_experts", "num_groups", "groups_kept"),
    [(1, 1, 1), (2, 1, 1), (31, 1, 1), (97, 1, 1), (33, 3, 2), (60, 5, 2), (35, 7, 3), (40, 40, 7)],
)
@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_odd_sizes(num_experts: int, num_groups: int, groups_kept: int, score: str) -> None:
    size = num_experts // num_groups * groups_kept
    logits, bias = torch.randn(3, num_experts), torch.randn(num_experts) * 0.1
    for top_k in {1, min(3, size), size}:
        checked(logits, bias, score=score, top_k=top_k, num_groups=num_groups, groups_kept=groups_kept)


@only_on_triton
@pytest.mark.parametrize("num_tokens", [1, 2, 7])
def test_any_number_of_tokens_a_program(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a great batch has, of which the last program has a rest: the same bits as one by one."""
    logits = torch.randn(num_tokens, 64)
    logits[0, :9] = 1 / 3  # in doubt
    one_by_one = checked(logits, score="sigmoid", top_k=6)
    monkeypatch.setattr(gpu_operator, "_PROGRAMS_TO_FILL_A_DEVICE", 0)
    together = checked(logits, score="sigmoid", top_k=6)
    assert together.weights.equal(one_by_one.weights)


@only_on_triton
def test_repeated_calls_give_the_same_bits() -> None:
    logits = torch.randn(6, 64).bfloat16().mT.contiguous().mT
    mask = torch.tensor([True, True, False, True, True, True])
    for score in ("sigmoid", "softmax"):
        found = [checked(logits, mask=mask, score=score, renormalize=True, top_k=6) for _ in range(2)]
        assert found[0].weights.equal(found[1].weights) and found[0].index.equal(found[1].index)


@only_on_triton
@pytest.mark.parametrize("strides", [(2**31 + 16, 1), (3, 2**29), (2**30, 7)])
def test_rows_and_experts_beyond_31_bits(strides: tuple[int, int]) -> None:
    """In memory that is never touched but where the logits lie."""
    shape = (3, 5)
    elements = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    with mmap.mmap(-1, 2 * elements, flags=flags) as memory:
        logits = torch.frombuffer(memory, dtype=torch.bfloat16).as_strided(shape, strides)
        logits.copy_(torch.randn(shape))
        found = topk_gate(logits, top_k=3, score="sigmoid")
        expected = gate_oracle.gated(logits, None, None, {**RULE, "score": "sigmoid", "top_k": 3})
        del logits
    assert found.index.tolist() == expected.index


def test_a_tile_fits_its_kernel() -> None:
    """The parameters are powers of two that divide each other as the kernel needs, for any gate."""
    for num_experts in (1, 2, 3, 8, 33, 60, 100, 256, 384, 512, 896, 2048, 4096, 4097):
        for num_groups in {1, 2, 3, 4, 8, 60, num_experts}:
            if num_experts % num_groups:
                continue
            for top_k in {1, 8, 9, 32, 33, 64, num_experts}:
                kept = max(1, num_groups // 2)
                options = Options(top_k, num_groups, kept, 0.0, 1.0, 0)
                tile = gpu_operator.tile_for(8192, num_experts, 2, options)
                if tile is None:
                    assert num_experts > (512 if top_k > 32 else 2048)
                    continue
                block_e = tile.BLOCK_G * tile.BLOCK_S
                assert num_experts == tile.NUM_GROUPS * tile.GROUP_SIZE and tile.GROUPS_KEPT <= tile.NUM_GROUPS
                assert min(top_k, block_e) <= tile.BLOCK_K and 32 * tile.num_warps <= tile.BLOCK_T * tile.BLOCK_K
                if tile.COLUMNS:
                    assert block_e % (tile.COLUMNS * tile.NEIGHBOURS) == 0 and tile.COLUMNS % tile.BLOCK_G == 0


def test_few_tokens_get_a_program_each() -> None:
    options = Options(8, 1, 1, 0.0, 1.0, 0)
    assert gpu_operator.tile_for(64, 256, 4, options).BLOCK_T == 1
    assert gpu_operator.tile_for(8192, 256, 4, options).BLOCK_T == 4


# --- rough scores -------------------------------------------------------------------------------------------------


@triton.jit
def both_scores(z_ptr, rough_ptr, portable_ptr, SCORE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    z = tl.load(z_ptr + place)[None, :]
    real = tl.full((1, BLOCK), True, tl.int1)
    tl.store(rough_ptr + place[None, :], gpu_kernel.rough_scores(z, real, SCORE))
    tl.store(portable_ptr + place[None, :], gpu_kernel.portable_scores(z, real, SCORE))


@only_on_triton
@pytest.mark.parametrize("score", SCORES)
def test_rough_scores_are_close(score: str) -> None:
    """An order by them is trusted from a distance of error_of; they are off by a fraction of that."""
    z = torch.cat([torch.linspace(-110, 110, 3840), torch.linspace(-6, 6, 255), torch.tensor([-1e30])])
    rough, portable = torch.empty(4096), torch.empty(4096)
    both_scores[(1,)](z, rough, portable, SCORE=score, BLOCK=4096)
    error = float(((rough - portable).abs() / (1 + portable.abs())).max())
    assert error <= gpu_kernel.error_of(score) / 8


# --- the gradient -------------------------------------------------------------------------------------------------


def gradient_options(num_experts: int, top_k: int, score: str, renormalize: bool) -> Options:
    return options_for(
        num_experts, False, top_k, score, 1, 1, "max", renormalize, 1e-20, 1 / 3, "logits", torch.int64, False,
        score == "softmax", True
    )  # fmt: skip


@only_on_triton
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("num_experts", "top_k"), [(5, 5), (100, 3), (1500, 8), (300, 200)])
def test_a_gradient_in_blocks(score: str, num_experts: int, top_k: int) -> None:
    logits = torch.randn(3, num_experts)
    options = gradient_options(num_experts, top_k, score, renormalize=score == "sigmoid")
    inputs = (logits, None, torch.tensor([True, False, True]), *options)
    _, index, _, logsumexp, chosen = torch.ops.moegate.topk_gate_statistics(*inputs)
    grads = (torch.randn(3, top_k), torch.randn(3).double() if score == "softmax" else None, torch.randn(3, top_k))
    kept = logits if score == "softmax" else None
    last = (index, chosen, logsumexp, kept, num_experts, torch.float32, options.eps, options.scale, options.mode)
    for given in (grads, (grads[0].mT.contiguous().mT, None, None), (None, None, grads[2])):
        found = torch.ops.moegate.topk_gate_backward(*given, *last)
        torch.testing.assert_close(found, topk_gate_backward_reference(*given, *last), rtol=1e-6, atol=1e-9)
        assert not found[1].any()


@only_on_triton
def test_an_index_that_is_no_expert_is_an_empty_slot() -> None:
    index = torch.tensor([[0, 9], [-5, 2**40], [4, 3]])
    grads, options = torch.ones(3, 2), gradient_options(4, 2, "identity", renormalize=False)
    found = torch.ops.moegate.topk_gate_backward(
        grads, None, None, index, torch.zeros(3, 2), torch.empty(0).double(), None, 4, torch.float32, 0.0, 2.0,
        options.mode
    )  # fmt: skip
    assert found.tolist() == [[2.0, 0.0, 0.0, 0.0], [0.0] * 4, [0.0, 0.0, 0.0, 2.0]]
