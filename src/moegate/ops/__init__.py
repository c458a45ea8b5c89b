"""The operators: the only place in the library that knows devices.

One folder an operator: the contract and its checks in ``__init__.py``, the plain PyTorch reference in
``reference.py``. ``OPERATORS`` says what serves each operator and why, and ``moegate doctor`` prints it.
"""

from dataclasses import dataclass

from moegate.ops.combine import combine
from moegate.ops.dispatch_plan import dispatch_plan
from moegate.ops.grouped_mm import grouped_mm, grouped_outer
from moegate.ops.ordered_topk import ordered_topk, topk_by_key
from moegate.ops.permute import permute

__all__ = [
    "OPERATORS",
    "Operator",
    "combine",
    "dispatch_plan",
    "grouped_mm",
    "grouped_outer",
    "ordered_topk",
    "permute",
    "topk_by_key",
]


@dataclass(frozen=True)
class Operator:
    """An operator, what it does, and what implements it here.

    Example:
        >>> [operator.name for operator in OPERATORS]
        ['ordered_topk', 'grouped_mm']
    """

    name: str
    purpose: str
    implementation: str
    reason: str


_REFERENCE_ONLY = "the only implementation in this version, on every device"

OPERATORS: tuple[Operator, ...] = (
    Operator(
        "ordered_topk",
        "top-k with a total order: ties by index, NaN last",
        "reference (PyTorch)",
        _REFERENCE_ONLY,
    ),
    Operator("grouped_mm", "one matrix product per expert over sorted rows", "reference (PyTorch)", _REFERENCE_ONLY),
)
"""Every operator of the library with the implementation that serves it."""
