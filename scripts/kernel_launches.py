"""What the operators would launch on a GPU, and what Triton makes of it, on a machine without one.

Under ``recorded`` the tensors are PyTorch's fake ones, on a device "cuda" that need not be there: sizes are real,
values are not, so that an operator that waited for a value would fail here. Its launches are written down, not done,
and ``compiled`` makes the machine's code of each, as the first launch on that machine would.
"""

import contextlib
import ctypes
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction, MockTensor

from moegate.ops.library import IMPLEMENTED, NAMESPACE, implementation

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Machine:
    """A GPU, as far as the operators and the compiler ask for it."""

    name: str
    target: GPUTarget
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int
    """The most bytes that one program may have."""

    @property
    def is_nvidia(self) -> bool:
        return self.target.backend == "cuda"


MACHINES = {
    "sm_90": Machine("H100", GPUTarget("cuda", 90, 32), (9, 0), 132, 232448),
    "sm_80": Machine("A100", GPUTarget("cuda", 80, 32), (8, 0), 108, 166912),
    "gfx942": Machine("MI300X", GPUTarget("hip", "gfx942", 64), (9, 4), 304, 65536),
}


class Pointer(MockTensor):
    """What the compiler asks of a tensor: its type, and whether it starts at a multiple of 16 bytes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor.dtype, tuple(tensor.shape))
        self.offset = address_of(tensor)

    def data_ptr(self) -> int:
        return self.offset


def address_of(tensor: torch.Tensor) -> int:
    """Memory starts at a multiple of 256 bytes; views begin somewhere in it."""
    return int(tensor.storage_offset()) * tensor.element_size()


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments, tensors replaced by pointers."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    def key(self) -> tuple[Any, ...]:
        """Equal for launches of the same machine code."""
        named = tuple((name, _kind(value)) for name, value in sorted(self.options.items()))
        return (self.name, tuple(_kind(value) for value in self.arguments), named)


def _kind(value: Any) -> Any:
    if isinstance(value, Pointer):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, bool) or not isinstance(value, int):
        return repr(value)
    return value if -16 < value <= 16 else ("int", value % 16 == 0, value.bit_length() > 31)


class _OnTriton(TorchDispatchMode):
    """Calls the Triton implementations themselves, where PyTorch would be content with their fakes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == NAMESPACE and name in IMPLEMENTED:
            with self:
                return implementation(IMPLEMENTED[name])(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def allow_fake_cuda() -> None:
    """Gives a CPU build of PyTorch the device guard that some operations on fake "cuda" tensors ask for: meta's."""
    if torch.backends.cuda.is_built():
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 15).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14  # in PyTorch's enumeration of devices
    guards[cuda] = guards[meta]


@contextlib.contextmanager
def recorded(machine: Machine) -> Iterator[list[Launch]]:
    """Collects what is launched in a block, whose new tensors are fake; make them on the device "cuda"."""
    allow_fake_cuda()
    launches: list[Launch] = []

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = tuple(Pointer(value) if isinstance(value, torch.Tensor) else value for value in arguments)
        launches.append(Launch(kernel, tuple(grid), given, options))

    properties = SimpleNamespace(
        name=machine.name,
        major=machine.capability[0],
        minor=machine.capability[1],
        multi_processor_count=machine.multiprocessors,
        shared_memory_per_block_optin=machine.shared_memory,
        warp_size=machine.target.warp_size,
    )
    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (JITFunction, "run", run),
            (torch.cuda, "get_device_properties", lambda device=None: properties),
            (torch.cuda, "get_device_capability", lambda device=None: machine.capability),
            (torch.cuda, "current_device", lambda: 0),
            (torch.version, "hip", None if machine.is_nvidia else "pretended"),
            (torch.Tensor, "data_ptr", address_of),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_OnTriton())
        yield launches


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a launch."""

    registers: int
    spilled: int
    """Bytes of memory that a thread needs because its registers don't suffice."""
    shared: int
    """Bytes of shared memory."""
    text: str
    """The machine's assembly, PTX on NVIDIA's."""


class _Driver:
    """Stands for the driver of a machine that is not here."""

    def __init__(self, machine: Machine) -> None:
        self.get_current_target = lambda: machine.target
        self.get_current_device = lambda: machine.name
        self.get_current_stream = lambda device: 0


def compiled(launch: Launch, machine: Machine) -> Compiled:
    """Compiles a launch for a machine."""
    triton.runtime.driver.set_active(_Driver(machine))
    kernel = launch.kernel.run(*launch.arguments, grid=launch.grid, warmup=True, **launch.options)
    shared = int(kernel.metadata.shared)
    if not machine.is_nvidia:
        text = kernel.asm["amdgcn"]
        number = partial(_number, text=text)
        return Compiled(number(r"\.vgpr_count:\s+(\d+)"), number(r"\.vgpr_spill_count:\s+(\d+)"), shared, text)
    used = _dumped(kernel.asm["cubin"], "resource-usage")
    spilled = _number(r"STACK:(\d+)", used) + _number(r"LOCAL:(\d+)", used)
    # The assembler may set up a frame of the stack that in the end nothing is stored in.
    if spilled and not re.search(r"\bSTL\b", _dumped(kernel.asm["cubin"], "sass")):
        spilled = 0
    return Compiled(_number(r"REG:(\d+)", used), spilled, shared, kernel.asm["ptx"])


def _dumped(cubin: bytes, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), f"--dump-{what}", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"The compiler doesn't say {pattern}.")
    return int(found[1])
