"""Liger: the fused experts, forward and backward, and the metadata of their routing."""

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from torch import Tensor

from moegate.bench.peers.carried import carried_module, shorten

NAME = "Liger"
_KERNELS = (
    "_fused_up_proj_swiglu_kernel",
    "_fused_down_proj_kernel",
    "_moe_bwd_down_proj_kernel",
    "_moe_bwd_dX_expanded_kernel",
)
_WEIGHT_KERNELS = ("_moe_bwd_dW1_kernel", "_moe_bwd_dW2_kernel")
# Its autotuner would try 32, 16 and 24 configurations a kernel, which takes longer than the whole run.
_TILES = ((128, 64, 8, 3), (128, 64, 4, 3), (128, 32, 8, 4))
_WEIGHT_TILES = ((128, 128, 32, 8), (64, 128, 32, 4))
_SUMS = ((512, 8, 8), (256, 8, 4))


@cache
def _module() -> ModuleType:
    kernels = carried_module("liger_kernel.ops.fused_moe_kernels")
    for name in _KERNELS:
        _keep(getattr(kernels, name), ("BLOCK_N", "BLOCK_K", "num_warps", "num_stages"), _TILES)
    for name in _WEIGHT_KERNELS:
        _keep(getattr(kernels, name), ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps"), _WEIGHT_TILES)
    _keep(kernels._token_gather_weighted_sum_kernel, ("BLOCK_H", "BLOCK_K", "num_warps"), _SUMS)
    for kernel in vars(kernels).values():
        shorten(kernel, len(_TILES))
    return carried_module("liger_kernel.ops.fused_moe")


def _keep(kernel: Any, names: tuple[str, ...], wanted: tuple[tuple[int, ...], ...]) -> None:
    """Leaves an autotuned kernel the wanted configurations, of those that it has; all of them if it has none."""

    def values(configuration: Any) -> tuple[int, ...]:
        known = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages, **configuration.kwargs}
        return tuple(known.get(name, 0) for name in names)

    offered = getattr(kernel, "configs", [])
    kept = [configuration for configuration in offered if values(configuration) in wanted]
    if kept:
        kernel.configs = kept


def plan() -> Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Indices to counts, offsets, order and inverse, by ``compute_routing_metadata``, which has tiles besides.

    Raises:
        PeerMissing: it is not here.
    """
    metadata = _module().compute_routing_metadata

    def run(index_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        counts, starts, _, slot_R, inverse_R, *_ = metadata(index_TK.int(), num_experts)
        return counts, starts[1:], slot_R, inverse_R

    return run


def combine() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Rows, their inverse and weights to the weighted sums.

    Raises:
        PeerMissing: it is not here.
    """
    aggregated = _module()._token_aggregation

    def run(rows_RD: Tensor, inverse_N: Tensor, weights_TK: Tensor) -> Tensor:
        out_TD: Tensor = aggregated(rows_RD, weights_TK.reshape(-1), inverse_N, *weights_TK.shape, rows_RD.shape[1])
        return out_TD

    return run


def experts(gate_up: Tensor, down: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function ``(hidden, index, weights) -> out`` by ``LigerFusedMoEFunction``.

    Raises:
        PeerMissing: it is not here.
    """
    apply = _module().LigerFusedMoEFunction.apply

    def run(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        # Weights in the type of the rows, as its module gives them: their gradient comes back in that type.
        out_TD: Tensor = apply(hidden_TD, gate_up, down, index_TK.int(), weights_TK.to(hidden_TD.dtype))
        return out_TD

    return run
