"""How evenly the load falls on the experts. ``n_i`` is the load of expert ``i``, ``n̄`` their mean."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moegate.probability import entropy
from moegate.records import Routing

Load = Routing | Tensor | Sequence[float]
"""What the functions here read: a routing, or a load vector ``[E]`` (counts, or any non-negative numbers)."""


def load(routing: Routing, *, dropped: bool = False) -> Tensor:
    """Assignments per expert, ``[E]`` int64: as the router chose, or with ``dropped`` as left after dropping.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), moegate.recipes.switch())
        >>> load(routing).tolist()
        [2, 0]
    """
    return routing.load if dropped else routing.selected_load


def utilization(load: Load) -> Tensor:
    """``n_i / n̄``, ``[E]`` float64: 1 is a fair share, 0 a dead expert. NaN without any load.

    Example:
        >>> utilization([3, 1, 0, 0]).tolist()
        [3.0, 1.0, 0.0, 0.0]
    """
    load_E = _vector(load)
    return load_E / load_E.mean()


def used_fraction(load: Load) -> float:
    """The share of the experts that got at least one assignment; 0.0 without any load.

    Example:
        >>> used_fraction([3, 1, 0, 0])
        0.5
    """
    return (_vector(load) > 0).to(torch.float64).mean().item()


def dead_fraction(load: Load, threshold: float = 0.0) -> float:
    """The share of the experts that got nothing, or less than ``threshold · n̄``; 1.0 without any load.

    Over a window of steps, add up the loads first: an expert that one batch spares is not dead.

    Example:
        >>> dead_fraction([7, 1, 0, 0]), dead_fraction([7, 1, 0, 0], threshold=0.6)
        (0.5, 0.75)
    """
    load_E = _vector(load)
    return ((load_E == 0) | (load_E < threshold * load_E.mean())).to(torch.float64).mean().item()


def max_violation(load: Load) -> float:
    """MaxVio, ``(max n - n̄) / n̄``: how far the busiest expert is over its share; 0 at balance, at most E - 1.

    One-sided: an expert with too little shows in ``min_violation``.

    Example:
        >>> max_violation([3, 1, 0, 0])
        2.0

    Source: Wang et al., loss-free balancing, arXiv 2408.15664, equation 4.
    """
    load_E = _vector(load)
    return (load_E.max() / load_E.mean() - 1).item()


def min_violation(load: Load) -> float:
    """MinVio, ``(n̄ - min n) / n̄``: how far the idlest expert is under its share; 0 at balance, at most 1.

    Example:
        >>> min_violation([3, 1, 2, 2])
        0.5
    """
    load_E = _vector(load)
    return (1 - load_E.min() / load_E.mean()).item()


def mean_violation(load: Load) -> float:
    """AvgVio, ``mean |n_i - n̄| / n̄``; 0 at balance.

    Example:
        >>> mean_violation([3, 1, 0, 0])
        1.0
    """
    load_E = _vector(load)
    return ((load_E - load_E.mean()).abs().mean() / load_E.mean()).item()


def cv(load: Load) -> float:
    """The coefficient of variation, ``std(n) / n̄``, with the population standard deviation (ddof 0).

    Example:
        >>> cv([4, 0, 0, 0]) == 3**0.5
        True
    """
    load_E = _vector(load)
    return (load_E.std(correction=0) / load_E.mean()).item()


def gini(load: Load) -> float:
    """The Gini coefficient, ``Σ_i Σ_j |n_i - n_j| / (2 E² n̄)``: 0 at balance, at most ``(E - 1) / E``.

    Example:
        >>> gini([4, 0, 0, 0])
        0.75
    """
    load_E = _vector(load).sort().values
    num_experts = load_E.numel()
    # The sum over pairs, by sorting: the i-th value is the larger of i pairs, the smaller of E - 1 - i.
    sign_E = 2 * torch.arange(num_experts, device=load_E.device) - (num_experts - 1)
    return ((sign_E * load_E).sum() / (num_experts * load_E.sum())).item()


def effective_experts(load: Load) -> float:
    """``exp(H(n / Σn))``: the number of equally loaded experts that would be as diverse; 1 to E.

    Example:
        >>> round(effective_experts([5, 5, 0, 0]), 6)
        2.0
    """
    return math.exp(_load_entropy(load))


def normalized_entropy(load: Load) -> float:
    """``H(n / Σn) / log E``: 1 at balance, 0 if one expert has it all; 1 for a single expert.

    Example:
        >>> round(normalized_entropy([5, 5, 0, 0]), 6)
        0.5
    """
    nats, num_experts = _load_entropy(load), _vector(load).numel()
    if num_experts == 1 and not math.isnan(nats):
        return 1.0
    return nats / math.log(num_experts) if num_experts > 1 else math.nan


def jain(load: Load) -> float:
    """Jain's fairness index, ``(Σ n)² / (E · Σ n²)``: 1 at balance, ``1 / E`` if one expert has it all.

    Example:
        >>> jain([4, 0, 0, 0])
        0.25

    Source: Jain, Chiu and Hawe, 1984.
    """
    load_E = _vector(load)
    return (load_E.sum().square() / (load_E.numel() * load_E.square().sum())).item()


def balancedness(load: Load) -> float:
    """``n̄ / max n``: the share of the time that the average expert works while the busiest one does.

    Example:
        >>> balancedness([4, 2, 1, 1])
        0.5

    Source: the expert placement statistics of SGLang and vLLM.
    """
    load_E = _vector(load)
    return (load_E.mean() / load_E.max()).item()


def _vector(load: Load) -> Tensor:
    """The load as ``[E]`` float64."""
    if isinstance(load, Routing):
        return load.selected_load.to(torch.float64)
    load_E = torch.as_tensor(load).detach().to(torch.float64)
    if load_E.dim() != 1 or load_E.numel() == 0:
        raise ValueError(
            f"the load has shape {tuple(load_E.shape)}, but must be a vector with one entry per expert: pass "
            "a Routing, or one layer's counts of shape (num_experts,)."
        )
    if (load_E < 0).any():
        raise ValueError(f"the load has a negative entry ({load_E.min().item():g}): pass counts per expert.")
    return load_E


def _load_entropy(load: Load) -> float:
    load_E = _vector(load)
    return float(entropy(load_E / load_E.sum()))
