"""Float32 products of bfloat16 tokens and a bfloat16 matrix: a router's logits, without widened copies of either.

Contract: ``out[t, e] = Σ_d hidden[t, d] · weight[e, d]``. A product of two bfloat16 numbers is exact in float32, and
the sums are float32: what widening both first would give, to the order of the sum. The gradient that comes back is
float32 and stays it: kernels part each of its values into three of bfloat16, whose sum it is, and multiply these.
"""

import torch
from torch import Tensor

from moegate.ops.library import served_by_triton
from moegate.ops.transforms import is_transformed
from moegate.ops.wide_linear.operators import WIDE_LINEAR

__all__ = ["takes", "wide_linear"]


def takes(hidden: object, weight_ED: Tensor) -> bool:
    """Whether there is a kernel for these: else widen them, and leave the product to PyTorch.

    Example:
        >>> takes(torch.ones(1, 2), torch.ones(3, 2))
        False
    """
    if not isinstance(hidden, Tensor) or not served_by_triton(hidden.device) or is_transformed():
        return False
    return hidden.dtype is weight_ED.dtype is torch.bfloat16 and hidden.device == weight_ED.device


def wide_linear(hidden_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """The products of tokens and the rows of a matrix, ``[T, E]`` float32.

    Args:
        hidden_TD: ``[T, D]`` bfloat16.
        weight_ED: ``[E, D]`` bfloat16.

    Raises:
        RuntimeError: when shapes or types do not fit.

    Example:
        >>> wide_linear(torch.tensor([[1.0, 256.0]]).bfloat16(), torch.ones(1, 2).bfloat16()).tolist()
        [[257.0]]
    """
    wants_gradient = torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_ED.requires_grad)
    if wants_gradient or torch.compiler.is_compiling():
        return WIDE_LINEAR(hidden_TD, weight_ED)  # type: ignore[no-any-return]
    with torch._C._AutoDispatchBelowAutograd():  # PyTorch's own way past a formula that nobody asks for
        return WIDE_LINEAR(hidden_TD, weight_ED)  # type: ignore[no-any-return]
