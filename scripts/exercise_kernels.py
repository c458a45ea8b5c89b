"""Every kernel once on awkward sizes and values, for a memory checker to look over its shoulder."""

import itertools
import sys
import warnings

import torch

import moegate
from moegate.ops import ordered_topk, topk_by_key, topk_gate
from moegate.ops.library import KERNELS, available_isas, forced_isa
from moegate.ops.ordered_topk.algorithms import NAMES, topk_by_algorithm
from moegate.ops.portable import PORTABLE_SCORES, portable_scores
from moegate.ops.topk_gate.ablation import OPTIMISATIONS, ablated_topk_gate

SIZES = [(1, 1, 1), (3, 7, 2), (5, 37, 5), (2, 300, 17), (1, 4099, 40)]
"""Tokens, experts, experts per token: nothing that divides by the width of a register."""

RULES = [
    moegate.RoutingRule(moegate.selection.TopK(1), score=score, weighting=moegate.Weighting(renormalize=True))
    for score in (moegate.scoring.Softmax(), moegate.scoring.Sigmoid(), moegate.scoring.SqrtSoftplus())
]


def awkward(num_tokens: int, num_experts: int) -> torch.Tensor:
    """Logits with ties, infinities and NaN, whose rows do not lie next to each other."""
    logits_TE = torch.randn(num_tokens, 2 * num_experts)[:, :num_experts]
    logits_TE[0, ::3] = 0.5
    logits_TE[0, ::5] = float("-inf")
    logits_TE[-1, ::7] = float("nan")
    return logits_TE


def exercise_gate() -> None:
    """All scores, with and without a bias, forward and backward."""
    for (num_tokens, num_experts, top_k), rule, dtype in itertools.product(
        SIZES, RULES, (torch.float32, torch.bfloat16, torch.float16)
    ):
        logits_TE = awkward(num_tokens, num_experts).to(dtype).requires_grad_()
        for bias_E in (None, torch.randn(num_experts)):
            wider = rule.replace(selection=moegate.selection.TopK(top_k))
            moegate.route(logits_TE, wider, bias=bias_E).weights.sum().backward()
    grouped = moegate.recipes.deepseek_v3(top_k=3, num_groups=5, groups_kept=2)
    moegate.route(awkward(4, 35), grouped, bias=torch.randn(35))
    mask_T = torch.tensor([True, False, True, True])
    topk_gate(awkward(4, 35), top_k=3, score="softmax", token_mask_T=mask_T, with_counts=True, with_logsumexp=True)


def exercise_order() -> None:
    """The order alone, by each algorithm, the scores that it may be one of, and the gate of the study."""
    for num_tokens, num_experts, top_k in SIZES:
        logits_TE = awkward(num_tokens, num_experts)
        ordered_topk(logits_TE, top_k, logits_TE > 1.0)
        topk_by_key(torch.randint(-5, 5, (num_tokens, num_experts), dtype=torch.int32), top_k)
        for name in NAMES:
            topk_by_algorithm(logits_TE, top_k, name)
        for score in PORTABLE_SCORES:
            portable_scores(logits_TE, score)
        for switched_off in OPTIMISATIONS:
            ablated_topk_gate(logits_TE, torch.randn(num_experts), top_k=top_k, switched_off=switched_off)


def exercise_layer() -> None:
    """Plan, permute, experts and combine, forward and backward, for a few tokens and for many."""
    for dtype, activation, (hidden, intermediate) in itertools.product(
        (torch.float32, torch.bfloat16), ("swiglu", "gelu"), ((17, 5), (64, 96), (2048, 8))
    ):
        rule = moegate.recipes.mixtral(top_k=2)
        moe = moegate.MoE(hidden, intermediate, 5, rule, activation=activation).to(dtype)
        for num_tokens in (0, 1, 19):
            hidden_TD = torch.randn(num_tokens, hidden, dtype=dtype, requires_grad=True)
            out, _ = moe(hidden_TD, token_mask=torch.arange(num_tokens) % 4 > 0)
            out.sum().backward()
            with torch.no_grad():
                moe(hidden_TD)
    moe = moegate.MoE(17, 5, 5, moegate.recipes.llama4(), dispatch="padded")
    moe(torch.randn(7, 17, requires_grad=True))[0].sum().backward()


def main() -> None:
    """Runs everything on each instruction set that is there."""
    if not KERNELS.loaded:
        sys.exit(f"There are no kernels to exercise: {KERNELS.reason}.")
    warnings.filterwarnings("ignore", message=".*the router gets no gradient")
    torch.manual_seed(0)
    for isa in available_isas():
        with forced_isa(isa):
            exercise_gate()
            exercise_order()
            exercise_layer()
        print(f"{isa}: done")


main()
