"""Dispatch and combine: tokens to their experts' rows, and the experts' outputs back to the tokens."""

from collections.abc import Callable

from torch import Tensor

from moegate.dispatch.dense import DensePlan, dense_plan
from moegate.dispatch.padded import PaddedPlan, padded_plan
from moegate.dispatch.plan import Plan
from moegate.dispatch.soft import SoftPlan, soft_plan
from moegate.dispatch.sorted_rows import SortedPlan, sorted_plan
from moegate.parts import check_choice
from moegate.records import Routing

__all__ = [
    "METHODS",
    "DensePlan",
    "PaddedPlan",
    "Plan",
    "SoftPlan",
    "SortedPlan",
    "combine",
    "dense_plan",
    "dispatch",
    "make_plan",
    "padded_plan",
    "soft_plan",
    "sorted_plan",
]

METHODS = ("sorted", "padded", "dense")
"""The ways to dispatch a sparse routing; all give the same output to rounding."""

_PLANNERS: dict[str, Callable[..., Plan]] = {"sorted": sorted_plan, "padded": padded_plan, "dense": dense_plan}


def make_plan(routing: Routing, method: str = "sorted", *, weight_input: bool = False) -> Plan:
    """The plan of a routing by one of ``METHODS``; a soft routing has a plan of its own kind.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.randn(6, 4), moegate.recipes.mixtral())
        >>> [type(make_plan(routing, method)).__name__ for method in METHODS]
        ['SortedPlan', 'PaddedPlan', 'DensePlan']
    """
    check_choice("dispatch", method, METHODS)
    if routing.slots is not None:
        return soft_plan(routing)
    return _PLANNERS[method](routing, weight_input=weight_input)


def dispatch(
    hidden_TD: Tensor, routing: Routing, method: str = "sorted", *, weight_input: bool = False
) -> tuple[Tensor, Plan]:
    """The experts' input rows and the plan that brings their outputs back.

    Args:
        hidden_TD: ``[T, D]``.
        routing: who goes where.
        method: one of ``METHODS``.
        weight_input: multiply the rows by their weights here, not in ``combine`` (Llama 4).

    Returns:
        ``(rows [R, D], plan)``; ``plan.offsets`` tells the experts which rows are theirs.

    Raises:
        ValueError: when the number of tokens differs from the routing's.

    Example:
        >>> import torch, moegate
        >>> x = torch.randn(6, 8)
        >>> routing = moegate.route(torch.randn(6, 4), moegate.recipes.mixtral())
        >>> rows, plan = dispatch(x, routing)
        >>> torch.allclose(combine(rows, plan), x, atol=1e-6)
        True
    """
    if hidden_TD.ndim != 2 or hidden_TD.shape[0] != routing.num_tokens:
        raise ValueError(
            f"hidden must be [{routing.num_tokens}, D], one row per routed token; got {tuple(hidden_TD.shape)}."
        )
    plan = make_plan(routing, method, weight_input=weight_input)
    return plan.gather(hidden_TD), plan


def combine(rows_RD: Tensor, plan: Plan) -> Tensor:
    """The tokens' outputs ``[T, D]`` from the experts' output rows ``[R, D]``, accumulated in float32.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[1.0, 0.0]]), moegate.recipes.mixtral(top_k=2))
        >>> rows, plan = dispatch(torch.ones(1, 3), routing)
        >>> combine(2 * rows, plan).tolist()
        [[2.0, 2.0, 2.0]]
    """
    return plan.scatter(rows_RD)
