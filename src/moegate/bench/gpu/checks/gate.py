"""The gate with the logits that have broken other gates, and its gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moegate.bench.cases import Verdict
from moegate.bench.gpu.card import Card
from moegate.bench.gpu.checks.comparing import near, same, within_ulps
from moegate.bench.oracles.closeness import first
from moegate.ops.topk_gate import topk_gate
from moegate.ops.topk_gate.options import options_for
from moegate.ops.topk_gate.reference import gate as reference

_ULPS = 2
_INFINITY, _NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Rule:
    """A gate's rule, in the words of ``topk_gate``."""

    score: str
    biased: bool = False
    num_groups: int = 1
    groups_kept: int = 1
    group_score: str = "max"
    renormalize: bool = True

    def run(self, logits_TE: Tensor, bias_E: Tensor | None, mask_T: Tensor | None, top_k: int) -> tuple[Tensor, ...]:
        """Index, weights and counts by the operator."""
        found = topk_gate(
            logits_TE,
            top_k=top_k,
            score=self.score,
            bias_E=bias_E,
            token_mask_T=mask_T,
            num_groups=self.num_groups,
            groups_kept=self.groups_kept,
            group_score=self.group_score,
            renormalize=self.renormalize,
            with_counts=True,
        )
        assert found.counts is not None
        return found.index, found.weights, found.counts

    def expected(
        self, logits_TE: Tensor, bias_E: Tensor | None, mask_T: Tensor | None, top_k: int
    ) -> tuple[Tensor, ...]:
        """The same by the reference, on the CPU; the weights of its choice in float64."""
        options = options_for(
            logits_TE.shape[1], self.biased, top_k, self.score, self.num_groups, self.groups_kept, self.group_score,
            self.renormalize, 1e-20, 1.0, "logits", torch.int64, True, False, False,
        )  # fmt: skip
        found = reference(logits_TE, bias_E, mask_T, options)
        exact_TE = logits_TE.double()
        chosen_TK = _score(self.score, exact_TE).gather(1, found.index.clamp(min=0))
        if self.score == "softmax_selected":
            chosen_TK = exact_TE.gather(1, found.index.clamp(min=0)).softmax(dim=-1)
        if self.renormalize:
            chosen_TK = chosen_TK / (chosen_TK.sum(dim=-1, keepdim=True) + 1e-20)
        return found.index, found.weights, found.counts, chosen_TK


RULES = (
    Rule("softmax"),
    Rule("softmax", renormalize=False),
    Rule("softmax_selected", renormalize=False),
    Rule("sigmoid", biased=True),
    Rule("sigmoid", biased=True, num_groups=4, groups_kept=2, group_score="top2_sum"),
    Rule("softmax", num_groups=4, groups_kept=2),
    Rule("sqrt_softplus", biased=True),
    Rule("identity", renormalize=False),
    Rule("relu", renormalize=False),
)
_SIZES = ((8, 2), (64, 6), (97, 5), (128, 8), (384, 6), (512, 22), (896, 16), (2048, 32), (4096, 64))
_WIDE, _TINY = (256, 8), (16, 3)
_PLAIN = (Rule("softmax"), Rule("sigmoid", biased=True))


def _score(kind: str, logits_TE: Tensor) -> Tensor:
    scores = {
        "softmax": lambda: logits_TE.softmax(dim=-1),
        "sigmoid": logits_TE.sigmoid,
        "sqrt_softplus": lambda: torch.logaddexp(logits_TE.new_zeros(()), logits_TE).sqrt(),
        "relu": logits_TE.relu,
    }
    return scores.get(kind, lambda: logits_TE)()


