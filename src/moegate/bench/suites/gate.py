"""``moegate bench gate``: logits to experts and weights, forward and backward, one call and many sizes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import moegate
from moegate.bench.cases import CPU, Case, Entry, Place, Variant, Verdict, Work, sizes
from moegate.bench.memory import peak_bytes
from moegate.bench.oracles.gate import Chosen, GateOracle, GateRule, gate_gradient, gradient_verdict
from moegate.bench.peers import moe_ops, pytorch_gate, sglang, vllm_cpu
from moegate.bench.pictures import draw_bars
from moegate.bench.suites.suite import Suite, Variants
from moegate.bench.tables import tell_cases
from moegate.ops.topk_gate import topk_gate
from moegate.scoring import SCORES

_SECOND = "moegate.route"
_COMPILED = "torch.compile"


@dataclass(frozen=True)
class Problem:
    """A rule and the logits that it is applied to."""

    rule: GateRule
    num_tokens: int
    num_experts: int
    dtype: torch.dtype = torch.float32
    place: Place = CPU

    @property
    def shape(self) -> dict[str, int]:
        """The sizes by their letters."""
        return {"T": self.num_tokens, "E": self.num_experts, "K": self.rule.top_k}

    @property
    def name(self) -> str:
        """The rule in words."""
        rule = self.rule
        words = [rule.score.replace("_", "-")]
        words += ["bias"] if rule.biased else []
        words += [f"groups {rule.num_groups}/{rule.groups_kept}"] if rule.num_groups > 1 else []
        words += ["bf16"] if self.dtype == torch.bfloat16 else []
        return " ".join(words)

    @property
    def work(self) -> Work:
        """Logits in, int64 indices and float32 weights out."""
        read = self.num_tokens * self.num_experts * self.dtype.itemsize
        return Work(num_bytes=read + self.num_tokens * self.rule.top_k * 12)

    def inputs(self) -> tuple[Tensor, Tensor | None]:
        """Normal logits and, for a rule with one, a bias; the same at every call."""
        device = self.place.device
        generator = torch.Generator(device).manual_seed(self.num_tokens * 31 + self.num_experts)
        drawn = partial(torch.randn, generator=generator, device=device)
        logits_TE = drawn(self.num_tokens, self.num_experts).to(self.dtype)
        return logits_TE, 0.1 * drawn(self.num_experts) if self.rule.biased else None


def operator(rule: GateRule) -> pytorch_gate.Gate:
    """The fused operator for a rule."""

    def run(logits_TE: Tensor, bias_E: Tensor | None) -> Chosen:
        found = topk_gate(
            logits_TE,
            top_k=rule.top_k,
            score=rule.score,
            bias_E=bias_E,
            num_groups=rule.num_groups,
            groups_kept=rule.groups_kept,
            group_score="top2_sum" if rule.num_groups > 1 else "max",
            renormalize=rule.renormalize,
            eps=rule.eps,
        )
        return Chosen(found.index, found.weights)

    return run


def public_route(rule: GateRule) -> pytorch_gate.Gate:
    """``moegate.route`` with the rule of the library that says the same."""
    selection: moegate.selection.Selection = moegate.selection.TopK(rule.top_k)
    if rule.num_groups > 1:
        selection = moegate.selection.GroupedTopK(
            rule.top_k, num_groups=rule.num_groups, groups_kept=rule.groups_kept, group_score="top2_sum"
        )
    weighting = moegate.Weighting(renormalize=rule.renormalize)
    written = moegate.RoutingRule(selection=selection, score=SCORES[rule.score](), weighting=weighting)

    def run(logits_TE: Tensor, bias_E: Tensor | None) -> Chosen:
        routing = moegate.route(logits_TE, written, bias=bias_E)
        return Chosen(routing.expert_index, routing.weights)

    return run


def forward_case(problem: Problem, *, compiled: bool = True, memory: bool = False) -> Case:
    """Logits to indices and weights."""
    logits_TE, bias_E = problem.inputs()
    rule = problem.rule
    copies = [logits_TE.clone() for _ in range(problem.place.copies(logits_TE.nbytes))]

    def variant(name: str, gate: pytorch_gate.Gate, ours: bool = False) -> Variant:
        others = tuple(partial(gate, copy_TE, bias_E) for copy_TE in copies)
        return Variant(name, partial(gate, logits_TE, bias_E), ours=ours, others=others)

    variants = Variants(
        variant("moegate topk_gate", operator(rule), ours=True),
        variant(_SECOND, public_route(rule), ours=True),
        variant("PyTorch", pytorch_gate.gate(rule)),
    )
    if compiled:
        variants.add(_COMPILED, lambda: variant(_COMPILED, pytorch_gate.compiled(rule)))
    if problem.place.accelerated:
        _add_triton_peers(variants, problem, variant)
    else:
        variants.add(vllm_cpu.NAME, lambda: _vllm(logits_TE, bias_E, rule))
    oracle = GateOracle(logits_TE, bias_E, rule)
    facts: dict[str, Callable[[], Any]] = {}
    if memory:
        facts["peak_bytes"] = lambda: peak_bytes(variants.found[0].call)
        facts["output_bytes"] = lambda: problem.num_tokens * rule.top_k * 12
    return Case(
        name=problem.name,
        shape=problem.shape,
        timed="logits to indices and weights, the outputs allocated anew",
        variants=tuple(variants.found),
        check=oracle.verdict,
        work=problem.work,
        missing=variants.missing,
        facts=facts,
    )


def _vllm(logits_TE: Tensor, bias_E: Tensor | None, rule: GateRule) -> Variant:
    assert bias_E is not None or not rule.biased
    call = vllm_cpu.gate(logits_TE, torch.zeros(0) if bias_E is None else bias_E, rule)
    return Variant(vllm_cpu.NAME, call, read=vllm_cpu.as_chosen)


def _add_triton_peers(variants: Variants, problem: Problem, variant: Callable[..., Variant]) -> None:
    rule, num_experts = problem.rule, problem.num_experts
    variants.add(sglang.NAME, lambda: variant(sglang.NAME, sglang.gate(rule, num_experts)))
    variants.add(moe_ops.NAME, lambda: variant(moe_ops.NAME, moe_ops.gate(rule, num_experts)))


def backward_case(problem: Problem, *, with_forward: bool) -> Case:
    """The gradient of the logits for one of the weights."""
    logits_TE, bias_E = problem.inputs()
    rule = problem.rule
    logits_TE.requires_grad_()
    gates = {"moegate topk_gate": operator(rule), _SECOND: public_route(rule), "PyTorch": pytorch_gate.gate(rule)}
    # Each gate may order its experts as it likes, so the incoming gradient goes with the expert, not with the slot.
    device = problem.place.device
    grad_TE = torch.randn(logits_TE.shape, generator=torch.Generator(device).manual_seed(1), device=device)

    def call(gate: pytorch_gate.Gate) -> Callable[[], Tensor]:
        chosen = gate(logits_TE, bias_E)
        grad_TK = grad_TE.gather(1, chosen.index_TK.long())

        def backward() -> Tensor:
            return torch.autograd.grad(chosen.weights_TK, logits_TE, grad_TK, retain_graph=True)[0]

        def both() -> Tensor:
            return torch.autograd.grad(gate(logits_TE, bias_E).weights_TK, logits_TE, grad_TK)[0]

        return both if with_forward else backward

    index_TK = gates["PyTorch"](logits_TE.detach(), bias_E).index_TK
    expected_TE = gate_gradient(logits_TE, index_TK, grad_TE.gather(1, index_TK), rule)

    def check(found_TE: Tensor) -> Verdict:
        return gradient_verdict(found_TE, expected_TE)

    dense = problem.num_tokens * problem.num_experts * problem.dtype.itemsize
    gathered = dense + problem.num_tokens * rule.top_k * 16
    variants = Variants(
        *(Variant(name, call(gate), ours=name.startswith("moegate")) for name, gate in gates.items()),
    )
    if problem.place.accelerated:
        variants.missing[sglang.NAME] = "it has no backward"
        variants.add(moe_ops.NAME, lambda: Variant(moe_ops.NAME, call(moe_ops.gate(rule, problem.num_experts))))
    return Case(
        name=f"{problem.name} {'forward + backward' if with_forward else 'backward'}",
        shape=problem.shape,
        timed="the gradient of the logits for one of the weights" + (", after a forward" if with_forward else ""),
        variants=tuple(variants.found),
        check=check,
        work=Work(num_bytes=gathered * (2 if with_forward else 1)),
        missing=variants.missing,
    )


_V3 = GateRule("sigmoid", top_k=8, biased=True)
_SOFTMAX = GateRule("softmax", top_k=8)
PROBLEMS = (
    *(Problem(replace(_V3, top_k=k), 4096, e) for e, k in ((64, 6), (128, 8), (256, 8), (384, 8), (512, 10))),
    *(Problem(replace(_V3, top_k=k), 4096, e) for e, k in ((896, 16), (2048, 32))),
    Problem(replace(_V3, num_groups=8, groups_kept=4), 4096, 256),
    Problem(_SOFTMAX, 4096, 128),
    Problem(replace(_SOFTMAX, top_k=2), 4096, 8),
    Problem(_V3, 4096, 256, torch.bfloat16),
    Problem(_SOFTMAX, 4096, 128, torch.bfloat16),
    Problem(replace(_V3, score="sqrt_softplus"), 4096, 256),
)
ONE_CALL = (Problem(_V3, 1, 256), Problem(_SOFTMAX, 1, 128))
GROWTH_IN_T = tuple(Problem(_V3, tokens, 256) for tokens in (256, 1024, 4096, 16384, 65536))
GROWTH_IN_E = tuple(Problem(_V3, 256, experts) for experts in (8, 64, 512, 4096, 65536))
QUICK = (Problem(_V3, 256, 64), Problem(_SOFTMAX, 256, 128))


def growth_case(problem: Problem, letter: str) -> Case:
    """A forward whose time and memory are followed over one size."""
    case = forward_case(problem, compiled=False, memory=True)
    return replace(case, name=f"growth in {letter}")


def entries() -> list[Entry]:
    """The cases of the gate; two small ones when quick."""

    def entry(problem: Problem, name: str, build: Callable[[], Case], quick: bool = False) -> Entry:
        return Entry(f"{name} {sizes(problem.shape)}", build, quick)

    found = [entry(p, p.name, partial(forward_case, p)) for p in (*PROBLEMS, *ONE_CALL)]
    for with_forward, name in ((False, "backward"), (True, "forward + backward")):
        problem = Problem(_V3, 4096, 256)
        build = partial(backward_case, problem, with_forward=with_forward)
        found.append(entry(problem, f"{problem.name} {name}", build))
    for letter, problems in (("T", GROWTH_IN_T), ("E", GROWTH_IN_E)):
        found += [entry(p, f"growth in {letter}", partial(growth_case, p, letter)) for p in problems]
    return found + [entry(p, p.name, partial(forward_case, p, compiled=False), quick=True) for p in QUICK]


SUITE = Suite(
    name="gate",
    entries=entries,
    tell=partial(tell_cases, title="Gate"),
    draw=partial(draw_bars, title="Gate: time of each peer as a multiple of moegate's"),
)
