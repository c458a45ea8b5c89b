"""The gate beyond one tile, against sorts in Python and weights in float64; with rows cut into small blocks, too."""

import gate_cases
import gate_oracle
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from gate_cases import Case
from hypothesis import given, settings
from triton_support import ON_TRITON, examples, only_on_triton

from moegate.ops import library
from moegate.ops.topk_gate.options import options_for
from moegate.ops.topk_gate.reference import Statistics, topk_gate_statistics_reference

if ON_TRITON:
    from moegate.ops.ordered_topk.gpu_operator import Sizes, sizes_for
    from moegate.ops.topk_gate.gpu_operator import topk_gate_backward
    from moegate.ops.topk_gate.gpu_operator_large import topk_gate_statistics_large

pytestmark = [only_on_triton, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")]
RULE = {
    "top_k": 8, "score": "sigmoid", "num_groups": 1, "groups_kept": 1, "group_score": "max", "renormalize": True,
    "eps": 1e-20, "scale": 1.0, "rank_by": "logits",
}  # fmt: skip


def gated(case: Case, *, blocks: bool = False, narrow: bool = False) -> Statistics:
    """All that the operator returns; ``blocks`` cuts rows into the smallest blocks that there may be."""
    rule = dict(case.rule)
    numbers = options_for(
        case.logits.shape[1], case.bias is not None, rule.pop("top_k"), **rule,
        index_dtype=torch.int32 if narrow else torch.int64,
        with_counts=True, with_logsumexp=True, differentiable=True,
    )  # fmt: skip
    sizes = None
    if blocks:
        capacity = sizes_for(case.logits.shape[1], numbers.top_k).capacity
        sizes = Sizes(lanes=capacity, depth=1, capacity=capacity, num_warps=1)
    return topk_gate_statistics_large(case.logits, case.bias, case.mask, *numbers, sizes=sizes)


def check(found: Statistics, case: Case) -> None:
    expected = gate_oracle.gated(case.logits, case.bias, case.mask, case.rule)
    assert found.index.tolist() == expected.index
    assert found.counts.tolist() == expected.counts
    assert gate_oracle.distance_in_ulp(found.weights.numpy(), expected.weights, case.rule["scale"]) <= 2
    np.testing.assert_allclose(found.logsumexp.numpy(), expected.logsumexp, rtol=1e-12, atol=1e-12)
    # Chosen logits are what the gradient is made of: those of a token with a NaN are NaN, those of a masked one 0.
    wide = case.logits.float()
    chosen = wide.gather(1, found.index.long().clamp(min=0))
    chosen = chosen.masked_fill(wide.isnan().any(dim=1, keepdim=True), float("nan")).masked_fill(found.index < 0, 0.0)
    np.testing.assert_array_equal(found.chosen.numpy(), chosen.numpy())


@settings(max_examples=examples(300), deadline=None, derandomize=True, database=None)
@given(case=gate_cases.cases(sizes=(1, 2, 13, 36, 97, 257), max_tokens=3), blocks=st.booleans(), narrow=st.booleans())
def test_against_the_oracle(case: Case, blocks: bool, narrow: bool) -> None:
    found = gated(case, blocks=blocks, narrow=narrow)
    assert found.index.dtype == (torch.int32 if narrow else torch.int64)
    check(found, case)


@pytest.mark.parametrize("score", ["softmax", "softmax_selected", "sigmoid", "sqrt_softplus", "identity", "relu"])
def test_every_score_with_a_bias(score: str) -> None:
    bias, mask = torch.randn(150) * 0.3, torch.tensor([True, False, True])
    rule = {**RULE, "score": score, "num_groups": 10, "groups_kept": 4, "group_score": "top2_sum", "top_k": 20}
    case = Case((torch.randn(3, 150) * 3).bfloat16(), bias, mask, rule)
    check(gated(case, blocks=True), case)


@pytest.mark.parametrize("kind", ["plain", "ties", "one finite", "broken", "saturated"])
@pytest.mark.parametrize(
    ("num_experts", "top_k"),
    [
        (1009, 16),
        (2048, 70),
        (5003, 32),  # several blocks
    ],
)
def test_many_experts(num_experts: int, top_k: int, kind: str) -> None:
    generator = np.random.default_rng(num_experts)
    rows = np.array([gate_cases.row_of(kind, num_experts, generator) for _ in range(2)])
    case = Case(torch.from_numpy(rows).float(), torch.zeros(num_experts), None, {**RULE, "top_k": top_k, "eps": 1e-6})
    check(gated(case), case)


@pytest.mark.parametrize(("num_experts", "top_k"), [(2300, 2100), (4200, 4200)])
def test_thousands_are_chosen(num_experts: int, top_k: int) -> None:
    """By PyTorch's operators where no program holds the slots of a token; by a sort where nearly all are chosen."""
    logits = torch.randn(3, num_experts).half()
    logits[1, 7] = float("nan")
    mask = torch.tensor([True, True, False])
    case = Case(logits, torch.randn(num_experts), mask, {**RULE, "top_k": top_k, "score": "softmax"})
    check(gated(case), case)


def test_two_equal_maxima_of_a_group_count_twice() -> None:
    """In groups of more than a block of experts, and in neighbouring blocks."""
    logits = torch.full((2, 4200), -1.0)
    logits[0, [3, 1900]] = 2.0  # 4, of group 0
    logits[0, [2200, 2201]] = torch.tensor([2.5, 1.0])  # 3.5, of group 1
    logits[1, [2200, 4100]] = 2.0
    rule = {**RULE, "num_groups": 2, "groups_kept": 1, "group_score": "top2_sum", "score": "identity", "top_k": 2}
    case = Case(logits, torch.zeros(4200), None, {**rule, "renormalize": False})
    found = gated(case)
    assert found.index.tolist() == [[3, 1900], [2200, 4100]]
    check(found, case)


@pytest.mark.parametrize("greatest", [-3.4e38, 1e17])
@pytest.mark.parametrize(("num_experts", "top_k"), [(40, 8), (2300, 2100)])
def test_a_softmax_of_huge_logits(num_experts: int, top_k: int, greatest: float) -> None:
    """Beside them the logarithm of the total is lost."""
    logits = torch.full((2, num_experts), greatest)
    logits[1, 5:] = -3.4e38
    rule = {**RULE, "score": "softmax", "renormalize": False, "top_k": top_k}
    case = Case(logits, torch.zeros(num_experts), None, rule)
    check(gated(case), case)


def test_no_tokens() -> None:
    found = gated(Case(torch.zeros(0, 300), None, None, RULE))
    assert (found.weights.shape, found.index.shape, found.counts.tolist()) == ((0, 8), (0, 8), [0] * 300)


def test_the_same_bits_whatever_lies_around() -> None:
    """A row alone, and among others."""
    case = Case(torch.randn(3, 700), None, None, {**RULE, "score": "softmax", "renormalize": False, "top_k": 40})
    together, alone = gated(case), gated(case._replace(logits=case.logits[1:2]))
    for name in ("weights", "index", "logsumexp", "chosen"):
        assert getattr(together, name)[1:2].equal(getattr(alone, name)), name


def test_as_the_reference_counts_and_scales() -> None:
    numbers = options_for(
        300, False, 40, "softmax", 3, 2, "max", True, 0.5, 2.5, "scores", torch.int32, True, True, True
    )  # fmt: skip
    logits = torch.randn(4, 300)
    ours = topk_gate_statistics_large(logits, None, None, *numbers)
    reference = topk_gate_statistics_reference(logits, None, None, *numbers)
    assert ours.index.equal(reference.index) and ours.counts.equal(reference.counts)
    torch.testing.assert_close(ours.weights, reference.weights, rtol=3e-7, atol=0.0)


def test_a_gradient_of_more_slots_than_a_program_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference serves, and ``MOEGATE_STRICT=1`` says so."""
    mode = options_for(
        2100, False, 2049, "identity", 1, 1, "max", False, 0.0, 1.0, "logits", torch.int64, False, False, False
    ).mode  # fmt: skip
    index_TK, grad_TK = torch.arange(2049)[None], torch.randn(1, 2049)
    given = (grad_TK, None, None, index_TK, torch.zeros(1, 2049), torch.zeros(0, dtype=torch.float64), None)
    found_TE = topk_gate_backward(*given, 2100, torch.float32, 0.0, 1.0, mode)
    assert found_TE.equal(torch.cat([grad_TK, torch.zeros(1, 51)], dim=1))
    monkeypatch.setattr(library, "STRICT", True)
    with pytest.raises(RuntimeError, match="topk_gate_backward: 2049 experts a token are more than a program holds"):
        topk_gate_backward(*given, 2100, torch.float32, 0.0, 1.0, mode)
