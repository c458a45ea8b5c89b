"""The gate as models write it in plain PyTorch, eager and compiled."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from moegate.bench.oracles.gate import Chosen, GateRule

Gate = Callable[[Tensor, Tensor | None], Chosen]

_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits_TE: logits_TE.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda logits_TE: softplus(logits_TE).sqrt(),
}


def gate(rule: GateRule) -> Gate:
    """The composition for a rule: score, bias, groups, ``torch.topk``, gather, renormalise (DeepSeek-V3, Qwen3).

    Example:
        >>> gate(GateRule("softmax", top_k=1))(torch.tensor([[0.0, 1.0]]), None).index_TK.tolist()
        [[1]]
    """
    score = _SCORES[rule.score]

    def run(logits_TE: Tensor, bias_E: Tensor | None) -> Chosen:
        scores_TE = score(logits_TE.float())
        choice_TE = scores_TE if bias_E is None else scores_TE + bias_E
        if rule.num_groups > 1:
            choice_TE = _keep_groups(choice_TE, rule)
        index_TK = torch.topk(choice_TE, rule.top_k, dim=-1, sorted=False).indices
        weights_TK = scores_TE.gather(1, index_TK)
        if rule.renormalize:
            weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + rule.eps)
        return Chosen(index_TK, weights_TK)

    return run


def _keep_groups(choice_TE: Tensor, rule: GateRule) -> Tensor:
    grouped_TGe: Tensor = choice_TE.unflatten(-1, (rule.num_groups, -1))
    score_TG = grouped_TGe.topk(2, dim=-1).values.sum(dim=-1)
    group_TH = torch.topk(score_TG, rule.groups_kept, dim=-1, sorted=False).indices
    kept_TG = torch.zeros_like(score_TG).scatter_(1, group_TH, 1.0)
    return grouped_TGe.masked_fill(kept_TG[..., None] == 0, float("-inf")).flatten(-2)


def compiled(rule: GateRule) -> Gate:
    """The same composition under ``torch.compile``, for fixed sizes; the first call compiles."""
    torch.compiler.reset()  # else the many cases of a run meet the compiler's limit of versions of a function
    compiled_gate: Gate = torch.compile(gate(rule), fullgraph=True, dynamic=False)
    return compiled_gate
