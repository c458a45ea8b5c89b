"""The operators of Ascend's Mixture-of-Experts family, on any machine: names, signatures and layouts of torch_npu.

With tensors on an NPU and torch_npu installed, each call goes to the operator of the same name there.
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
    "npu_moe_compute_expert_tokens",
    "npu_moe_distribute_combine",
    "npu_moe_distribute_combine_v2",
    "npu_moe_distribute_dispatch",
    "npu_moe_distribute_dispatch_v2",
    "npu_moe_finalize_routing",
    "npu_moe_init_routing",
    "npu_moe_init_routing_v2",
    "npu_moe_re_routing",
    "npu_moe_token_permute",
    "npu_moe_token_permute_with_routing_map",
    "npu_moe_token_unpermute",
    "npu_moe_token_unpermute_with_routing_map",
]
