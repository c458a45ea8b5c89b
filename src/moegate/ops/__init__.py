"""The operators: the only place in the library that knows devices.

One folder an operator: the contract and its checks in ``__init__.py``, the plain PyTorch reference in
``reference.py``, the CPU kernel in ``cpu_kernel.cpp`` behind ``cpu_operator.cpp``; what kernels share lies in ``cpu``.
``library.py`` registers them, ``operators()`` says what serves each and why, and ``moegate doctor`` prints it.
"""

from moegate.ops.combine import combine
from moegate.ops.dispatch_plan import dispatch_plan
from moegate.ops.grouped_mm import grouped_mm, grouped_outer
from moegate.ops.mixture import mixture
from moegate.ops.ordered_topk import ordered_topk, topk_by_key
from moegate.ops.permute import permute
from moegate.ops.serving import Operator, operators
from moegate.ops.topk_gate import topk_gate

__all__ = [
    "Operator",
    "combine",
    "dispatch_plan",
    "grouped_mm",
    "grouped_outer",
    "mixture",
    "operators",
    "ordered_topk",
    "permute",
    "topk_by_key",
    "topk_gate",
]
