"""The gradient of the gate: against autograd through the plain formula in float64, and of second order."""

import gate_cases
import pytest
import torch
from gate_cases import ISAS, Case, serving
from hypothesis import given
from torch import Tensor

from moegate.ops import library
from moegate.ops.topk_gate import topk_gate
from moegate.ops.topk_gate.options import SCORES, options_for
from moegate.ops.topk_gate.reference import gate, topk_gate_backward_reference

FINITE = ("narrow", "plain", "wide", "ties", "saturated", "sunken")


def plain_scores(z_TE: Tensor, index_TK: Tensor, score: str) -> Tensor:
    chosen_TK = z_TE.gather(1, index_TK)
    if score == "softmax":
        return z_TE.softmax(1).gather(1, index_TK)
    if score == "softmax_selected":
        return chosen_TK.softmax(1)
    if score == "sigmoid":
        return chosen_TK.sigmoid()
    if score == "sqrt_softplus":
        tail_TK = chosen_TK < -30  # there log(1 + exp(z)) is exp(z) in float64
        body_TK = torch.nn.functional.softplus(chosen_TK.masked_fill(tail_TK, 0.0), threshold=40).sqrt()
        return torch.where(tail_TK, (chosen_TK.masked_fill(~tail_TK, 0.0) / 2).exp(), body_TK)
    return chosen_TK.relu() if score == "relu" else chosen_TK


def plain_gradient(case: Case, index_TK: Tensor, grads: tuple[Tensor, Tensor]) -> Tensor:
    """By autograd in float64, for a selection that is given."""
    z_TE = case.logits.double().detach().requires_grad_()
    real_T = torch.ones(len(z_TE), dtype=torch.bool) if case.mask is None else case.mask
    safe_TE = z_TE.masked_fill(~real_T[:, None], 0.0)
    weights_TK = plain_scores(safe_TE, index_TK.clamp(min=0).long(), case.rule["score"])
    if case.rule["renormalize"]:
        weights_TK = weights_TK / (weights_TK.sum(1, keepdim=True) + case.rule["eps"])
    weights_TK = weights_TK.masked_fill(index_TK < 0, 0.0) * case.rule["scale"]
    logsumexp_T = safe_TE.logsumexp(1).masked_fill(~real_T, 0.0)
    return torch.autograd.grad(
        (weights_TK * grads[0]).sum() + (logsumexp_T * grads[1]).sum(), z_TE, materialize_grads=True
    )[0]


