"""Routing traces: who went where, token by token and layer by layer, kept in a file."""

from moegate.trace.difference import Difference, LayerDifference, TokenDifference, diff
from moegate.trace.file import load, save
from moegate.trace.loads import Loads, save_loads
from moegate.trace.placement import Placement, contiguous, place
from moegate.trace.placement_files import save_placement
from moegate.trace.reading import read
from moegate.trace.statistics import (
    LayerStatistics,
    coactivation,
    domain_load,
    domain_specialization,
    layer_table,
    margins,
    totals,
    weight_entropy,
)
from moegate.trace.trace import PHASES, Trace

__all__ = [
    "PHASES",
    "Difference",
    "LayerDifference",
    "LayerStatistics",
    "Loads",
    "Placement",
    "TokenDifference",
    "Trace",
    "coactivation",
    "contiguous",
    "diff",
    "domain_load",
    "domain_specialization",
    "layer_table",
    "load",
    "margins",
    "place",
    "read",
    "save",
    "save_loads",
    "save_placement",
    "totals",
    "weight_entropy",
]
