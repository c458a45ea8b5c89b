"""Operators with the names, signatures, dtypes and layouts of Ascend's, on any machine.

Code written for ``torch_npu`` runs with ``import moegate.ascend as torch_npu``; on an Ascend device the calls go to the
real one. Where Ascend and moegate differ, ``Compat`` names the difference.
"""

from moegate.ascend.compat import ASCEND, MOEGATE, Compat
from moegate.ascend.fused_topk import moe_fused_topk
from moegate.ascend.limits import AscendOperatorError
from moegate.ascend.moe_gating_top_k import npu_moe_gating_top_k
from moegate.ascend.moe_gating_top_k_backward import npu_moe_gating_top_k_backward
from moegate.ascend.moe_gating_top_k_softmax import npu_moe_gating_top_k_softmax
from moegate.ascend.moe_gating_top_k_softmax_v2 import npu_moe_gating_top_k_softmax_v2

__all__ = [
    "ASCEND",
    "MOEGATE",
    "AscendOperatorError",
    "Compat",
    "moe_fused_topk",
    "npu_moe_gating_top_k",
    "npu_moe_gating_top_k_backward",
    "npu_moe_gating_top_k_softmax",
    "npu_moe_gating_top_k_softmax_v2",
]
