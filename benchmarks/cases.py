"""The registered cases: shapes, both sides of each comparison, and the check that precedes any timing."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import oracle
import plain
import torch
from torch import Tensor

import moegate

ORACLE_TOKENS = 64  # the oracle is a Python loop; the first tokens stand for all
TOLERANCE = 2e-5  # of the largest output; float32 sums of a few hundred terms stay well below


@dataclass(frozen=True)
class Shape:
    """`T` tokens, `E` experts, `K` per token; `D` and `F` for the layer."""

    tokens: int
    num_experts: int
    top_k: int
    hidden: int = 0
    intermediate: int = 0

    def __str__(self) -> str:
        text = f"T={self.tokens} E={self.num_experts} K={self.top_k}"
        return f"{text} D={self.hidden} F={self.intermediate}" if self.hidden else text


@dataclass(frozen=True)
class Case:
    """Two callables that compute the same thing, and the check that they do."""

    name: str
    shape: Shape
    variants: dict[str, Callable[[], object]]
    check: Callable[[], None]


ROUTE_SHAPES = (Shape(8, 64, 8), Shape(1024, 8, 2), Shape(4096, 64, 8), Shape(2048, 256, 8))
LAYER_SHAPES = (Shape(8, 8, 2, 128, 256), Shape(1024, 8, 2, 128, 256), Shape(1024, 64, 8, 128, 64))


def require(ok: bool, what: str) -> None:
    """Refuse to time something that computes something else."""
    if not ok:
        raise SystemExit(f"not timed: {what}")


def require_close(found: Tensor, expected: np.ndarray, what: str) -> None:
    """Equal within the tolerance, relative to the largest expected value."""
    error, largest = np.abs(oracle.float64(found) - expected).max(), np.abs(expected).max()
    require(bool(error <= TOLERANCE * largest), f"{what} is off by {error:.1e}, the largest value is {largest:.1e}")


def check_routing(index_TK: Tensor, weights_TK: Tensor, logits_TE: Tensor, top_k: int, what: str) -> None:
    """Indices equal to the oracle's, weights close to them."""
    expected_index, expected_weights = oracle.route(oracle.float64(logits_TE), top_k)
    require(np.array_equal(index_TK.numpy(), expected_index), f"{what} chose other experts than the oracle")
    require_close(weights_TK, expected_weights, f"{what}: a weight")


def route_case(shape: Shape) -> Case:
    """`moegate.route` against softmax, topk and a division."""
    generator = torch.Generator().manual_seed(0)
    logits_TE = torch.randn(shape.tokens, shape.num_experts, generator=generator)
    rule = moegate.recipes.topk(shape.top_k)

    def ours() -> moegate.Routing:
        return moegate.route(logits_TE, rule)

    def theirs() -> tuple[Tensor, Tensor]:
        return plain.route(logits_TE, shape.top_k)

    def check() -> None:
        routing = ours()
        check_routing(routing.expert_index, routing.weights, logits_TE, shape.top_k, "moegate.route")
        check_routing(*theirs(), logits_TE, shape.top_k, "plain route")

    return Case("route", shape, {"moegate": ours, "plain": theirs}, check)


def build_layer(shape: Shape) -> tuple[moegate.MoE, Tensor]:
    """A layer and its input, the same at every call."""
    torch.manual_seed(0)
    rule = moegate.recipes.topk(shape.top_k)
    moe = moegate.MoE(shape.hidden, shape.intermediate, shape.num_experts, rule)
    return moe, torch.randn(shape.tokens, shape.hidden, requires_grad=True)


def check_layer(moe: moegate.MoE, hidden_TD: Tensor, top_k: int) -> None:
    """Outputs of both sides equal the oracle's, gradients of both sides each other's."""
    head = slice(0, ORACLE_TOKENS)
    logits_TE = oracle.float64(moe.gate(hidden_TD))
    expected = oracle.mixture(
        oracle.float64(hidden_TD)[head], *(part[head] for part in oracle.route(logits_TE, top_k)), moe.experts
    )
    outputs = {"moegate.MoE": moe(hidden_TD)[0], "plain mixture": plain.mixture(hidden_TD, moe, top_k)}
    for name, out_TD in outputs.items():
        require_close(out_TD[head], expected, f"{name}: an output")
    wanted = [hidden_TD, moe.gate.weight, moe.experts.gate_up_proj, moe.experts.down_proj]
    ours, theirs = (torch.autograd.grad(out_TD.square().sum(), wanted) for out_TD in outputs.values())
    for found, expected_gradient in zip(ours, theirs, strict=True):
        require_close(found, oracle.float64(expected_gradient), "moegate.MoE: a gradient")


def layer_case(shape: Shape, *, training: bool) -> Case:
    """`moegate.MoE` against a loop over the experts: forward only, or forward and backward."""
    moe, hidden_TD = build_layer(shape)

    def run(out_of: Callable[[], Tensor]) -> Callable[[], object]:
        def forward() -> Tensor:
            with torch.no_grad():
                return out_of()

        def forward_and_backward() -> object:
            return torch.autograd.grad(out_of().sum(), [hidden_TD, *moe.parameters()])

        return forward_and_backward if training else forward

    variants = {
        "moegate": run(lambda: moe(hidden_TD)[0]),
        "plain": run(lambda: plain.mixture(hidden_TD, moe, shape.top_k)),
    }
    name = "layer forward and backward" if training else "layer forward"
    return Case(name, shape, variants, lambda: check_layer(moe, hidden_TD, shape.top_k))


def all_cases() -> list[Case]:
    """Every case, built."""
    layers = [layer_case(shape, training=training) for training in (False, True) for shape in LAYER_SHAPES]
    return [route_case(shape) for shape in ROUTE_SHAPES] + layers
