"""Dense dispatch: every token to every expert, and a weight of zero where it was not sent. The readable oracle."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moegate.dispatch.plan import Plan
from moegate.records import Routing


@dataclass(frozen=True, eq=False)
class DensePlan(Plan):
    """All ``E · T`` rows, expert-major.

    Attributes:
        weight: ``[T, E]``, the weight of each expert for each token, 0 where the token is not sent.
        sent: ``[T, E]`` bool, whether the token is sent; a weight may be 0 or NaN all the same.
        weight_input: whether the weight multiplies the expert's input instead of its output.
    """

    weight: Tensor
    sent: Tensor
    weight_input: bool

    def gather(self, hidden_TD: Tensor) -> Tensor:
        rows_ETD = hidden_TD.expand(self.weight.shape[1], *hidden_TD.shape)
        if self.weight_input:
            rows_ETD = (rows_ETD * self.weight.mT[:, :, None]).to(hidden_TD.dtype)
        # What is not sent is not looked at: a NaN in one token stays with its own experts.
        return rows_ETD.masked_fill(~self.sent.mT[:, :, None], 0.0).reshape(-1, hidden_TD.shape[1])

    def scatter(self, rows_RD: Tensor) -> Tensor:
        wide = torch.float64 if rows_RD.dtype == torch.float64 else torch.float32
        rows_ETD = rows_RD.to(wide).view(self.weight.shape[1], self.num_tokens, rows_RD.shape[1])
        share_TE = self.sent.to(wide) if self.weight_input else self.weight.to(wide)
        # Not a matrix product, which autocast would make a narrow one.
        return (rows_ETD * share_TE.mT[:, :, None]).sum(dim=0).to(rows_RD.dtype)


def dense_plan(routing: Routing, *, weight_input: bool = False) -> DensePlan:
    """The plan that sends every token everywhere.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[1.0, 1.0, 0.0]]), moegate.recipes.mixtral(top_k=2))
        >>> dense_plan(routing).weight.tolist()
        [[0.5, 0.5, 0.0]]
    """
    num_tokens, num_experts = routing.num_tokens, routing.num_experts
    column_TK = torch.where(routing.expert_index < 0, num_experts, routing.expert_index)
    # Empty slots land in one column more, which is cut off again.
    weight_TE = routing.weights.new_zeros(num_tokens, num_experts + 1).scatter(1, column_TK, routing.weights)
    sent_TE = torch.zeros_like(weight_TE, dtype=torch.bool).scatter(1, column_TK, True)
    counts_E = torch.full((num_experts,), num_tokens, device=routing.logits.device)
    return DensePlan(
        num_tokens=num_tokens,
        counts=counts_E,
        offsets=counts_E.cumsum(0),
        weight=weight_TE[:, :num_experts],
        sent=sent_TE[:, :num_experts],
        weight_input=weight_input,
    )
