"""Experts of one layer onto devices: how many replicas each gets, which device holds which, and swaps that help.

Every device holds the same number of experts (slots), as servers with a fixed buffer of weights want it. Tokens of an
expert with replicas are shared evenly among them. Arrays are NumPy's, float64 and int64: the steps are many and small.

``N`` devices, ``S`` slots of each, ``P = N · S`` physical experts, ``E`` logical ones.
"""

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["device_load", "gather", "held", "pack", "rebalance", "replica_choices", "replicate"]

Array = NDArray[Any]

_ENOUGH = 1.001
"""Peak over mean at which no better placement is looked for."""

_HEAVIER = (1.0, 1.1, 1.25, 1.5, 2.0)
"""By how much the greatest load of a replica may exceed the least possible one in the starts that are tried."""

_TRIED = 4
"""Changes of the replicas that are tried out, each with its best swaps, before the search gives up."""

_ROUNDS = 12
"""Rounds of swaps towards experts that go together; each swaps once on every device at most."""


def replicate(load_E: Array, extra: int, most: int) -> Array:
    """``[E]`` replicas of each expert, one and ``extra`` more in all: each goes to the one with the greatest load per
    replica, which makes the greatest load of a replica as small as can be. No expert gets more than ``most``.

    Source: the greedy replication of EPLB.
    """
    count_E = np.ones(len(load_E), np.int64)
    heap = [(-float(load), expert) for expert, load in enumerate(load_E)]
    heapq.heapify(heap)
    while extra and heap:
        _, expert = heapq.heappop(heap)
        if count_E[expert] < most:
            count_E[expert] += 1
            extra -= 1
            heapq.heappush(heap, (-float(load_E[expert]) / count_E[expert], expert))
    return count_E


def replica_choices(load_E: Array, extra: int, most: int) -> Iterator[Array]:
    """Numbers of replicas to start from: the greedy ones, and some that leave the busiest experts' replicas heavier so
    that more of the others fit beside them, which no single change would find."""
    greedy_E = replicate(load_E, extra, most)
    yield greedy_E
    if not extra:
        return
    lightest = float((load_E / greedy_E).max())
    for factor in _HEAVIER:
        heaviest = lightest * factor
        if heaviest <= 0:
            return
        count_E = np.ceil(load_E / heaviest * (1 - 1e-12)).clip(1, most).astype(np.int64)
        left = len(load_E) + extra - int(count_E.sum())
        split_E = count_E > 1
        if left < 0 or split_E.all():
            continue
        # What is left goes to experts that are not split yet, as far as they can take it, then to the others.
        rest_E = replicate(load_E[~split_E], min(left, int((~split_E).sum()) * (most - 1)), most)
        count_E[~split_E] = rest_E
        left = len(load_E) + extra - int(count_E.sum())
        while left:
            count_E[np.where(count_E < most, load_E / count_E, -1.0).argmax()] += 1
            left -= 1
        yield count_E


def pack(load_E: Array, count_E: Array, num_devices: int) -> Array:
    """``[N, S]`` experts: the replicas in the order of their load, each to the device with the least so far that has a
    slot, if there is one without that expert (longest processing time first)."""
    slots = int(count_E.sum()) // num_devices
    each_E = load_E / count_E
    order = np.repeat(np.arange(len(load_E)), count_E)
    order = order[np.argsort(-each_E[order], kind="stable")]
    slots_NS = np.full((num_devices, slots), -1, np.int64)
    used_N, total_N = np.zeros(num_devices, np.int64), np.zeros(num_devices)
    for expert in order:
        free_N = used_N < slots
        fresh_N = free_N & ~(slots_NS == expert).any(axis=1)
        device = int(np.where(fresh_N if fresh_N.any() else free_N, total_N, np.inf).argmin())
        slots_NS[device, used_N[device]] = expert
        used_N[device] += 1
        total_N[device] += each_E[expert]
    return slots_NS


