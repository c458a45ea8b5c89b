"""``npu_moe_gating_top_k`` against the goldens: every mode, dtype, tie pattern and shape."""

import inspect

import golden_gating as golden
import numpy as np
import pytest
import torch
from gating_inputs import DTYPES, PATTERNS, assert_index, assert_weights, biases, logits, widened
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import moegate
from moegate.ascend import ASCEND, MOEGATE, AscendOperatorError, Compat, npu_moe_gating_top_k

# experts, k, k_group, group_count, group_select_mode
SHAPES = {
    "deepseek_v3": (256, 8, 4, 8, 1),
    "kimi_k2": (384, 8, 1, 1, 0),
    "glm_4_5": (160, 8, 1, 1, 1),
    "odd_groups": (160, 6, 3, 8, 1),
    "max_groups": (160, 6, 3, 8, 0),
    "all_groups": (64, 8, 8, 8, 1),
    "groups_of_one": (24, 5, 7, 24, 0),
    "qwen3_next": (512, 10, 1, 1, 0),
    "one": (8, 1, 1, 1, 0),
    "all_of_few": (6, 6, 1, 1, 0),
    "prime": (193, 10, 1, 1, 0),
}
SCORES = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))


def attributes(shape: str, norm_type: int, renorm: int) -> dict[str, int]:
    _, k, k_group, group_count, group_select_mode = SHAPES[shape]
    return {
        "k": k, "k_group": k_group, "group_count": group_count, "group_select_mode": group_select_mode,
        "norm_type": norm_type, "renorm": renorm,
    }  # fmt: skip


def assert_golden(x: Tensor, bias: Tensor | None, least_certain: float = 0.9, **given: float) -> None:
    y, index, _ = npu_moe_gating_top_k(x, bias=bias, **given)
    expected = golden.moe_gating_top_k(widened(x), bias=None if bias is None else widened(bias), **given)
    assert_index(index, expected, least_certain)
    assert_weights(y, expected, x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("norm_type", "renorm"), SCORES)
def test_modes_and_shapes(norm_type: int, renorm: int, shape: str, dtype: torch.dtype) -> None:
    num_experts = SHAPES[shape][0]
    for rows, kind in ((1, "none"), (13, "small")):
        assert_golden(
            logits("normal", rows, num_experts, dtype), biases(kind, num_experts, dtype), least_certain=0.75,
            routed_scaling_factor=2.5, **attributes(shape, norm_type, renorm),
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["none", "small", "pairs", "minus_infinity"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", ["deepseek_v3", "max_groups", "glm_4_5"])
@pytest.mark.parametrize(("norm_type", "renorm"), SCORES[1:])
def test_ties_and_infinities(norm_type: int, renorm: int, shape: str, pattern: str, kind: str) -> None:
    num_experts = SHAPES[shape][0]
    x, bias = logits(pattern, 7, num_experts, torch.bfloat16), biases(kind, num_experts, torch.bfloat16)
    assert_golden(x, bias, least_certain=0.6, **attributes(shape, norm_type, renorm))


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_random_legal_arguments(data: st.DataObject) -> None:
    group_count, group_size = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 40))
    num_experts, k_group = group_count * group_size, data.draw(st.integers(1, group_count))
    dtype, seed = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(0, 2**20))
    kind = data.draw(st.sampled_from(["none", "small", "pairs", "minus_infinity"]))
    pattern = data.draw(st.sampled_from(sorted(PATTERNS)))
    x = logits(pattern, data.draw(st.integers(1, 5)), num_experts, dtype, seed)
    assert_golden(
        x,
        biases(kind, num_experts, dtype, seed + 1),
        least_certain=0.0,
        k=data.draw(st.integers(1, k_group * group_size)),
        k_group=k_group,
        group_count=group_count,
        group_select_mode=data.draw(st.integers(0, 1)) if group_size > 1 else 0,
        renorm=data.draw(st.integers(0, 1)),
        norm_type=data.draw(st.integers(0, 2)),
        routed_scaling_factor=data.draw(st.sampled_from([0.0, 1.0, 2.826, -1.5])),
        eps=data.draw(st.sampled_from([1e-20, 0.0, 1e-6, 0.5])),
    )


