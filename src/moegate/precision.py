"""What autocast does to products: where it must not narrow them, and where it does."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast leaves products on the device of ``like`` in their own type.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(torch.ones(1)):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    device = like.device.type
    # The meta device has no autocast; to ask PyTorch which devices have is beyond the compiler of 2.11. Entering a
    # context costs more than a small gate.
    if not like.is_meta and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def in_autocast(values: Tensor) -> Tensor:
    """The values in the type that autocast takes products in; where it is off, as they are.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     in_autocast(torch.ones(1)).dtype
        torch.bfloat16
    """
    device = values.device.type
    if values.is_meta or not torch.is_autocast_enabled(device):
        return values
    return values.to(torch.get_autocast_dtype(device))