def gradient(case: Case, grads: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """By the operator: the gradient and the selection; strides of the incoming gradients are unusual."""
    logits_TE = case.logits.detach().requires_grad_()
    gated = topk_gate(logits_TE, **case.inputs(), with_logsumexp=True)
    assert gated.logsumexp is not None
    outputs = [gated.weights, gated.logsumexp]
    return torch.autograd.grad(outputs, logits_TE, [grads[0].mT.contiguous().mT, grads[1]])[0], gated.index


@pytest.mark.parametrize("isa", ISAS)
@gate_cases.thorough
@given(case=gate_cases.cases(kinds=FINITE))
def test_against_autograd(isa: str, case: Case) -> None:
    grads = torch.randn(len(case.logits), case.rule["top_k"]), torch.randn(len(case.logits))
    with serving(isa, 2):
        ours, index_TK = gradient(case, grads)
    expected = plain_gradient(case, index_TK, grads)
    assert ours.dtype == case.logits.dtype and ours.shape == case.logits.shape
    # A quotient of vanishing scores has no gradient, in any arithmetic.
    known = expected.isfinite()
    size = expected.masked_fill(~known, 0.0).abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    # Rounded once to the logits' dtype; sums of the formula cancel in float64.
    unit = torch.finfo(case.logits.dtype).eps + 1e-9
    least = torch.finfo(case.logits.dtype).tiny
    assert bool(((ours.double() - expected).abs() <= unit * size + least)[known].all())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("renormalize", [False, True])
def test_second_derivatives_against_float64(isa: str, score: str, renormalize: bool) -> None:
    results = []
    start = torch.stack([torch.randperm(12) for _ in range(3)]) / 3.0 - 1.9

    def second(logits: Tensor) -> Tensor:
        gated = topk_gate(
            logits, top_k=4, score=score, renormalize=renormalize, eps=0.1, scale=2.5, with_logsumexp=True
        )
        assert gated.logsumexp is not None
        loss = gated.weights.pow(2).sum() + gated.logsumexp.pow(2).sum() + (gated.weights[:, 0] * gated.logsumexp).sum()
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), logits)[0]

    with serving(isa):
        for dtype in (torch.float32, torch.float64):
            results.append(second(start.to(dtype).requires_grad_()).double())
    torch.testing.assert_close(results[0], results[1], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_finite_differences(score: str, renormalize: bool, masked: bool) -> None:
    start = torch.stack([torch.randperm(6) for _ in range(2)]).double() / 2 - 1.2
    mask = torch.tensor([True, False]) if masked else None

    def weights(logits: Tensor) -> tuple[Tensor, ...]:
        gated = topk_gate(
            logits, top_k=3, score=score, renormalize=renormalize, eps=0.1, scale=2.5, token_mask_T=mask,
            with_logsumexp=True,
        )  # fmt: skip
        assert gated.logsumexp is not None
        return gated.weights, gated.logsumexp

    assert torch.autograd.gradcheck(weights, (start.requires_grad_(),))
    assert torch.autograd.gradgradcheck(weights, (start.requires_grad_(),))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("renormalize", [False, True])
def test_the_formula_of_the_gradient_against_finite_differences(score: str, renormalize: bool) -> None:
    """The reference of the backward operator, which second derivatives go through as well."""
    options = options_for(
        6, True, 3, score, 1, 1, "max", renormalize, 0.1, 2.5, "logits", torch.int64, False, False, True
    )
    logits = (torch.stack([torch.randperm(6) for _ in range(2)]).double() / 2 - 1.2).requires_grad_()
    found = gate(logits, None, None, options)
    grads = torch.randn(2, 3, dtype=torch.float64)
    ours = topk_gate_backward_reference(
        grads, None, None, found.index, found.chosen, found.logsumexp, logits, 6, torch.float64, *options[3:]
    )
    (expected,) = torch.autograd.grad((found.weights * grads).sum(), logits)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("score", sorted(set(SCORES) - {"identity"}))
def test_an_expert_at_minus_infinity_has_a_gradient_of_zero(isa: str, score: str) -> None:
    logits = torch.tensor([[1.0, float("-inf"), 2.0]], requires_grad=True)
    with serving(isa):
        gated = topk_gate(logits, top_k=3, score=score, renormalize=True, eps=1e-6, with_logsumexp=True)
        assert gated.logsumexp is not None
        (grad,) = torch.autograd.grad(gated.weights[:, 0].sum() + gated.logsumexp.sum(), logits)
    assert bool(grad.isfinite().all()) and grad[0, 1].item() == 0.0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("with_logsumexp", [False, True])
def test_a_broken_token_spoils_no_other_gradient(isa: str, score: str, with_logsumexp: bool) -> None:
    logits = torch.randn(5, 8)
    logits[2, 4] = float("nan")
    logits[3] = float("nan")
    logits.requires_grad_()
    with serving(isa):
        gated = topk_gate(
            logits, top_k=3, score=score, with_logsumexp=with_logsumexp,
            token_mask_T=torch.tensor([True, True, True, False, True]),
        )  # fmt: skip
        loss = gated.weights.square().sum()
        if gated.logsumexp is not None:
            loss = loss + gated.logsumexp.sum()
        (grad,) = torch.autograd.grad(loss, logits)
    assert bool(grad[[0, 1, 4]].isfinite().all()) and bool(grad[[0, 1, 4]].any(dim=1).all())
    assert not grad[3].any(), "a masked token has no gradient, whatever its logits hold"
    assert bool(grad[2].isnan().any())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("score", sorted(set(SCORES) - {"softmax"}))
def test_experts_that_were_not_chosen_get_exactly_none(isa: str, score: str) -> None:
    logits = torch.randn(20, 16, requires_grad=True)
    with serving(isa):
        gated = topk_gate(logits, top_k=3, score=score)
        (grad,) = torch.autograd.grad(gated.weights.square().sum(), logits)
    chosen = torch.zeros(20, 16, dtype=torch.bool).scatter(1, gated.index, True)
    assert not grad[~chosen].any() and bool(grad[chosen].any())


@pytest.mark.parametrize(
    ("score", "renormalize", "with_logsumexp", "keeps_logits"),
    [
        ("sigmoid", True, False, False),
        ("sqrt_softplus", False, False, False),
        ("softmax_selected", False, False, False),
        ("softmax", True, False, False),
        ("softmax", False, False, True),
        ("sigmoid", True, True, True),
    ],
)
def test_what_is_kept_for_the_gradient(score: str, renormalize: bool, with_logsumexp: bool, keeps_logits: bool) -> None:
    """[T, K] data and one number a token; the logits themselves where every one of them gets a gradient."""
    logits = torch.randn(6, 40, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        topk_gate(logits, top_k=3, score=score, renormalize=renormalize, with_logsumexp=with_logsumexp)
    dense = [tensor for tensor in kept if tensor.numel() > 6 * 3]
    assert len(kept) >= 2
    assert all(tensor.data_ptr() == logits.data_ptr() for tensor in dense)
    assert bool(dense) == keeps_logits


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_gradients_are_rounded_once(isa: str, dtype: torch.dtype) -> None:
    """Chosen and not chosen alike, subnormal and overflowing numbers included."""
    logits = (torch.randn(50, 33) * 4).to(dtype)
    grads = torch.randn(50, 4) * torch.tensor([1e-7, 1e-4, 1.0, 1e6])
    rounded = []
    for values in (logits.float(), logits):
        wide = values.detach().requires_grad_()
        with serving(isa):
            gated = topk_gate(wide, top_k=4, score="softmax")
            rounded.append(torch.autograd.grad(gated.weights, wide, grads)[0].to(dtype))
    # The float32 gradient is itself rounded, so that a tie may fall to the other side now and then.
    different = rounded[0] != rounded[1]
    assert int(different.sum()) <= 2
    torch.testing.assert_close(rounded[0], rounded[1], rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_only_the_logits_get_a_gradient() -> None:
    logits, bias = torch.randn(3, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    gated = topk_gate(logits, top_k=2, score="sigmoid", bias_E=bias, with_counts=True)
    assert not gated.index.requires_grad and gated.counts is not None and not gated.counts.requires_grad
    gated.weights.sum().backward()
    assert bias.grad is None and logits.grad is not None


def test_without_a_gradient_nothing_is_kept() -> None:
    logits = torch.randn(3, 8, requires_grad=True)
    with torch.no_grad():
        assert not topk_gate(logits, top_k=2, score="sigmoid").weights.requires_grad
    assert not topk_gate(logits.detach(), top_k=2, score="sigmoid").weights.requires_grad


@pytest.mark.skipif(not library.KERNELS.loaded, reason=f"needs the CPU kernels: {library.KERNELS.reason}")
def test_a_gradient_through_an_index_that_is_no_expert_is_refused() -> None:
    index, chosen = torch.tensor([[0, 9]]), torch.zeros(1, 2)
    with pytest.raises(RuntimeError, match="index holds a number that is neither -1 nor an expert below 4"):
        torch.ops.moegate.topk_gate_backward(
            chosen, None, None, index, chosen, torch.empty(0).double(), None, 4, torch.float32, 0.0, 1.0, 0x22
        )
