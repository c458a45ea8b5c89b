"""The forwards of a model, from the outermost call to its return: what its layers need to know of the batch."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moegate.hf.calls import recomputing

__all__ = ["ForwardPass", "PassWatch"]

_IGNORED = -100


@dataclass(eq=False)
class ForwardPass:
    """One forward of the model, from the outermost call to its return, and what its backward finds out.

    Attributes:
        training: whether the model was in training mode.
        masks: ``[B, S]`` bool masks of the real tokens by the name of the argument; absent where none was passed.
        encodes: whether the model has an encoder and a decoder, with a mask each.
        share: the part of the optimizer step's loss that this batch makes, where the loss is a sum over its tokens
            divided by those of the step; 1 where it is a mean.
        router_logits: the call's own ``output_router_logits``, by which models add their pooled loss; None where the
            configuration decides.
        coefficients: of each layer's balance loss; empty without one.
        own: the coefficient of the model's pooled loss, by which a trainer may multiply ``outputs.aux_loss``.
        received: ``expert_index`` of each call of each layer's experts, by the layer's number.
        losses: the loss of each layer, without a graph, by the layer's number.
        scale: the gradient that reached the balance loss of this pass; None where none did.
    """

    training: bool
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    encodes: bool = False
    share: Tensor | float = 1.0
    router_logits: bool | None = None
    coefficients: tuple[float, ...] = ()
    own: float = 0.0
    received: dict[int, list[Tensor]] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)
    scale: Tensor | None = None

    def real_tokens(self, layer_name: str, num_rows: int) -> Tensor | None:
        """``[T]`` bool: the real ones among the rows of a layer; None where all are, or where no mask fits.

        With a cache, the rows are the last columns of the mask.

        Example:
            >>> padded = ForwardPass(True, {"attention_mask": torch.tensor([[True, True], [False, True]])})
            >>> padded.real_tokens("model.layers.0.mlp", 4).tolist()
            [True, True, False, True]
        """
        decodes = self.encodes and "decoder" in layer_name.split(".")
        mask_BS = self.masks.get("decoder_attention_mask" if decodes else "attention_mask")
        if mask_BS is None or not mask_BS.numel() or num_rows % mask_BS.shape[0]:
            return None
        length = num_rows // mask_BS.shape[0]
        return None if length > mask_BS.shape[1] else mask_BS[:, mask_BS.shape[1] - length :].reshape(-1)


class PassWatch:
    """Calls ``opened`` before and ``closed`` after each outermost forward of a model or of the models inside it.

    ``closed`` gets the output and returns what to put in its place, or None to leave it. The inner models count because
    some trainers call them around the outer one's head.
    """

    def __init__(
        self, model: nn.Module, opened: Callable[[ForwardPass], None], closed: Callable[[ForwardPass, Any], Any]
    ) -> None:
        self.current: ForwardPass | None = None
        self._opened, self._closed = opened, closed
        self._depth = 0
        self._handles = [handle for module in _models(model) for handle in self._watch(module)]

    def remove(self) -> None:
        """Ends the watch."""
        for handle in self._handles:
            handle.remove()

    def _watch(self, module: nn.Module) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(torch.compiler.disable(self._enter), with_kwargs=True)
        yield module.register_forward_hook(torch.compiler.disable(self._leave), with_kwargs=True, always_call=True)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if recomputing():
            return
        self._depth += 1
        if self._depth == 1:
            self.current = _read(module, _arguments(module, args, kwargs))
            self._opened(self.current)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if recomputing() or self._depth == 0:
            return None
        self._depth -= 1
        if self._depth or self.current is None:
            return None
        current, self.current = self.current, None
        return self._closed(current, output)


def _models(model: nn.Module) -> list[nn.Module]:
    """The model that was passed, and the transformers models inside it."""
    return [module for module in model.modules() if module is model or hasattr(type(module), "base_model_prefix")]


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those of ``**kwargs`` included."""
    if not args:
        return kwargs
    with suppress(TypeError, ValueError):  # the module's own forward will say what is wrong with the call
        return {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}
    return kwargs


def _read(module: nn.Module, arguments: Mapping[str, Any]) -> ForwardPass:
    masks = {
        name: mask.bool()
        for name in ("attention_mask", "decoder_attention_mask")
        if isinstance(mask := arguments.get(name), Tensor) and mask.dim() == 2
    }
    encodes = bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))
    share = _share(arguments, shifts=not encodes)
    return ForwardPass(module.training, masks, encodes, share, arguments.get("output_router_logits"))


def _share(arguments: Mapping[str, Any], *, shifts: bool) -> Tensor | float:
    """The labels of this batch over ``num_items_in_batch``, as the loss functions of transformers count them."""
    total, labels = arguments.get("num_items_in_batch"), arguments.get("labels")
    if total is None or not isinstance(labels, Tensor):
        return 1.0
    if isinstance(shifted := arguments.get("shift_labels"), Tensor):
        labels = shifted
    elif shifts:
        labels = labels[..., 1:]
    counted: Tensor = (labels != _IGNORED).sum() / total
    return counted
