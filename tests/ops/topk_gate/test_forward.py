"""The gate against sorts in Python and weights in float64, on every instruction set."""

import math

import gate_cases
import gate_oracle
import numpy as np
import pytest
import torch
from gate_cases import ALL_ISAS, ISAS, Case, serving
from hypothesis import given
from hypothesis import strategies as st
from triton_support import examples, not_on_triton

import moegate
from moegate.ops.topk_gate import Gated, topk_gate
from moegate.ops.topk_gate.options import SCORES

RULE = {
    "top_k": 8, "score": "sigmoid", "num_groups": 1, "groups_kept": 1, "group_score": "max", "renormalize": True,
    "eps": 1e-20, "scale": 1.0, "rank_by": "logits",
}  # fmt: skip


def check(gated: Gated, case: Case) -> None:
    expected = gate_oracle.gated(case.logits, case.bias, case.mask, case.rule)
    assert gated.index.tolist() == expected.index
    assert gated.weights.dtype == torch.float32
    ulp = gate_oracle.distance_in_ulp(gated.weights.numpy(), expected.weights, case.rule["scale"])
    assert ulp <= 2, f"{ulp} ulp"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ALL_ISAS)
@gate_cases.thorough
@given(case=gate_cases.cases())
def test_against_the_oracle(isa: str, threads: int, case: Case) -> None:
    with serving(isa, threads):
        check(topk_gate(case.logits, **case.inputs()), case)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("num_experts", "top_k"),
    [(320, 1), (384, 16), (509, 17), (1000, 64), (2048, 2048), (4099, 341), (4096, 700)],
)
@pytest.mark.parametrize("kind", ["plain", "ties", "one finite"])
def test_many_experts(isa: str, num_experts: int, top_k: int, kind: str) -> None:
    generator = np.random.default_rng(num_experts)
    rows = np.array([gate_cases.row_of(kind, num_experts, generator) for _ in range(2)])
    case = Case(torch.from_numpy(rows).float(), None, None, {**RULE, "top_k": top_k, "eps": 1e-6})
    with serving(isa):
        check(topk_gate(case.logits, **case.inputs()), case)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("top_k", [64, 300, 65536])
def test_65536_experts(isa: str, top_k: int) -> None:
    logits, bias = torch.randn(1, 65536), torch.randn(65536)
    case = Case(logits, bias, None, {**RULE, "top_k": top_k, "score": "softmax", "renormalize": False})
    with serving(isa):
        check(topk_gate(case.logits, **case.inputs()), case)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_groups", [257, 1024])
@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
def test_many_groups(isa: str, num_groups: int, group_score: str) -> None:
    rule = {**RULE, "num_groups": num_groups, "groups_kept": 100, "group_score": group_score}
    case = Case(torch.randn(3, num_groups * 3).bfloat16(), None, None, rule)
    with serving(isa):
        check(topk_gate(case.logits, **case.inputs()), case)


@pytest.mark.parametrize("isa", ISAS)
def test_two_equal_maxima_of_a_group_count_twice(isa: str) -> None:
    # Group 0 sums to 4, group 1 to 3.5; counted once, the maximum of group 0 would leave it 2.
    logits = torch.tensor([[2.0, 2.0, 0.0, 3.0, 0.5, 0.25]])
    with serving(isa):
        gated = topk_gate(logits, top_k=2, score="identity", num_groups=2, groups_kept=1, group_score="top2_sum")
    assert gated.index.tolist() == [[0, 1]]


@pytest.mark.parametrize("isa", ISAS)
@gate_cases.brief
@given(case=gate_cases.cases(kinds=("plain", "ties", "broken", "one finite"), max_tokens=6), data=st.data())
def test_a_row_has_the_same_bits_whatever_the_batch_around_it(isa: str, case: Case, data: st.DataObject) -> None:
    num_tokens = len(case.logits)
    start = data.draw(st.integers(0, num_tokens))
    with serving(isa):
        whole = topk_gate(case.logits, **case.inputs())
        part_of_mask = None if case.mask is None else case.mask[start:]
        part = topk_gate(case.logits[start:], bias_E=case.bias, token_mask_T=part_of_mask, **case.rule)
    assert part.index.equal(whole.index[start:])
    np.testing.assert_array_equal(part.weights.numpy(), whole.weights[start:].numpy())


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("renormalize", [False, True])
def test_every_instruction_set_gives_the_same_bits(score: str, renormalize: bool) -> None:
    logits, bias = torch.randn(40, 131) * 3, torch.randn(131)
    results = []
    for isa in ISAS:
        with serving(isa):
            results.append(topk_gate(logits, top_k=11, score=score, bias_E=bias, renormalize=renormalize, scale=2.5))
    for result in results[1:]:
        assert result.index.equal(results[0].index) and result.weights.equal(results[0].weights)


