"""Placements, against the best of all where there are few, and against what they must keep."""

import json
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegate.trace import Loads, Trace, coactivation
from moegate.trace.packing import device_load, gather, pack, rebalance, replicate
from moegate.trace.placement import Placement, contiguous, place
from moegate.trace.placement_files import PLACEMENT_FORMATS, evening, save_placement

FLASHLB = [600, 560, 120, 120, 20, 10, 10, 10]
"""The example of vllm-ascend's FlashLB: 8 devices of 2 slots; EPLB reaches 232 and FlashLB 205."""


def loads_of(*rows: list[float]) -> Loads:
    names = tuple(f"layer {number}" for number in range(len(rows)))
    return Loads(torch.tensor(rows, dtype=torch.float64), names, (len(rows[0]),) * len(rows))


def best_peak(load: list[float], devices: int) -> float:
    """The least peak of all placements without replicas, by trying every one."""
    size = len(load) // devices

    @cache
    def least(left: frozenset[int]) -> float:
        if not left:
            return 0.0
        first = min(left)
        groups = ((first, *rest) for rest in combinations(sorted(left - {first}), size - 1))
        return min(max(sum(load[e] for e in group), least(left - set(group))) for group in groups)

    return least(frozenset(range(len(load))))


def check(placement: Placement, num_replicas: int) -> None:
    """What every placement keeps: all experts, the number of slots, no expert twice on a device."""
    assert placement.slots.shape[2] * placement.num_devices == placement.num_experts + num_replicas
    assert (placement.replicas >= 1).all()
    assert (placement.replicas.sum(dim=1) == placement.num_experts + num_replicas).all()
    for layer in placement.slots.tolist():
        for slots in layer:
            assert len(set(slots)) == len(slots)


@pytest.mark.parametrize(("num_experts", "devices"), [(6, 2), (6, 3), (8, 4), (9, 3), (10, 2), (12, 4)])
def test_small_placements_are_the_best_or_close_to_it(num_experts: int, devices: int) -> None:
    rows = [torch.rand(num_experts).mul(3).exp().tolist() for _ in range(12)]
    placement = place(loads_of(*rows), devices)
    check(placement, 0)
    peaks = placement.device_load(torch.tensor(rows, dtype=torch.float64)).amax(dim=1).tolist()
    ratios = [peak / best_peak(row, devices) for peak, row in zip(peaks, rows, strict=True)]
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) < 1.06
    assert sum(ratios) / len(ratios) < 1.015


def test_the_example_of_flashlb() -> None:
    load_E = np.array(FLASHLB, dtype=np.float64)
    greedy_NS = pack(load_E, replicate(load_E, 8, 8), 8)
    assert device_load(load_E, greedy_NS).max() == 232
    loads = loads_of(FLASHLB)
    placement = place(loads, 8, 8)
    check(placement, 8)
    assert placement.device_load(loads.load).max() == 200
    assert placement.imbalance(loads.load).item() == pytest.approx(200 / (sum(FLASHLB) / 8))


def least_greatest_replica(load: list[float], extra: int) -> float:
    """By trying every way to give the replicas away."""

    def least(experts: int, left: int) -> float:
        if experts == 0:
            return 0.0
        counts = range(1, left + 2) if experts > 1 else [left + 1]
        return min(max(load[experts - 1] / count, least(experts - 1, left - count + 1)) for count in counts)

    return least(len(load), extra)


@pytest.mark.parametrize("extra", [0, 1, 3, 6])
def test_replicas_make_the_greatest_load_of_a_replica_least(extra: int) -> None:
    load = torch.rand(5).mul(4).exp().tolist()
    count_E = replicate(np.array(load), extra, 99)
    assert count_E.sum() == 5 + extra
    assert (np.array(load) / count_E).max() == pytest.approx(least_greatest_replica(load, extra))


@pytest.mark.parametrize(
    ("num_experts", "devices", "replicas"), [(8, 4, 4), (8, 8, 8), (6, 3, 12), (16, 4, 0), (5, 1, 0)]
)
@pytest.mark.parametrize("kind", ["random", "even", "one", "none", "zeros"])
def test_every_placement_is_valid_and_not_worse_than_contiguous(
    num_experts: int, devices: int, replicas: int, kind: str
) -> None:
    load = {
        "random": torch.rand(num_experts).mul(5).exp(),
        "even": torch.ones(num_experts),
        "one": torch.eye(num_experts)[0] * 9,
        "none": torch.zeros(num_experts),
        "zeros": torch.arange(num_experts).clamp(max=2).float(),
    }[kind]
    loads = loads_of(load.tolist())
    placement = place(loads, devices, replicas)
    check(placement, replicas)
    before = contiguous(num_experts, devices, loads.layers).device_load(loads.load).max()
    assert placement.device_load(loads.load).max() <= before + 1e-9
    assert placement.device_load(loads.load).sum() == pytest.approx(load.sum().item())


