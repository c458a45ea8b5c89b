"""Plans of hostile indices, and the rows and sums that follow them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from moegate.bench.cases import Verdict
from moegate.bench.gpu.card import Card
from moegate.bench.gpu.checks.comparing import near, same
from moegate.bench.oracles.closeness import TOLERANCE, first
from moegate.ops.combine import combine
from moegate.ops.combine.reference import combine_reference
from moegate.ops.dispatch_plan import dispatch_plan
from moegate.ops.dispatch_plan.reference import dispatch_plan_reference
from moegate.ops.permute import permute
from moegate.ops.permute.reference import permute_reference

_OPTIONS: tuple[tuple[int, int | None, bool], ...] = ((1, None, False), (16, None, False), (1, 3, False), (1, 3, True))


def _indices(card: Card) -> Iterator[tuple[str, Tensor, int]]:
    """Words, indices ``[T, K]`` and the number of experts."""
    generator = torch.Generator().manual_seed(5)
    sizes = ((4097, 8, 256), (65, 6, 97), (1, 8, 256)) if card.real else ((9, 3, 7), (1, 2, 5))
    for tokens, top_k, experts in sizes:
        drawn = torch.randint(0, experts, (tokens, top_k), generator=generator)
        yield "drawn", drawn, experts
        yield "int32", drawn.int(), experts
        yield "empty slots", torch.where(drawn % 3 == 0, -1, drawn), experts
        yield "all empty", torch.full_like(drawn, -1), experts
        yield "all the last", torch.full_like(drawn, experts - 1), experts
    yield "no token", torch.zeros(0, 4, dtype=torch.int64), 5


def hostile_plans(card: Card) -> Verdict:
    """Every number of a plan is the reference's, with padding and capacity too."""
    for words, index_TK, experts in _indices(card):
        for options in _OPTIONS if words in {"drawn", "empty slots", "no token"} else _OPTIONS[:1]:
            alignment, capacity, fill = options
            found = dispatch_plan(
                index_TK.to(card.place.device), experts, alignment=alignment, capacity=capacity, fill=fill
            )
            limit = -1 if capacity is None else capacity
            expected = dispatch_plan_reference(index_TK, experts, alignment, limit, fill, True)
            verdict = _same_plan(found, expected)
            if verdict is not None:
                return f"{verdict}, for {words} indices {tuple(index_TK.shape)} of {experts} experts with {options}"
    return None


def _same_plan(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> Verdict:
    """Equal, but for padding behind the last expert: how much of it there is depends on the device."""
    counts_E, offsets_E, slot_R, inverse_TK = found
    num_rows = expected[2].shape[0]
    return first(
        same("counts", counts_E, expected[0]),
        same("offsets", offsets_E, expected[1]),
        same("slot", slot_R[:num_rows], expected[2]),
        same("slot behind the last expert", slot_R[num_rows:], torch.full_like(slot_R[num_rows:], -1)),
        same("inverse", inverse_TK, expected[3]),
    )


def rows_and_sums(card: Card) -> Verdict:
    """Rows are copies bit by bit; sums and gradients are near the reference's, in three types."""
    device, width = card.place.device, 1000 if card.real else 24
    for words, index_TK, experts in _indices(card):
        if words not in {"drawn", "empty slots", "no token"}:
            continue
        plan = dispatch_plan_reference(index_TK, experts, 1, -1, False, True)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            generator = torch.Generator().manual_seed(6)
            hidden_TD = torch.randn(index_TK.shape[0], width, generator=generator).to(dtype)
            weights_TK = torch.rand(index_TK.shape, generator=generator)
            verdict = _rows_and_sums(hidden_TD, weights_TK, plan[2], plan[3], device)
            if verdict is not None:
                return f"{verdict}, for {words} indices {tuple(index_TK.shape)} in {dtype}"
    return None


def _rows_and_sums(hidden_TD: Tensor, weights_TK: Tensor, slot_R: Tensor, inverse_TK: Tensor, device: str) -> Verdict:
    placed = [part.to(device) for part in (slot_R, inverse_TK)]
    rows_RD = permute_reference(hidden_TD, slot_R, inverse_TK, None)
    tolerance = TOLERANCE[hidden_TD.dtype]
    device_TD, device_RD = hidden_TD.to(device).requires_grad_(), rows_RD.to(device).requires_grad_()
    device_TK = weights_TK.to(device).requires_grad_()
    found_RD = permute(device_TD, placed[0], placed[1])
    found_TD = combine(device_RD, placed[0], placed[1], device_TK)
    exact = [part.double().requires_grad_() for part in (hidden_TD, rows_RD, weights_TK)]
    exact_RD = permute_reference(exact[0], slot_R, inverse_TK, None)
    exact_TD = combine_reference(exact[1], slot_R, inverse_TK, exact[2])
    if rows_RD.shape[0] == 0:
        return first(same("a row", found_RD.detach(), rows_RD), same("a sum", found_TD.detach(), exact_TD.detach()))
    grads = torch.autograd.grad(found_RD.sum() + found_TD.square().sum(), [device_TD, device_RD, device_TK])
    rights = torch.autograd.grad(exact_RD.sum() + exact_TD.square().sum(), exact)
    names = ("the hidden states", "the rows", "the weights")
    return first(
        same("a row", found_RD.detach(), rows_RD),
        near("a sum", found_TD, exact_TD, tolerance),
        *(near(f"a gradient of {name}", grad, right, 2 * tolerance)
          for name, grad, right in zip(names, grads, rights, strict=True)),
    )  # fmt: skip
