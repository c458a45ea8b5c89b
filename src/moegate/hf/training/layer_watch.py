"""One layer while a model trains: what its experts received is counted, and its loss joins the backward."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moegate.hf.calls import recomputing
from moegate.hf.layers import MoELayer
from moegate.hf.received import Handles, Received, watch
from moegate.hf.training.balance_loss import layer_balance
from moegate.hf.training.injection import inject
from moegate.hf.training.passes import ForwardPass
from moegate.hf.training.router_logits import probabilities, score_of, watch_logits
from moegate.probability import entropy

__all__ = ["LayerCall", "LayerWatch"]


class LayerCall(Protocol):
    """What is told about a call of a layer's experts."""

    def __call__(self, number: int, expert_index: Tensor, real: Tensor | None, entropy: Tensor | None) -> None:
        """A layer's number, its experts ``[T, K]``, the real tokens ``[T]`` and their entropies ``[T]``."""
        ...


class LayerWatch:
    """Watches one layer: reports what its experts received, and hangs the layer's loss on what they return.

    Args:
        number: the layer's number.
        layer: the layer.
        passes: the pass that a call belongs to, from what the experts of this layer received; None outside of any.
        report: called once for each call of the experts, and not again when checkpointing repeats it.
        has_loss: whether passes may come with coefficients for balance losses.
    """

    unclaimed = 0.0
    """The scale of the loss where nothing outside reads it."""

    def __init__(
        self,
        number: int,
        layer: MoELayer,
        *,
        passes: Callable[[int, Tensor], ForwardPass | None],
        report: LayerCall,
        has_loss: bool,
    ) -> None:
        self.number, self.layer = number, layer
        self._passes, self._report = passes, report
        self._score = score_of(layer)
        self._logits_TE: Tensor | None = None
        self._pending: tuple[Tensor, ForwardPass] | None = None
        # First the logits: where the gate itself tells the experts' indices, both hang on it.
        logits = watch_logits(layer, self._see_logits, graph=has_loss)
        received = watch(layer, torch.compiler.disable(self._see))
        self._handles: list[RemovableHandle | Handles] = [received] if logits is None else [logits, received]
        if has_loss:
            self._handles.append(layer.experts.register_forward_hook(torch.compiler.disable(self._leave)))

    def remove(self) -> None:
        """Ends the watch."""
        for handle in self._handles:
            handle.remove()

    def _see_logits(self, logits_TE: Tensor) -> None:
        self._logits_TE = logits_TE

    def _see(self, received: Received) -> None:
        logits_TE, self._logits_TE = self._logits_TE, None
        index_TK = received.expert_index.detach()
        index_TK = index_TK.reshape(-1, index_TK.shape[-1])
        now = self._passes(self.number, index_TK)
        if now is None:
            return
        real_T = now.real_tokens(self.layer.name, index_TK.shape[0])
        real_T = None if real_T is None else real_T.to(index_TK.device)
        shares_TE = None
        if logits_TE is not None and logits_TE.shape[0] == index_TK.shape[0]:
            trains = bool(now.coefficients) and now.training
            with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
                # Logits past the experts are of what is no expert, such as ZAYA's way around them.
                shares_TE = probabilities(logits_TE[:, : self.layer.num_experts], self._score)
                if trains:
                    self._add_loss(layer_balance(shares_TE, index_TK, real_T), now)
        if not recomputing():
            nats_T = None if shares_TE is None else entropy(shares_TE.detach())
            self._report(self.number, index_TK, real_T, nats_T)

    def _add_loss(self, loss: Tensor, now: ForwardPass) -> None:
        if not recomputing():
            now.losses[self.number] = loss.detach()
        if loss.requires_grad:
            self._pending = now.coefficients[self.number] * loss, now

    def _leave(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        parts = list(output) if isinstance(output, tuple) else [output]
        for place, part in enumerate(parts):
            if isinstance(part, Tensor) and part.requires_grad:
                parts[place] = inject(part, *pending, self.unclaimed)
                return tuple(parts) if isinstance(output, tuple) else parts[0]
        return None
