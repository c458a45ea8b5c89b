"""What only large or dirty memory shows."""

import torch

import moegate
from moegate.bench.cases import Verdict
from moegate.bench.gpu.card import Card
from moegate.bench.gpu.checks.comparing import same
from moegate.bench.oracles.closeness import first
from moegate.ops.topk_gate import topk_gate


def far_offsets(card: Card) -> Verdict:
    """The last rows of logits with more than 2^31 elements get what they get alone."""
    tokens, experts = (33000, 65536) if card.real else (9, 16)
    logits_TE = torch.zeros(tokens, experts, device=card.place.device, dtype=torch.bfloat16)
    logits_TE[-4:].normal_(generator=torch.Generator(card.place.device).manual_seed(8))
    whole = topk_gate(logits_TE, top_k=4, score="softmax", renormalize=True)
    alone = topk_gate(logits_TE[-4:].clone(), top_k=4, score="softmax", renormalize=True)
    del logits_TE
    return first(same("the index", whole.index[-4:], alone.index), same("a weight", whole.weights[-4:], alone.weights))


def poisoned(card: Card) -> Verdict:
    """With NaN in all memory that is handed out, the layer gives the same bits."""
    torch.manual_seed(9)
    hidden, inner, experts = (256, 128, 16) if card.real else (32, 16, 4)
    with torch.device(card.place.device):
        moe = moegate.MoE(hidden, inner, experts, moegate.recipes.topk(2)).requires_grad_(False)
        hidden_TD = torch.randn(37, hidden) if card.real else torch.randn(5, hidden)
    clean = _outputs(moe, hidden_TD)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty gives
    try:
        dirty = _outputs(moe, hidden_TD)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    return first(*(same(f"result {n}", *pair) for n, pair in enumerate(zip(dirty, clean, strict=True))))


def _outputs(moe: moegate.MoE, hidden_TD: torch.Tensor) -> list[torch.Tensor]:
    tracked_TD = hidden_TD.detach().requires_grad_()
    out_TD, routing = moe(tracked_TD)
    (grad_TD,) = torch.autograd.grad(out_TD, tracked_TD, torch.ones_like(out_TD))
    with torch.no_grad():
        inference_TD = moe(hidden_TD)[0]
    return [out_TD.detach(), grad_TD, inference_TD, routing.expert_index, routing.weights.detach()]