def test_searching_never_makes_it_worse() -> None:
    for _ in range(20):
        load_E = np.random.default_rng().exponential(size=24)
        start_NS = pack(load_E, replicate(load_E, 8, 8), 8)
        assert device_load(load_E, rebalance(load_E, start_NS)).max() <= device_load(load_E, start_NS).max() + 1e-9


def paired_trace() -> Trace:
    """Tokens that use an expert of the first half and one of the second together, eight kinds of tokens alike often."""
    first = torch.arange(4000) % 8
    return Trace(torch.stack([first, (first + 3) % 8 + 8], dim=1)[:, None], ("mlp",), (16,))


def test_experts_of_the_same_tokens_come_together_at_the_same_peak() -> None:
    trace = paired_trace()
    pairs = [coactivation(trace, 0)]
    apart, together = place(trace, 8), place(trace, 8, pairs=pairs)
    check(together, 0)
    assert together.device_load(trace.load).max() <= apart.device_load(trace.load).max() + 1e-9
    assert together.pairs_together(pairs) == [1.0]
    assert apart.pairs_together(pairs)[0] < 0.5


def meeting(placement: Placement, trace: Trace) -> float:
    """The chance that two experts of a token meet, token by token and replica by replica."""
    holders = [
        [d for d, slots in enumerate(placement.slots[0].tolist()) if e in slots] for e in range(trace.num_experts[0])
    ]
    chances = []
    for one, other in trace.indices[:, 0].tolist():
        places = [(x, y) for x in holders[one] for y in holders[other]]
        chances.append(sum(x == y for x, y in places) / len(places))
    return sum(chances) / len(chances)


def test_gathering_raises_no_peak_and_is_measured_token_by_token() -> None:
    trace = Trace((torch.rand(500, 1, 12) + torch.linspace(0, 0.5, 12)).topk(2).indices, ("mlp",), (12,))
    pairs = [coactivation(trace, 0)]
    apart, together = place(trace, 4, 4), place(trace, 4, 4, pairs=pairs, slack=0.05)
    check(together, 4)
    limit = max(apart.imbalance(trace.load).item(), 1.05)
    assert together.imbalance(trace.load).item() <= limit * (1 + 1e-6)
    strict = place(trace, 4, 4, pairs=pairs, slack=0)
    assert strict.imbalance(trace.load).item() <= apart.imbalance(trace.load).item() * (1 + 1e-6)
    for placement in (apart, together):
        assert placement.pairs_together(pairs)[0] == pytest.approx(meeting(placement, trace))
    assert together.pairs_together(pairs)[0] > apart.pairs_together(pairs)[0]


def test_gathering_keeps_the_experts() -> None:
    load_E = np.ones(12)
    slots_NS = pack(load_E, replicate(load_E, 0, 4), 4)
    pairs_EE = np.random.default_rng(1).random((12, 12))
    found = gather(load_E, slots_NS, pairs_EE + pairs_EE.T)
    assert sorted(found.reshape(-1)) == list(range(12))


def test_the_tables_say_the_same() -> None:
    loads = loads_of([9.0, 1, 1, 1, 1, 1], [1.0, 1, 1, 1, 1, 9])
    placement = place(loads, 2, 2)
    slots = placement.physical_to_logical.tolist()
    for layer, experts in enumerate(placement.logical_to_physical.tolist()):
        for expert, places in enumerate(experts):
            real = [place for place in places if place >= 0]
            assert [slots[layer][place] for place in real] == [expert] * int(placement.replicas[layer, expert])


def test_files_of_each_system(tmp_path: Path) -> None:
    loads = loads_of([9.0, 1, 1, 1], [1.0, 1, 1, 9])
    placement = place(loads, 2, 2)
    files = {
        name: json.loads(save_placement(placement, tmp_path / f"{name}.json", name).read_text())
        for name in PLACEMENT_FORMATS
    }
    assert files["sglang"] == {"physical_to_logical_map": placement.physical_to_logical.tolist()}
    assert files["eplb"]["expert_count"] == placement.replicas.tolist()
    for layer, name in enumerate(loads.layers):
        ascend = files["vllm-ascend"]["layer_list"][layer]
        assert (ascend["layer_id"], ascend["device_count"]) == (layer, 2)
        for expert, devices in files["plain"][name].items():
            held = [one["device_id"] for one in ascend["device_list"] if int(expert) in one["device_expert"]]
            assert devices == held
    with pytest.raises(ValueError, match="no format of placements"):
        save_placement(placement, tmp_path / "x.json", "xml")


