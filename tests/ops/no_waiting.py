"""A net that catches whatever would make Python wait for a GPU, in tests that have none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moegate.ops import library

_READS_NUMBERS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::argwhere",
    "aten::masked_select",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
    "aten::lift_fresh",  # of torch.tensor(numbers), which a GPU receives by a copy that is waited for
}


class Waits(AssertionError):
    """Something asked for the numbers in a tensor."""


class _Net(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in _READS_NUMBERS or func.name() in _READS_NUMBERS or _is_masked_index(name, args):
            raise Waits(f"{func.name()} makes Python wait for a GPU.")
        return func(*args, **(kwargs or {}))


def _is_masked_index(name: str, args: Any) -> bool:
    """Whether a tensor is indexed by bools, so that the shape of the result depends on them."""
    if not name.startswith(("aten::index", "aten::_index_put", "aten::_unsafe_index")) or len(args) < 2:
        return False
    indices = args[1] if isinstance(args[1], list | tuple) else ()
    return any(isinstance(index, torch.Tensor) and index.dtype in {torch.bool, torch.uint8} for index in indices)


@contextmanager
def nothing_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Raises ``Waits`` where Python would wait, also within the launch code of our own operators."""
    found = library.implementation

    def watched(place: str) -> Any:
        function = found(place)

        def call(*args: Any) -> Any:
            with _Net():
                return function(*args)

        return call

    def refused(*_: object) -> None:
        raise Waits("To read a tensor makes Python wait for a GPU.")

    with monkeypatch.context() as patch, _Net():
        patch.setattr(library, "implementation", watched)
        for name in ("tolist", "numpy", "cpu"):  # on a CPU they read without an operator that the net would see
            patch.setattr(torch.Tensor, name, refused)
        yield
