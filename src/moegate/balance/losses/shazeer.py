"""Importance and load losses of the sparsely gated mixture of experts: squared coefficients of variation."""

import torch
from torch import Tensor

from moegate.records import Routing


def importance_cv(routing: Routing, *, dense: bool = False) -> Tensor:
    """Even out the weight that the experts carry: ``CV²`` of the importance.

    ``importance_i = Σ_t w_ti`` over the real tokens, with ``w`` the combine weights of the assignments that
    are carried out, or all probabilities with ``dense``; ``CV² = variance / mean²`` (population variance).
    Equal importance reads 0; everything on ``K`` experts in equal parts reads ``E / K - 1``.

    Equal weight is not equal load: one expert with few large weights balances one with many small ones.

    Example:
        >>> import torch, moegate
        >>> routing = moegate.route(torch.tensor([[9.0, 0.0, 0.0, 0.0]]), moegate.recipes.mixtral(top_k=1))
        >>> round(importance_cv(routing).item(), 3)
        3.0

    Source: Shazeer et al., arXiv 1701.06538, equations 6 and 7; ``dense`` as in Tutel.
    """
    if dense:
        return _squared_cv(routing.probabilities.sum(dim=0))
    index_N = routing.expert_index.reshape(-1)
    weight_N = routing.weights.reshape(-1).masked_fill(index_N < 0, 0.0)
    importance_E = weight_N.new_zeros(routing.num_experts).index_add(0, index_N.clamp(min=0), weight_N)
    return _squared_cv(importance_E)


def smooth_load(routing: Routing) -> Tensor:
    """``[E]``: the load each expert would expect if its noise were drawn again, differentiable.

    ``Σ_t Φ((z_ti - threshold_ti) / σ_ti)``: the chance that expert ``i`` is among the top ``K`` of token
    ``t`` when only the noise on ``z_ti`` is redrawn; the threshold is the ``K``-th largest noisy logit of the
    other experts. It assumes that the selection is the top ``K`` of the noisy logits (no groups, no bias). The noise
    is normal: a learned one, or ``GaussianNoise`` with its fixed ``σ``.

    Where no noise was drawn (in evaluation, or by a rule without noise) each chance is 0 or 1, so this is the load
    before dropping, a constant without a gradient.

    Raises:
        ValueError: the noise is not normal (Gumbel noise), so that its ``σ`` is not known.

    Example:
        >>> import torch, moegate
        >>> rule = moegate.recipes.noisy_topk(top_k=2)
        >>> routing = moegate.route(torch.zeros(64, 4), rule, noise_scale=torch.ones(64, 4), training=True,
        ...                         generator=torch.Generator().manual_seed(0))
        >>> smooth_load(routing).shape
        torch.Size([4])

    Source: Shazeer et al., arXiv 1701.06538, equations 8 to 10.
    """
    if routing.noisy_logits is None:
        return routing.selected_load.to(routing.logits.dtype)
    if routing.noise_scale is None:
        raise ValueError(
            "the routing was made with noise that is not normal, so it has no noise_scale, which the smooth load is "
            "made of: route with moegate.recipes.noisy_topk(), or with GaussianNoise, or use load_balance."
        )
    if routing.top_k >= routing.num_experts:
        # Every expert is certain of every token; the zero keeps the graph.
        return routing.probabilities.sum(dim=0) * 0.0 + routing.real_tokens
    keep_T1 = None if routing.token_mask is None else routing.token_mask[:, None]
    # Masked before the arithmetic: a NaN in a padding row must not reach a gradient.
    clean_TE = _kept(routing.logits, keep_T1, 0.0)
    noisy_TE = _kept(routing.noisy_logits, keep_T1, 0.0)
    scale_TE = _kept(routing.noise_scale, keep_T1, 1.0)
    top_Tk = torch.topk(noisy_TE, routing.top_k + 1, dim=-1).values
    # The K-th largest of the others: for an expert inside the top K that is the (K+1)-th of all.
    inside_TE = noisy_TE > top_Tk[:, -1:]
    threshold_TE = torch.where(inside_TE, top_Tk[:, -1:], top_Tk[:, -2:-1])
    chance_TE = torch.special.ndtr((clean_TE - threshold_TE) / scale_TE)
    return _kept(chance_TE, keep_T1, 0.0).sum(dim=0)


def load_cv(routing: Routing) -> Tensor:
    """Even out the expected number of tokens per expert: ``CV²`` of ``smooth_load``.

    Equal expected load reads 0; certain collapse onto the same ``K`` experts reads ``E / K - 1``. Where no noise was
    drawn (in evaluation, or by a rule without noise) it reads the load itself and is a constant: it measures balance,
    but a router that trains without noise learns nothing from it.

    Raises:
        ValueError: the noise is not normal (Gumbel noise).

    Example:
        >>> import torch, moegate
        >>> rule = moegate.recipes.noisy_topk(top_k=2)
        >>> routing = moegate.route(torch.zeros(64, 4), rule, noise_scale=torch.ones(64, 4), training=True,
        ...                         generator=torch.Generator().manual_seed(0))
        >>> bool(load_cv(routing) < 0.05)
        True

    Source: Shazeer et al., arXiv 1701.06538, equation 11.
    """
    return _squared_cv(smooth_load(routing))


def importance_load(routing: Routing) -> Tensor:
    """``importance_cv + load_cv``, the pair that Shazeer et al. train with; 0 when both are even.

    Tutel's importance-load loss is half of it, with ``dense`` importance. Where no noise was drawn, only the
    importance has a gradient; see ``load_cv``.

    Raises:
        ValueError: the noise is not normal (Gumbel noise).

    Example:
        >>> import torch, moegate
        >>> rule = moegate.recipes.noisy_topk(top_k=2)
        >>> routing = moegate.route(torch.zeros(64, 4), rule, noise_scale=torch.ones(64, 4), training=True,
        ...                         generator=torch.Generator().manual_seed(0))
        >>> bool(importance_load(routing) == importance_cv(routing) + load_cv(routing))
        True

    Source: Shazeer et al., arXiv 1701.06538, appendix A.
    """
    return importance_cv(routing) + load_cv(routing)


def _kept(values_TE: Tensor, keep_T1: Tensor | None, fill: float) -> Tensor:
    return values_TE if keep_T1 is None else values_TE.masked_fill(~keep_T1, fill)


def _squared_cv(values_E: Tensor) -> Tensor:
    """Population variance over squared mean; 0, with a graph, where all values are 0."""
    squared_mean = values_E.mean().square()
    return values_E.var(correction=0) / torch.where(squared_mean > 0, squared_mean, 1.0)
