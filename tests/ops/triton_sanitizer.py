"""A sanitizer for Triton kernels in Triton's interpreter: every address that a kernel touches is looked at.

The interpreter runs one program after the other, on raw pointers: a kernel that reads beyond a tensor gets what lies
there, and one whose programs race gives the same result every time. Here both are errors, with the kernel's name:

- a load, store or atomic outside of the tensors that the kernel was given;
- two programs of a launch of which one stores where the other loads or stores, with no atomic that orders them;
- within a program, a load or a store where it stored before, with no barrier between, since other threads may do it;
- a store of different values to one address.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

Addresses = NDArray[np.uint64]
NONE: Addresses = np.empty(0, np.uint64)


class SanitizerError(AssertionError):
    """A kernel did what it must not, on a processor where it would go unnoticed."""


@dataclass
class Launch:
    """What the programs of one launch touched."""

    kernel: str
    starts: Addresses
    ends: Addresses
    program: tuple[int, int, int] = (0, 0, 0)
    loads: list[tuple[int, Addresses]] = field(default_factory=list)
    stores: list[tuple[int, Addresses]] = field(default_factory=list)
    fresh: list[Addresses] = field(default_factory=list)
    """Addresses that the present program stored to since its last barrier."""
    ordered: bool = False
    """Whether an atomic has ordered programs, which this can't follow."""
    may_race: bool = False
    """Whether addresses are looked at alone, and not who else uses them."""

    @property
    def number(self) -> int:
        """The program as one number."""
        x, y, z = self.program
        return x | y << 31 | z << 47

    def fail(self, what: str) -> None:
        raise SanitizerError(f"{self.kernel}, program {self.program}: {what}")

    def touched(self, handle: Any, mask: NDArray[np.bool_] | None, what: str) -> Addresses:
        """The addresses behind a handle that its mask leaves, all of them within the tensors."""
        pointers = np.atleast_1d(handle.data).ravel()
        if mask is not None:
            pointers = pointers[np.broadcast_to(mask, handle.data.shape).ravel().astype(bool)]
        pointers = pointers.astype(np.uint64)
        size = max(1, handle.get_element_ty().primitive_bitwidth // 8)
        place = np.searchsorted(self.starts, pointers, side="right")
        outside = pointers + np.uint64(size) > np.concatenate([NONE, [np.uint64(0)], self.ends])[place]
        if outside.any():
            self.fail(f"{what} of {int(outside.sum())} elements outside of the tensors that it was given")
        return pointers

    def load(self, pointers: Addresses) -> None:
        if self.may_race:
            return
        if any(np.isin(pointers, stored).any() for stored in self.fresh):
            self.fail("loads where it stored, with no barrier between")
        self.loads.append((self.number, pointers))

    def store(self, pointers: Addresses, values: NDArray[Any]) -> None:
        if self.may_race:
            return
        if any(np.isin(pointers, stored).any() for stored in self.fresh):
            self.fail("stores twice to one address, with no barrier between")
        bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
        order = np.lexsort((bits, pointers))
        same = pointers[order][1:] == pointers[order][:-1]
        if (same & (bits[order][1:] != bits[order][:-1])).any():
            self.fail("stores different values to one address at once")
        self.stores.append((self.number, pointers))
        self.fresh.append(pointers)

    def finish(self) -> None:
        """Looks for races between programs."""
        if self.ordered:
            return
        stored, writer = _by_program(self.stores)
        order = np.argsort(stored, kind="stable")
        stored, writer = stored[order], writer[order]
        shared = (stored[1:] == stored[:-1]) & (writer[1:] != writer[:-1])
        if shared.any():
            raise SanitizerError(f"{self.kernel}: programs race, several store to {int(shared.sum())} of the addresses")
        loaded, reader = _by_program(self.loads)
        if not len(stored):
            return
        place = np.minimum(np.searchsorted(stored, loaded), len(stored) - 1)
        if ((stored[place] == loaded) & (writer[place] != reader)).any():
            raise SanitizerError(f"{self.kernel}: programs race, one loads what another one stores")


def _by_program(accesses: list[tuple[int, Addresses]]) -> tuple[Addresses, NDArray[np.int64]]:
    programs = [np.full(len(found), program) for program, found in accesses]
    return np.concatenate([NONE, *(found for _, found in accesses)]), np.concatenate([np.empty(0, np.int64), *programs])


def extents(arguments: tuple[Any, ...]) -> tuple[Addresses, Addresses]:
    """First and last addresses of the tensors among a kernel's arguments, sorted; those that overlap are merged."""
    found = sorted(_extent(argument) for argument in arguments if isinstance(argument, Tensor) and argument.numel())
    merged: list[list[int]] = []
    for start, end in found:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array([m[0] for m in merged], np.uint64), np.array([m[1] for m in merged], np.uint64)


def _extent(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


class Sanitizer:
    """Replaces what the interpreter does at a launch and at each access to memory."""

    def __init__(self, may_race: bool = False) -> None:
        self.may_race = may_race
        self.launches: list[Launch] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        from triton.runtime import interpreter

        builder = interpreter.InterpreterBuilder
        for name in ("load", "store", "barrier"):
            method = f"create_{name}" if name == "barrier" else f"create_masked_{name}"
            patch.setattr(builder, method, self._watching(getattr(builder, method), getattr(self, f"_{name}")))
        for name in ("rmw", "cas"):
            method = f"create_atomic_{name}"
            patch.setattr(builder, method, self._watching(getattr(builder, method), getattr(self, f"_{name}")))
        patch.setattr(builder, "set_grid_idx", self._watching(builder.set_grid_idx, self._next_program))
        patch.setattr(interpreter.GridExecutor, "__call__", self._launching(interpreter.GridExecutor.__call__))

    @property
    def launch(self) -> Launch:
        return self.launches[-1]

    def _watching(self, method: Any, watch: Any) -> Any:
        def watched(builder: Any, *arguments: Any, **options: Any) -> Any:
            watch(*arguments, **options)
            return method(builder, *arguments, **options)

        return watched

    def _launching(self, call: Any) -> Any:
        def launched(executor: Any, *arguments: Any, **options: Any) -> Any:
            with self._watched(executor.fn.__name__, (*arguments, *options.values())):
                return call(executor, *arguments, **options)

        return launched

    @contextmanager
    def _watched(self, kernel: str, arguments: tuple[Any, ...]) -> Iterator[None]:
        self.launches.append(Launch(kernel, *extents(arguments), may_race=self.may_race))
        try:
            # A kernel computes with infinities and NaN as a GPU does, which has no warnings; NumPy has two kinds.
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
                yield
            self.launch.finish()
        finally:
            self.launches.pop()

    def _next_program(self, *program: int) -> None:
        self.launch.program = program
        self.launch.fresh.clear()

    def _load(self, pointers: Any, mask: Any, *_: Any, **options: Any) -> None:
        self.launch.load(self.launch.touched(pointers, mask.data, "a load"))

    def _store(self, pointers: Any, value: Any, mask: Any, *_: Any) -> None:
        addresses = self.launch.touched(pointers, mask.data, "a store")
        shape = pointers.data.shape
        kept = np.broadcast_to(mask.data, shape).ravel().astype(bool)
        self.launch.store(addresses, np.broadcast_to(value.data, shape).ravel()[kept])

    def _barrier(self) -> None:
        self.launch.fresh.clear()

    def _rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, sem: Any, scope: Any) -> None:
        self.launch.touched(pointers, mask.data, "an atomic")
        self._order(sem)

    def _cas(self, pointers: Any, expected: Any, value: Any, sem: Any, scope: Any) -> None:
        self.launch.touched(pointers, None, "an atomic")
        self._order(sem)

    def _order(self, sem: Any) -> None:
        if not str(sem).endswith("RELAXED"):
            self.launch.ordered = True
            self.launch.fresh.clear()
