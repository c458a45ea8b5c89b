"""moe-ops: softmax gate, permutation and grouped products in Triton."""

from collections.abc import Callable
from functools import cache
from types import ModuleType

from torch import Tensor
from torch.nn.functional import silu

from moegate.bench.oracles.gate import Chosen, GateRule
from moegate.bench.peers.carried import carried_module, shorten
from moegate.bench.peers.finding import PeerMissing

NAME = "moe-ops"
_MOST_CONFIGURATIONS = 4
_LARGEST = 4096


@cache
def _package() -> ModuleType:
    package = carried_module("moe_ops")
    for module in ("fused_topk_softmax_ops", "grouped_gemm_ops", "grouped_gemm_ops_sm90", "unpermute_ops"):
        for kernel in vars(carried_module(f"moe_ops.{module}")).values():
            shorten(kernel, _MOST_CONFIGURATIONS)
    return package


def gate(rule: GateRule, num_experts: int) -> Callable[[Tensor, Tensor | None], Chosen]:
    """``fused_topk_softmax``: a softmax over the chosen, which is a renormalised softmax over all.

    Raises:
        PeerMissing: it is not here, or the rule is another.
    """
    if rule.score != "softmax" or not rule.renormalize or rule.biased or rule.num_groups > 1:
        raise PeerMissing("fused_topk_softmax does a renormalised softmax without bias and groups")
    if num_experts > _LARGEST:
        raise PeerMissing(f"fused_topk_softmax holds rows in registers: {num_experts} experts are too many")
    fused = _package().fused_topk_softmax

    def run(logits_TE: Tensor, bias_E: Tensor | None) -> Chosen:
        weights_TK, index_TK = fused(logits_TE, rule.top_k, fp32_routing=True)
        return Chosen(index_TK, weights_TK)

    return run


def permute(num_experts: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Hidden states and indices to ``(rows, where each slot went [K * T], offsets [E + 1])``.

    The order within an expert is that of a race.

    Raises:
        PeerMissing: it is not here.
    """
    if num_experts & (num_experts - 1):
        raise PeerMissing(f"its histogram needs a power of two of experts, not {num_experts}")
    permuted = _package().permute

    def run(hidden_TD: Tensor, index_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = permuted(hidden_TD, index_TK.int(), E=num_experts)
        return found

    return run


def unpermute() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Rows, where they lie ``[K * T]`` and weights to the weighted sums.

    Raises:
        PeerMissing: it is not here.
    """
    unpermuted = _package().unpermute

    def run(rows_RD: Tensor, place_N: Tensor, weights_TK: Tensor) -> Tensor:
        out_TD: Tensor = unpermuted(rows_RD, place_N, weights_TK, *weights_TK.shape)
        return out_TD

    return run


def experts(gate_up: Tensor, down: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Permutation, two grouped products around a SwiGLU in PyTorch, and the way back.

    Raises:
        PeerMissing: it is not here.
    """
    package, permuted, unpermuted = _package(), permute(gate_up.shape[0]), unpermute()

    def run(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        rows_RD, place_N, offsets = permuted(hidden_TD, index_TK)
        gate_RF, up_RF = package.grouped_gemm(rows_RD, gate_up, offsets).chunk(2, dim=-1)
        rows_RD = package.grouped_gemm(silu(gate_RF) * up_RF, down, offsets)
        return unpermuted(rows_RD, place_N, weights_TK)

    return run
