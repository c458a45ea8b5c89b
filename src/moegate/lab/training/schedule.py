"""The learning rate over the steps of a run."""

import math

FINAL_SHARE = 0.1
"""The learning rate ends at this share of its peak."""


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (0 first): linear warm-up, then a cosine.

    `peak · (step + 1) / warmup_steps` while warming up; after it `peak · (f + (1 - f)(1 + cos πt) / 2)` with
    t from 0 to 1 and f = 0.1.

    Example:
        >>> [round(learning_rate_at(s, peak=1.0, warmup_steps=2, total_steps=4), 3) for s in range(4)]
        [0.5, 1.0, 1.0, 0.55]

    Source: Loshchilov and Hutter, SGDR, arXiv 1608.03983.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
