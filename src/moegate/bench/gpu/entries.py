"""What is measured on a card, by importance: what must be reached first, the cases of the CPU benchmarks last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from moegate.bench.cases import Case, Entry, Place, Target, sizes
from moegate.bench.oracles.gate import GateRule
from moegate.bench.suites import gate, layer, plan

SUITES = {
    "checks": "what must hold before any time counts: hostile inputs, repeated runs, graphs, torch.compile",
    "gate": "logits to experts and weights: forward and backward",
    "plan": "indices to sorted rows and back: plan, permute, combine",
    "layer": "a layer of D=2048 F=768 E=128 K=8 at T=8192 in bfloat16: forward, experts alone, forward + backward",
    "decode": "the same layer for 1 to 32 tokens",
    "more": "the cases of the CPU benchmarks",
}
"""Suite -> what it measures, in the order of a sitting."""

SHARES = {"checks": 0.19, "gate": 0.26, "plan": 0.12, "layer": 0.21, "decode": 0.09, "more": 0.13}
"""Suite -> its share of a sitting's time; what it leaves goes to those after it."""

FEW_TOKENS = (1, 2, 4, 8, 16, 32, 64)
DECODED = FEW_TOKENS[:-1]
_SOFTMAX = GateRule("softmax", top_k=8)
_V3 = GateRule("sigmoid", top_k=8, biased=True)
_BF16 = torch.bfloat16
_H100 = "on an H100, SGLang pull request 29771"
_TEN = Target(us=10, published=f"13.9 µs {_H100}")
_TINY = {"num_tokens": 6, "num_experts": 16, "top_k": 3, "hidden": 32, "intermediate": 16}


@dataclass(frozen=True)
class Planned:
    """A case to come: its problem, who builds it, and what is to be reached."""

    name: str
    problem: Any
    build: Callable[[Any], Case]
    target: Target | None = None

    def entry(self, place: Place, *, tiny: bool) -> Entry:
        """The case at a place; with the sizes of a rehearsal when tiny."""
        problem = replace(tiny_problem(self.problem) if tiny else self.problem, place=place)
        return Entry(f"{self.name} {sizes(self.problem.shape)}", partial(self._built, problem))

    def _built(self, problem: Any) -> Case:
        return replace(self.build(problem), target=self.target)


def entries(suite: str, place: Place, *, tiny: bool = False) -> list[Entry]:
    """The cases of a suite, by importance.

    Example:
        >>> [entry.key for entry in entries("decode", Place("cuda", accelerated=True))][0]
        'decode bf16 T=1 D=2048 F=768 E=128 K=8'
    """
    return [planned.entry(place, tiny=tiny) for planned in _PLANNED[suite]]


def tiny_problem(problem: Any) -> Any:
    """The problem with no size above a rehearsal's; groups stay possible.

    Example:
        >>> tiny_problem(gate.Problem(_SOFTMAX, 8192, 256)).shape
        {'T': 6, 'E': 16, 'K': 3}
    """
    if isinstance(problem, gate.Problem):
        rule = replace(problem.rule, top_k=min(problem.rule.top_k, _TINY["top_k"]))
        rule = replace(rule, num_groups=4, groups_kept=2) if rule.num_groups > 1 else rule
        problem = replace(problem, rule=rule)
        fields: tuple[str, ...] = ("num_tokens", "num_experts")
    else:
        fields = tuple(name for name in _TINY if hasattr(problem, name))
    return replace(problem, **{name: min(getattr(problem, name), _TINY[name]) for name in fields})


def _gates(problems: Sequence[tuple[gate.Problem, Target | None]], *, compiled: bool) -> list[Planned]:
    build = partial(gate.forward_case, compiled=compiled)
    return [Planned(problem.name, problem, build, target) for problem, target in problems]


def _backwards() -> list[Planned]:
    build = partial(gate.backward_case, with_forward=False)
    problems = [gate.Problem(_SOFTMAX, 8192, 256, _BF16), gate.Problem(_V3, 8192, 256, _BF16)]
    return [Planned(f"{problem.name} backward", problem, build, Target(us=6)) for problem in problems]


