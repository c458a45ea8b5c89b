"""Metrics: what a router did, as pure functions of a ``Routing`` or of a vector of loads.

Scalars come back as Python floats, vectors and matrices as tensors. All arithmetic is in float64, masked
tokens are counted nowhere, and assignments are counted as the router chose them, before dropping, unless the
metric is about dropping. An average over nothing (no tokens, no assignments) is NaN.
"""

from moegate.metrics.changes import agreement, churn
from moegate.metrics.confidence import margin, router_z, token_entropy, token_margin
from moegate.metrics.dropping import drop_rate, experts_per_token, fully_dropped_rate
from moegate.metrics.evenness import (
    balancedness,
    cv,
    dead_fraction,
    effective_experts,
    gini,
    jain,
    load,
    max_violation,
    mean_violation,
    min_violation,
    normalized_entropy,
    used_fraction,
    utilization,
)
from moegate.metrics.layer_summary import summary
from moegate.metrics.specialization import (
    coactivation,
    coactivation_lift,
    domain_load,
    domain_mutual_information,
    domain_nmi,
)

__all__ = [
    "agreement",
    "balancedness",
    "churn",
    "coactivation",
    "coactivation_lift",
    "cv",
    "dead_fraction",
    "domain_load",
    "domain_mutual_information",
    "domain_nmi",
    "drop_rate",
    "effective_experts",
    "experts_per_token",
    "fully_dropped_rate",
    "gini",
    "jain",
    "load",
    "margin",
    "max_violation",
    "mean_violation",
    "min_violation",
    "normalized_entropy",
    "router_z",
    "summary",
    "token_entropy",
    "token_margin",
    "used_fraction",
    "utilization",
]
