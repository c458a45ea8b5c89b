"""A module's class changed in place: its parameters, buffers, hooks and name stay, its forward is another."""

from functools import lru_cache
from typing import Any

from torch import nn

__all__ = ["Derived", "derive", "restore"]


class Derived(nn.Module):
    """What is mixed into a module's own class; ``own_class`` is that class."""

    own_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The derived class has no name that a file could give; it is derived anew from two that have.
        return _unpickled, (type(self).__mro__[1], self.own_class), self.__dict__


def derive(module: nn.Module, mixin: type[Derived]) -> None:
    """Puts a mixin before the class of a module.

    Example:
        >>> class Doubled(Derived):
        ...     def forward(self, x):
        ...         return 2 * self.own_class.forward(self, x)
        >>> module = nn.Identity()
        >>> derive(module, Doubled)
        >>> module(3), isinstance(module, nn.Identity)
        (6, True)
        >>> restore(module)
        >>> module(3), type(module).__name__
        (3, 'Identity')
    """
    module.__class__ = _class_of(mixin, type(module))


def restore(module: nn.Module) -> None:
    """Gives a module its own class back."""
    if isinstance(module, Derived):
        module.__class__ = module.own_class


@lru_cache(maxsize=1024)
def _class_of(mixin: type[Derived], own: type[nn.Module]) -> type[nn.Module]:
    return type(f"{mixin.__name__}{own.__name__}", (mixin, own), {"own_class": own, "__module__": mixin.__module__})


def _unpickled(mixin: type[Derived], own: type[nn.Module]) -> nn.Module:
    kind = _class_of(mixin, own)
    return kind.__new__(kind)
