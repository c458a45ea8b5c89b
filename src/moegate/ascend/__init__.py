"""Operators with the names, signatures, dtypes and layouts of Ascend's, on any machine.

Code written for ``torch_npu`` runs with ``import moegate.ascend as torch_npu``; on an Ascend device the calls go to the
real one. Where Ascend and moegate differ, ``Compat`` names the difference.
"""

from moegate.ascend import (
    compute_expert_tokens,
    distribute_combine,
    distribute_dispatch,
    finalize_routing,
    init_routing,
    init_routing_v2,
    re_routing,
    token_permute,
    token_permute_with_routing_map,
    token_unpermute,
    token_unpermute_with_routing_map,
)
from moegate.ascend.compat import ASCEND, MOEGATE, Compat
from moegate.ascend.fused_topk import moe_fused_topk
from moegate.ascend.limits import AscendOperatorError
from moegate.ascend.moe_gating_top_k import npu_moe_gating_top_k
from moegate.ascend.moe_gating_top_k_backward import npu_moe_gating_top_k_backward
from moegate.ascend.moe_gating_top_k_softmax import npu_moe_gating_top_k_softmax
from moegate.ascend.moe_gating_top_k_softmax_v2 import npu_moe_gating_top_k_softmax_v2
from moegate.ascend.on_npu import on_npu

npu_moe_compute_expert_tokens = on_npu(compute_expert_tokens.npu_moe_compute_expert_tokens)
npu_moe_distribute_combine = on_npu(distribute_combine.npu_moe_distribute_combine)
npu_moe_distribute_combine_v2 = on_npu(distribute_combine.npu_moe_distribute_combine_v2)
npu_moe_distribute_dispatch = on_npu(distribute_dispatch.npu_moe_distribute_dispatch)
npu_moe_distribute_dispatch_v2 = on_npu(distribute_dispatch.npu_moe_distribute_dispatch_v2)
npu_moe_finalize_routing = on_npu(finalize_routing.npu_moe_finalize_routing)
npu_moe_init_routing = on_npu(init_routing.npu_moe_init_routing)
npu_moe_init_routing_v2 = on_npu(init_routing_v2.npu_moe_init_routing_v2)
npu_moe_re_routing = on_npu(re_routing.npu_moe_re_routing)
npu_moe_token_permute = on_npu(token_permute.npu_moe_token_permute)
npu_moe_token_permute_with_routing_map = on_npu(token_permute_with_routing_map.npu_moe_token_permute_with_routing_map)
npu_moe_token_unpermute = on_npu(token_unpermute.npu_moe_token_unpermute)
npu_moe_token_unpermute_with_routing_map = on_npu(
    token_unpermute_with_routing_map.npu_moe_token_unpermute_with_routing_map
)

__all__ = [
    "ASCEND",
    "MOEGATE",
    "AscendOperatorError",
    "Compat",
    "moe_fused_topk",
    "npu_moe_compute_expert_tokens",
    "npu_moe_distribute_combine",
    "npu_moe_distribute_combine_v2",
    "npu_moe_distribute_dispatch",
    "npu_moe_distribute_dispatch_v2",
    "npu_moe_finalize_routing",
    "npu_moe_gating_top_k",
    "npu_moe_gating_top_k_backward",
    "npu_moe_gating_top_k_softmax",
    "npu_moe_gating_top_k_softmax_v2",
    "npu_moe_init_routing",
    "npu_moe_init_routing_v2",
    "npu_moe_re_routing",
    "npu_moe_token_permute",
    "npu_moe_token_permute_with_routing_map",
    "npu_moe_token_unpermute",
    "npu_moe_token_unpermute_with_routing_map",
]
