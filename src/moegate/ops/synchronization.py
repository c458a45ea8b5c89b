"""Whether Python may look at the numbers in a tensor, which on a GPU makes it wait for all that was launched before."""

import torch
from torch import Tensor

from moegate.ops.server import SERVER, Server
from moegate.ops.transforms import is_mapped


def may_look(values: Tensor) -> bool:
    """Whether the numbers in a tensor lie at hand: on the CPU, and neither traced nor mapped.

    Elsewhere a value is not checked, and no shape depends on one, so that nothing waits and a step can be captured as a
    CUDA graph. ``MOEGATE_KERNEL=triton`` stands for a GPU, and gives its answer.

    Example:
        >>> may_look(torch.zeros(2, device="meta"))
        False
    """
    if values.device.type != "cpu" or SERVER is Server.INTERPRETER:
        return False
    return not (torch.compiler.is_compiling() or is_mapped(values))
