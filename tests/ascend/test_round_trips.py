"""moegate's gating, Ascend's way of moving rows, moegate's experts: the same layer as moegate.MoE, in every mode."""

from typing import Any

import pytest
import ranks
import torch
from torch import Tensor

import moegate
from moegate import ascend

T, D, F, E, K = 23, 8, 6, 5, 2


@pytest.fixture
def layer() -> moegate.MoE:
    return moegate.MoE(D, F, E, rule=moegate.recipes.mixtral(top_k=K))


@pytest.fixture
def hidden_TD() -> Tensor:
    return torch.randn(T, D, requires_grad=True)


def routed(layer: moegate.MoE, hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
    routing = layer.route(hidden_TD)
    return routing.expert_index.to(torch.int32), routing.weights


def by_column(layer: moegate.MoE, hidden_TD: Tensor, padded: bool) -> Tensor:
    """Modes 0 and 1: the first init_routing's column layout; padded by hand, as it has no drop-pad."""
    experts_TK, weights_TK = routed(layer, hidden_TD)
    if padded:
        return by_row(layer, hidden_TD, padded=True, mode=1)
    row_idx = torch.arange(T * K, dtype=torch.int32).view(K, T).t().contiguous()
    rows, places, sorted_experts = ascend.npu_moe_init_routing(hidden_TD, row_idx, experts_TK, T)
    offsets = ascend.npu_moe_compute_expert_tokens(sorted_experts, E).long()
    return ascend.npu_moe_finalize_routing(
        layer.experts(rows, offsets), None, None, None, weights_TK, places, experts_TK, 0
    )


def by_row(layer: moegate.MoE, hidden_TD: Tensor, padded: bool, mode: int) -> Tensor:
    experts_TK, weights_TK = routed(layer, hidden_TD)
    options: dict[str, Any] = {"drop_pad_mode": 1, "expert_capacity": T} if padded else {}
    rows, places, counts, _ = ascend.npu_moe_init_routing_v2(
        hidden_TD, experts_TK, expert_num=E, expert_tokens_num_type=1, expert_tokens_num_flag=True, **options
    )
    if padded:
        offsets = torch.arange(1, E + 1) * T
        out = layer.experts(rows.flatten(0, 1), offsets).view(E, T, D)
    else:
        out = layer.experts(rows, counts.cumsum(0))
    if mode == 1:
        places = places.view(T, K).t().reshape(-1)
    return ascend.npu_moe_finalize_routing(out, None, None, None, weights_TK, places, experts_TK, mode)


def by_token_permute(layer: moegate.MoE, hidden_TD: Tensor) -> Tensor:
    experts_TK, weights_TK = routed(layer, hidden_TD)
    rows, index = ascend.npu_moe_token_permute(hidden_TD, experts_TK)
    offsets = ascend.npu_moe_compute_expert_tokens(experts_TK.reshape(-1).sort().values, E).long()
    return ascend.npu_moe_token_unpermute(layer.experts(rows, offsets), index, weights_TK)


def by_routing_map(layer: moegate.MoE, hidden_TD: Tensor, drop_and_pad: bool) -> Tensor:
    experts_TK, weights_TK = routed(layer, hidden_TD)
    routing_map = torch.zeros(T, E, dtype=torch.bool).scatter(1, experts_TK.long(), True)
    probs = torch.zeros(T, E).scatter(1, experts_TK.long(), weights_TK)
    rows, _, index = ascend.npu_moe_token_permute_with_routing_map(
        hidden_TD, routing_map, probs=probs, num_out_tokens=T * (E if drop_and_pad else K), drop_and_pad=drop_and_pad
    )
    counts = torch.full((E,), T) if drop_and_pad else routing_map.sum(0)
    return ascend.npu_moe_token_unpermute_with_routing_map(
        layer.experts(rows, counts.cumsum(0)), index, [T, D], probs=probs, routing_map=routing_map,
        drop_and_pad=drop_and_pad,
    )  # fmt: skip


WAYS = {
    "finalize mode 0": lambda layer, hidden: by_column(layer, hidden, padded=False),
    "finalize mode 1": lambda layer, hidden: by_column(layer, hidden, padded=True),
    "finalize mode 2": lambda layer, hidden: by_row(layer, hidden, padded=False, mode=2),
    "finalize mode 3": lambda layer, hidden: by_row(layer, hidden, padded=True, mode=3),
    "token permute": by_token_permute,
    "routing map": lambda layer, hidden: by_routing_map(layer, hidden, drop_and_pad=False),
    "routing map, padded": lambda layer, hidden: by_routing_map(layer, hidden, drop_and_pad=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_layer_is_the_same_with_its_gradients(way: str, layer: moegate.MoE, hidden_TD: Tensor) -> None:
    out, _ = layer(hidden_TD)
    found = WAYS[way](layer, hidden_TD)
    assert torch.allclose(found, out, atol=1e-6)
    inputs = [hidden_TD, *layer.parameters()]
    grad = torch.randn(T, D)
    wanted = torch.autograd.grad(out, inputs, grad)
    got = torch.autograd.grad(found, inputs, grad)
    assert all(torch.allclose(g, w, atol=1e-5) for g, w in zip(got, wanted, strict=True))


def test_dropless_by_row_gives_the_layers_bits(layer: moegate.MoE, hidden_TD: Tensor) -> None:
    assert torch.equal(WAYS["finalize mode 2"](layer, hidden_TD), layer(hidden_TD)[0])


@pytest.mark.parametrize("world_size", (1, 5))
def test_expert_parallel_is_the_same_layer(world_size: int, layer: moegate.MoE) -> None:
    hidden = [torch.randn(7, D) for _ in range(world_size)]
    per_rank = E // world_size

    def run(rank: int) -> Tensor:
        experts_TK, weights_TK = routed(layer, hidden[rank])
        place: tuple[Any, ...] = ("", world_size, rank, E)
        sent = ascend.npu_moe_distribute_dispatch_v2(hidden[rank], experts_TK, *place, expert_token_nums_type=0)
        # This rank's experts alone, whose rows end where expert_token_nums says.
        offsets = torch.zeros(E, dtype=torch.int64)
        offsets[rank * per_rank : (rank + 1) * per_rank] = sent[3]
        offsets[(rank + 1) * per_rank :] = sent[3][-1]
        out = layer.experts(sent[0], offsets)
        return ascend.npu_moe_distribute_combine_v2(out, experts_TK, sent[2], sent[4], weights_TK, *place)

    for rank, out in enumerate(ranks.in_threads(world_size, run)):
        assert torch.allclose(out, layer(hidden[rank])[0], atol=1e-6)


def test_rows_of_remote_experts_drop_out_by_row_index_minus_one(layer: moegate.MoE, hidden_TD: Tensor) -> None:
    # Expert parallelism by all-gather: each rank routes all tokens to its own experts, and the outputs are summed.
    experts_TK, weights_TK = routed(layer, hidden_TD)
    total = torch.zeros(T, D)
    for start, end in ((0, 2), (2, 5)):
        rows, places, counts, _ = ascend.npu_moe_init_routing_v2(
            hidden_TD, experts_TK, expert_num=E, active_expert_range=[start, end], expert_tokens_num_flag=True
        )
        offsets = torch.zeros(E, dtype=torch.int64)
        offsets[start:end] = counts
        offsets[end:] = counts[-1]
        out = layer.experts(rows, offsets)
        total = total + ascend.npu_moe_token_unpermute(out, places, weights_TK)
        same = ascend.npu_moe_finalize_routing(out, None, None, None, weights_TK, places, None, 3)
        assert torch.equal(same, ascend.npu_moe_token_unpermute(out, places, weights_TK))
    assert torch.allclose(total, layer(hidden_TD)[0], atol=1e-6)
