"""zentorch: the fused experts of AMD's ZenDNN."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from moegate.bench.peers.finding import PeerMissing, installed_file

NAME = "zentorch"


def experts(gate_up: Tensor, down: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function ``(hidden, index, weights) -> out`` by ``zentorch_fused_moe``.

    Raises:
        PeerMissing: it is not here.
    """
    installed_file("zentorch", "zentorch/__init__.py")
    try:
        importlib.import_module("zentorch")
    except (ImportError, OSError) as error:
        raise PeerMissing(f"it can't be imported: {str(error)[:200]}") from None
    operator = torch.ops.zentorch.zentorch_fused_moe

    def run(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        out_TD = torch.empty_like(hidden_TD)
        operator(out_TD, hidden_TD, gate_up, down, None, None, weights_TK, index_TK.int(), False, "silu")
        return out_TD

    return run
