"""The load-balancing loss of each layer on its own, from what its experts received, in any trainer's backward."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moegate.balance.losses.switch import balance_product
from moegate.hf.training.injection import tie
from moegate.hf.training.passes import ForwardPass
from moegate.records import count_assignments

__all__ = ["LayerLosses", "layer_balance"]


def layer_balance(probabilities_TE: Tensor, expert_index_TK: Tensor, real_T: Tensor | None = None) -> Tensor:
    """``E · Σ_i f_i · P_i`` over the real tokens: 1.0 at perfect balance, ``E / K`` if the same K get everything.

    ``f_i`` is the share of the assignments that expert ``i`` received, a constant, and ``P_i`` its mean probability.

    Example:
        >>> uniform = torch.full((4, 4), 0.25)
        >>> layer_balance(uniform, torch.tensor([[0], [1], [2], [3]]))
        tensor(1.)

    Source: Fedus et al., Switch Transformers, arXiv 2101.03961, equations 4 to 6.
    """
    if real_T is not None:
        probabilities_TE = probabilities_TE.masked_fill(~real_T[:, None], 0.0)
        expert_index_TK = expert_index_TK.masked_fill(~real_T[:, None], -1)
    width = probabilities_TE.shape[-1]
    tokens = expert_index_TK.shape[0] if real_T is None else real_T.sum().clamp(min=1)
    expert_index_TK = expert_index_TK.masked_fill(expert_index_TK >= width, -1).long()
    return balance_product(count_assignments(expert_index_TK, width), probabilities_TE.sum(dim=0) / max(tokens, 1))


@dataclass(frozen=True)
class LayerLosses:
    """Adds the layers' losses to what a model returns.

    Attributes:
        coefficient: of each layer; ``"model"`` for the weight of the model's pooled loss; ``"auto"`` for the same, in
            forwards that add the pooled loss, and none in others.
        top_k: of each layer.

    Raises:
        ValueError: anything else than ``"model"``, ``"auto"`` or a number of at least 0.
    """

    coefficient: float | str
    top_k: tuple[int, ...]

    def __post_init__(self) -> None:
        given = self.coefficient
        if given in ("model", "auto"):
            return
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < float("inf"):
            raise ValueError(
                f"balance_loss={given!r}: pass a coefficient of at least 0, such as 0.001 for each layer, "
                '"model" for the weight of the model\'s own pooled loss, "auto" for the same where that is on, or None.'
            )

    def coefficients(self, own: float, *, pooled: bool) -> tuple[float, ...]:
        """The coefficient of each layer, for a model whose own pooled loss has the coefficient ``own``.

        Empty for ``"auto"`` where the model does not add its pooled loss (``pooled``).

        The pooled loss reads K at perfect balance and is spread over L layers, so its coefficient c weighs as much as
        ``c · K / L`` on each layer.

        Raises:
            ValueError: ``"model"``, and the model has none.
        """
        if not isinstance(self.coefficient, str):
            return (float(self.coefficient),) * len(self.top_k)
        if self.coefficient == "auto" and not (own and pooled):
            return ()
        if not own:
            raise ValueError(
                'balance_loss="model" takes the weight of the model\'s own router_aux_loss_coef, which is 0 or '
                "absent here: pass a number, such as 0.001, the coefficient of each layer."
            )
        return tuple(own * top_k / len(self.top_k) for top_k in self.top_k)

    def total(self, forward_pass: ForwardPass) -> Tensor:
        """The weighted sum over the layers of a pass, a number without a graph."""
        terms = [forward_pass.coefficients[number] * loss for number, loss in forward_pass.losses.items()]
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()

    def join(self, forward_pass: ForwardPass, output: Any) -> tuple[Any, Tensor | None]:
        """The output with the loss added, and the loss; None where the output has no graph that it could join."""
        anchor = next((value for value in _values(output) if isinstance(value, Tensor) and value.requires_grad), None)
        if anchor is None or not forward_pass.losses:
            return output, None
        balance = tie(self.total(forward_pass).to(anchor.device), anchor, forward_pass)
        if isinstance(output, tuple):
            is_loss = output and isinstance(output[0], Tensor) and output[0].dim() == 0
            return ((output[0] + forward_pass.share * balance, *output[1:]) if is_loss else output), balance
        if isinstance(output, MutableMapping):
            if isinstance(loss := output.get("loss"), Tensor):
                output["loss"] = loss + forward_pass.share * balance
            if isinstance(output.get("aux_loss"), Tensor) and forward_pass.own:
                # A trainer that adds it itself multiplies it by the model's coefficient.
                output["aux_loss"] = balance / forward_pass.own
        return output, balance


def _values(output: Any) -> list[Any]:
    if isinstance(output, MutableMapping):
        return list(output.values())
    return list(output) if isinstance(output, tuple) else [output]
