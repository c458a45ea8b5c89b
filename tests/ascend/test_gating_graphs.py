"""The gating operators as one graph, exported, and on the meta device."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moegate.ascend import (
    moe_fused_topk,
    npu_moe_gating_top_k,
    npu_moe_gating_top_k_backward,
    npu_moe_gating_top_k_softmax,
    npu_moe_gating_top_k_softmax_v2,
)

IDS, TABLE = torch.tensor([0, 1, 1]), torch.tensor([[1, 2], [5, 6]])
GROUPS = {"k_group": 2, "group_count": 4, "group_select_mode": 1}
MAPPING = (torch.ones(8, dtype=torch.int32), torch.arange(16, dtype=torch.int32).view(8, 2))
EXPERTS = torch.tensor([[0, 1], [2, 3], [4, 5]], dtype=torch.int32)
Gate = Callable[[Tensor], tuple[Tensor, ...]]
GATES: dict[str, Gate] = {
    "softmax": lambda x: npu_moe_gating_top_k(x, 2, renorm=1),
    "sigmoid in groups": lambda x: npu_moe_gating_top_k(x, 2, bias=x[0].detach(), norm_type=1, out_flag=True, **GROUPS),
    "sqrt softplus": lambda x: npu_moe_gating_top_k(x, 2, norm_type=2, routed_scaling_factor=1.5, strict=True),
    "hash": lambda x: npu_moe_gating_top_k(x, 2, input_ids=IDS, tid2eid=TABLE, norm_type=1),
    "softmax gate": lambda x: npu_moe_gating_top_k_softmax(x, torch.tensor([True, False, False]), 2),
    "softmax gate 2": lambda x: npu_moe_gating_top_k_softmax_v2(x, k=2, output_softmax=True),
    "softmax after": lambda x: npu_moe_gating_top_k_softmax_v2(x, k=2, renorm=1),
    "fused": lambda x: moe_fused_topk(x, x[0].detach(), *MAPPING, 4, 2, 2, 3, enable_expert_mapping=True),
    "backward": lambda x: (npu_moe_gating_top_k_backward(x.sigmoid(), x[:, :2], EXPERTS, norm_type=1),),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.usefixtures("compiler")
def test_one_graph_gives_what_eager_gives(name: str) -> None:
    results = []
    x = torch.randn(3, 8)
    for gate in (GATES[name], torch.compile(GATES[name], fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        outputs = gate(leaf)
        outputs[0].square().sum().backward()
        results.append([*outputs, leaf.grad])
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.usefixtures("compiler")
def test_a_compiled_gate_takes_one_number_after_the_other(dynamic: bool | None) -> None:
    compiled = torch.compile(npu_moe_gating_top_k, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for number, (k, scale) in enumerate([(2, 2.5), (2, 2.827), (3, 1.0)]):
        x = torch.randn(3 + number, 8)
        for ours, expected in zip(
            compiled(x, k, norm_type=1, routed_scaling_factor=scale, out_flag=True),
            npu_moe_gating_top_k(x, k, norm_type=1, routed_scaling_factor=scale, out_flag=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, expected)


@pytest.mark.usefixtures("compiler")
def test_export_with_any_number_of_rows() -> None:
    class Router(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, expert_idx, _ = npu_moe_gating_top_k(x, 2, norm_type=1, **GROUPS)
            return y, expert_idx

    program = torch.export.export(
        Router(), (torch.randn(4, 8),), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},)
    )
    longer = torch.randn(9, 8)
    for ours, expected in zip(program.module()(longer), Router()(longer), strict=True):
        torch.testing.assert_close(ours, expected)


def test_shapes_and_dtypes_without_values() -> None:
    x = torch.empty(3, 8, dtype=torch.bfloat16, device="meta")
    ids, table = torch.empty(3, dtype=torch.int32, device="meta"), torch.empty(5, 2, dtype=torch.int64, device="meta")
    for given in ({}, {"input_ids": ids, "tid2eid": table}):
        y, expert_idx, out = npu_moe_gating_top_k(x, 2, norm_type=1, out_flag=True, **given)
        assert [(t.shape, t.dtype) for t in (y, expert_idx, out)] == [
            ((3, 2), torch.bfloat16), ((3, 2), torch.int32), ((3, 8), torch.float32),
        ]  # fmt: skip
