"""Arguments of every wrong kind are errors with a sentence; what is legal compiles into one graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moegate import ascend
from moegate.ascend.limits import AscendOperatorError

N, K, H, E = 4, 2, 3, 5
X, IDS = torch.ones(N, H), torch.tensor([[0, 1], [2, 3], [4, 0], [1, 2]], dtype=torch.int32)
SLOTS, WEIGHTS = torch.arange(N * K, dtype=torch.int32), torch.ones(N, K)
ROWS = torch.ones(N * K, H)
MAP = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=torch.int8)
SENT = ascend.npu_moe_distribute_dispatch_v2(X, IDS, "", 1, 0, E)
PLACE: dict[str, Any] = {"group_ep": "", "ep_world_size": 1, "ep_rank_id": 0, "moe_expert_num": E}
COMBINE: dict[str, Any] = PLACE | {
    "expand_x": SENT[0], "expert_ids": IDS, "ep_send_counts": SENT[4], "expert_scales": WEIGHTS,
    "shared_expert_x": X, "x_active_mask": torch.ones(N, dtype=torch.bool),
}  # fmt: skip

CALLS: dict[str, dict[str, Any]] = {
    "npu_moe_init_routing": {"x": X, "row_idx": SLOTS.view(K, N).t(), "expert_idx": IDS, "active_num": N},
    "npu_moe_init_routing_v2": {"x": X, "expert_idx": IDS, "expert_num": E, "scale": torch.ones(N)},
    "npu_moe_compute_expert_tokens": {"sorted_expert_for_source_row": SLOTS, "num_expert": E},
    "npu_moe_finalize_routing": {
        "expanded_permuted_rows": ROWS, "skip1": X, "skip2": X, "bias": torch.ones(E, H), "scales": WEIGHTS,
        "expanded_src_to_dst_row": SLOTS, "expert_for_source_row": IDS,
    },
    "npu_moe_token_permute": {"tokens": X, "indices": IDS},
    "npu_moe_token_unpermute": {"permuted_tokens": ROWS, "sorted_indices": SLOTS, "probs": WEIGHTS},
    "npu_moe_token_permute_with_routing_map": {
        "tokens": X, "routing_map": MAP, "probs": torch.ones(N, 3), "num_out_tokens": N * K,
    },
    "npu_moe_token_unpermute_with_routing_map": {
        "permuted_tokens": ROWS, "sorted_indices": SLOTS, "restore_shape": [N, H], "probs": torch.ones(N, 3),
        "routing_map": MAP,
    },
    "npu_moe_re_routing": {
        "tokens": X, "expert_token_num_per_rank": torch.ones(2, 2, dtype=torch.int32),
        "per_token_scales": torch.ones(N),
    },
    "npu_moe_distribute_dispatch": PLACE | {"x": X, "expert_ids": IDS, "expert_scales": WEIGHTS},
    "npu_moe_distribute_dispatch_v2": PLACE | {
        "x": X, "expert_ids": IDS, "expert_scales": WEIGHTS, "scales": torch.ones(E, H), "quant_mode": 2,
        "x_active_mask": torch.ones(N, dtype=torch.bool),
    },
    "npu_moe_distribute_combine": COMBINE | {"expand_idx": SLOTS},
    "npu_moe_distribute_combine_v2": COMBINE | {"assist_info_for_combine": SENT[2]},
}  # fmt: skip
TENSORS = [(name, key) for name, call in CALLS.items() for key, value in call.items() if isinstance(value, Tensor)]
KINDS: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda tensor: 3,
    "a list": lambda tensor: tensor.tolist(),
    "a scalar": lambda tensor: tensor.new_zeros(()),
    "another dimension": lambda tensor: tensor[None, None],
    "one more": lambda tensor: torch.cat([tensor, tensor[-1:]]),
    "one less": lambda tensor: tensor[:-1],
    "nothing": lambda tensor: tensor[:0],
    "complex": lambda tensor: tensor.to(torch.complex64),
    "very large": lambda tensor: torch.full_like(tensor, 100),
    "negative": lambda tensor: torch.full_like(tensor, -7),
}


@pytest.mark.parametrize("kind", (*KINDS, "None"))
@pytest.mark.parametrize(("name", "key"), TENSORS, ids=lambda value: value)
def test_a_wrong_tensor_is_an_error_with_a_sentence_or_is_legal(name: str, key: str, kind: str) -> None:
    changed = None if kind == "None" else KINDS[kind](CALLS[name][key])
    try:
        getattr(ascend, name)(**CALLS[name] | {key: changed})
    except (TypeError, ValueError) as error:
        assert str(error).endswith((".", "first.", "them.")) and " " in str(error), error


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_above_are_legal(name: str) -> None:
    outputs = getattr(ascend, name)(**CALLS[name])
    assert all(isinstance(output, torch.Tensor) for output in (outputs if isinstance(outputs, tuple) else (outputs,)))


def test_errors_are_value_errors_and_runtime_errors_with_the_code() -> None:
    with pytest.raises(AscendOperatorError) as wrong:
        ascend.npu_moe_token_permute(X[0], IDS)
    assert wrong.value.code == 161002 and isinstance(wrong.value, ValueError) and isinstance(wrong.value, RuntimeError)
    with pytest.raises(AscendOperatorError, match="Without strict=True it is computed here") as beyond:
        ascend.npu_moe_compute_expert_tokens(SLOTS, 4096, strict=True)
    assert beyond.value.code == 561002


@pytest.mark.parametrize("name", [name for name in CALLS if "distribute" not in name])
@pytest.mark.usefixtures("compiler")
def test_one_graph_gives_what_eager_gives(name: str) -> None:
    call = {
        key: value.double().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in CALLS[name].items()
    }
    operator = getattr(ascend, name)
    results = [run(**call) for run in (operator, torch.compile(operator, fullgraph=True, backend="aot_eager"))]
    flat = [result if isinstance(result, tuple) else (result,) for result in results]
    leaves = [value for value in call.values() if isinstance(value, Tensor) and value.requires_grad]
    grads = []
    for outputs in flat:
        total = sum(((out * out).sum() for out in outputs if out.requires_grad), torch.zeros(()))
        grads.append(torch.autograd.grad(total, leaves) if leaves else ())
    for eager, compiled in zip((*flat[0], *grads[0]), (*flat[1], *grads[1]), strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.usefixtures("compiler")
def test_compiled_places_may_repeat() -> None:
    # Compiled, nothing can be known of the places, so every slot has a copy of its row.
    rows = torch.tensor([[1.0], [2.0]], requires_grad=True)
    places, probs = torch.tensor([0, 0, 1, 5]), torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    out = torch.compile(ascend.npu_moe_token_unpermute, fullgraph=True, backend="aot_eager")(rows, places, probs)
    out.sum().backward()
    assert out.flatten().tolist() == [3.0, 8.0] and rows.grad is not None and rows.grad.flatten().tolist() == [3.0, 4.0]
