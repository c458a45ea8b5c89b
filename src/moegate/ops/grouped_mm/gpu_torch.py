"""The grouped products of PyTorch, where they are the better ones: many rows for each matrix, on tensor cores."""

import torch
import triton
from torch import Tensor

from moegate.ops.grouped_mm.gpu_kernel_ends import ends_kernel
from moegate.ops.grouped_mm.gpu_kernel_tail import zero_empty_kernel, zero_tail_kernel

LEAST_ROWS_OF_A_GROUP = 128
"""In the mean: with fewer, tiles stay half empty, and what counts is how fast the weights are read."""
_MOST_GROUPS = 1023
_MOST_ROWS = 2**31 - 1
_ALIGNMENT = 16


def uses_torch(num_rows: int, offsets_E: Tensor, *matrices: Tensor) -> bool:
    """Whether PyTorch's grouped products take these matrices without waiting for the device, and are made for them.

    They are for bfloat16 on NVIDIA's capability 9 and 10, fewer than 1024 groups, and matrices whose rows start at
    multiples of 16 bytes; other arguments make PyTorch read the offsets on the host and loop.

    Args:
        num_rows: of all groups together.
        offsets_E: the end of each group's rows.
        matrices: every operand of the products.

    Example:
        >>> uses_torch(4096, torch.tensor([4096]), torch.zeros(4096, 8, dtype=torch.bfloat16))  # on the CPU
        False
    """
    device = offsets_E.device
    if device.type != "cuda" or torch.version.hip is not None or not hasattr(torch, "_grouped_mm"):
        return False
    if torch.cuda.get_device_capability(device)[0] not in (9, 10):
        return False
    num_groups = offsets_E.shape[0]
    if not 0 < num_groups <= _MOST_GROUPS or not LEAST_ROWS_OF_A_GROUP * num_groups <= num_rows <= _MOST_ROWS:
        return False
    return all(takes(matrix) for matrix in matrices)


def takes(matrix: Tensor) -> bool:
    """Whether PyTorch's grouped products take a matrix, or one for each group, as it lies.

    Example:
        >>> [takes(torch.zeros(4, n, dtype=torch.bfloat16)) for n in (8, 9)]
        [True, False]
    """
    if matrix.dtype is not torch.bfloat16 or matrix.numel() == 0 or matrix.data_ptr() % _ALIGNMENT:
        return False
    *others, before, last = matrix.stride()
    if last != 1:
        before, last = last, before
    rows_apart = matrix.shape[-1] if matrix.stride(-1) == 1 else matrix.shape[-2]
    multiples = all(stride * matrix.element_size() % _ALIGNMENT == 0 for stride in (*others, before))
    return last == 1 and before >= rows_apart and multiples


def ends_of(offsets_E: Tensor, num_rows: int) -> Tensor:
    """The offsets as int32 for PyTorch's products, which trust them: within the rows, and never falling."""
    ends_E = torch.empty(offsets_E.shape, dtype=torch.int32, device=offsets_E.device)
    num_groups = offsets_E.shape[0]
    ends_kernel[(1,)](
        offsets_E.contiguous(), ends_E, num_groups, num_rows,
        BLOCK_E=triton.next_power_of_2(num_groups), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return ends_E


def torch_grouped_mm(rows_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """``weight[e] @ rows[r]``; rows behind the last group are not written. ``ends`` are those of ``ends_of``."""
    out_RO: Tensor = torch._grouped_mm(rows_RI, weight_EOI.mT, offs=ends_E)
    return out_RO


def torch_grouped_outer(left_RO: Tensor, right_RI: Tensor, ends_E: Tensor) -> Tensor:
    """``Σ left[r] ⊗ right[r]``; zero for a group without rows."""
    out_EOI: Tensor = torch._grouped_mm(left_RO.mT, right_RI, offs=ends_E)
    # Nothing says what PyTorch leaves where there was nothing to add.
    num_groups, size = out_EOI.shape[0], out_EOI[0].numel()
    zero_empty_kernel[num_groups, 8](out_EOI, ends_E, size, BLOCK=1024, enable_fp_fusion=True)
    return out_EOI


def zero_tail(rows_RO: Tensor, offsets_E: Tensor) -> None:
    """Writes zeros to the rows behind the last group."""
    num_rows, width = rows_RO.shape
    block_o = min(1024, triton.next_power_of_2(width))
    zero_tail_kernel[(triton.cdiv(num_rows, 128),)](
        rows_RO, offsets_E, offsets_E.shape[0], num_rows, width, BLOCK_R=128, BLOCK_O=block_o, enable_fp_fusion=True
    )
