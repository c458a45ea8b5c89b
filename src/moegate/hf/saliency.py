"""``saliency``: what each expert of a model contributes, by router weight times output norm, to say which can go."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moegate.hf.layers import MoELayer, moe_layers
from moegate.hf.loading import TextBatch
from moegate.trace.whole_file import write_whole

__all__ = ["Saliency", "saliency", "save_saliency"]

_READABLE = ("top_k", "dbrx", "skips")
"""The ways in which experts receive hidden states, indices and weights, so that they can be asked slot by slot."""

_PAIRED = ("longcat_flash",)
"""Families whose experts squeeze a single slot away: the slot is doubled there, with the weight 0."""


@dataclass(frozen=True, eq=False)
class Saliency:
    """Sums over the tokens, by layer and expert, and the scores that are made of them.

    Attributes:
        layers: the names of the ``L`` layers.
        num_experts: ``E`` of each layer.
        tokens: ``[L]`` int64, real tokens that the layer saw.
        count: ``[L, E]`` int64, tokens of each expert.
        weight: ``[L, E]`` float64, sum of the router's weights.
        contribution: ``[L, E]`` float64, sum of the norms of what the expert added: weight times output.
    """

    layers: tuple[str, ...]
    num_experts: tuple[int, ...]
    tokens: Tensor
    count: Tensor
    weight: Tensor
    contribution: Tensor

    @property
    def reap(self) -> Tensor:
        """``[L, E]`` float64, the mean over an expert's tokens of ``g · ‖f(x)‖``; 0 for an expert without tokens.

        Source: REAP, arXiv 2510.13999.
        """
        return self.contribution / self.count.clamp(min=1)

    @property
    def frequency(self) -> Tensor:
        """``[L, E]`` float64, the share of the tokens that go to the expert."""
        return self.count / self.tokens.clamp(min=1)[:, None].double()

    @property
    def weight_mass(self) -> Tensor:
        """``[L, E]`` float64, the weight of the expert, averaged over all tokens of the layer."""
        return self.weight / self.tokens.clamp(min=1)[:, None]

    def scores(self, by: str = "reap") -> Tensor:
        """``[L, E]``: ``"reap"``, ``"frequency"`` or ``"weight"``."""
        if by not in _SCORES:
            raise ValueError(f"{by!r} is no score; there are {', '.join(_SCORES)}.")
        return _SCORES[by](self)

    def dropped(self, keep: int, by: str = "reap") -> list[list[int]]:
        """For each layer the experts to drop so that ``keep`` stay: those with the least scores, the least first.

        Raises:
            ValueError: a layer has fewer experts than are to stay, or there is no such score.
        """
        fewest = min(self.num_experts, default=0)
        if not 1 <= keep <= fewest:
            raise ValueError(f"keep is {keep}, but must be from 1 to {fewest}, the experts of a layer.")
        rows = zip(self.scores(by), self.num_experts, strict=True)
        return [row_E[:size].argsort(stable=True)[: size - keep].tolist() for row_E, size in rows]


_SCORES: dict[str, Callable[[Saliency], Tensor]] = {
    "reap": lambda found: found.reap,
    "frequency": lambda found: found.frequency,
    "weight": lambda found: found.weight_mass,
}


def saliency(model: nn.Module, batches: Iterable[TextBatch], *, seen: Callable[[int], None] | None = None) -> Saliency:
    """Runs a model over texts and scores each of its experts.

    The experts' own module is asked for each slot by itself, through whichever implementation is set, so that the norms
    are those of what it really adds. That is the work of ``K + 1`` forwards of the experts for one of the rest.

    Args:
        model: a model of transformers; it is run as it is, in evaluation mode or not.
        batches: such as ``moegate.hf.loading.texts_to_batches`` gives.
        seen: called after each batch with the number of its tokens, to show progress.

    Raises:
        ValueError: the model has no MoE layer, or one whose experts can't be asked slot by slot.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> from moegate.hf.loading import ByteTokenizer, texts_to_batches
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 256}
        >>> config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=4)
        >>> found = saliency(MixtralForCausalLM(config), texts_to_batches(["some text"], ByteTokenizer()))
        >>> found.reap.shape, found.tokens.tolist(), [len(layer) for layer in found.dropped(keep=3)]
        (torch.Size([2, 4]), [9, 9], [1, 1])
    """
    layers = moe_layers(model)
    _check(layers)
    sums = [_Sums(layer.num_experts) for layer in layers]
    device = next(model.parameters()).device
    mask: list[Tensor] = []
    handles = [_attach(layer, one, mask) for layer, one in zip(layers, sums, strict=True)]
    try:
        with torch.no_grad():
            for batch in batches:
                mask[:] = [batch.attention_mask.reshape(-1).bool().to(device)]
                model(**batch.to(device).inputs, use_cache=False)
                if seen is not None:
                    seen(batch.num_tokens)
    finally:
        for handle in handles:
            handle.remove()
    return _result(layers, sums)


def save_saliency(found: Saliency, path: str | Path) -> Path:
    """Writes the sums and scores ``[L, E]`` as a safetensors file, whole or not at all; returns the path.

    The metadata hold the names of the layers, and their numbers of experts, as JSON.
    """
    tensors = {name: getattr(found, name) for name in ("tokens", "count", "weight", "contribution")}
    tensors |= {name: found.scores(name).contiguous() for name in ("reap", "frequency")}
    metadata = {"layers": json.dumps(found.layers), "num_experts": json.dumps(found.num_experts)}
    return write_whole(path, save(tensors, metadata | {"format": "moegate-saliency"}))


class _Sums:
    """What is added up for one layer."""

    def __init__(self, num_experts: int) -> None:
        self.tokens = 0
        self.count_E = torch.zeros(num_experts, dtype=torch.int64)
        self.weight_E = torch.zeros(num_experts, dtype=torch.float64)
        self.contribution_E = torch.zeros(num_experts, dtype=torch.float64)

    def add(self, index_N: Tensor, weight_N: Tensor, norm_N: Tensor) -> None:
        index_N = index_N.cpu().long()
        self.count_E += torch.bincount(index_N, minlength=len(self.count_E))
        self.weight_E.index_add_(0, index_N, weight_N.cpu().double())
        self.contribution_E.index_add_(0, index_N, norm_N.cpu().double())


def _attach(layer: MoELayer, sums: _Sums, mask: list[Tensor]) -> RemovableHandle:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], _: Any) -> None:
        hidden, index_TK, weights_TK = (*args, *kwargs.values())[:3]
        if len(index_TK) != len(mask[0]):
            raise ValueError(
                f"The experts of {layer.name} received {len(index_TK)} tokens of a batch of {len(mask[0])}, so that it "
                "is not known which of them are padding: pass batches that go through the model whole."
            )
        # A token that skips the experts, or an expert of another rank, is handed over with the weight 0 or no number.
        real_TK = mask[0][:, None] & (index_TK >= 0) & (index_TK < sums.count_E.numel())
        if layer.row.receives == "skips":
            real_TK = real_TK & (weights_TK != 0)
        sums.tokens += int(mask[0].sum())
        for slot in range(index_TK.shape[1]):
            index_T1, weights_T1 = index_TK[:, slot : slot + 1], weights_TK[:, slot : slot + 1]
            if layer.family in _PAIRED:
                index_T1, weights_T1 = index_T1.repeat(1, 2), torch.cat([weights_T1, 0 * weights_T1], dim=1)
            added_TD = module.forward(hidden, index_T1, weights_T1)
            norm_T = added_TD.reshape(len(index_TK), -1).float().norm(dim=1)
            real_T = real_TK[:, slot]
            sums.add(index_TK[real_T, slot], weights_TK[real_T, slot], norm_T[real_T])

    return layer.experts.register_forward_hook(hook, with_kwargs=True)


def _check(layers: list[MoELayer]) -> None:
    if not layers:
        raise ValueError("The model has no Mixture-of-Experts layer that moegate knows.")
    for layer in layers:
        if layer.row.receives not in _READABLE:
            raise ValueError(
                f"{layer.name} ({layer.row.name}) hands its experts no hidden states with indices and weights, so that "
                "they can't be asked slot by slot. Use the loads that moegate.hf.record counts."
            )


def _result(layers: list[MoELayer], sums: list[_Sums]) -> Saliency:
    width = max(one.count_E.numel() for one in sums)

    def stacked(name: str) -> Tensor:
        rows = [getattr(one, name) for one in sums]
        return torch.stack([nn.functional.pad(row_E, (0, width - len(row_E))) for row_E in rows])

    return Saliency(
        layers=tuple(layer.name for layer in layers),
        num_experts=tuple(one.count_E.numel() for one in sums),
        tokens=torch.tensor([one.tokens for one in sums]),
        count=stacked("count_E"),
        weight=stacked("weight_E"),
        contribution=stacked("contribution_E"),
    )
