"""The layer: gate, SwiGLU experts and their weighted sum in float64, forward and backward, one expert at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from moegate.bench.cases import Verdict
from moegate.bench.oracles.closeness import compare, first, float64


@dataclass(frozen=True)
class Weights:
    """The parameters of a layer: ``gate [E, D]``, ``gate_up [E, 2F, D]``, ``down [E, D, F]``."""

    gate: Tensor
    gate_up: Tensor
    down: Tensor

    def double(self) -> "Weights":
        """The same values in float64, apart from any graph."""
        return Weights(*(part.detach().double() for part in (self.gate, self.gate_up, self.down)))


def probabilities(hidden_TD: Tensor, gate_ED: Tensor) -> Tensor:
    """The softmax over all experts of each token, in float64."""
    return linear(hidden_TD.double(), gate_ED.double()).softmax(dim=-1)


def margin(probabilities_TE: Tensor, top_k: int) -> Tensor:
    """``[T]``: by how much the last chosen expert of a token is ahead of the first one that is not.

    Example:
        >>> margin(torch.tensor([[0.5, 0.25, 0.25]]), 1).tolist()
        [0.25]
    """
    ordered_TE = probabilities_TE.sort(dim=-1, descending=True).values
    return ordered_TE[:, top_k - 1] - ordered_TE[:, top_k]


def mixture(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, weights: Weights) -> Tensor:
    """The weighted sum of the chosen experts of each token, in float64; the graph goes through the hidden states.

    Example:
        >>> one = torch.ones(1, 2, 1)
        >>> mixture(torch.ones(1, 1), torch.tensor([[0]]), torch.ones(1, 1), Weights(one, one, torch.ones(1, 1, 1)))
        tensor([[0.7311]], dtype=torch.float64)
    """
    out_TD = torch.zeros_like(hidden_TD, dtype=torch.float64)
    for expert in range(weights.gate_up.shape[0]):
        token_R, slot_R = torch.where(index_TK == expert)
        if len(token_R) == 0:
            continue
        both_R2F = linear(hidden_TD.double()[token_R], weights.gate_up[expert].double())
        gate_RF, up_RF = both_R2F.chunk(2, dim=-1)
        rows_RD = linear(silu(gate_RF) * up_RF, weights.down[expert].double())
        out_TD = out_TD.index_add(0, token_R, rows_RD * weights_TK.double()[token_R, slot_R, None])
    return out_TD


def routed(hidden_TD: Tensor, gate_ED: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """``(index, weights)``: softmax, the greatest, renormalised; the graph goes through the weights."""
    chosen_TK, index_TK = probabilities(hidden_TD, gate_ED).topk(top_k, dim=-1)
    return index_TK, chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)


class MixtureOracle:
    """What a layer must return, and the gradients that must come of it.

    Example:
        >>> layer = Weights(torch.eye(2), torch.ones(2, 2, 2), torch.ones(2, 2, 1))
        >>> oracle = MixtureOracle(torch.eye(2), layer, top_k=1, dtype=torch.float32)
        >>> oracle.output_verdict(oracle.out_TD.float())
    """

    def __init__(self, hidden_TD: Tensor, weights: Weights, *, top_k: int, dtype: torch.dtype) -> None:
        self._hidden_TD, self._weights, self._top_k, self._dtype = hidden_TD.detach(), weights, top_k, dtype
        with torch.no_grad():
            index_TK, weights_TK = routed(self._hidden_TD, weights.gate.detach(), top_k)
            self.out_TD = mixture(self._hidden_TD, index_TK, weights_TK, weights)
        self._gradients: tuple[Tensor, ...] | None = None

    def output_verdict(self, out_TD: Tensor) -> Verdict:
        """The verdict on an output."""
        return compare("an output", out_TD, float64(self.out_TD), self._dtype)

    def gradient_verdict(self, found: tuple[Tensor, ...], grad_TD: Tensor) -> Verdict:
        """The verdict on gradients of ``(hidden, gate, gate_up, down)`` for one of the output."""
        expected = self._expected(grad_TD)
        names = ("hidden states", "gate", "gate_up_proj", "down_proj")
        return first(
            *(
                compare(f"a gradient of {name}", gradient, float64(right), self._dtype)
                for name, gradient, right in zip(names, found, expected, strict=True)
            )
        )

    def _expected(self, grad_TD: Tensor) -> tuple[Tensor, ...]:
        if self._gradients is None:
            hidden_TD = self._hidden_TD.double().requires_grad_()
            exact = self._weights.double()
            leaves = [part.requires_grad_() for part in (exact.gate, exact.gate_up, exact.down)]
            index_TK, weights_TK = routed(hidden_TD, exact.gate, self._top_k)
            out_TD = mixture(hidden_TD, index_TK, weights_TK, exact)
            self._gradients = torch.autograd.grad(out_TD, [hidden_TD, *leaves], grad_TD.double())
        return self._gradients