def test_nine_of_ten_rows_of_ordinary_logits_are_certain() -> None:
    """The comparisons above leave out what the last bit of an exp decides; that must stay a rare thing."""
    x = logits("normal", 200, 256, torch.bfloat16)
    assert golden.moe_gating_top_k(widened(x), 8, norm_type=1).certain.mean() == 1.0
    bias = widened(biases("small", 256, torch.float32))
    grouped = {"k_group": 4, "group_count": 8, "group_select_mode": 1}
    assert golden.moe_gating_top_k(widened(x), 8, bias=bias, norm_type=1, **grouped).certain.mean() > 0.95


def test_a_score_off_by_a_few_ulp_is_not_certain() -> None:
    x = np.array([[0.0, 1e-8, -3.0]], dtype=np.float32)
    assert not golden.moe_gating_top_k(x, 1, norm_type=1).certain.any()


def test_saturated_scores_tie_although_their_logits_differ() -> None:
    x = torch.tensor([[20.0, 30.0, 40.0, 0.0]])
    assert npu_moe_gating_top_k(x, 3, norm_type=1)[1].tolist() == [[0, 1, 2]]
    by_logits = npu_moe_gating_top_k(x, 3, norm_type=1, compat=Compat(rank_by="logits"))
    assert by_logits[1].tolist() == [[2, 1, 0]]


def test_all_equal_scores_give_the_first_k() -> None:
    for norm_type in (0, 1, 2):
        index = npu_moe_gating_top_k(torch.zeros(3, 256), 8, norm_type=norm_type, k_group=4, group_count=8)[1]
        assert index.tolist() == [list(range(8))] * 3


def test_kept_groups_only_even_where_they_hold_nothing_finite() -> None:
    """A mask of -inf and a stable sort would take experts 0 and 1 of a dropped group."""
    inf = float("inf")
    bias = torch.tensor([-inf, -inf, -inf, 5.0])
    x = torch.zeros(1, 4)
    index = npu_moe_gating_top_k(x, 2, bias=bias, norm_type=1, k_group=1, group_count=2)[1]
    assert index.tolist() == [[3, 2]]