def _gate_cases() -> list[Planned]:
    three = Target(us=3, published="1.8 to 3.1 µs on an H200, SGLang pull request 25835")
    few = [(gate.Problem(_V3, tokens, 256), three) for tokens in FEW_TOKENS]
    grouped = replace(_V3, num_groups=8, groups_kept=4)
    wide = replace(_V3, top_k=16)
    return [
        *_gates([(gate.Problem(_SOFTMAX, 8192, 256), _TEN)], compiled=True),
        *_gates([(gate.Problem(_V3, 8192, 256), replace(_TEN, published=f"14.0 µs {_H100}"))], compiled=True),
        *_gates(few, compiled=False),
        *_gates([(gate.Problem(_SOFTMAX, 8192, 512), Target(us=14, published=f"20.7 µs {_H100}"))], compiled=True),
        *_backwards(),
        *_gates([(gate.Problem(grouped, 8192, 256), None)], compiled=True),
        *_gates([(gate.Problem(_SOFTMAX, 8192, 256, _BF16), None)], compiled=False),
        *_gates([(gate.Problem(wide, 8192, 896), None)], compiled=False),
        *_gates([(gate.Problem(replace(_V3, top_k=6), 8192, 64), None)], compiled=False),
        *_gates([(gate.Problem(replace(_V3, top_k=32), 8192, 2048), None)], compiled=False),
        *_gates([(gate.Problem(replace(_SOFTMAX, top_k=64), 1024, 65536), None)], compiled=False),
    ]


def _plan_cases() -> list[Planned]:
    rows = plan.Problem(8192, 256, 8, hidden=7168, dtype=_BF16)
    few = [Planned("plan", plan.Problem(tokens, 256, 8), plan.plan_case) for tokens in FEW_TOKENS]
    eight = Target(us=8, published="3 to 8 µs in several systems")
    return [
        Planned("plan", plan.Problem(8192, 256, 8), plan.plan_case, eight),
        Planned("combine bf16", rows, plan.combine_case, Target(floors=1.25)),
        Planned("permute bf16", rows, plan.permute_case),
        *few,
    ]


def _layer_problem(tokens: int) -> layer.Problem:
    return layer.Problem(tokens, 2048, 768, 128, 8, _BF16)


def _layer_cases() -> list[Planned]:
    problem = _layer_problem(8192)
    forward = Target(best_peers=1.0, share=0.1, published="501 TFLOP/s, Liger pull request 1294, H100")
    both = Target(best_peers=1.0, share=0.1, published="413 TFLOP/s, Liger pull request 1294, H100")
    return [
        Planned("layer forward bf16", problem, layer.forward_case, forward),
        Planned("layer forward + backward bf16", problem, layer.training_case, both),
        Planned("experts alone bf16", problem, layer.experts_case),
    ]


def _decode_cases() -> list[Planned]:
    target = Target(floors=1.2, cold=True)
    return [Planned("decode bf16", _layer_problem(tokens), layer.forward_case, target) for tokens in DECODED]


def _more_cases() -> list[Planned]:
    eager = partial(gate.forward_case, compiled=False)
    problems = (*gate.PROBLEMS, *gate.ONE_CALL, *gate.GROWTH_IN_T, *gate.GROWTH_IN_E)
    backward = [gate.Problem(_V3, 4096, 256)]
    return [
        *(Planned(problem.name, problem, eager) for problem in dict.fromkeys(problems)),
        *(Planned(f"{problem.name} forward + backward", problem, partial(gate.backward_case, with_forward=True))
          for problem in backward),
        *(Planned("plan", problem, plan.plan_case) for problem in plan.PLANS),
        *(Planned(f"permute{problem.type_name}", problem, plan.permute_case) for problem in plan.ROWS),
        *(Planned(f"combine{problem.type_name}", problem, plan.combine_case) for problem in plan.ROWS),
        *(Planned(f"layer forward {problem.type_name}", problem, layer.forward_case) for problem in layer.FORWARD),
        *(Planned(f"layer forward + backward {problem.type_name}", problem, layer.training_case)
          for problem in layer.TRAINING),
    ]  # fmt: skip


_PLANNED = {
    "checks": [],
    "gate": _gate_cases(),
    "plan": _plan_cases(),
    "layer": _layer_cases(),
    "decode": _decode_cases(),
    "more": _more_cases(),
}