@pytest.mark.parametrize(
    ("devices", "replicas", "message"),
    [
        (8, 1, "leave some of 8 devices without any.*at least 2 replicas"),
        (999_999, 0, "at least 999993 replicas"),
        (0, 0, "num_devices is 0"),
        (2, -2, "num_replicas is -2"),
        (2, 8, "must be from 0 to 6"),
    ],
)
def test_what_does_not_fit_is_a_sentence(devices: int, replicas: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(loads_of([1.0] * 6), devices, replicas)


@pytest.mark.parametrize(("devices", "replicas"), [(2.0, 0), ("2", 0), (True, 0), (2, 1.5)])
def test_numbers_that_are_not_whole_are_refused(devices: Any, replicas: Any) -> None:
    with pytest.raises(TypeError, match="must be a whole number"):
        place(loads_of([1.0] * 4), devices, replicas)


@pytest.mark.parametrize("pairs", [[], [torch.zeros(4, 4)] * 2, [torch.zeros(3, 3)]])
def test_pairs_of_other_layers_are_refused(pairs: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"pairs must be a matrix \[4, 4\] for each of the 1 layers"):
        place(loads_of([1.0] * 4), 2, pairs=pairs)


def best_uneven_peak(load: list[float], devices: int) -> float:
    """The least peak of all placements in ``ceil(E / N)`` slots a device, by trying every one."""
    slots = -(-len(load) // devices)
    choices = product(range(devices), repeat=len(load))
    return min(
        max(sum(part for part, device in zip(load, choice, strict=True) if device == one) for one in range(devices))
        for choice in choices
        if max(choice.count(one) for one in range(devices)) <= slots
    )


@pytest.mark.parametrize(("num_experts", "devices"), [(7, 3), (5, 4), (9, 2)])
def test_uneven_placements_are_the_best_or_close_to_it(num_experts: int, devices: int) -> None:
    rows = [torch.rand(num_experts).mul(3).exp().tolist() for _ in range(4)]
    placement = place(loads_of(*rows), devices)
    check_uneven(placement, 0)
    peaks = placement.device_load(torch.tensor(rows, dtype=torch.float64)).amax(dim=1).tolist()
    ratios = [peak / best_uneven_peak(row, devices) for peak, row in zip(peaks, rows, strict=True)]
    assert 1 - 1e-9 <= min(ratios) <= max(ratios) < 1.1


def check_uneven(placement: Placement, num_replicas: int) -> None:
    """All experts and replicas, none twice on a device; empty slots, fewer than devices, at the end of theirs."""
    used = placement.num_experts + num_replicas
    num_slots = placement.physical_to_logical.shape[1]
    assert not placement.even
    assert num_slots == -(-used // placement.num_devices) * placement.num_devices
    assert (placement.replicas >= 1).all()
    assert placement.replicas.sum(dim=1).tolist() == [used] * len(placement.layers)
    for slots in placement.slots.flatten(0, 1).tolist():
        real = [expert for expert in slots if expert >= 0]
        assert slots == real + [-1] * (len(slots) - len(real))
        assert len(set(real)) == len(real)


def test_256_experts_and_32_replicas_on_64_devices_say_what_fits() -> None:
    loads = loads_of(torch.rand(256).mul(3).exp().tolist())
    pairs = [torch.ones(256, 256)]
    placement, paired = place(loads, 64, 32), place(loads, 64, 32, pairs=pairs, slack=0.02)
    for one in (placement, paired):
        check_uneven(one, 32)
        assert one.imbalance(loads.load).item() < 1.03
    assert evening(placement) == ("place with 0 replicas for 4 or 64 replicas for 5 experts on each of the 64 devices")


@pytest.mark.parametrize("form", sorted(set(PLACEMENT_FORMATS) - {"plain"}))
def test_only_plain_files_have_empty_slots(tmp_path: Path, form: str) -> None:
    placement = place(loads_of([9.0, 1, 1, 1, 1]), 2)
    with pytest.raises(ValueError, match=f"{form} has no word.*place with 1 replicas for 3.*or the format plain"):
        save_placement(placement, tmp_path / "p.json", form)
    assert not (tmp_path / "p.json").exists()
    plain = json.loads(save_placement(placement, tmp_path / "p.json", "plain").read_text())
    assert sorted(plain["layer 0"]) == list("01234")
    assert all(len(devices) == 1 for devices in plain["layer 0"].values())


@pytest.mark.parametrize("slack", [-0.1, float("nan"), float("inf")])
def test_a_slack_that_is_none_is_refused(slack: float) -> None:
    with pytest.raises(ValueError, match="slack is"):
        place(loads_of([1.0] * 4), 2, slack=slack)


def test_layers_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="a has 2, b has 3"):
        place(Loads(torch.ones(2, 3).tril(1), ("a", "b"), (2, 3)), 1)
    with pytest.raises(ValueError, match="no layers"):
        place(Loads(torch.zeros(0, 0), (), ()), 1)
