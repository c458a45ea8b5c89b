"""``RoutingMonitor``: watches the routing of a model while it trains, and balances it if asked; for any loop."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moegate.balance.controllers import BiasController, SignBias
from moegate.hf.calls import recomputing
from moegate.hf.layers import MoELayer, moe_layers
from moegate.hf.training.balance_loss import LayerLosses
from moegate.hf.training.bias_update import BiasUpdate
from moegate.hf.training.layer_watch import LayerWatch
from moegate.hf.training.passes import ForwardPass, PassWatch
from moegate.hf.training.pooled_loss import PooledLoss
from moegate.hf.training.router_logits import score_of
from moegate.hf.training.summary import summarize
from moegate.hf.training.tally import Tally
from moegate.scoring import Softmax

__all__ = ["RoutingMonitor"]


class RoutingMonitor:
    """Watches what the experts of a model receive in training, and balances it.

    Counts are of real tokens (``attention_mask``), of what the experts really received, once for a forward that
    checkpointing repeats, and apart for training and evaluation. Call ``step`` once after each optimizer step; it sums
    the counts of the step's forwards over all ranks with one ``all_reduce``.

    - ``bias_controller`` moves the selection biases of families that have one; see ``BiasUpdate``.
    - ``balance_loss`` adds each layer's own load-balancing loss to the loss that the model returns in training (perfect
      balance reads 1.0 a layer), in place of the model's pooled one, which is silent until ``close``. It reaches the
      gates through the backward of that loss, with whatever scale that gets; where a trainer makes its loss of other
      outputs, with ``unclaimed``.

    Args:
        model: a model with MoE layers that ``moe_layers`` finds; not yet wrapped.
        balance_loss: the coefficient of each layer's loss; ``"model"`` for the weight of the model's own pooled one,
            ``"auto"`` for the same in forwards that would add the pooled one, None for no loss.
        bias_controller: makes a controller for a number of experts, such as ``SignBias`` or a ``partial`` of it;
            ``"auto"`` for ``SignBias`` where the model has selection biases on scores other than a softmax's (whose
            size, 1 over the experts, a rate would have to follow); None leaves the biases alone.
        process_group: the ranks that share the data; None is the default group.
        unclaimed: the scale of the balance loss in a backward that the model's loss isn't part of, such as 1 over the
            micro-batches of a step; 0 adds none there.
        aux_loss_coefficient: by which a trainer multiplies ``outputs.aux_loss``; None for the model's own coefficient.

    Raises:
        ValueError: no MoE layer, a bad coefficient, or nothing for the controller to do.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> ids = torch.arange(12).view(2, 6)
        >>> with RoutingMonitor(model, balance_loss=0.01) as monitor:
        ...     model(input_ids=ids, labels=ids).loss.backward()
        ...     monitor.step()
        >>> monitor.window.tokens(0), int(monitor.window.load(0).sum())
        (12, 24)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        balance_loss: float | str | None = None,
        bias_controller: Callable[[int], BiasController] | str | None = None,
        process_group: dist.ProcessGroup | None = None,
        unclaimed: float = 1.0,
        aux_loss_coefficient: float | None = None,
    ) -> None:
        self.layers: list[MoELayer] = moe_layers(model)
        if not self.layers:
            raise ValueError(
                f"{type(model).__name__} has no MoE layer that moegate knows: `moegate hf families` lists what it does."
            )
        self._group, self._own = process_group, aux_loss_coefficient
        self._pooled = PooledLoss(model)
        self._losses: LayerLosses | None = None
        if balance_loss is not None:
            self._losses = LayerLosses(balance_loss, tuple(layer.top_k for layer in self.layers))
        controller = _controller(self.layers, bias_controller)
        self.bias = None if controller is None else BiasUpdate(self.layers, controller)
        sizes = [layer.num_experts for layer in self.layers]
        self._step, self._evaluated = Tally(sizes), Tally(sizes)
        self.window = Tally(sizes)
        """Training since ``window`` was last cleared, of all ranks."""
        self._balance: Tensor | None = None
        self._loss_sums: dict[int, tuple[Tensor, int]] = {}
        self._live: list[weakref.ref[ForwardPass]] = []
        self._last: ForwardPass | None = None
        self._passes = PassWatch(model, self._open, self._close)
        self._watches = [
            LayerWatch(number, layer, passes=self._pass_of, report=self._count, has_loss=self._losses is not None)
            for number, layer in enumerate(self.layers)
        ]
        self.set_unclaimed(unclaimed)

    def __enter__(self) -> "RoutingMonitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks away; the model's own pooled loss is back."""
        self._pooled.restore()
        self._passes.remove()
        for watch in self._watches:
            watch.remove()

    def set_unclaimed(self, scale: float) -> None:
        """The scale of the balance loss in a backward that the model's loss isn't part of."""
        for watch in self._watches:
            watch.unclaimed = scale

    def step(self, *, skipped: bool = False) -> None:
        """End an optimizer step: sum its counts over the ranks, and move the biases.

        Args:
            skipped: the optimizer did not step, such as after an overflow; then the biases stay and the counts are
                forgotten. It must be the same on all ranks.
        """
        if not skipped:
            total = self._step.over_ranks(self._group)
            self.window.include(total)
            if self.bias is not None:
                self.bias.update(total.load)
        self._step.clear()

    def clear(self) -> None:
        """Forget what training has counted, such as that of a run that was broken off."""
        self._step.clear()
        self.window.clear()
        self._loss_sums = {}

    @property
    def has_counts(self) -> bool:
        """Whether the window holds any token."""
        return any(self.window.tokens(number) for number in range(len(self.layers)))

    def balance_loss(self) -> Tensor:
        """The weighted balance loss of the last forward in training, for a loop that makes its own loss.

        The loss that the model returns holds it already: add it where you don't use that one.

        Raises:
            ValueError: no balance loss was asked for, or no forward in training had a graph.
        """
        if self._balance is None:
            raise ValueError(
                "There is no balance loss to add: make the monitor with balance_loss=..., call the model in training "
                "mode with gradients, and ask after each forward once."
            )
        balance, self._balance = self._balance, None
        return balance

    def layer_losses(self) -> dict[str, float]:
        """The mean balance loss of each layer since it was last asked, on this rank; 1.0 is perfect balance."""
        means = {
            self.layers[number].name: float(total) / count for number, (total, count) in sorted(self._loss_sums.items())
        }
        self._loss_sums = {}
        return means

    def evaluation(self) -> Tally:
        """The counts of all evaluation since it was last asked, of all ranks; every rank must ask."""
        total = self._evaluated.over_ranks(self._group)
        self._evaluated.clear()
        return total

    def metrics(self, tally: Tally | None = None) -> dict[str, float]:
        """A fixed number of named numbers, however many layers and experts; of the window, or of a tally."""
        spread = {} if self.bias is None else self.bias.spread()
        return summarize(self.window if tally is None else tally, spread=list(spread.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs besides the model: the float32 biases and their controllers."""
        return {} if self.bias is None else self.bias.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a run.

        Raises:
            ValueError: the state doesn't fit.
        """
        if self.bias is not None:
            self.bias.load_state_dict(state)
        elif state:
            raise ValueError(
                "The state holds biases, but this monitor has no bias_controller: pass the one it was made with."
            )

    def _open(self, now: ForwardPass) -> None:
        if self._losses is not None:
            # Read now: a trainer may set it after this was made.
            now.own = self._pooled.coefficient if self._own is None else self._own
            pooled = self._pooled.is_added if now.router_logits is None else now.router_logits
            now.coefficients = self._losses.coefficients(now.own, pooled=pooled)
        if now.coefficients:
            self._pooled.silence()
            self._live = [reference for reference in self._live if reference() is not None] + [weakref.ref(now)]
        # The last pass is held: a trainer may drop the outputs and keep only what it made of them.
        self._last = now

    def _close(self, now: ForwardPass, output: Any) -> Any:
        self._pooled.restore()
        if self._losses is None or not now.coefficients or not now.training or output is None:
            return None
        for number, loss in now.losses.items():
            total, count = self._loss_sums.get(number, (torch.zeros_like(loss), 0))
            self._loss_sums[number] = total + loss, count + 1
        self._check_gates(now)
        if not torch.is_grad_enabled():
            return None
        output, self._balance = self._losses.join(now, output)
        return output

    def _check_gates(self, now: ForwardPass) -> None:
        unread = [
            layer.name
            for number, layer in enumerate(self.layers)
            if number in now.received and number not in now.losses
        ]
        if unread:
            raise ValueError(
                f"{unread[0]} has no gate whose logits can be read, so it has no balance loss here: leave balance_loss "
                "out; statistics and bias_controller work."
            )

    def _pass_of(self, number: int, expert_index_TK: Tensor) -> ForwardPass | None:
        """The pass that a call of a layer's experts belongs to; in a backward, the one that it repeats."""
        if not recomputing():
            now = self._passes.current
            if now is not None and now.coefficients:
                now.received.setdefault(number, []).append(expert_index_TK.to(torch.int16))
            return now
        if self._losses is None:
            return None
        live = [now for reference in self._live if (now := reference()) is not None]
        if len(live) > 1:  # several forwards in one backward: the experts tell them apart
            live = [now for now in live if _holds(now.received.get(number, ()), expert_index_TK)] or live[-1:]
        return live[0] if live else None

    def _count(self, number: int, expert_index: Tensor, real: Tensor | None, entropy: Tensor | None) -> None:
        now = self._passes.current
        if now is not None:
            (self._step if now.training else self._evaluated).add(number, expert_index, real, entropy)


def _controller(
    layers: list[MoELayer], given: Callable[[int], BiasController] | str | None
) -> Callable[[int], BiasController] | None:
    if not isinstance(given, str):
        return given
    if given != "auto":
        raise ValueError(f'bias_controller={given!r}: pass a controller such as SignBias, "auto" or None.')
    biased = any(layer.bias is not None and not isinstance(score_of(layer), Softmax) for layer in layers)
    return SignBias if biased else None


def _holds(calls: Any, expert_index_TK: Tensor) -> bool:
    return any(
        call.shape == expert_index_TK.shape and torch.equal(call, expert_index_TK.to(call.dtype)) for call in calls
    )