def test_the_bias_is_in_no_weight_and_not_in_out() -> None:
    x, bias = torch.randn(5, 16), torch.linspace(-3, 3, 16)
    y, index, out = npu_moe_gating_top_k(x, 4, bias=bias, norm_type=1, out_flag=True)
    torch.testing.assert_close(out, x.sigmoid(), rtol=1e-6, atol=0)
    chosen = x.sigmoid().gather(-1, index.long())
    torch.testing.assert_close(y, chosen / chosen.sum(-1, keepdim=True), rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm_type", [0, 1, 2])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_out_holds_the_scores_in_float32(norm_type: int, dtype: torch.dtype) -> None:
    x = logits("normal", 9, 160, dtype)
    out = npu_moe_gating_top_k(x, 8, norm_type=norm_type, out_flag=True)[2]
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype == torch.float64:
        np.testing.assert_allclose(out.numpy(), golden.scores_of(x.numpy(), norm_type), rtol=1e-14)
        return
    expected = golden.float32_scores_of(widened(x), norm_type)
    assert (np.abs(out.numpy() - expected) <= 3 * np.spacing(np.abs(expected))).all()


@pytest.mark.parametrize("norm_type", [0, 1, 2])
def test_the_index_is_a_stable_sort_of_out_plus_bias(norm_type: int) -> None:
    x, bias = torch.randn(200, 96), biases("small", 96, torch.float32)
    _, index, out = npu_moe_gating_top_k(x, 9, bias=bias, norm_type=norm_type, out_flag=True)
    assert index.tolist() == torch.sort(out + bias, descending=True, stable=True).indices[:, :9].tolist()


def test_out_without_out_flag_is_nan_and_costs_no_memory() -> None:
    out = npu_moe_gating_top_k(torch.randn(5, 16), 4)[2]
    assert out.shape == (5, 16)
    assert out.dtype == torch.float32
    assert bool(out.isnan().all())
    assert out.untyped_storage().nbytes() == 4


def test_out_flag_changes_nothing_else() -> None:
    x = torch.randn(50, 64)
    for norm_type in (0, 1, 2):
        silent = npu_moe_gating_top_k(x, 4, norm_type=norm_type)
        told = npu_moe_gating_top_k(x, 4, norm_type=norm_type, out_flag=True)
        assert torch.equal(silent[0], told[0])
        assert torch.equal(silent[1], told[1])


def test_zero_scores_divide_to_zero() -> None:
    x = torch.full((2, 4), -float("inf"))
    y, index, _ = npu_moe_gating_top_k(x, 2, norm_type=1)
    assert y.tolist() == [[0.0, 0.0]] * 2
    assert index.tolist() == [[0, 1]] * 2


def test_attributes_are_narrowed_to_float32() -> None:
    x = torch.zeros(1, 4)
    y = npu_moe_gating_top_k(x, 1, norm_type=1, routed_scaling_factor=2.826)[0]
    assert y.item() == np.float32(2.826)
    # In float32 this eps is 0, and 0 divided by 0 is NaN.
    assert npu_moe_gating_top_k(x - torch.inf, 1, norm_type=1, eps=1e-60)[0].isnan().all()


def test_one_sigmoid_expert_weighs_the_factor() -> None:
    y = npu_moe_gating_top_k(torch.randn(6, 8), 1, norm_type=1, routed_scaling_factor=1.5)[0]
    assert y.tolist() == [[1.5]] * 6


def test_no_rows_give_empty_results() -> None:
    y, index, out = npu_moe_gating_top_k(torch.zeros(0, 8, dtype=torch.bfloat16), 2, out_flag=True)
    assert (y.shape, index.shape, out.shape) == ((0, 2), (0, 2), (0, 8))
    assert (y.dtype, index.dtype, out.dtype) == (torch.bfloat16, torch.int32, torch.float32)


def test_a_row_with_nan_has_valid_experts_and_nan_weights() -> None:
    x = torch.tensor([[float("nan"), 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    y, index, _ = npu_moe_gating_top_k(x, 2, norm_type=1)
    assert index.tolist() == [[1, 2], [0, 1]]
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_other_layouts(layout: str) -> None:
    x = torch.randn(6, 32)
    other = x.t().contiguous().t() if layout == "transposed" else torch.stack([x, x + 1], dim=-1)[..., 0]
    assert not other.is_contiguous()
    for ours, expected in zip(npu_moe_gating_top_k(other, 4), npu_moe_gating_top_k(x, 4), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


def test_numpy_integers_are_integers() -> None:
    x = torch.randn(2, 8)
    assert npu_moe_gating_top_k(x, np.int64(2), norm_type=np.int32(1))[1].shape == (2, 2)


# The hash mode.


@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("table", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(("norm_type", "renorm"), SCORES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hash(dtype: torch.dtype, norm_type: int, renorm: int, table: torch.dtype, ids: torch.dtype) -> None:
    x = logits("normal", 11, 64, dtype)
    tid2eid = torch.stack([torch.randperm(64)[:6] for _ in range(20)]).to(table)
    input_ids = torch.randint(0, 20, (11,), dtype=ids)
    y, index, _ = npu_moe_gating_top_k(
        x, 6, input_ids=input_ids, tid2eid=tid2eid, norm_type=norm_type, renorm=renorm, routed_scaling_factor=1.5
    )
    looked_up = tid2eid[input_ids.long()].long().numpy()
    expected = golden.by_hash(widened(x), looked_up, norm_type=norm_type, renorm=renorm, routed_scaling_factor=1.5)
    assert index.dtype == torch.int32
    assert index.tolist() == looked_up.tolist()
    assert_weights(y, golden.Gate(expected, looked_up, expected, np.ones(11, dtype=bool)), dtype)


def test_hash_may_name_an_expert_twice_and_ignores_the_bias() -> None:
    x, table = torch.randn(2, 8), torch.tensor([[3, 3], [1, 2]])
    y, index, _ = npu_moe_gating_top_k(
        x, 2, bias=torch.full((8,), 100.0), input_ids=torch.tensor([0, 1]), tid2eid=table, norm_type=1
    )
    assert index.tolist() == table.tolist()
    assert y[0].tolist() == [0.5, 0.5]


def test_hash_shows_nan() -> None:
    x = torch.tensor([[float("nan"), 1.0, 2.0]])
    ids, table = torch.tensor([0]), torch.tensor([[1, 2]])
    assert npu_moe_gating_top_k(x, 2, input_ids=ids, tid2eid=table, norm_type=1)[0].isnan().all()


# Options.


def test_naive_softplus_overflows_and_vanishes_as_the_kernel_does() -> None:
    x = torch.tensor([[100.0, 1.0, -20.0, -10.0]])
    naive = Compat(softplus="naive")
    y, index, out = npu_moe_gating_top_k(x, 2, norm_type=2, out_flag=True, compat=naive)
    assert index.tolist() == [[0, 1]]
    assert out[0, 0].item() == float("inf")
    assert out[0, 2].item() == 0.0
    assert y[0, 0].isnan()
    stable_y, _, stable_out = npu_moe_gating_top_k(x, 2, norm_type=2, out_flag=True)
    assert stable_out[0, 0].item() == 10.0
    assert stable_out[0, 2].item() > 0
    assert stable_y.isfinite().all()


def test_naive_softplus_agrees_where_it_is_accurate() -> None:
    x = torch.rand(20, 32) * 20
    naive = npu_moe_gating_top_k(x, 4, norm_type=2, compat=Compat(softplus="naive"))
    stable = npu_moe_gating_top_k(x, 4, norm_type=2)
    assert torch.equal(naive[1], stable[1])
    torch.testing.assert_close(naive[0], stable[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm_type", [0, 1, 2])
@pytest.mark.parametrize("renorm", [0, 1])
def test_the_contract_of_moegate_is_an_option(norm_type: int, renorm: int) -> None:
    x, bias = logits("saturated", 9, 64, torch.bfloat16), biases("pairs", 64, torch.float32)
    rule = moegate.RoutingRule(
        moegate.selection.GroupedTopK(6, num_groups=8, groups_kept=3, group_score="top2_sum"),
        score=(moegate.scoring.Softmax(), moegate.scoring.Sigmoid(), moegate.scoring.SqrtSoftplus())[norm_type],
        weighting=moegate.Weighting(renormalize=renorm == 1, scale=2.5),
    )
    for added in (None, bias):
        y, index, _ = npu_moe_gating_top_k(
            x, 6, bias=added, k_group=3, group_count=8, group_select_mode=1, renorm=renorm, norm_type=norm_type,
            routed_scaling_factor=2.5, compat=MOEGATE,
        )  # fmt: skip
        routing = moegate.route(x, rule, bias=added)
        assert index.tolist() == routing.expert_index.tolist()
        torch.testing.assert_close(y, routing.weights, rtol=1e-6, atol=1e-30)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="rank_by must be one of scores, logits"):
        Compat(rank_by="score")
    with pytest.raises(TypeError, match="always_normalize"):
        Compat(always_normalize=1)
    assert Compat() == ASCEND


def test_the_signature_is_the_operators() -> None:
    parameters = inspect.signature(npu_moe_gating_top_k).parameters
    shown = [
        f"{'*' if p.kind is p.KEYWORD_ONLY else ''}{name}={'' if p.default is p.empty else p.default}"
        for name, p in parameters.items()
        if name not in {"strict", "compat"}
    ]
    assert shown == [
        "x=", "k=", "*bias=None", "*input_ids=None", "*tid2eid=None", "*k_group=1", "*group_count=1",
        "*group_select_mode=0", "*renorm=0", "*norm_type=0", "*out_flag=False", "*routed_scaling_factor=1.0",
        "*eps=1e-20",
    ]  # fmt: skip


# Gradients and graphs.


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("norm_type", "renorm"), SCORES)
def test_gradient_against_finite_differences(norm_type: int, renorm: int, grouped: bool) -> None:
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    groups = {"k_group": 2, "group_count": 4, "group_select_mode": 1} if grouped else {}

    def weights(x: Tensor) -> Tensor:
        return npu_moe_gating_top_k(
            x, 3, renorm=renorm, norm_type=norm_type, routed_scaling_factor=2.5, eps=0.1, **groups
        )[0]

    assert torch.autograd.gradcheck(weights, x)


@pytest.mark.parametrize(("norm_type", "renorm"), SCORES)
def test_gradient_in_hash_mode(norm_type: int, renorm: int) -> None:
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    ids, table = torch.tensor([0, 1, 1, 2]), torch.tensor([[1, 2], [5, 5], [7, 0]])

    def weights(x: Tensor) -> Tensor:
        return npu_moe_gating_top_k(x, 2, input_ids=ids, tid2eid=table, renorm=renorm, norm_type=norm_type)[0]

    assert torch.autograd.gradcheck(weights, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_has_the_dtype_of_x_and_needs_no_out_flag(dtype: torch.dtype) -> None:
    x = torch.randn(4, 8).to(dtype).requires_grad_()
    y, index, out = npu_moe_gating_top_k(x, 2, norm_type=1)
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()
    assert not (index.requires_grad or out.requires_grad)


def test_errors_can_be_caught_as_on_the_device() -> None:
    for kind in (RuntimeError, ValueError, AscendOperatorError):
        with pytest.raises(kind, match="k must be from 1 to the 8 experts"):
            npu_moe_gating_top_k(torch.zeros(1, 8), 9)
