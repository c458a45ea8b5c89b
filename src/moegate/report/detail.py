"""How much of a run the page shows: from everything down to what a very large model allows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Detail:
    """Limits that make the page smaller."""

    windows: int  # load heat map: columns of training time
    points: int  # curves: points over training
    pair_experts: int  # co-activation: the busiest experts of a layer
    assignments: int  # token views of one run: tokens x layers x slots
    slots: int  # token views: strongest experts of a token
    every_seed: bool  # False: the inside of the first seed of each configuration only


LEVELS = (
    Detail(windows=128, points=240, pair_experts=128, assignments=240_000, slots=8, every_seed=True),
    Detail(windows=96, points=160, pair_experts=96, assignments=120_000, slots=8, every_seed=True),
    Detail(windows=64, points=120, pair_experts=64, assignments=60_000, slots=4, every_seed=True),
    Detail(windows=64, points=120, pair_experts=64, assignments=60_000, slots=4, every_seed=False),
    Detail(windows=48, points=100, pair_experts=48, assignments=40_000, slots=4, every_seed=False),
    Detail(windows=32, points=80, pair_experts=32, assignments=20_000, slots=2, every_seed=False),
    Detail(windows=24, points=60, pair_experts=24, assignments=10_000, slots=2, every_seed=False),
    Detail(windows=12, points=40, pair_experts=16, assignments=5_000, slots=1, every_seed=False),
    Detail(windows=6, points=24, pair_experts=8, assignments=2_000, slots=1, every_seed=False),
)
