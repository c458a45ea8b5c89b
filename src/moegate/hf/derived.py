"""A module's class changed in place: its parameters, buffers, hooks and name stay, its forward is another."""

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
        changed: nn.Module = module
        changed.__class__ = module.own_class


_CLASSES: dict[tuple[Any, Any], Any] = {}
"""Made once, so that the parts of a model that were of one class are so again, and compilers know them."""


def _class_of(mixin: Any, own: Any) -> Any:
    if (mixin, own) not in _CLASSES:
        members = {"own_class": own, "__module__": mixin.__module__}
        _CLASSES[mixin, own] = type(f"{mixin.__name__}{own.__name__}", (mixin, own), members)
    return _CLASSES[mixin, own]


def _unpickled(mixin: type[Derived], own: type[nn.Module]) -> nn.Module:
    kind: type[nn.Module] = _class_of(mixin, own)
    return kind.__new__(kind)