@not_on_triton("it has no threads")
@pytest.mark.parametrize("isa", ISAS)
def test_thousands_of_tokens_on_two_threads(isa: str) -> None:
    """Enough work that the threads really share it."""
    logits, mask = torch.randn(3000, 64), torch.rand(3000) < 0.9
    inputs = {"top_k": 6, "score": "softmax", "token_mask_T": mask, "with_counts": True, "with_logsumexp": True}
    with serving(isa, 1):
        alone = topk_gate(logits, **inputs)
    with serving(isa, 2):
        shared = topk_gate(logits, **inputs)
    for one, other in zip(alone, shared, strict=True):
        assert one is not None and other is not None and one.equal(other)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@gate_cases.brief
@given(case=gate_cases.cases())
def test_statistics(isa: str, index_dtype: torch.dtype, case: Case) -> None:
    with serving(isa, 2):
        gated = topk_gate(case.logits, **case.inputs(), index_dtype=index_dtype, with_counts=True, with_logsumexp=True)
    assert gated.index.dtype == index_dtype
    check(gated, case)
    expected = gate_oracle.gated(case.logits, case.bias, case.mask, case.rule)
    assert gated.counts is not None and gated.logsumexp is not None
    assert gated.counts.dtype == torch.int64 and gated.counts.tolist() == expected.counts
    assert gated.logsumexp.dtype == torch.float32
    assert gate_oracle.distance_in_ulp(gated.logsumexp.numpy(), expected.logsumexp) <= 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("score", SCORES)
def test_weights_of_many_random_rows(isa: str, score: str) -> None:
    """Two ulp, over enough rows to meet the worst of an approximation."""
    spread = torch.tensor([0.01, 0.3, 1.0, 4.0, 20.0]).repeat_interleave(examples(100))[:, None]
    logits, rule = torch.randn(len(spread), 200) * spread, {**RULE, "score": score, "renormalize": False, "top_k": 8}
    with serving(isa):
        check(topk_gate(logits, **rule), Case(logits, None, None, rule))


@pytest.mark.parametrize("isa", ISAS)
def test_a_long_row_of_equal_logits_has_exact_shares(isa: str) -> None:
    """Errors of one sign would add up here."""
    logits = torch.full((1, 65536), -1.9)
    logits[0, 0] = 0.3
    with serving(isa):
        weights = topk_gate(logits, top_k=2, score="softmax").weights
    total = 65535 * math.exp(float(logits[0, 1]) - float(logits[0, 0])) + 1
    exact = np.array([[1 / total, math.exp(float(logits[0, 1]) - float(logits[0, 0])) / total]])
    assert gate_oracle.distance_in_ulp(weights.numpy(), exact) <= 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("score", SCORES)
def test_no_tokens(isa: str, score: str) -> None:
    with serving(isa, 2):
        gated = topk_gate(torch.empty(0, 5), top_k=3, score=score, with_counts=True, with_logsumexp=True)
    assert gated.index.shape == gated.weights.shape == (0, 3)
    assert gated.counts is not None and gated.counts.tolist() == [0] * 5
    assert gated.logsumexp is not None and gated.logsumexp.shape == (0,)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
@pytest.mark.parametrize(
    "score", [moegate.scoring.Softmax(), moegate.scoring.Sigmoid(), moegate.scoring.SqrtSoftplus()]
)
def test_agrees_with_route(isa: str, group_score: str, score: moegate.scoring.Score) -> None:
    """Far from ties, so that the last bit of a score decides nothing."""
    logits = torch.stack([torch.randperm(64) for _ in range(30)]) / 8.0 - 4.0
    rule = moegate.RoutingRule(
        moegate.selection.GroupedTopK(5, num_groups=8, groups_kept=3, group_score=group_score),
        score=score,
        weighting=moegate.Weighting(renormalize=True, scale=2.5),
    )
    routing = moegate.route(logits, rule)
    with serving(isa):
        gated = topk_gate(
            logits, top_k=5, score=score.kind, num_groups=8, groups_kept=3, group_score=group_score, renormalize=True,
            scale=2.5,
        )  # fmt: skip
    assert gated.index.equal(routing.expert_index)
    torch.testing.assert_close(gated.weights, routing.weights, rtol=1e-6, atol=0)


