"""A loss that is computed inside the layers, and joins the backward there with the scale of the loss outside.

``inject`` hangs a layer's loss on what the layer's experts return: in the backward, the loss gets its gradient as soon
as that output gets its own. ``tie`` makes the number that is added to the model's loss: in the backward it learns by
how much everything after it scaled (accumulation, gradient scaling, a trainer's coefficient), before any layer is
reached.
"""

from typing import Any

import torch
from torch import Tensor

from moegate.hf.training.passes import ForwardPass

__all__ = ["inject", "tie"]


def inject(output: Tensor, loss: Tensor, forward_pass: ForwardPass, unclaimed: float) -> Tensor:
    """The output, unchanged; in the backward, ``loss`` gets the scale of the pass, or ``unclaimed`` without one.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> inject(torch.zeros(2, requires_grad=True), weight.sum(), ForwardPass(True), 0.5).sum().backward()
        >>> weight.grad
        tensor([0.5000, 0.5000])
    """
    joined: Tensor = _Inject.apply(output, loss, forward_pass, unclaimed)  # type: ignore[no-untyped-call]
    return joined


def tie(value: Tensor, output: Tensor, forward_pass: ForwardPass) -> Tensor:
    """``value``, part of the graph: its gradient becomes the scale of the pass before ``output`` gets its own.

    Example:
        >>> output, now = torch.zeros(2, requires_grad=True), ForwardPass(True)
        >>> (3 * tie(torch.tensor(5.0), output, now) + output.sum()).backward()
        >>> now.scale
        tensor(3.)
    """
    tied: Tensor = _Tie.apply(output, value, forward_pass)  # type: ignore[no-untyped-call]
    return tied


class _Inject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor, forward_pass: ForwardPass, unclaimed: float) -> Tensor:
        ctx.forward_pass, ctx.unclaimed = forward_pass, unclaimed
        ctx.loss_type = loss.dtype, loss.device
        # A copy: a view made here could not be changed in place, as some models do with a block's output.
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dtype, device = ctx.loss_type
        scale = ctx.forward_pass.scale
        scale = torch.tensor(ctx.unclaimed, dtype=dtype, device=device) if scale is None else scale.to(device, dtype)
        return gradients[0], scale, None, None


class _Tie(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, value: Tensor, forward_pass: ForwardPass) -> Tensor:
        ctx.forward_pass = forward_pass
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.forward_pass.scale = gradients[0].detach()
        # The output gets nothing from here, but must wait for it: the engine counts the edge all the same.
        return None, None, None
