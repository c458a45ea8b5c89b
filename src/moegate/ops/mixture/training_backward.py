"""The backward of a layer's second half, as an operator that is differentiable itself.

Contract: from the gradient of the output ``[T, D]``, what the forward was given and the plan and ``pre`` that it
returned, the gradients of the hidden states, of the slots' weights and of both projections. With ``g[r]`` the product
of the gradient of row ``r``'s token and ``down_e``, and ``w`` the weight of its slot:

- the gradient of the weight is ``<inner[r], g[r]>``, so that nobody keeps the experts' outputs;
- that of ``pre[r]`` is ``act'(pre[r]) · w g[r]``, and each token gets the sum of its rows' ``grad_pre[r] @ up_e``;
- ``down_e`` gets ``Σ_r grad_out[token_r] ⊗ (w · inner[r])`` and ``up_e`` gets ``Σ_r grad_pre[r] ⊗ hidden[token_r]``.

A slot without an expert gets 0, an expert without rows zeros.
"""

from typing import Any

import torch
from torch import Tensor

from moegate.ops.library import define, implement, register_autograd, register_fake
from moegate.ops.mixture.training_reference import Gradients, trained_mixture_backward_reference

__all__ = ["TRAINED_MIXTURE_BACKWARD"]

_Context = Any  # what register_autograd passes has no public type
_DIFFERENTIABLE = (0, 1, 2, 6, 7, 8)
"""The places of the arguments that have a derivative."""


def _fake(  # noqa: PLR0913, PLR0917 - the schema of the operator
    grad_out_TD: Tensor,
    hidden_TD: Tensor,
    weights_TK: Tensor,
    slot_R: Tensor,
    inverse_TK: Tensor,
    offsets_E: Tensor,
    pre: Tensor,
    up: Tensor,
    down_EDF: Tensor,
    activation: int,
    needs_hidden: bool,
    needs_weights: bool,
    needs_projections: bool,
) -> Gradients:
    return (
        hidden_TD.new_empty(hidden_TD.shape if needs_hidden else 0),
        weights_TK.new_empty(weights_TK.shape if needs_weights else 0),
        up.new_empty(up.shape if needs_projections else 0),
        down_EDF.new_empty(down_EDF.shape if needs_projections else 0),
    )


define(
    "trained_mixture_backward(Tensor grad_out, Tensor hidden, Tensor weights, Tensor slot, Tensor inverse, "
    "Tensor offsets, Tensor pre, Tensor up, Tensor down, int activation, bool needs_hidden, bool needs_weights, "
    "bool needs_projections) -> (Tensor, Tensor, Tensor, Tensor)",
    trained_mixture_backward_reference,
)
implement("trained_mixture_backward", "moegate.ops.mixture.gpu_operator_backward:trained_mixture_backward")
register_fake("trained_mixture_backward", _fake)
TRAINED_MIXTURE_BACKWARD = torch.ops.moegate.trained_mixture_backward.default


def _save_for_second(ctx: _Context, inputs: tuple[Any, ...], output: Gradients) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.settings = inputs[9:]
    ctx.set_materialize_grads(False)


def _second_backward(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Through the composition, computed anew: its parts are differentiable as often as one likes."""
    keeps_graph = torch.is_grad_enabled()
    found: list[Tensor | None] = [None] * 13
    with torch.enable_grad():
        # Views of their own, so that what `pre` was computed from isn't reached through `pre`.
        given = [saved.view_as(saved) for saved in ctx.saved_tensors]
        outputs = trained_mixture_backward_reference(*given, *ctx.settings)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        places = [place for place in _DIFFERENTIABLE if ctx.needs_input_grad[place]]
        if pairs and places:
            wanted = torch.autograd.grad(
                [output for output, _ in pairs],
                [given[place] for place in places],
                [grad for _, grad in pairs],
                create_graph=keeps_graph,
                allow_unused=True,
            )
            for place, grad in zip(places, wanted, strict=True):
                found[place] = grad
    return tuple(found)


register_autograd("trained_mixture_backward", _second_backward, _save_for_second)
