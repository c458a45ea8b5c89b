"""Whether derivatives are taken in a way that an operator with a formula of its own can't serve."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Every call of an operator asks, so the function is looked up once.
_is_within_torch_func = torch._C._are_functorch_transforms_active


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode derivatives are at work.

    They see through PyTorch's operators, but not through one whose gradient is registered as a formula: there, a
    tangent would be lost without a word.

    Example:
        >>> is_transformed()
        False
    """
    if _is_within_torch_func():
        return True
    # A compiler would guard this number, which it changes itself while it traces.
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def is_mapped(values: Tensor) -> bool:
    """Whether ``torch.vmap`` goes over the tensor, at any level: then no number in it can be read.

    Example:
        >>> torch.vmap(lambda row: row + is_mapped(row))(torch.zeros(2)).tolist()
        [1.0, 1.0]
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(values):
        if functorch.is_batchedtensor(values):
            return True
        values = functorch.get_unwrapped(values)
    return False
