"""Quantile balancing: the bias that would have given every expert its share of the observed tokens."""

import torch
import torch.distributed as dist
from torch import Tensor

from moegate.balance.controllers.base import BiasController, check_gain
from moegate.balance.reduction import sum_over_ranks
from moegate.parts import check_integer, check_positive, check_positive_integer
from moegate.records import Routing


class QuantileBias(BiasController):
    """Sets each expert's bias to the quantile at which it gets ``K / E`` of the observed tokens.

    With ``α_t`` the ``(K+1)``-th largest of ``s_t + b``, expert ``i`` takes token ``t`` when ``b_i`` exceeds
    ``r_ti = α_t - s_ti``. So ``b_i ← quantile_{K/E}(r_:i)`` over all tokens of the step, and then the mean is
    subtracted. No step size: one update goes all the way (for the other experts' old biases), which balances
    within a few steps where a sign rule needs hundreds.

    Computed from ``c = routing.selection_scores``, which holds ``s + b``: ``b_i += quantile_{K/E}(α_t - c_ti)``.
    (Not from ``routing.ranking``, which may hold logits where no bias was passed.) The values are kept as a
    histogram, so micro-batches and ranks add up in bounded memory (``E · num_bins`` integers); the quantile is
    interpolated within its bin.

    Made for plain top-k. With groups it balances a routing that ignores them.

    Args:
        num_experts: experts of the layer.
        top_k: experts per token; must be that of the routings and below ``num_experts``.
        rate: the part of the way that an update goes: 1 is the published rule, less smooths over steps.
        span: the histogram covers ``-span`` to ``span``, in units of the score; what lies beyond counts at
            the edge, so ``span`` is also the largest step. 1.0 suits scores in [0, 1]. Softmax over many
            experts has smaller differences: a smaller span resolves them better.
        num_bins: bins of the histogram.

    Example:
        >>> import torch, moegate
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = torch.randn(1024, 4, generator=generator) + torch.tensor([3.0, 1.0, 0.0, 0.0])
        >>> controller, bias = QuantileBias(num_experts=4, top_k=1), torch.zeros(4)
        >>> for _ in range(10):
        ...     routing = moegate.route(logits, moegate.recipes.switch(), bias=bias)
        ...     controller.observe(routing)
        ...     controller.update(bias)
        >>> bool(routing.load.max() < 1.1 * routing.load.min())
        True

    Source: quantile balancing as in Kimi K3 (section 2.3.3) and Megatron-LM's ``quantile_balancing``.
    """

    histogram: Tensor

    def __init__(
        self, num_experts: int, top_k: int, *, rate: float = 1.0, span: float = 1.0, num_bins: int = 1000
    ) -> None:
        super().__init__(num_experts)
        check_positive_integer("top_k", top_k)
        if top_k >= num_experts:
            raise ValueError(
                f"top_k={top_k} with {num_experts} experts: there is something to balance for top_k from 1 "
                f"to {num_experts - 1}."
            )
        check_gain("rate", rate)
        check_positive("span", span)
        check_integer("num_bins", num_bins, least=2)
        self.top_k = top_k
        self.rate = rate
        self.span = span
        self.num_bins = num_bins
        self.register_pending("histogram", torch.zeros(num_experts, num_bins, dtype=torch.int64))

    @torch.no_grad()
    def observe(self, routing: Routing) -> None:
        """Count a routing and where its tokens' thresholds lie; in evaluation mode, do nothing."""
        if not self.training:
            return
        if routing.top_k != self.top_k:
            raise ValueError(
                f"the routing has top_k={routing.top_k}, the controller is for top_k={self.top_k}: make "
                "it with the rule's own number of experts per token."
            )
        super().observe(routing)
        scores_TE = routing.selection_scores
        scores_TE = scores_TE if routing.token_mask is None else scores_TE[routing.token_mask]
        # A row with a NaN is a broken forward pass; counted, it would break the bias for good.
        scores_TE = scores_TE[~scores_TE.isnan().any(dim=-1)]
        threshold_T1 = torch.topk(scores_TE, self.top_k + 1, dim=-1).values[:, -1:]
        # inf - inf where experts are masked out with -inf: they are as far from being selected as can be.
        shortfall_TE = (threshold_T1 - scores_TE).nan_to_num(nan=self.span)
        self._count(shortfall_TE)

    def _count(self, shortfall_TE: Tensor) -> None:
        unit_TE = (shortfall_TE.clamp(-self.span, self.span) / self.span + 1) / 2
        bin_TE = (unit_TE * self.num_bins).to(torch.int64).clamp(max=self.num_bins - 1)
        bin_ET = bin_TE.T.contiguous()
        self.histogram.scatter_add_(1, bin_ET, torch.ones_like(bin_ET))

    def reduce(self, process_group: dist.ProcessGroup | None) -> Tensor:
        """The counts of all ranks; the histogram becomes that of all ranks too."""
        self.histogram.copy_(sum_over_ranks(self.histogram, process_group))
        return super().reduce(process_group)

    def step(self, load_E: Tensor) -> Tensor:
        """The way to the quantile, times ``rate``, mean-free."""
        shift_E = self._quantile(self.top_k / load_E.numel())
        return self.rate * (shift_E - shift_E.mean())

    def _quantile(self, level: float) -> Tensor:
        """``[E]`` float32: the quantile of the histogram at ``level``, linear within its bin."""
        upto_EB = self.histogram.cumsum(dim=1)
        target_E1 = level * upto_EB[:, -1:].to(torch.float64)
        bin_E1 = torch.searchsorted(upto_EB.to(torch.float64), target_E1)
        inside_E1 = self.histogram.gather(1, bin_E1).to(torch.float64)
        below_E1 = upto_EB.gather(1, bin_E1).to(torch.float64) - inside_E1
        position_E1 = (bin_E1 + (target_E1 - below_E1) / inside_E1.clamp(min=1)) / self.num_bins
        # Without a single token in the histogram (all of them were NaN) there is no way to go.
        shift_E1 = torch.where(upto_EB[:, -1:] > 0, self.span * (2 * position_E1 - 1), 0.0)
        return shift_E1.squeeze(1).to(torch.float32)
