"""transformers: the experts of a Qwen3-MoE block, on the same weights, by each of its implementations."""

from collections.abc import Callable

from torch import Tensor

from moegate.bench.peers.finding import PeerMissing, installed_file

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
_MOST_BYTES = 2**32


def check_size(implementation: str, gate_up: Tensor, down: Tensor, num_rows: int) -> None:
    """Refuses ``batched_mm`` where its copy of the weights, one for each routed row, is too large.

    Raises:
        PeerMissing: the copy is beyond 4 GiB.
    """
    copied = num_rows * (gate_up[0].numel() + down[0].numel()) * gate_up.element_size()
    if implementation == "batched_mm" and copied > _MOST_BYTES:
        raise PeerMissing(f"it would copy {copied / 2**30:.0f} GiB of weights, one expert a row")


def experts(implementation: str, gate_up: Tensor, down: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function ``(hidden, index, weights) -> out`` by one implementation of ``Qwen3MoeExperts``.

    The weights are used as they are, so gradients reach them.

    Raises:
        PeerMissing: transformers is not here.
    """
    installed_file("transformers", "transformers/__init__.py")
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    num_experts, hidden_size, intermediate_size = down.shape
    config = Qwen3MoeConfig(
        num_experts=num_experts,
        hidden_size=hidden_size,
        moe_intermediate_size=intermediate_size,
        hidden_act="silu",
        experts_implementation=implementation,
    )
    block = Qwen3MoeExperts(config)
    block.gate_up_proj, block.down_proj = gate_up, down

    def run(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        out_TD: Tensor = block(hidden_TD, index_TK, weights_TK)
        return out_TD

    return run
