"""The evaluation of a run: its score, what it was made of, and who went where."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moegate import metrics
from moegate.lab.training.task import Batch, Task
from moegate.lab.training.window import Window, balance_numbers
from moegate.records import Routing

WARM_UP_STEPS = 5


@dataclass
class Tally:
    """Sums over the evaluation: scores `[domains]`, loads `[L, domains, E]`, co-activation `[L, E, E]`."""

    score: Tensor
    targets: Tensor
    loss: float
    window: Window
    domain_load: Tensor
    coactivation: Tensor
    speeds: list[float]

    @classmethod
    def empty(cls, num_domains: int, num_layers: int, num_experts: int) -> "Tally":
        """Return sums over nothing."""
        return cls(
            score=torch.zeros(num_domains, dtype=torch.float64),
            targets=torch.zeros(num_domains, dtype=torch.int64),
            loss=0.0,
            window=Window.empty(num_layers, num_experts),
            domain_load=torch.zeros(num_layers, num_domains, num_experts, dtype=torch.int64),
            coactivation=torch.zeros(num_layers, num_experts, num_experts, dtype=torch.int64),
            speeds=[],
        )

    def add(self, batch: Batch, routings: Sequence[Routing], score: Tensor, loss: float) -> None:
        """Add one batch."""
        num_domains = self.score.shape[0]
        self.score.index_add_(0, batch.domain, score.flatten(1).sum(dim=1) if score.dim() > 1 else score)
        per_example = batch.num_tokens // len(batch.domain)
        self.targets += per_example * torch.bincount(batch.domain, minlength=num_domains)
        self.loss += loss * batch.num_tokens
        self.window.add_routings(routings)
        domain_T = batch.domain.repeat_interleave(per_example)
        for layer, routing in enumerate(routings):
            self.domain_load[layer] += metrics.domain_load(routing, domain_T, num_domains)
            self.coactivation[layer] += metrics.coactivation(routing)


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, num_layers: int, num_experts: int) -> dict[str, Any]:
    """Return the evaluation of a model as JSON values, but for its training speed.

    The value is the mean over domains, each with equal weight; balance columns are None for a model that routes
    nothing.
    """
    model.eval()
    tally = Tally.empty(len(task.domains), num_layers, num_experts)
    for batch in task.evaluation():
        started = time.perf_counter()
        logits, routings = model(batch.inputs, token_ids=batch.token_ids)
        tally.speeds.append(batch.num_tokens / (time.perf_counter() - started))
        loss = F.cross_entropy(logits.flatten(0, -2), batch.targets.flatten())
        tally.add(batch, routings, task.score(logits, batch.targets), float(loss))
    per_domain = (tally.score / tally.targets).tolist()
    return {
        "metric": task.metric,
        "value": statistics.fmean(per_domain),
        "loss": tally.loss / int(tally.targets.sum()),
        "inference_tokens_per_second": statistics.median(tally.speeds),
        "domains": list(task.domains),
        "per_domain": dict(zip(task.domains, per_domain, strict=True)),
        **_balance(tally),
        "experts_per_token": _experts_per_token(tally),
        "token_view": token_view(model, task),
    }


def _balance(tally: Tally) -> dict[str, Any]:
    load, selected = tally.window.load, tally.window.selected
    per_layer = balance_numbers(load, selected)
    shares = [metrics.effective_experts(layer) / len(layer) for layer in selected]
    return {
        "utilization": _mean(shares),
        "max_violation": _mean(per_layer["max_violation"]),
        "max_violation_per_layer": per_layer["max_violation"],
        "drop_rate": _mean(per_layer["drop_rate"]),
        "load": load.tolist(),
        "domain_load": tally.domain_load.tolist(),
        "coactivation": tally.coactivation.tolist(),
    }


def _experts_per_token(tally: Tally) -> float | None:
    num_layers = len(tally.window.load)
    return int(tally.window.load.sum()) / (num_layers * int(tally.targets.sum())) if num_layers else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


@torch.no_grad()
def token_view(model: nn.Module, task: Task) -> list[dict[str, Any]]:
    """Return the experts and weights of the shown tokens, one entry a text (or all digits in one)."""
    entries = []
    for batch, fields in task.view():
        _, routings = model(batch.inputs, token_ids=batch.token_ids)
        routed = {
            "experts": [routing.expert_index.tolist() for routing in routings],
            "weights": [_rounded(routing.weights) for routing in routings],
        }
        entries.append({**fields, **routed})
    return entries


def _rounded(weights_TK: Tensor) -> list[list[float]]:
    return [[round(weight, 3) for weight in row] for row in weights_TK.tolist()]


def median_speed(step_seconds: Sequence[float], tokens_per_step: int) -> float:
    """Return the median training speed in tokens/s, without the first steps, which warm up.

    Example:
        >>> median_speed([9.0] * 5 + [0.5, 0.25, 0.5], tokens_per_step=100)
        200.0
    """
    timed = list(step_seconds[WARM_UP_STEPS:]) or list(step_seconds)
    return tokens_per_step / statistics.median(timed)
