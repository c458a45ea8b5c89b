"""How much of a trace the page shows: from everything down to what a very large model allows."""

from dataclasses import dataclass

__all__ = ["LEVELS", "Detail"]


@dataclass(frozen=True)
class Detail:
    """Limits that make the page smaller; aggregates are over all tokens at every level."""

    windows: int  # parts of the recording in the load over time
    domains: int  # largest domains with a line of their own
    pair_experts: int  # co-activation: the busiest experts of a layer
    strongest_pairs: int  # co-activation: pairs of all experts that are listed
    assignments: int  # token views: tokens x layers x slots
    slots: int  # token views: strongest experts of a token
    parting_tokens: int  # comparison: tokens that are listed


LEVELS = (
    Detail(32, 48, 128, 40, 240_000, 8, 200),
    Detail(24, 32, 96, 40, 160_000, 4, 200),
    Detail(16, 24, 64, 40, 80_000, 4, 100),
    Detail(12, 16, 48, 20, 40_000, 2, 100),
    Detail(8, 8, 24, 10, 20_000, 1, 50),
    Detail(2, 2, 8, 4, 4_000, 1, 10),
)
