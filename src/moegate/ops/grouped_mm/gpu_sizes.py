"""How the grouped products are cut for a GPU: plain functions of the sizes, nothing is tried out at run time."""

from dataclasses import dataclass

import torch
import triton

ROWS_OF_TENSOR_CORES = 64
"""The least rows that Hopper's asynchronous matrix instructions take."""


@dataclass(frozen=True)
class Cut:
    """The block of outputs and of inputs that one step of a program takes, and how the program runs."""

    outputs: int
    inputs: int
    warps: int
    stages: int


def tile_rows(num_rows: int, num_groups: int, element: torch.dtype) -> int:
    """The rows of a tile: few where a group has few, which is read for its weights, else what one multiprocessor holds.

    Example:
        >>> [tile_rows(rows, 128, torch.bfloat16) for rows in (8, 256, 4096, 65536)]
        [16, 16, 64, 128]
    """
    mean = num_rows / max(1, num_groups)
    if mean <= 16:
        return 16
    if mean <= 96 or element is torch.float32:
        return ROWS_OF_TENSOR_CORES
    return 128


def product_cut(  # noqa: PLR0917 - the sizes of a product
    rows: int, num_outputs: int, num_inputs: int, element: torch.dtype, sides: int, shared_memory: int
) -> Cut:
    """How one product is cut.

    Args:
        rows: of a tile.
        num_outputs: the columns of what is written.
        num_inputs: the length of the sums.
        element: the type of both sides.
        sides: 2 where a program sums a gate and what it multiplies, else 1.
        shared_memory: the bytes that one program may have.

    Example:
        >>> product_cut(128, 2048, 768, torch.bfloat16, 1, 232448)
        Cut(outputs=256, inputs=64, warps=8, stages=4)
    """
    if element is torch.float32:
        outputs, inputs, warps = (32, 64, 4) if rows == 16 else (64, 32, 4)
    elif rows == 16:  # bound by the weights that it reads: long pieces, several programs on a multiprocessor
        outputs, inputs, warps = 64, 128, 4
    elif rows == ROWS_OF_TENSOR_CORES:
        outputs, inputs, warps = 128, 64, 4
    else:
        outputs, inputs, warps = 256, 64, 8
    outputs = max(16, min(outputs // sides, triton.next_power_of_2(num_outputs)))
    inputs = max(16, min(inputs, triton.next_power_of_2(num_inputs)))
    return _fitted(rows, outputs, inputs, warps, sides, element.itemsize, shared_memory)


def _fitted(  # noqa: PLR0917 - one number each
    rows: int, outputs: int, inputs: int, warps: int, sides: int, size: int, shared_memory: int
) -> Cut:
    """With as many steps in flight as fit, up to 4; shorter steps where not even 2 do."""
    while True:
        stages = min(4, shared_memory // ((rows + sides * outputs) * inputs * size))
        if stages >= 2 or inputs <= 16:
            return Cut(outputs, inputs, warps, max(1, stages))
        inputs //= 2


def outer_cut(num_outputs: int, num_inputs: int, element: torch.dtype, shared_memory: int) -> tuple[int, Cut]:
    """The block of outputs of the left, and how the rest of ``grouped_outer`` is cut; its steps go over the rows.

    Example:
        >>> outer_cut(1536, 2048, torch.bfloat16, 232448)
        (128, Cut(outputs=256, inputs=64, warps=8, stages=4))
    """
    left, right, rows, warps = (64, 64, 32, 4) if element is torch.float32 else (128, 256, 64, 8)
    left = max(16, min(left, triton.next_power_of_2(num_outputs)))
    right = max(16, min(right, triton.next_power_of_2(num_inputs)))
    warps = 4 if left * right <= 128 * 128 else warps
    return left, _fitted(left, right, rows, warps, 1, element.itemsize, shared_memory)


def shared_memory_of(device: torch.device) -> int:
    """The bytes of shared memory that a program may have; where that isn't told, what every GPU has."""
    if device.type != "cuda":
        return 1 << 16
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", None) or 1 << 16
