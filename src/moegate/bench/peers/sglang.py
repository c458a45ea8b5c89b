"""SGLang's Triton router: the one file of its wheel that holds it, with stand-ins for what that file imports.

The package itself needs a CUDA build of its own kernels. The router needs none of it: of its imports only the switches
of its launch are used, and a CUDA kernel for E = 896, K = 16 on other cards, which never answers here.
"""

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from moegate.bench.oracles.gate import Chosen, GateRule
from moegate.bench.peers.carried import carried_file
from moegate.bench.peers.finding import PeerMissing

NAME = "SGLang"
_FILE = "sglang/kernels/ops/moe/moe_fused_gate.py"
_SCORES = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrt_softplus": "sqrtsoftplus"}
_LARGEST = 4096  # one register tile a row


def gate(rule: GateRule, num_experts: int) -> Callable[[Tensor, Tensor | None], Chosen]:
    """The router for a rule.

    Raises:
        PeerMissing: it is not here, or does nothing like the rule.
    """
    if rule.score not in _SCORES or (rule.score != "softmax" and not rule.biased):
        raise PeerMissing("its router does softmax, and with a bias sigmoid and sqrt-softplus")
    if num_experts > _LARGEST:
        raise PeerMissing(f"its router holds a row in registers: {num_experts} experts are too many")
    router = _router()

    def run(logits_TE: Tensor, bias_E: Tensor | None) -> Chosen:
        weights_TK, index_TK = router(
            logits_TE,
            bias_E,
            rule.top_k,
            scoring_func=_SCORES[rule.score],
            renormalize=rule.renormalize,
            num_expert_group=rule.num_groups,
            topk_group=rule.groups_kept,
        )
        return Chosen(index_TK, weights_TK)

    return run


@cache
def _router() -> Callable[..., tuple[Tensor, Tensor]]:
    path = carried_file(_FILE)
    for name, contents in _stand_ins().items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        sys.modules.setdefault(name, module)
    spec = importlib.util.spec_from_file_location("moegate_peer_sglang_router", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where Triton looks for the source of its kernels
    spec.loader.exec_module(module)
    router: Callable[..., tuple[Tensor, Tensor]] = module.moe_fused_gate
    return router


def _stand_ins() -> dict[str, dict[str, Any]]:
    """Module -> what the router's file takes from it, as the modules of the wheel would give it."""
    switches = SimpleNamespace(SGLANG_OPT_SM120_MTP_ROUTER_TOP22=SimpleNamespace(get=lambda: False))
    radix = SimpleNamespace(covered=lambda *_: False)
    packages = ("sglang", "sglang.kernels", "sglang.kernels.jit", "sglang.kernels.ops", "sglang.srt")
    return {
        **{name: {"__path__": []} for name in packages},
        "sglang.kernels.jit.utils": {"get_jit_cuda_arch": _capability, "is_arch_support_pdl": _launches_early},
        "sglang.kernels.kernel_api_logging": {"debug_kernel_api": lambda function: function},
        "sglang.kernels.ops.moe": {"__path__": [], "moe_route_radix": radix},
        "sglang.srt.environ": {"envs": switches},
    }


def _capability() -> SimpleNamespace:
    major, minor = torch.cuda.get_device_capability()
    return SimpleNamespace(major=major, minor=minor)


def _launches_early() -> bool:
    """Programmatic dependent launch, which it uses from compute capability 9 on."""
    return torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability()[0] >= 9
