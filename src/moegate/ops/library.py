"""Where operators are registered: one schema each, a reference for every device, and the kernels where there are any.

``MOEGATE_KERNEL`` chooses among them, as ``server.py`` says. ``MOEGATE_ISA`` forces an instruction set of the CPU
kernels (``scalar``, ``avx2``, ``avx512``, ``avx512_bf16``). ``MOEGATE_STRICT=1`` makes it an error where a reference
serves for want of a kernel. ``MOEGATE_LIBRARY`` names a library to load in place of the installed one, such as one
built with sanitizers.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch

from moegate.ops.server import HAS_TRITON, SERVER, STRICT, Server

NAMESPACE = "moegate"
TRITON_KEYS = {
    Server.KERNELS: ("CUDA", "XPU"),
    Server.REFERENCES: (),
    Server.INTERPRETER: ("CUDA", "XPU", "CPU"),
}[SERVER]
"""PyTorch's dispatch keys of the devices that Triton kernels serve."""
_TRITON_DEVICES = frozenset(key.lower() for key in TRITON_KEYS) if HAS_TRITON else frozenset()
IMPLEMENTED: dict[str, str] = {}
"""The operators that have Triton kernels: name -> ``"package.module:function"``."""
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


@dataclass(frozen=True)
class Kernels:
    """Whether the CPU kernels serve here, and why or why not."""

    loaded: bool
    reason: str


def define(schema: str, reference: Callable[..., Any]) -> None:
    """Registers an operator with its reference, which serves every device that has no kernel of its own.

    Args:
        schema: such as ``"double(Tensor x) -> Tensor"``.
        reference: plain PyTorch; called below autograd.
    """
    _LIBRARY.define(schema)
    _LIBRARY.impl(schema[: schema.index("(")], reference, "CompositeExplicitAutograd")


def implement(name: str, place: str) -> None:
    """Registers the Triton implementation of a defined operator, which is imported when it is first called.

    Without Triton the reference stays in charge, or with ``MOEGATE_STRICT=1`` an error.

    Args:
        name: of the operator.
        place: ``"package.module:function"``.
    """
    IMPLEMENTED[name] = place

    def launch(*arguments: Any) -> Any:
        _check_devices(name, arguments)
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.accelerator.device_index(_device_index(arguments)):
            return implementation(place)(*arguments)

    def refuse(*arguments: Any) -> Any:
        falls_back(name, "Triton is not installed")

    if HAS_TRITON or STRICT:
        for key in TRITON_KEYS:
            _LIBRARY.impl(name, launch if HAS_TRITON else refuse, key)


def _device_index(arguments: tuple[Any, ...]) -> int | None:
    device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
    return None if device.type == "cpu" else device.index


def _check_devices(name: str, arguments: tuple[Any, ...]) -> None:
    """Raises RuntimeError unless all tensors lie on one device: a kernel would read where nothing of theirs is."""
    devices = {argument.device for argument in arguments if isinstance(argument, torch.Tensor)}
    if len(devices) > 1:
        raise RuntimeError(
            f"moegate::{name} takes tensors on one device, got them on {', '.join(sorted(map(str, devices)))}: move "
            "them to one, and load what is on the meta device."
        )


def falls_back(name: str, reason: str) -> None:
    """What an implementation calls before it hands a call to the reference, for want of a kernel that takes it.

    Raises:
        RuntimeError: with ``MOEGATE_STRICT=1``.

    Example:
        >>> falls_back("topk_gate", "float64 logits are for checking gradients")
    """
    if STRICT:
        raise RuntimeError(f"MOEGATE_STRICT=1, and no kernel takes this call of moegate::{name}: {reason}.")


def served_by_triton(device: torch.device) -> bool:
    """Whether the operators that have Triton kernels run as such on a device.

    Example:
        >>> served_by_triton(torch.device("meta"))
        False
    """
    return device.type in _TRITON_DEVICES


@cache
def implementation(place: str) -> Callable[..., Any]:
    """The function at ``"package.module:function"``, imported now."""
    module, function = place.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Registers what an operator returns in shapes and types alone, for ``torch.compile`` and ``torch.export``.

    It also serves a call of which some tensors lie on the meta device, and refuses it unless all of them do.
    """

    @wraps(fake)
    def checked(*arguments: Any, **named: Any) -> Any:
        _check_devices(name, (*arguments, *named.values()))
        return fake(*arguments, **named)

    torch.library.register_fake(f"{NAMESPACE}::{name}", checked, lib=_LIBRARY)


def register_autograd(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Registers the gradient formula of an operator."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


def _load() -> Kernels:
    if SERVER is Server.REFERENCES:
        return Kernels(False, "switched off by MOEGATE_KERNEL=0")
    if SERVER is Server.INTERPRETER:
        return Kernels(False, "left out, MOEGATE_KERNEL=triton has Triton kernels instead")
    path = os.environ.get("MOEGATE_LIBRARY") or _installed()
    if path is None:
        return Kernels(False, _why_not_built())
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return Kernels(False, f"the kernel library can't be loaded: {error}")
    forced = os.environ.get("MOEGATE_ISA")
    if forced:
        torch.ops.moegate.set_cpu_isa(forced)
    return Kernels(True, f"C++ kernels, {torch.ops.moegate.cpu_isa()}")


def _installed() -> str | None:
    # Found like a module, so that an editable install, whose sources lie elsewhere, finds it too.
    found = importlib.util.find_spec("moegate.ops._kernels")
    return None if found is None else found.origin


def _why_not_built() -> str:
    note = importlib.util.find_spec("moegate.ops")
    folders = [] if note is None else list(note.submodule_search_locations or ())
    for folder in folders:
        written = Path(folder) / "no_kernels.txt"
        if written.exists():
            return written.read_text(encoding="utf-8").strip()
    return "the kernel library was not built: install moegate with pip, from a machine with a C++ compiler"


KERNELS = _load()
if STRICT and not KERNELS.loaded and SERVER is not Server.INTERPRETER:
    raise ImportError(f"MOEGATE_STRICT=1, and the CPU kernels are missing: {KERNELS.reason}.")


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Runs the CPU kernels of one instruction set for the length of a block; for tests and studies.

    Example:
        >>> if KERNELS.loaded:
        ...     with forced_isa("scalar"):
        ...         assert torch.ops.moegate.cpu_isa() == "scalar"
    """
    before = torch.ops.moegate.cpu_isa()
    torch.ops.moegate.set_cpu_isa(name)
    try:
        yield
    finally:
        torch.ops.moegate.set_cpu_isa(before)


def available_isas() -> tuple[str, ...]:
    """The instruction sets that the kernels can run on here, the plainest first; empty without kernels."""
    if not KERNELS.loaded:
        return ()
    best = torch.ops.moegate.cpu_isa()
    torch.ops.moegate.set_cpu_isa("")
    names = ("scalar", "avx2", "avx512", "avx512_bf16")
    found = names[: names.index(torch.ops.moegate.cpu_isa()) + 1]
    torch.ops.moegate.set_cpu_isa(best)
    return found
