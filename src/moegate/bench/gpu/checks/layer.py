"""The experts and the layer: against references, run after run, in a graph, and compiled."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import moegate
from moegate.bench.cases import Verdict
from moegate.bench.gpu.card import Card, Waits
from moegate.bench.gpu.checks.comparing import near, same, tensors_in
from moegate.bench.measuring import verdicts
from moegate.bench.oracles.closeness import TOLERANCE, first
from moegate.bench.suites import layer
from moegate.ops.experts import experts
from moegate.ops.experts.activations import ACTIVATIONS, GATED, apply_activation

_RUNS = 50
_REHEARSED_RUNS = 3


def experts_both_ways(card: Card) -> Verdict:
    """Outputs and gradients of the experts near those of the reference in float64."""
    device = card.place.device
    sizes = ((40, 24, (0, 5, 0, 17)), (256, 128, (130, 0, 1, 64)), (2048, 768, (7, 0, 300, 1)))
    for hidden, inner, counts in sizes if card.real else ((8, 4, (0, 3, 1)),):
        for dtype in (torch.float32, torch.bfloat16):
            for activation in ACTIVATIONS if hidden <= 40 and dtype == torch.float32 else ("swiglu",):
                verdict = _experts(hidden, inner, counts, dtype, activation, device)
                if verdict is not None:
                    return f"{verdict}, for {activation} at D={hidden} F={inner} rows {counts} in {dtype}"
    return None


def _experts(
    hidden: int, inner: int, counts: tuple[int, ...], dtype: torch.dtype, activation: str, device: str
) -> Verdict:
    generator = torch.Generator().manual_seed(hidden)
    sides = 2 if activation in GATED else 1
    shapes = ((sum(counts), hidden), (len(counts), sides * inner, hidden), (len(counts), hidden, inner))
    parts = [torch.randn(shape, generator=generator).to(dtype) / shape[-1] ** 0.5 for shape in shapes]
    offsets_E = torch.tensor(counts).cumsum(0)
    grad_RD = torch.randn(shapes[0], generator=generator).to(dtype)
    placed = [part.to(device).requires_grad_() for part in parts]
    found = experts(placed[0], placed[1], placed[2], offsets_E.to(device), activation)
    exact = [part.double().requires_grad_() for part in parts]
    expected = _by_expert(exact[0], exact[1], exact[2], counts, activation)
    grads = torch.autograd.grad(found, placed, grad_RD.to(device))
    rights = torch.autograd.grad(expected, exact, grad_RD.double())
    return first(
        near("an output", found, expected, TOLERANCE[dtype]),
        *(near(f"a gradient of {name}", grad, right, TOLERANCE[dtype])
          for name, grad, right in zip(("the rows", "up", "down"), grads, rights, strict=True)),
    )  # fmt: skip


def _by_expert(rows_RD: Tensor, up: Tensor, down: Tensor, counts: tuple[int, ...], activation: str) -> Tensor:
    """The experts one after the other, in plain PyTorch."""
    groups = zip(rows_RD.split(counts), up, down, strict=True)
    return torch.cat([apply_activation(rows @ up_FD.T, activation) @ down_DF.T for rows, up_FD, down_DF in groups])


def _problems(card: Card) -> list[layer.Problem]:
    sizes = ((1, 256, 128, 16, 4), (500, 512, 256, 60, 6)) if card.real else ((5, 32, 16, 4, 2),)
    types = (torch.float32, torch.bfloat16)
    return [layer.Problem(*numbers, dtype, place=card.place) for numbers in sizes for dtype in types]


def output_and_gradients(card: Card) -> Verdict:
    """The layer of the benchmarks, against their oracle; ours alone."""
    for problem in _problems(card):
        for build in (layer.forward_case, layer.experts_case, layer.training_case):
            case = build(problem)
            ours = replace(case, variants=tuple(variant for variant in case.variants if variant.ours))
            found = verdicts(ours)
            if found:
                return f"{case.name}: {found}, for {problem.shape} in {problem.dtype}"
    return None


def _layer(problem: layer.Problem) -> tuple[moegate.MoE, Tensor]:
    setting = layer.Setting(problem, training=False)
    return setting.layer, setting.hidden_TD


def _with_gradients(moe: moegate.MoE, hidden_TD: Tensor) -> tuple[Tensor, ...]:
    tracked_TD = hidden_TD.detach().requires_grad_()
    parameters = [parameter.requires_grad_() for parameter in moe.parameters()]
    out_TD = moe(tracked_TD)[0]
    return (out_TD.detach(), *torch.autograd.grad(out_TD, [tracked_TD, *parameters], torch.ones_like(out_TD)))


def _inference(moe: moegate.MoE, hidden_TD: Tensor) -> Tensor:
    with torch.no_grad():
        out_TD: Tensor = moe(hidden_TD)[0]
        return out_TD


def same_bits(card: Card) -> Verdict:
    """The same inputs give the same bits, forward and backward, again and again: no race shows."""
    for problem in _problems(card):
        moe, hidden_TD = _layer(problem)
        expected = _with_gradients(moe, hidden_TD)
        for run in range(_RUNS if card.real else _REHEARSED_RUNS):
            found = _with_gradients(moe, hidden_TD)
            verdict = first(*(same(f"result {n}", *pair) for n, pair in enumerate(zip(found, expected, strict=True))))
            if verdict is not None:
                return f"{verdict} in run {run + 2}, for {problem.shape} in {problem.dtype}"
    return None


def nothing_waits(card: Card) -> Verdict:
    """The layer runs forward and backward without a wait for the card, as far as PyTorch sees waits."""
    for problem in _problems(card):
        moe, hidden_TD = _layer(problem)
        calls: dict[str, Callable[[], Any]] = {
            "inference": partial(_inference, moe, hidden_TD),
            "training": partial(_with_gradients, moe, hidden_TD),
        }
        for name, call in calls.items():
            call()
            try:
                card.check_waits(call)
            except Waits as waits:
                return f"{name} waits ({waits}), for {problem.shape} in {problem.dtype}"
    return None


def in_a_graph(card: Card) -> Verdict:
    """A captured decoding step gives for new tokens what an eager one gives, bit by bit."""
    for problem in _problems(card):
        moe, hidden_TD = _layer(problem)
        step = partial(_inference, moe, hidden_TD)
        step()
        graph = card.capture([step])
        for number in range(3):
            hidden_TD.copy_(torch.randn_like(hidden_TD))
            graph.replay()
            card.wait()
            replayed = graph.result.clone() if card.real else step()
            verdict = same(f"replay {number}", replayed, step())
            if verdict is not None:
                return f"{verdict}, for {problem.shape} in {problem.dtype}"
    return None


def compiled(card: Card) -> Verdict:
    """The layer as one compiled graph gives the eager outputs and gradients."""
    problem = _problems(card)[-2]
    moe, hidden_TD = _layer(problem)
    torch.compiler.reset()
    backend = "inductor" if card.real else "aot_eager"
    one_graph = torch.compile(moe, fullgraph=True, dynamic=False, backend=backend)
    expected = tensors_in(_with_gradients(moe, hidden_TD))
    found = tensors_in(_with_gradients(one_graph, hidden_TD))  # type: ignore[arg-type]
    return first(
        *(near(f"result {number}", part, right, TOLERANCE[torch.float32])
          for number, (part, right) in enumerate(zip(found, expected, strict=True)))
    )  # fmt: skip
