"""What the report knows about a run and a sweep, checked and typed.

Axes as in the rest of the project (L layers, E experts, K experts per token, T tokens), and here
`W` windows of training and `N` domains.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegate.report.reading import Array

METRICS = ("accuracy", "bits_per_byte")


@dataclass(frozen=True)
class TokenView:
    """One text, or one set of pictures, with the experts of each of its tokens."""

    domain: str
    tokens: tuple[str, ...]
    experts_LTK: Array
    weights_LTK: Array
    pictures: tuple[str, ...]  # base64 PNG, one a token; empty for text


@dataclass(frozen=True)
class Evaluation:
    """What a finished run measured on held-out data."""

    metric: str
    value: float | None
    loss: float | None
    tokens_per_second: float | None
    inference_tokens_per_second: float | None
    utilization: float | None
    max_violation: float | None
    drop_rate: float | None
    load_LE: Array | None
    domains: tuple[str, ...]
    per_domain: dict[str, float | None]
    domain_load_LNE: Array | None
    coactivation_LEE: Array | None
    token_views: tuple[TokenView, ...]


@dataclass(frozen=True)
class LoadWindow:
    """Assignments of each expert, summed over the logging windows from `first_step` to `last_step`."""

    first_step: int
    last_step: int
    load_LE: Array


@dataclass(frozen=True)
class History:
    """What a run logged while training, one entry a log step."""

    step: tuple[int, ...] = ()
    loss: tuple[float | None, ...] = ()
    tokens_per_second: tuple[float | None, ...] = ()
    max_violation: tuple[Array | None, ...] = ()
    utilization: tuple[Array | None, ...] = ()
    drop_rate: tuple[Array | None, ...] = ()
    load: tuple[LoadWindow, ...] = ()


@dataclass(frozen=True)
class Setting:
    """A configuration: what the seeds of one line of the summary have in common."""

    kind: str  # "image" or "text"
    router: str
    top_k: int | None  # None for a router without a fixed K
    balance: str
    control: str | None  # "dense" or "frozen": not a router to compare, a yardstick
    causal: bool  # False: what a token gets depends on later tokens, or on other images of the batch

    @property
    def key(self) -> tuple[str, int | None, str, str | None]:
        """Equal for runs that differ only in their seed."""
        return (self.router, self.top_k, self.balance, self.control)


@dataclass(frozen=True)
class Run(Setting):
    """One run directory."""

    directory: Path
    name: str
    seed: int
    num_layers: int
    num_experts: int
    parameters: int
    active_parameters: int
    finished: bool
    started: str
    ended: str
    software: dict[str, Any]
    config: dict[str, Any]
    rule: dict[str, Any]
    history: History
    evaluation: Evaluation | None


@dataclass(frozen=True)
class Row(Setting):
    """One line of the summary: the mean over the seeds of one configuration."""

    seeds: int
    metric: str
    mean: float
    ci95: float | None
    tokens_per_second: float | None
    tokens_per_second_ci95: float | None
    inference_tokens_per_second: float | None
    utilization: float | None
    max_violation: float | None
    drop_rate: float | None
    parameters: int
    active_parameters: int


@dataclass(frozen=True)
class Sweep:
    """One sweep directory, or the single runs of a report gathered under one heading."""

    name: str
    kind: str
    command: str
    axes: dict[str, Any]
    software: dict[str, Any]
    finished: bool
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    waiting: tuple[str, ...] = ()  # cells that have not started
    skipped: tuple[str, ...] = ()  # sentences on combinations that make no sense
