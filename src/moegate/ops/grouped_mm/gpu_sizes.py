"""How the grouped products are cut for a GPU: plain functions of the sizes, nothing is tried out at run time.

The numbers come from what the compiler says of each cut on Hopper (registers, shared memory, how many loads are under
way) and from its bandwidths; none is particular to it.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

_ROWS_OF_WARPS = 64
"""The least rows that Hopper's asynchronous matrix instructions take."""
_WIDE = 200_000
"""The bytes of shared memory from which on a multiprocessor multiplies fast enough to need 256 columns at a time."""
_ALIGNMENT = 16
"""What sizes and strides must be multiples of for the compiler to load 16 bytes at a time."""


@dataclass(frozen=True)
class Cut:
    """The block of outputs and of inputs that one step of a program takes, and how the programs run.

    Attributes:
        walkers: the programs of a multiprocessor, which walk over all tiles; 0 for a program for each tile.
    """

    outputs: int
    inputs: int
    warps: int
    stages: int
    walkers: int = 0


@dataclass(frozen=True)
class Machine:
    """What a GPU has: bytes of shared memory for a program, and how many multiprocessors."""

    shared_memory: int
    multiprocessors: int


@dataclass(frozen=True)
class OuterCut:
    """The block of columns of the left and of the right, the rows of a step, and how the programs run."""

    left: int
    right: int
    rows: int
    warps: int
    stages: int


def tile_rows(num_rows: int, num_groups: int, element: torch.dtype) -> int:
    """The rows of a tile: few where groups have few and are read for their weights, else what a multiprocessor holds.

    Example:
        >>> [tile_rows(rows, 128, torch.bfloat16) for rows in (8, 256, 4096, 65536)]
        [16, 16, 64, 128]
    """
    mean = num_rows / max(1, num_groups)
    if mean <= 16:
        return 16
    if mean <= 96 or element is torch.float32:
        return _ROWS_OF_WARPS
    return 128


def product_cut(  # noqa: PLR0913 - all that it depends on
    num_tiles: int,
    rows: int,
    num_outputs: int,
    num_inputs: int,
    element: torch.dtype,
    *,
    sides: int,
    function: str | None,
    aligned: bool,
    machine: Machine,
) -> Cut:
    """How one product is cut.

    Args:
        num_tiles: how many tiles of rows there can be.
        rows: of a tile.
        num_outputs: the columns of what is written.
        num_inputs: the length of the sums.
        element: the type of both sides.
        sides: 2 where a program sums a gate and what it multiplies, else 1.
        function: the activation that is applied to the sums, which takes registers: the error function most.
        aligned: whether 16 bytes can be loaded at a time; what can't be has to pass through registers.
        machine: the GPU.

    Example:
        >>> settings = {"sides": 1, "function": None, "aligned": True, "machine": Machine(232448, 132)}
        >>> product_cut(640, 128, 2048, 768, torch.bfloat16, **settings)
        Cut(outputs=256, inputs=64, warps=8, stages=4, walkers=1)
        >>> product_cut(136, 16, 2048, 768, torch.bfloat16, **settings)
        Cut(outputs=64, inputs=128, warps=4, stages=4, walkers=0)
    """
    if element is torch.float32:
        cut = Cut(32, 64, 4, 4) if rows == 16 else Cut(128, 16, 8, 4)
    elif rows == 16:  # bound by the weights that are read: long pieces, several programs on a multiprocessor
        cut = Cut(64, 128, 4, 4) if aligned else Cut(64, 64, 4, 4)
    elif not aligned:
        cut = Cut(64, 32, 4 if rows == _ROWS_OF_WARPS else 8, 4)
    elif rows == _ROWS_OF_WARPS:
        cut = Cut(128, 64, 4, 4, walkers=2)
    else:
        narrow = machine.shared_memory < _WIDE or function == "gelu" or (function is not None and sides == 1)
        cut = Cut(128 if narrow else 256, 64, 8, 4 if function is None else 3, walkers=1)
    outputs = max(16, min(cut.outputs // sides, triton.next_power_of_2(num_outputs)))
    # Blocks half as wide where there would be fewer than can run at once.
    while outputs * sides > 64 and num_tiles * triton.cdiv(num_outputs, outputs) < machine.multiprocessors:
        outputs //= 2
    inputs = max(16, min(cut.inputs, triton.next_power_of_2(num_inputs)))
    while True:
        fitting = _stages(rows, sides * outputs, inputs * element.itemsize, cut.walkers, machine.shared_memory)
        stages = min(cut.stages, fitting)
        if stages > 1 or inputs == 16:
            return Cut(outputs, inputs, cut.warps, stages, cut.walkers)
        inputs //= 2


def outer_cut(
    num_outputs: int, num_inputs: int, element: torch.dtype, *, steady: bool, aligned: bool, machine: Machine
) -> OuterCut:
    """How ``grouped_outer`` is cut.

    Groups of few steps are cut so that two programs share a multiprocessor: one loads and writes while the other
    multiplies. Where the sums are long (``steady``) that matters less than reading each row fewer times.

    Example:
        >>> outer_cut(1536, 2048, torch.bfloat16, steady=False, aligned=True, machine=Machine(232448, 132))
        OuterCut(left=128, right=128, rows=64, warps=8, stages=3)
    """
    if element is torch.float32:
        left, right, rows, warps = 64, 64, 16, 8
    elif not aligned:
        left, right, rows, warps = 64, 64, 32, 4
    else:
        left, right, rows, warps = 128, 256 if steady and machine.shared_memory >= _WIDE else 128, 64, 8
    left = max(16, min(left, triton.next_power_of_2(num_outputs)))
    right = max(16, min(right, triton.next_power_of_2(num_inputs)))
    stages = min(4 if right > 128 else 3, _stages(left, right, rows * element.itemsize, 0, machine.shared_memory))
    return OuterCut(left, right, rows, warps, stages)


def _stages(rows: int, outputs: int, input_bytes: int, walkers: int, shared_memory: int) -> int:
    """How many steps fit beside what a walker writes through."""
    written = rows * min(outputs, 128) * 2 if walkers else 0
    return max(1, (shared_memory // max(1, walkers) - written) // ((rows + outputs) * input_bytes))


def is_aligned(*matrices: Tensor) -> bool:
    """Whether 16 bytes at a time can be loaded from all of them, along one of the last two dimensions.

    Example:
        >>> is_aligned(torch.zeros(3, 32)), is_aligned(torch.zeros(3, 32).mT), is_aligned(torch.zeros(3, 30))
        (True, True, False)
    """
    for matrix in matrices:
        *others, before, last = matrix.stride()
        along = matrix.shape[-1]
        if last != 1:
            before, last, along = last, before, matrix.shape[-2]
        sizes = (*others, before, along, matrix.data_ptr())
        if last != 1 or any(size % _ALIGNMENT for size in sizes):
            return False
    return True


def machine_of(device: torch.device) -> Machine:
    """The GPU of a device; where it isn't told, what every GPU has, and few multiprocessors."""
    if device.type != "cuda":
        return Machine(1 << 16, 4)
    properties = torch.cuda.get_device_properties(device)
    shared_memory = getattr(properties, "shared_memory_per_block_optin", None) or 1 << 16
    return Machine(shared_memory, properties.multi_processor_count)