def held(slots_NS: Array, num_experts: int) -> Array:
    """``[N, E]`` how many replicas of each expert a device holds; empty slots (-1) count nowhere."""
    held_NE = np.zeros((len(slots_NS), num_experts + 1), np.int64)
    np.add.at(held_NE, (np.arange(len(slots_NS))[:, None], slots_NS), 1)
    return held_NE[:, :num_experts]


def device_load(load_E: Array, slots_NS: Array) -> Array:
    """``[N]`` load of each device."""
    held_NE = held(slots_NS, len(load_E))
    loads: Array = held_NE @ (load_E / held_NE.sum(axis=0).clip(min=1))
    return loads


def rebalance(load_E: Array, slots_NS: Array) -> Array:
    """Better slots by local search: swaps of two experts, then other replicas, while the peak falls."""
    best_NS = _swap(load_E, slots_NS)
    mean = load_E.sum() / len(slots_NS)
    while (peak := device_load(load_E, best_NS).max()) > _ENOUGH * mean:
        tried = (_swap(load_E, other_NS) for other_NS in _other_replicas(load_E, best_NS))
        better = [(found, one) for one in tried if (found := device_load(load_E, one).max()) < peak * (1 - 1e-9)]
        if not better:
            return best_NS
        best_NS = min(better, key=lambda pair: pair[0])[1]
    return best_NS


def _swap(load_E: Array, slots_NS: Array) -> Array:
    """The best swap between the busiest device and another one, again and again while it lowers the greater of both."""
    slots_NS = slots_NS.copy()
    num_devices = len(slots_NS)
    held_NE = held(slots_NS, len(load_E))
    each_E = load_E / held_NE.sum(axis=0).clip(min=1)
    total_N = held_NE @ each_E
    for _ in range(20 * num_devices):
        peak = int(total_N.argmax())
        mine_S = slots_NS[peak]
        # [mine, device, theirs]: what moves from the peak to the device and back is the difference of the two.
        moved_SNS = each_E[mine_S][:, None, None] - each_E[slots_NS][None]
        worse_SNS = np.maximum(total_N[peak] - moved_SNS, total_N[None, :, None] + moved_SNS)
        twice_SNS = (held_NE[:, mine_S].T[:, :, None] > 0) | (held_NE[peak][slots_NS] > 0)[None]
        worse_SNS[np.broadcast_to(twice_SNS, worse_SNS.shape)] = np.inf
        mine, device, theirs = np.unravel_index(int(worse_SNS.argmin()), worse_SNS.shape)
        if not worse_SNS[mine, device, theirs] < total_N[peak] * (1 - 1e-12):
            break
        _exchange(slots_NS, held_NE, (peak, int(mine)), (int(device), int(theirs)))
        moved = moved_SNS[mine, device, theirs]
        total_N[peak] -= moved
        total_N[device] += moved
    return slots_NS


def _exchange(slots_NS: Array, held_NE: Array, first: tuple[int, int], second: tuple[int, int]) -> None:
    one, other = slots_NS[first], slots_NS[second]
    for device, gone, come in ((first[0], one, other), (second[0], other, one)):
        held_NE[device, gone] -= 1
        held_NE[device, come] += 1
    slots_NS[first], slots_NS[second] = other, one


def _other_replicas(load_E: Array, slots_NS: Array) -> list[Array]:
    """Slots in which an expert of the busiest device has taken the place of another's spare replica: the best few."""
    held_NE = held(slots_NS, len(load_E))
    count_E = held_NE.sum(axis=0)
    total_N = device_load(load_E, slots_NS)
    place_P2 = np.argwhere(count_E[slots_NS] > 1)
    wanted = np.unique(slots_NS[int(total_N.argmax())])
    if not len(place_P2):
        return []
    spare_P, at_P = slots_NS[place_P2[:, 0], place_P2[:, 1]], place_P2[:, 0]
    each_E, more_E, fewer_E = load_E / count_E, load_E / (count_E + 1), load_E / (count_E - 1).clip(min=1)
    # Loads after the change: the wanted expert's replicas lighten, the other's weigh more, and the place changes hands.
    after_WPN = (
        total_N
        + (held_NE * (more_E - each_E))[:, wanted].T[:, None, :]
        + (held_NE * (fewer_E - each_E))[:, spare_P].T[None]
    )
    after_WPN[:, np.arange(len(at_P)), at_P] += more_E[wanted][:, None] - fewer_E[spare_P][None]
    peak_WP = after_WPN.max(axis=2)
    peak_WP[(wanted[:, None] == spare_P[None]) | (held_NE[at_P][:, wanted].T > 0)] = np.inf
    found = []
    for flat in np.argsort(peak_WP, axis=None, kind="stable")[:_TRIED]:
        expert, place = np.unravel_index(int(flat), peak_WP.shape)
        if np.isfinite(peak_WP[expert, place]):
            other_NS = slots_NS.copy()
            other_NS[tuple(place_P2[place])] = wanted[expert]
            found.append(other_NS)
    return found


