"""Names, signatures and defaults of the operators that move rows are torch_npu's; calls on an NPU go there."""

import inspect
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from moegate import ascend

GROUP = "group_ep, ep_world_size, ep_rank_id, moe_expert_num"
DISPATCH = f"x, expert_ids, {GROUP}, *, scales=None, x_active_mask=None, expert_scales=None"
COMBINE = f"ep_send_counts, expert_scales, {GROUP}, *, tp_send_counts=None, x_active_mask=None"
PARALLEL = (
    "group_tp='', tp_world_size=0, tp_rank_id=0, expert_shard_type=0, shared_expert_num=1, shared_expert_rank_num=0"
)
SPECIAL = "zero_expert_num=0, copy_expert_num=0, const_expert_num=0"

# As op-plugin documents them (2026-08); our own arguments, keyword-only and last, follow the bar.
SIGNATURES = {
    "npu_moe_init_routing": "x, row_idx, expert_idx, active_num | *",
    "npu_moe_init_routing_v2": "x, expert_idx, *, scale=None, offset=None, active_num=-1, expert_capacity=-1, "
    "expert_num=-1, drop_pad_mode=0, expert_tokens_num_type=0, expert_tokens_num_flag=False, quant_mode=-1, "
    "active_expert_range=(), row_idx_type=0, x_dtype=None |",
    "npu_moe_compute_expert_tokens": "sorted_expert_for_source_row, num_expert | *",
    "npu_moe_finalize_routing": "expanded_permuted_rows, skip1, skip2, bias, scales, expanded_src_to_dst_row, "
    "expert_for_source_row, drop_pad_mode=0, k=1 | *, x=None, alpha1=None, alpha2=None, v=None, "
    "zero_expert_range=None, copy_expert_range=None, constant_expert_range=None,",
    "npu_moe_token_permute": "tokens, indices, num_out_tokens=None, padded_mode=False | *",
    "npu_moe_token_unpermute": "permuted_tokens, sorted_indices, probs=None, padded_mode=False, restore_shape=None | *",
    "npu_moe_token_permute_with_routing_map": "tokens, routing_map, *, probs=None, num_out_tokens=None, "
    "drop_and_pad=False |",
    "npu_moe_token_unpermute_with_routing_map": "permuted_tokens, sorted_indices, restore_shape, *, probs=None, "
    "routing_map=None, drop_and_pad=False |",
    "npu_moe_re_routing": "tokens, expert_token_num_per_rank, *, per_token_scales=None, expert_token_num_type=1, "
    "idx_type=0 |",
    "npu_moe_distribute_dispatch": f"{DISPATCH}, {PARALLEL}, quant_mode=0, global_bs=0, expert_token_nums_type=1 |",
    "npu_moe_distribute_dispatch_v2": f"{DISPATCH}, elastic_info=None, performance_info=None, {PARALLEL}, "
    f"quant_mode=0, global_bs=0, expert_token_nums_type=1, comm_alg='', {SPECIAL} |",
    "npu_moe_distribute_combine": f"expand_x, expert_ids, expand_idx, {COMBINE}, activation_scale=None, "
    f"weight_scale=None, group_list=None, expand_scales=None, shared_expert_x=None, {PARALLEL}, global_bs=0, "
    "out_dtype=0, comm_quant_mode=0, group_list_type=0 |",
    "npu_moe_distribute_combine_v2": f"expand_x, expert_ids, assist_info_for_combine, {COMBINE}, expand_scales=None, "
    "shared_expert_x=None, elastic_info=None, ori_x=None, const_expert_alpha_1=None, const_expert_alpha_2=None, "
    f"const_expert_v=None, performance_info=None, {PARALLEL}, global_bs=0, comm_quant_mode=0, comm_alg='', {SPECIAL} |",
}


# Of the gates, the operator without a function in torch_npu: aclnnMoeFusedTopk. The others are beside their tests.
FUSED = (
    "x, add_num, mapping_num, mapping_table, group_num, group_topk, top_n, top_k, activate_type=0, is_norm=True, "
    "scale=1.0, enable_expert_mapping=False, *, strict=False"
)
GATES = {
    "moe_fused_topk",
    "npu_moe_gating_top_k",
    "npu_moe_gating_top_k_backward",
    "npu_moe_gating_top_k_softmax",
    "npu_moe_gating_top_k_softmax_v2",
}
OUR_OWN = {"ASCEND", "MOEGATE", "AscendOperatorError", "Compat"}


def test_the_public_names() -> None:
    assert set(ascend.__all__) == {*SIGNATURES, *GATES, *OUR_OWN}
    assert all(hasattr(ascend, name) for name in ascend.__all__)


def test_the_order_of_fused_topk_is_that_of_the_c_interface() -> None:
    parameters = inspect.signature(ascend.moe_fused_topk).parameters.values()
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters if parameter.name != "compat"
    ]
    assert str(inspect.Signature(plain)) == f"({FUSED})"


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_torch_npu_and_ours_come_last(name: str) -> None:
    signature = inspect.signature(getattr(ascend, name))
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    theirs, ours = SIGNATURES[name].split(" |")
    wanted = f"({theirs}{',' if ours.strip() else ''}{ours.rstrip(',')}, strict=False)"
    assert str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)) == wanted


class OnNpu(torch.Tensor):
    """A tensor that says it lies on an NPU."""

    @property
    def device(self) -> Any:
        return SimpleNamespace(type="npu", index=0)


class Native:
    """A torch_npu that writes down its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def module(self, *names: str) -> ModuleType:
        made = ModuleType("torch_npu")
        for name in names:
            setattr(made, name, self.operator(name))
        return made

    def operator(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> str:
            self.calls.append((name, args, kwargs))
            return f"{name} on the device"

        return call


def on_npu(*shape: int) -> Any:
    return torch.zeros(*shape).as_subclass(OnNpu)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_call_on_an_npu_goes_to_torch_npu_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native = Native()
    monkeypatch.setitem(sys.modules, "torch_npu", native.module(*SIGNATURES))
    tensor, other = on_npu(2), torch.zeros(2)
    result: Any = getattr(ascend, name)(other, 1, tensor, "four", strict=True, k=3)
    assert result == f"{name} on the device"
    [(called, args, kwargs)] = native.calls
    assert called == name and args[0] is other and args[2] is tensor and args[1::2] == (1, "four")
    assert kwargs == {"k": 3}


def test_a_tensor_among_the_keywords_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    native = Native()
    monkeypatch.setitem(sys.modules, "torch_npu", native.module(*SIGNATURES))
    ascend.npu_moe_token_unpermute(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int32), probs=on_npu(1, 1))
    assert native.calls[0][2].keys() == {"probs"}


def test_tensors_elsewhere_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    native = Native()
    monkeypatch.setitem(sys.modules, "torch_npu", native.module(*SIGNATURES))
    assert ascend.npu_moe_compute_expert_tokens(torch.tensor([0, 1]), 2).tolist() == [1, 2]
    assert native.calls == []


@pytest.mark.parametrize("installed", (None, ModuleType("torch_npu")), ids=("no torch_npu", "an older one"))
def test_without_a_native_operator_ours_runs_on_any_device(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_npu", installed)
    with pytest.raises(TypeError, match="expert_idx must be a tensor"):
        ascend.npu_moe_init_routing_v2(on_npu(1, 1), None, expert_num=1)  # type: ignore[arg-type]