def test_float64_stays_float64() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64)
    gated = topk_gate(logits, top_k=3, score="softmax", with_logsumexp=True)
    assert gated.weights.dtype == torch.float64 and gated.logsumexp is not None
    torch.testing.assert_close(gated.weights, logits.softmax(-1).topk(3).values)
    torch.testing.assert_close(gated.logsumexp, logits.logsumexp(-1))


@pytest.mark.parametrize("isa", ISAS)
def test_a_bias_of_another_dtype_or_stride_is_converted(isa: str) -> None:
    logits, wide = torch.randn(3, 8), torch.randn(16)
    with serving(isa):
        expected = topk_gate(logits, top_k=2, score="sigmoid", bias_E=wide[::2].clone())
        assert topk_gate(logits, top_k=2, score="sigmoid", bias_E=wide[::2]).index.equal(expected.index)
        double = topk_gate(logits, top_k=2, score="sigmoid", bias_E=wide[::2].double())
        assert double.index.equal(expected.index)
        expanded = topk_gate(logits, top_k=2, score="sigmoid", bias_E=torch.ones(1).expand(8))
    assert expanded.index.equal(topk_gate(logits, top_k=2, score="sigmoid").index)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_that_share_their_memory(isa: str) -> None:
    row = torch.randn(1, 40)
    with serving(isa):
        gated = topk_gate(row.expand(5, 40), top_k=4, score="sigmoid")
        alone = topk_gate(row, top_k=4, score="sigmoid")
    assert gated.index.equal(alone.index.expand(5, 4)) and gated.weights.equal(alone.weights.expand(5, 4))


HUGE = [-3.4e38, -1e12, 1e17]


@pytest.mark.parametrize("isa", ALL_ISAS)
@pytest.mark.parametrize("greatest", HUGE)
@pytest.mark.parametrize("top_k", [4, 40])
def test_a_softmax_of_huge_logits(isa: str, greatest: float, top_k: int) -> None:
    """Beside them the logarithm of the total is lost, as in a row that a mask has filled with the least float32."""
    logits = torch.full((2, 600), greatest)
    logits[1, 5:] = -3.4e38
    case = Case(logits, torch.randn(600), None, {**RULE, "score": "softmax", "renormalize": False, "top_k": top_k})
    with serving(isa):
        check(topk_gate(case.logits, **case.inputs()), case)


@pytest.mark.parametrize("greatest", HUGE)
def test_a_softmax_of_huge_float64_logits(greatest: float) -> None:
    logits = torch.full((1, 8), greatest, dtype=torch.float64, requires_grad=True)
    weights = topk_gate(logits, top_k=2, score="softmax").weights
    torch.testing.assert_close(weights, torch.full_like(weights, 0.125))
    weights[0, 0].backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0], torch.tensor([7.0, *[-1.0] * 7], dtype=torch.float64) / 64)


@pytest.mark.parametrize("isa", ALL_ISAS)
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (600, 40), (2100, 2060)])
@pytest.mark.parametrize("differentiable", [False, True])
def test_a_masked_token_weighs_nothing_at_an_infinite_scale(
    isa: str, num_experts: int, top_k: int, differentiable: bool
) -> None:
    logits = torch.rand(2, num_experts).requires_grad_(differentiable)
    mask = torch.tensor([False, True])
    with serving(isa):
        gated = topk_gate(logits, top_k=top_k, score="sigmoid", token_mask_T=mask, scale=math.inf)
    assert not gated.weights[0].any()
    assert gated.weights[1].isposinf().all()


@pytest.mark.parametrize("isa", ISAS)
def test_beside_infinity_no_softmax_is_sound(isa: str) -> None:
    """Its scores are NaN, so their order chooses the first experts: their weights must not look sound."""
    logits = torch.tensor([[0.0, 1.0, float("inf"), 2.0]])
    with serving(isa):
        gated = topk_gate(logits, top_k=2, score="softmax", renormalize=True, rank_by="scores")
    assert gated.index.tolist() == [[0, 1]]
    assert bool(gated.weights.isnan().all())


@pytest.mark.parametrize("isa", ISAS)
def test_a_mask_whose_bytes_are_not_one(isa: str) -> None:
    mask = torch.tensor([3, 0, 128, 1], dtype=torch.uint8).view(torch.bool)
    with serving(isa):
        gated = topk_gate(torch.zeros(4, 3), top_k=1, score="sigmoid", token_mask_T=mask)
    assert gated.index.flatten().tolist() == [0, -1, 0, 0]