def hostile_logits(num_experts: int, dtype: torch.dtype, *, repeats: int = 1, tiny: float = 1e-39) -> Tensor:
    """Rows that have broken gates: ties, NaN, infinities, both zeros, saturation, tiny numbers; and plain ones."""
    generator = torch.Generator().manual_seed(num_experts)

    def drawn(rows: int) -> Tensor:
        return torch.randn(rows, num_experts, generator=generator)

    odd = drawn(12)
    odd[0] = 0.0
    odd[1] = -_INFINITY
    odd[2] = _NAN
    odd[3, 1::2] = -_INFINITY
    odd[4, 0] = _NAN
    odd[5, -1] = _INFINITY
    odd[6, :2] = _INFINITY
    odd[7] = torch.where(odd[7] > 0, 0.0, -0.0)
    odd[8] = -_INFINITY
    odd[8, num_experts // 2] = 1.0
    odd[9] = 50.0 + (odd[9] * 4).round()
    odd[10] = -80.0 + odd[10]
    odd[11] = odd[11] * tiny
    tied = (drawn(12) * 2).round() / 2
    return torch.cat([odd, tied, drawn(8 * repeats)]).to(dtype)


def every_rule(card: Card) -> Verdict:
    """Indices and counts equal to the reference's bit by bit, weights within 2 ulp of float64: for every rule."""
    size = _WIDE if card.real else _TINY
    return first(*(_judged(card, rule, size, torch.float32, masked=False) for rule in RULES))


def every_type(card: Card) -> Verdict:
    """The same for narrow logits, and for tokens that are masked."""
    size, types = _WIDE if card.real else _TINY, (torch.bfloat16, torch.float16)
    return first(
        *(_judged(card, rule, size, dtype, masked=False) for rule in _PLAIN for dtype in types),
        *(_judged(card, rule, size, torch.float32, masked=True) for rule in _PLAIN),
    )


def every_size(card: Card) -> Verdict:
    """The same for few and many experts, and numbers of them that are no power of two."""
    found = []
    for size in _SIZES if card.real else ((7, 2),):
        found += [_judged(card, _PLAIN[0], size, torch.bfloat16, masked=False)]
        found += [_judged(card, _PLAIN[1], size, torch.float32, masked=False)]
    return first(*found)


def _judged(card: Card, rule: Rule, size: tuple[int, int], dtype: torch.dtype, *, masked: bool) -> Verdict:
    num_experts, top_k = size
    # Triton's interpreter loses the subnormal numbers of bfloat16, which a card has.
    tiny = 1e-39 if card.real or dtype != torch.bfloat16 else 1e-30
    logits_TE = hostile_logits(num_experts, dtype, repeats=32 if card.real else 1, tiny=tiny)
    bias_E = 0.5 * torch.linspace(-1, 1, num_experts).sin() if rule.biased else None
    mask_T = torch.arange(len(logits_TE)) % 7 != 6 if masked else None
    inputs = (logits_TE, bias_E, mask_T)
    placed = [None if part is None else part.to(card.place.device) for part in inputs]
    verdict = _verdict(rule, inputs, placed, top_k)
    return None if verdict is None else f"{verdict}, for {rule} at E={num_experts} K={top_k} {dtype}, masked: {masked}"


def _verdict(rule: Rule, inputs: tuple[Tensor | None, ...], placed: list[Tensor | None], top_k: int) -> Verdict:
    logits_TE, bias_E, mask_T = inputs
    device_TE = placed[0]
    assert logits_TE is not None
    assert device_TE is not None
    index_TK, weights_TK, counts_E = rule.run(device_TE, placed[1], placed[2], top_k)
    expected = rule.expected(logits_TE, bias_E, mask_T, top_k)
    finite_T = logits_TE.isfinite().all(dim=-1)
    if mask_T is not None:
        finite_T &= mask_T
    return first(
        same("the index", index_TK, expected[0]),
        same("counts", counts_E, expected[2]),
        within_ulps("a weight", weights_TK.cpu()[finite_T], expected[3][finite_T], _ULPS),
        same("whether a weight is NaN", weights_TK.isnan(), expected[1].isnan()),
    )


def gradients(card: Card) -> Verdict:
    """The gradient of the logits, against the one that autograd finds of the reference in float64."""
    num_experts, top_k = (256, 8) if card.real else (16, 3)
    for rule in RULES:
        bias_E = torch.linspace(-0.1, 0.1, num_experts) if rule.biased else None
        logits_TE = torch.randn(24, num_experts, generator=torch.Generator().manual_seed(3))
        grad_TK = torch.randn(24, top_k, generator=torch.Generator().manual_seed(4))
        placed_TE = logits_TE.to(card.place.device).requires_grad_()
        placed_bias_E = None if bias_E is None else bias_E.to(card.place.device)
        weights_TK = rule.run(placed_TE, placed_bias_E, None, top_k)[1]
        (found_TE,) = torch.autograd.grad(weights_TK, placed_TE, grad_TK.to(weights_TK.device))
        exact_TE = logits_TE.double().requires_grad_()
        exact_bias_E = None if bias_E is None else bias_E.double()
        exact_TK = rule.expected(exact_TE, exact_bias_E, None, top_k)[3]
        (expected_TE,) = torch.autograd.grad(exact_TK, exact_TE, grad_TK.double())
        verdict = near("a gradient", found_TE, expected_TE, 2e-5)
        if verdict is not None:
            return f"{verdict}, for {rule}"
    return None
