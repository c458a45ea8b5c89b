"""The selection biases of a model, moved towards balance by a controller a layer, in float32, once a step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moegate.balance.controllers import BiasController
from moegate.hf.layers import MoELayer
from moegate.hf.training.freezing import is_bias, router_is_frozen

__all__ = ["BiasUpdate"]


class BiasUpdate:
    """A controller for the selection bias of each layer that has one; the model's own tensor is changed in place.

    The bias is kept in float32 beside the model's: in bfloat16, a step of 0.001 vanishes from 0.5 on. What a
    checkpoint brings, or anything else that writes to the model's bias, is taken over. Each step's change has its mean
    taken off, so the biases don't drift; only their differences select. The bias of a layer whose router is frozen
    stays.

    A bias that is a parameter gets no gradient from the selection and no place in training: its ``requires_grad`` is
    turned off, which also keeps it out of an optimizer that is made later.

    Args:
        layers: the MoE layers; those without a bias are left alone.
        make: a controller for a number of experts, such as ``SignBias``.

    Raises:
        ValueError: no layer has a bias, or the controller reads more than the load.

    Example:
        >>> from moegate.balance.controllers import SignBias
        >>> BiasUpdate([], SignBias)
        Traceback (most recent call last):
            ...
        ValueError: No MoE layer of this model has a selection bias: leave bias_controller out, and balance with a loss.
    """

    def __init__(self, layers: Sequence[MoELayer], make: Callable[[int], BiasController]) -> None:
        self._layers = {number: layer for number, layer in enumerate(layers) if layer.bias is not None}
        if not self._layers:
            raise ValueError(
                "No MoE layer of this model has a selection bias: leave bias_controller out, and balance with a loss."
            )
        self.controllers = {number: make(layer.num_experts) for number, layer in self._layers.items()}
        for controller in self.controllers.values():
            if type(controller).observe is not BiasController.observe:
                raise ValueError(
                    f"{type(controller).__name__} reads the scores of each token, and here only the load is counted: "
                    "pass SignBias, ProportionalBias, PIDBias or SMEBUBias."
                )
        self.master = {
            number: _bias(layer).detach().float().reshape(-1).clone() for number, layer in self._layers.items()
        }
        for layer in self._layers.values():
            for parameter in layer.block.parameters():
                if is_bias(parameter, layer):
                    parameter.requires_grad_(False)

    @property
    def frozen(self) -> list[str]:
        """The names of the layers whose bias stays, because their router is frozen."""
        return [layer.name for layer in self._layers.values() if router_is_frozen(layer)]

    @torch.no_grad()
    def update(self, load: Callable[[int], Tensor]) -> None:
        """Move each bias by one step of its controller, given ``load(number)``, the counts of all ranks."""
        for number, layer in self._layers.items():
            load_E = load(number)
            if router_is_frozen(layer) or not bool(load_E.any()):
                continue
            bias, controller = _bias(layer), self.controllers[number].to(load_E.device)
            master_E = self._current(number, bias)
            delta_E = controller.step(load_E).to(bias.device)
            # Entries past the experts are of what is no expert, such as ZAYA's way around them: they stay.
            master_E[: len(delta_E)] += delta_E - delta_E.mean()
            bias.copy_(master_E.reshape(bias.shape))

    def spread(self) -> dict[int, float]:
        """The largest less the smallest bias of each layer."""
        return {number: float(master_E.max() - master_E.min()) for number, master_E in self.master.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The float32 biases and the controllers' state, by layer."""
        state = {f"master.{self._layers[number].name}": master_E for number, master_E in self.master.items()}
        for number, controller in self.controllers.items():
            prefix = f"controller.{self._layers[number].name}."
            state |= {prefix + name: value for name, value in controller.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; the model's own biases are set to it too.

        Raises:
            ValueError: the state is of other layers or sizes.
        """
        expected = self.state_dict()
        wrong = [key for key, value in expected.items() if key not in state or state[key].shape != value.shape]
        if wrong or len(state) != len(expected):
            raise ValueError(
                f"This state is of another model or controller: {len(state)} entries for {len(expected)}"
                f"{', without a fitting ' + wrong[0] if wrong else ''}. Resume with the model and the bias_controller "
                "that wrote it."
            )
        for number, layer in self._layers.items():
            prefix = f"controller.{layer.name}."
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            self.controllers[number].load_state_dict(own)
            bias = _bias(layer)
            self.master[number] = state[f"master.{layer.name}"].to(bias.device, torch.float32).clone()
            with torch.no_grad():
                bias.copy_(self.master[number].reshape(bias.shape))

    def _current(self, number: int, bias: Tensor) -> Tensor:
        """The float32 bias; that of the model, if something else has changed it."""
        master_E = self.master[number].to(bias.device)
        if not torch.equal(master_E.to(bias.dtype).reshape(bias.shape), bias):
            master_E = bias.detach().float().reshape(-1).clone()
        self.master[number] = master_E
        return master_E


def _bias(layer: MoELayer) -> Tensor:
    bias = layer.bias
    assert bias is not None
    return bias
