"""``place``: which device holds which experts, and which of them twice, from the load that was measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moegate.trace.loads import Loads
from moegate.trace.packing import device_load, gather, held, pack, rebalance, replica_choices
from moegate.trace.trace import Trace

__all__ = ["Placement", "contiguous", "place"]

_BALANCED = 1.001


@dataclass(frozen=True, eq=False)
class Placement:
    """The experts of every device, layer by layer. ``N`` devices have ``P / N`` slots each, of which some may be empty.

    Attributes:
        physical_to_logical: ``[L, P]`` int64, the expert in each slot, device after device; -1 in an empty slot.
        num_experts: ``E``.
        num_devices: ``N``.
        layers: the names of the layers.

    Example:
        >>> placement = Placement(torch.tensor([[0, 1, 0, 2]]), num_experts=3, num_devices=2, layers=("mlp",))
        >>> placement.device_load(torch.tensor([[8, 1, 2]])).tolist()
        [[5.0, 6.0]]
    """

    physical_to_logical: Tensor
    num_experts: int
    num_devices: int
    layers: tuple[str, ...]

    @property
    def slots(self) -> Tensor:
        """``[L, N, P / N]``, the same by device."""
        return self.physical_to_logical.reshape(len(self.layers), self.num_devices, -1)

    @property
    def even(self) -> bool:
        """Whether every slot holds an expert, as servers with tables of physical experts need it."""
        return bool((self.physical_to_logical >= 0).all())

    @property
    def replicas(self) -> Tensor:
        """``[L, E]`` int64, how many slots hold each expert (EPLB's ``logcnt``)."""
        return torch.stack([torch.from_numpy(held(row.numpy(), self.num_experts).sum(axis=0)) for row in self.slots])

    @property
    def logical_to_physical(self) -> Tensor:
        """``[L, E, most replicas]`` int64, the slots of each expert, filled up with -1 (EPLB's ``log2phy``)."""
        found = torch.full((len(self.layers), self.num_experts, int(self.replicas.max())), -1)
        for layer, row in enumerate(self.physical_to_logical.tolist()):
            used = [0] * self.num_experts
            for slot, expert in enumerate(row):
                if expert >= 0:
                    found[layer, expert, used[expert]] = slot
                    used[expert] += 1
        return found

    def device_load(self, load: Tensor) -> Tensor:
        """``[L, N]`` float64: the load of each device, that of an expert shared evenly among its replicas."""
        load_LE = load[:, : self.num_experts].double().numpy()
        rows = zip(load_LE, self.slots.numpy(), strict=True)
        return torch.stack([torch.from_numpy(device_load(*row)) for row in rows])

    def imbalance(self, load: Tensor) -> Tensor:
        """``[L]`` float64, peak over mean of the devices' loads: 1 where all work alike; NaN without any load."""
        load_LN = self.device_load(load)
        return load_LN.amax(dim=1) / load_LN.mean(dim=1)

    def overall_imbalance(self, load: Tensor) -> float:
        """The sum of the peaks over the sum of the means: how much longer all layers take than with an even load, where
        each layer waits for its busiest device."""
        load_LN = self.device_load(load)
        total = load_LN.mean(dim=1).sum().item()
        return load_LN.amax(dim=1).sum().item() / total if total else math.nan

    def pairs_together(self, pairs: Sequence[Tensor]) -> list[float]:
        """For each layer the share of the pairs of experts of one token that meet on one device; NaN without pairs. A
        pair with replicas meets by chance.

        Args:
            pairs: ``moegate.trace.coactivation`` of each layer.
        """
        return [
            _together(slots.numpy(), matrix.double().numpy()) for slots, matrix in zip(self.slots, pairs, strict=True)
        ]


def contiguous(num_experts: int, num_devices: int, layers: Sequence[str]) -> Placement:
    """The experts in their order, without replicas, as servers place them when nothing is said.

    Example:
        >>> contiguous(5, 2, ["mlp"]).slots.tolist()
        [[[0, 1, 2], [3, 4, -1]]]
    """
    _check_devices(num_devices)
    slots = -(-num_experts // num_devices)
    row = torch.full((num_devices, slots), -1)
    for device, part in enumerate(torch.arange(num_experts).tensor_split(num_devices)):
        row[device, : len(part)] = part
    return Placement(row.reshape(1, -1).repeat(len(layers), 1), num_experts, num_devices, tuple(layers))


def place(
    source: Trace | Loads,
    num_devices: int,
    num_replicas: int = 0,
    *,
    pairs: Sequence[Tensor] | None = None,
    slack: float = 0.0,
) -> Placement:
    """Experts on devices so that the busiest device of each layer has as little load as can be found.

    Every device has the same number of slots, and the same number of experts where they divide evenly; otherwise some
    slots stay empty, which most servers don't take (``save_placement`` says which). Replicas go to the experts with the
    greatest load; experts then go, the greatest first, to the device with the least load, and swaps and other replicas
    improve on that. With ``pairs``, experts that tokens use together are brought onto one device, as far as no device
    gets busier than the peak, or than ``1 + slack`` times the mean: near a perfect balance hardly any swap is left
    without some slack.

    Args:
        source: a trace or loads; placement is for each layer by itself.
        num_devices: ``N``.
        num_replicas: how many slots a layer has beyond one for each expert, over all devices.
        pairs: ``[E, E]`` for each layer, from ``moegate.trace.coactivation``; None to place by load alone.
        slack: how far above the mean a device may get for the sake of ``pairs``.

    Raises:
        TypeError: a number of devices or replicas is no whole number.
        ValueError: there are more replicas than are of use, layers have different numbers of experts, ``pairs`` are of
            other layers, or the slack is negative.

    Example:
        >>> loads = Loads(torch.tensor([[600, 560, 120, 120, 20, 10, 10, 10]]), layers=("mlp",), num_experts=(8,))
        >>> placement = place(loads, num_devices=8, num_replicas=8)
        >>> placement.device_load(loads.load).max().item()
        200.0

    Source: the constraint and the greedy start are EPLB's (DeepSeek); replicas and packing are searched together, as
    FlashLB of vllm-ascend proposes.
    """
    num_experts = _num_experts(source)
    _check_devices(num_devices)
    _check_replicas(num_experts, num_devices, num_replicas)
    if pairs is not None:
        _check_pairs(pairs, len(source.layers), num_experts)
    if not 0 <= slack < math.inf:
        raise ValueError(f"slack is {slack}, but must be 0 or more, such as 0.01.")
    # An empty slot is an expert without load, numbered behind the others, until all have their places.
    num_empty = -(num_experts + num_replicas) % num_devices
    load_LE = np.pad(source.load[:, :num_experts].double().numpy(), ((0, 0), (0, num_empty)))
    rows = []
    for layer, load_E in enumerate(load_LE):
        slots_NS = _layer(load_E, num_devices, num_replicas, num_empty)
        if pairs is not None:
            slots_NS = gather(load_E, slots_NS, np.pad(pairs[layer].double().numpy(), (0, num_empty)), slack)
        slots_NS = np.sort(slots_NS, axis=1)
        rows.append(torch.from_numpy(np.where(slots_NS < num_experts, slots_NS, -1)).reshape(-1))
    return Placement(torch.stack(rows), num_experts, num_devices, tuple(source.layers))


def _layer(load_E: Any, num_devices: int, num_replicas: int, num_empty: int) -> Any:
    best, least = None, math.inf
    real_E = load_E[: len(load_E) - num_empty]
    enough = _BALANCED * load_E.sum() / num_devices
    for real_count_E in replica_choices(real_E, num_replicas, num_devices):
        count_E = np.pad(real_count_E, (0, num_empty), constant_values=1)
        slots_NS = rebalance(load_E, pack(load_E, count_E, num_devices))
        peak = device_load(load_E, slots_NS).max()
        if best is None or peak < least * (1 - 1e-9):
            best, least = slots_NS, peak
        if least <= enough:
            break
    return best


def _num_experts(source: Trace | Loads) -> int:
    sizes: Mapping[int, str] = dict(zip(source.num_experts, source.layers, strict=True))
    if len(sizes) != 1:
        found = ", ".join(f"{name} has {size}" for size, name in sizes.items()) or "there are no layers"
        raise ValueError(
            f"A placement is of layers with one number of experts, but {found}: select some of the layers."
        )
    return next(iter(sizes))


def _check_devices(num_devices: int) -> None:
    if isinstance(num_devices, bool) or not isinstance(num_devices, int):
        raise TypeError(f"num_devices must be a whole number, got {num_devices!r}.")
    if num_devices < 1:
        raise ValueError(f"num_devices is {num_devices}, but must be at least 1.")


def _check_replicas(num_experts: int, num_devices: int, num_replicas: int) -> None:
    if isinstance(num_replicas, bool) or not isinstance(num_replicas, int):
        raise TypeError(f"num_replicas must be a whole number, got {num_replicas!r}.")
    if num_devices > num_experts + max(num_replicas, 0):
        raise ValueError(
            f"{num_experts} experts and {num_replicas} replicas leave some of {num_devices} devices without any: pass "
            f"fewer devices, or at least {num_devices - num_experts} replicas."
        )
    most = num_experts * (num_devices - 1)
    if not 0 <= num_replicas <= most:
        raise ValueError(
            f"num_replicas is {num_replicas}, but must be from 0 to {most}: no expert is of use twice on one device."
        )


def _check_pairs(pairs: Sequence[Tensor], num_layers: int, num_experts: int) -> None:
    shapes = [tuple(matrix.shape) for matrix in pairs]
    if shapes != [(num_experts, num_experts)] * num_layers:
        raise ValueError(
            f"pairs must be a matrix [{num_experts}, {num_experts}] for each of the {num_layers} layers, as "
            f"moegate.trace.coactivation gives, got {len(shapes)} of {sorted(set(shapes))!r:.80}."
        )


def _together(slots_NS: Any, pairs_EE: Any) -> float:
    held_NE = held(slots_NS, len(pairs_EE)).astype(np.float64)
    share_NE = held_NE / held_NE.sum(axis=0).clip(min=1)
    meeting_EE = share_NE.T @ share_NE
    above = np.triu_indices(len(pairs_EE), 1)
    total = pairs_EE[above].sum()
    return float((meeting_EE * pairs_EE)[above].sum() / total) if total else math.nan
