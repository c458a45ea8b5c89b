"""The balance loss that the models of transformers add to their own, all layers thrown together: silenced, and back."""

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["PooledLoss"]

_NAMES = ("router_aux_loss_coef", "aux_loss_coef")


class PooledLoss:
    """The coefficients by which a model adds its pooled balance loss.

    Some models read them from themselves, some from their configuration. ``silence`` sets them to 0 and ``restore``
    puts back what was there; between the two, a saved configuration would hold the 0, so a forward is as long as that
    lasts.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(1, 1)
        >>> model.router_aux_loss_coef = 0.02
        >>> pooled = PooledLoss(model)
        >>> pooled.silence()
        >>> model.router_aux_loss_coef, pooled.coefficient
        (0.0, 0.02)
        >>> pooled.restore()
        >>> model.router_aux_loss_coef
        0.02
    """

    def __init__(self, model: nn.Module) -> None:
        self._owners = list(_owners(model))
        self._configs = list(_configs(model))
        self._kept: list[tuple[Any, str, float]] = []

    @property
    def coefficient(self) -> float:
        """The coefficient; 0 for a model that has none."""
        if self._kept:
            return self._kept[0][2]
        return next((float(getattr(owner, name)) for owner, name in self._owners), 0.0)

    @property
    def is_added(self) -> bool:
        """Whether the model adds it where a call doesn't say: the configuration's ``output_router_logits``."""
        return any(bool(getattr(config, "output_router_logits", False)) for config in self._configs)

    def silence(self) -> None:
        """Set the coefficients to 0."""
        if not self._kept:
            self._kept = [(owner, name, getattr(owner, name)) for owner, name in self._owners]
            for owner, name in self._owners:
                setattr(owner, name, 0.0)

    def restore(self) -> None:
        """Put the coefficients back."""
        for owner, name, value in self._kept:
            setattr(owner, name, value)
        self._kept = []


def _owners(model: nn.Module) -> Iterator[tuple[Any, str]]:
    for owner in (*_configs(model), *model.modules()):
        yield from ((owner, name) for name in _NAMES if isinstance(vars(owner).get(name), int | float))


def _configs(model: nn.Module) -> Iterator[Any]:
    """The configurations inside a model, each once."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else None
        for one in (config, text):
            if one is not None and id(one) not in seen:
                seen.add(id(one))
                yield one