def gather(load_E: Array, slots_NS: Array, pairs_EE: Array, slack: float = 0.0) -> Array:
    """Slots after swaps that bring experts of the same tokens onto one device, while no device has more than the peak,
    or than ``1 + slack`` times the mean.

    ``pairs_EE`` counts the tokens of each pair of experts; a pair with replicas is taken to meet by chance.
    """
    num_devices, slots = slots_NS.shape
    flat_P = slots_NS.reshape(-1).copy()
    device_P = np.repeat(np.arange(num_devices), slots)
    count_E = np.bincount(flat_P, minlength=len(load_E)).clip(min=1)
    each_E = load_E / count_E
    weight_EE = pairs_EE / np.outer(count_E, count_E)
    np.fill_diagonal(weight_EE, 0.0)
    weight_EE = weight_EE.astype(np.float32)
    mean = load_E.sum() / num_devices
    limit = max(device_load(load_E, slots_NS).max(), mean * (1 + slack)) * (1 + 1e-9)
    for _ in range(_ROUNDS):
        if not _gather_once(flat_P, device_P, num_devices, weight_EE, each_E, limit):
            break
    result: Array = flat_P.reshape(num_devices, slots)
    return result


def _gather_once(
    flat_P: Array, device_P: Array, num_devices: int, weight_EE: Array, each_E: Array, limit: float
) -> bool:
    """The best swaps that don't share a device, in place; whether there was any."""
    gain_PP = _gains(flat_P, device_P, num_devices, weight_EE)
    each_P = each_E[flat_P]
    total_N = np.bincount(device_P, weights=each_P, minlength=num_devices)
    gain_PP[(total_N[device_P] - each_P)[:, None] + each_P[None] > limit] = 0.0
    gain_PP = np.minimum(gain_PP, gain_PP.T)
    held_NE = held(flat_P.reshape(num_devices, -1), len(each_E))
    twice_PP = held_NE[device_P][:, flat_P] > 0
    gain_PP[twice_PP | twice_PP.T] = 0.0
    rows, columns = np.nonzero(np.triu(gain_PP > 1e-6 * max(float(weight_EE.sum()), 1e-30)))
    used: set[int] = set()
    for pick in np.argsort(-gain_PP[rows, columns], kind="stable")[: 8 * num_devices]:
        one, other = rows[pick], columns[pick]
        devices = {int(device_P[one]), int(device_P[other])}
        if not devices & used:
            used |= devices
            flat_P[one], flat_P[other] = flat_P[other], flat_P[one]
    return bool(used)


def _gains(flat_P: Array, device_P: Array, num_devices: int, weight_EE: Array) -> Array:
    """``[P, P]``: how much more weight of pairs shares a device after a swap of two slots."""
    weight_PP = weight_EE[np.ix_(flat_P, flat_P)]
    on_PN = (device_P[:, None] == np.arange(num_devices)[None]).astype(np.float32)
    pull_PN = weight_PP @ on_PN
    pull_PP = pull_PN[:, device_P]
    stay_P = pull_PN[np.arange(len(flat_P)), device_P]
    gains: Array = pull_PP + pull_PP.T - stay_P[:, None] - stay_P[None] - 2 * weight_PP
    return gains
