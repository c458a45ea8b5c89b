"""Alarms: what is wrong with a routing, and what to do about it; each said once."""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from moegate import metrics
from moegate.hf.training.tally import Tally

__all__ = ["Alarms", "RoutingWarning"]


class RoutingWarning(UserWarning):
    """A routing that needs attention."""


@dataclass
class Alarms:
    """Looks at a tally and warns, of each kind of trouble once.

    Attributes:
        names: of the layers.
        top_k: of each layer.
        fair_tokens: the assignments that each expert must have had on average before one without any counts as dead.
        widest_bias: the spread of a bias that is too wide for scores between 0 and 1.
        uniform_entropy: the entropy of a token's probabilities, over ``log E``, from which a router decides nothing.
        patience: the optimizer steps that a router may stay uniform.
        raised: the kinds that were said.

    Example:
        >>> tally = Tally([8])
        >>> tally.add(0, torch.zeros(100, 1, dtype=torch.int64))
        >>> alarms = Alarms(["model.layers.0.mlp"], [1])
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     alarms.look(tally, step=1)
        ...     alarms.look(tally, step=2)
        >>> [str(warning.message)[:48] for warning in said]
        ['Step 1: model.layers.0.mlp has collapsed: its lo']
    """

    names: list[str]
    top_k: list[int]
    fair_tokens: float = 50.0
    widest_bias: float = 1.0
    uniform_entropy: float = 0.999
    patience: int = 200
    raised: set[str] = field(default_factory=set)

    def look(self, tally: Tally, *, step: int, spread: Mapping[int, float] | None = None) -> None:
        """Warn of what a tally shows.

        Args:
            tally: the counts of some steps.
            step: the number of the optimizer step, for the text and for ``patience``.
            spread: of the biases, by the number of the layer.
        """
        for layer in range(len(self.names)):
            for kind, text in self._trouble(tally, layer, step):
                self._say(kind, f"Step {step}: {self.names[layer]} {text}")
        for layer, width in (spread or {}).items():
            if width > self.widest_bias:
                text = f"has a bias that spreads over {width:.2f}, where the scores lie in [0, 1]: " + _WIDE
                self._say("bias", f"Step {step}: {self.names[layer]} {text}")

    def _trouble(self, tally: Tally, layer: int, step: int) -> Iterator[tuple[str, str]]:
        load_E = tally.load(layer).cpu()
        width, total = load_E.numel(), int(load_E.sum())
        if not total or width < 2:
            return
        used, least = metrics.effective_experts(load_E), self.top_k[layer] + 0.1 * (width - self.top_k[layer])
        if used < least:
            yield "collapse", f"has collapsed: its load is that of {used:.1f} of {width} experts. " + _COLLAPSED
        elif total >= self.fair_tokens * width and bool((load_E == 0).any()):
            dead = torch.nonzero(load_E == 0).flatten().tolist()
            shown = ", ".join(map(str, dead[:8])) + (", ..." if len(dead) > 8 else "")
            yield "dead", f"sent nothing to {len(dead)} of {width} experts ({shown}). " + _DEAD
        sureness = tally.entropy(layer) / math.log(width)
        if step >= self.patience and self.uniform_entropy < sureness < 1.001:
            yield "uniform", f"still gives every expert the same probability ({sureness:.4f} of log E). " + _UNIFORM

    def _say(self, kind: str, text: str) -> None:
        if kind not in self.raised:
            self.raised.add(kind)
            warnings.warn(text, RoutingWarning, stacklevel=2)


_COLLAPSED = (
    "Balance it: balance_loss=0.01 for softmax routers, bias_controller=SignBias for those with a selection bias. "
    "Where it is on already, raise the coefficient or the rate, and lower the learning rate of the gates."
)
_DEAD = (
    "An expert without tokens learns nothing and never comes back by itself: balance the layer (balance_loss, "
    "bias_controller), or leave its experts out when you are done."
)
_UNIFORM = (
    "The gate isn't learning: check that its parameters train and are in the optimizer, raise its learning rate, and "
    "lower the coefficient of a balance or z-loss that holds it there."
)
_WIDE = (
    "the bias alone decides, and the weights no longer follow the choice. Lower the controller's rate, or add a loss."
)
