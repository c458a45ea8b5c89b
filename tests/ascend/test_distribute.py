"""npu_moe_distribute_dispatch and combine against the specification: one rank, worlds of threads, two processes."""

from typing import Any

import cases
import golden_rows as golden
import numpy as np
import pytest
import ranks
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from worlds import WORLDS, World, factor_of, run_experts, work, worlds_of_two

from moegate import ascend

Array = cases.Array


def check_dispatch(world: World, rank: int, sent: Any, version: int = 2) -> None:
    rows, dynamic, info, counts, cumulative, tp_counts, carried = sent
    held, most = world.held()[rank], world.most_rows(rank)
    listed = [(expert, place) for expert, places in enumerate(held) for place in places]
    assert rows.shape == (most, world.width) and dynamic.shape == carried.shape == (most,)
    assert rows.dtype == (torch.int8 if world.quantised else world.dtype)
    for number, (expert, (source, token, slot)) in enumerate(listed):
        x = world.x[source][token]
        if world.quantised:
            moe = rank - world.shared_ranks
            per_rank = world.experts // (world.world_size - world.shared_ranks)
            shared = rank // (world.shared_ranks // world.shared) if rank < world.shared_ranks else 0
            line = shared if rank < world.shared_ranks else world.num_shared + moe * per_rank + expert
            smooth = world.smoothing[line].numpy() if world.smooth else None
            row, scale = golden.dispatch_int8(cases.widened(x), smooth)
            assert rows[number].tolist() == row.tolist() and float(dynamic[number]) == float(scale)
        else:
            assert torch.equal(rows[number], x) and dynamic[number] == 0
        factor = world.factors[source][token, slot] if slot < world.top_k else 1.0
        assert float(carried[number]) == float(factor)
        if version == 2:
            assert info.view(most, 128)[number, :3].tolist() == [source, token, slot]
    assert not rows[len(listed) :].any() and not dynamic[len(listed) :].any() and not carried[len(listed) :].any()
    assert counts.tolist() == [len(places) for places in held] and counts.dtype == torch.int64
    by_rank = [sum(place[0] == source for place in places) for places in held for source in range(world.world_size)]
    assert cumulative.tolist() == np.cumsum(by_rank).tolist() and cumulative.dtype == torch.int32
    assert tp_counts.numel() == 0 and info.dtype == torch.int32
    if version == 2:
        assert info.shape == (most * 128,) and bool((info.view(most, 128)[len(listed) :] == -1).all())


def wanted_output(world: World, rank: int, shared_x: Array | None = None) -> Array:
    held = world.held()
    wide = np.float64 if world.dtype == torch.float64 else np.float32
    outputs = [
        [
            [
                # The expert rounds its product to the type of the rows, as run_experts does.
                cases.widened(
                    world.x[source][token] * torch.tensor(factor_of(owner, expert), dtype=world.dtype)
                ).astype(wide)
                for source, token, _ in places
            ]
            for expert, places in enumerate(experts)
        ]
        for owner, experts in enumerate(held)
    ]
    special = None
    if any(world.special):
        zero = world.experts + world.special[0]
        copy = zero + world.special[1]
        special = {"zero": (world.experts, zero), "copy": (zero, copy), "constant": (copy, copy + world.special[2])}
        special |= {"x": cases.widened(world.x[rank]).astype(wide)}
        special |= dict(
            zip(("alpha1", "alpha2", "v"), [cases.widened(c).astype(wide) for c in world.constants], strict=True)
        )
    active = None
    if world.active is not None:
        mask = world.active[rank].numpy()
        active = mask if mask.ndim == 2 else mask[:, None]
    return golden.combined(
        outputs, held, [ids.numpy() for ids in world.ids], [f.numpy() for f in world.factors], rank,
        np.zeros((world.tokens[rank], world.width), wide), special, shared_x, active,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("name", WORLDS)
def test_there_and_back(name: str, dtype: torch.dtype) -> None:
    world = World(**{f: getattr(WORLDS[name], f) for f in World.__match_args__} | {"dtype": dtype})
    shared_x = [cases.widened(values) for values in world.outside]

    def run(rank: int) -> tuple[Any, Tensor, Tensor]:
        sent = world.dispatch(rank)
        rows = run_experts(rank, sent)
        return (
            sent,
            world.combine(rank, rows, sent),
            world.combine(rank, rows, sent, shared_expert_x=world.outside[rank]),
        )

    for rank, (sent, out, with_shared) in enumerate(ranks.in_threads(world.world_size, run)):
        check_dispatch(world, rank, sent)
        assert out.dtype == dtype and cases.same_bits(out, wanted_output(world, rank))
        assert cases.same_bits(with_shared, wanted_output(world, rank, shared_x[rank]))


@pytest.mark.parametrize("smooth", (False, True), ids=("plain", "smoothed"))
@pytest.mark.parametrize("name", ("one rank", "two ranks", "two shared experts", "shared on two ranks", "masked slots"))
def test_dynamic_int8(name: str, smooth: bool) -> None:
    world = World(**{f: getattr(WORLDS[name], f) for f in World.__match_args__} | {"quantised": True, "smooth": smooth})
    world.x[0][0] = 0
    for rank, sent in enumerate(ranks.in_threads(world.world_size, world.dispatch)):
        check_dispatch(world, rank, sent)


def test_int8_is_rounded_after_a_product_not_a_quotient() -> None:
    # init_routing divides by the scale; dispatch multiplies by 127 / max. Here that makes a difference of 1.
    x = torch.tensor([[1.1801238059997559, 0.9245851635932922]])
    ids = torch.zeros(1, 1, dtype=torch.int32)
    assert ascend.npu_moe_distribute_dispatch_v2(x, ids, "", 1, 0, 1, quant_mode=2)[0].tolist() == [[127, 100]]
    assert ascend.npu_moe_init_routing_v2(x, ids, expert_num=1, quant_mode=1)[0].tolist() == [[127, 99]]


@pytest.mark.parametrize("name", ("one rank", "two ranks", "two shared experts", "masked tokens"))
def test_the_first_version(name: str) -> None:
    world = WORLDS[name]

    def run(rank: int) -> tuple[Any, Any, Tensor, Tensor]:
        first, second = world.dispatch(rank, version=1), world.dispatch(rank)
        rows = run_experts(rank, first)
        return first, second, world.combine(rank, rows, first, version=1), world.combine(rank, rows, second)

    for rank, (first, second, out, out_v2) in enumerate(ranks.in_threads(world.world_size, run)):
        check_dispatch(world, rank, first, version=1)
        assert all(torch.equal(first[i], second[i]) for i in (0, 1, 3, 4, 5, 6))
        assert torch.equal(out, out_v2)
        ids = world.ids[rank].reshape(-1).tolist()
        mask = torch.ones(len(ids), dtype=torch.bool)
        if world.active is not None:
            mask = world.active[rank][:, None].expand(-1, world.top_k).reshape(-1)
        number = [
            sum(ids[earlier] == ids[slot] and bool(mask[earlier]) for earlier in range(slot)) if mask[slot] else -1
            for slot in range(len(ids))
        ]
        assert first[2].tolist() == number


@cases.brief
@given(st.data())
def test_any_legal_world(data: st.DataObject) -> None:
    shared = data.draw(st.integers(0, 2))
    shared_ranks = shared * data.draw(st.integers(1, 2)) if shared else 0
    moe_ranks = data.draw(st.integers(1, 3))
    world_size = shared_ranks + moe_ranks
    experts, special = moe_ranks * data.draw(st.integers(1, 3)), tuple(data.draw(st.integers(0, 2)) for _ in "abc")
    top_k = data.draw(st.integers(1, min(4, experts + sum(special))))
    tokens = tuple(data.draw(st.integers(1, 4)) for _ in range(world_size))
    world = World(
        world_size, experts, top_k, 2, tokens, shared, shared_ranks, special,  # type: ignore[arg-type]
        mask=data.draw(st.sampled_from(("none", "tokens", "slots"))), seed=data.draw(st.integers(0, 1000)),
    )  # fmt: skip

    def run(rank: int) -> tuple[Any, Tensor]:
        sent = world.dispatch(rank)
        return sent, world.combine(rank, run_experts(rank, sent), sent)

    for rank, (sent, out) in enumerate(ranks.in_threads(world_size, run)):
        check_dispatch(world, rank, sent)
        assert cases.same_bits(out, wanted_output(world, rank))


def test_expert_token_nums_may_be_cumulative() -> None:
    world = WORLDS["two ranks"]
    counts = ranks.in_threads(
        2, lambda rank: (world.dispatch(rank)[3], world.dispatch(rank, expert_token_nums_type=0)[3])
    )
    assert all(torch.equal(plain.cumsum(0), cumulative) for plain, cumulative in counts)


def test_gradients_across_ranks_against_finite_differences() -> None:
    world = World(2, 4, 2, 2, (3, 2), dtype=torch.float64, special=(1, 1, 1))
    leaves = [*world.x, *(f.double() for f in world.factors), *world.constants, *world.outside]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        world.x, world.factors, world.constants = list(values[:2]), list(values[2:4]), list(values[4:7])
        world.outside = list(values[7:])

        def run(rank: int) -> Tensor:
            sent = world.dispatch(rank, expert_scales=None)
            rows = sent[0] * (1.5 + rank)
            return world.combine(rank, rows, sent, shared_expert_x=world.outside[rank])

        return tuple(ranks.in_threads(2, run))

    assert torch.autograd.gradcheck(outputs, leaves)


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_process(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    ranks.in_processes(2, work, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", worlds_of_two())
def test_two_processes_give_what_the_specification_says(by_process: list[dict[str, Any]], name: str) -> None:
    world = worlds_of_two()[name]
    for rank in (0, 1):
        sent, out = by_process[rank][name]
        check_dispatch(world, rank, sent)
        if not world.quantised:
            assert cases.same_bits(out, wanted_output(world, rank))


def test_gradients_come_back_from_the_other_process(by_process: list[dict[str, Any]]) -> None:
    world = World(**{f: getattr(WORLDS["two ranks"], f) for f in World.__match_args__})
    per_rank = world.experts // 2
    for rank in (0, 1):
        grad_x, grad_factors = by_process[rank]["gradients"]
        owner = world.ids[rank] // per_rank
        times = torch.tensor([factor_of(0, 0), factor_of(1, 0)])[owner.long()]
        wanted_x = (world.factors[rank] * times).sum(1, keepdim=True).expand_as(world.x[rank])
        assert torch.allclose(grad_x, wanted_x, atol=1e-6)
        assert torch.allclose(grad_factors, times * world.x[rank].sum(1, keepdim=True), atol=1e-5)


def test_a_rank_that_sends_no_row_takes_part_in_the_backward(by_process: list[dict[str, Any]]) -> None:
    """Without its part of the exchange the other rank has no gradients, or waits for them for ever."""
    for ids, grad_x in by_process[0]["a rank without rows"]:
        assert torch.equal(grad_x[:, 0], (ids < 4).any(dim=1).float())


def test_wrong_groups_are_named(by_process: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        unknown, other_rank = by_process[rank]["errors"]
        assert "no process group called 'no such group'" in unknown
        assert f"group_ep has 2 ranks and this is rank {rank} of it, but ep_world_size=2" in other_rank


# --- errors -----------------------------------------------------------------------------------------------------------

X, IDS = torch.zeros(3, 4), torch.tensor([[0, 1], [2, 3], [1, 0]], dtype=torch.int32)


def dispatch(**changed: Any) -> Any:
    arguments: dict[str, Any] = {
        "x": X, "expert_ids": IDS, "group_ep": "", "ep_world_size": 1, "ep_rank_id": 0, "moe_expert_num": 4,
    }  # fmt: skip
    return ascend.npu_moe_distribute_dispatch_v2(**arguments | changed)


def combine(**changed: Any) -> Tensor:
    sent = dispatch()
    arguments: dict[str, Any] = {
        "expand_x": sent[0], "expert_ids": IDS, "assist_info_for_combine": sent[2], "ep_send_counts": sent[4],
        "expert_scales": torch.ones(3, 2), "group_ep": "", "ep_world_size": 1, "ep_rank_id": 0, "moe_expert_num": 4,
    }  # fmt: skip
    return ascend.npu_moe_distribute_combine_v2(**arguments | changed)


WRONG_DISPATCH: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(3)}, ValueError, r"x must be \[tokens, hidden size\]"),
    ({"x": torch.zeros(3, 4, dtype=torch.int8)}, TypeError, "x must be a floating-point tensor"),
    ({"expert_ids": IDS[:2]}, ValueError, r"expert_ids must be \[3, experts per token\]"),
    ({"expert_ids": IDS.float()}, TypeError, "expert_ids must be int32"),
    ({"expert_ids": IDS + 1}, ValueError, "so values from 0 to 3; got values from 1 to 4"),
    ({"expert_ids": IDS - 1}, ValueError, "so values from 0 to 3; got values from -1 to 2"),
    ({"expert_ids": IDS + 3, "zero_expert_num": 2}, ValueError, "so values from 0 to 5; got values from 3 to 6"),
    ({"ep_world_size": 0}, ValueError, "ep_world_size must be at least 1"),
    ({"ep_rank_id": 1}, ValueError, "ep_rank_id must be from 0 to ep_world_size - 1 = 0, got 1"),
    ({"ep_world_size": 2}, ValueError, "init_process_group first"),
    ({"ep_world_size": 3}, ValueError, "moe_expert_num=4 experts must be divisible among"),
    ({"shared_expert_rank_num": 1}, ValueError, "ep_world_size - shared_expert_rank_num = 0"),
    ({"ep_world_size": 4, "shared_expert_rank_num": 3, "shared_expert_num": 2}, ValueError, "must be a multiple of"),
    ({"ep_world_size": 2, "shared_expert_rank_num": 1, "shared_expert_num": 0}, ValueError, "must be a multiple of"),
    ({"quant_mode": 1}, ValueError, "quant_mode must be one of 0, 2; got 1"),
    ({"scales": torch.ones(4, 4)}, ValueError, "scales belong to dynamic quantisation"),
    ({"quant_mode": 2, "scales": torch.ones(3, 4)}, ValueError, r"scales must be \[4, 4\], got \(3, 4\)"),
    ({"expert_scales": torch.ones(3)}, ValueError, r"expert_scales must be \[3, 2\]"),
    ({"x_active_mask": torch.ones(3)}, TypeError, "x_active_mask must be a bool tensor"),
    ({"x_active_mask": torch.ones(2, dtype=torch.bool)}, ValueError, r"x_active_mask must be \[3\], one per token"),
    ({"expert_token_nums_type": 2}, ValueError, "expert_token_nums_type must be one of 0, 1; got 2"),
    ({"global_bs": 2}, ValueError, "receives 6 rows, more than the 4 that its own 3 tokens and global_bs=2 allow"),
    ({"tp_world_size": 2}, ValueError, "tp_world_size=2 is not offered"),
    ({"expert_shard_type": 1}, ValueError, "expert_shard_type must be 0"),
    ({"comm_alg": "ring"}, ValueError, "comm_alg must be one of '', 'fullmesh'"),
    ({"elastic_info": torch.ones(1)}, ValueError, "elastic_info is not offered"),
    ({"performance_info": torch.zeros(1)}, ValueError, "performance_info is not offered"),
    ({"zero_expert_num": 1.5}, TypeError, "zero_expert_num must be an integer"),
    ({"copy_expert_num": -1}, ValueError, "copy_expert_num must be at least 0"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "message"), WRONG_DISPATCH, ids=lambda value: str(value)[:40])
def test_arguments_of_dispatch_that_do_not_fit(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dispatch(**changed)


WRONG_COMBINE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"expand_x": torch.zeros(6)}, ValueError, r"assist_info_for_combine must be|expand_x must be"),
    ({"assist_info_for_combine": torch.zeros(5, dtype=torch.int32)}, ValueError, r"must be \[768\], got \(5,\)"),
    ({"ep_send_counts": torch.zeros(3, dtype=torch.int32)}, ValueError, r"ep_send_counts must be \[4\], got \(3,\)"),
    ({"ep_send_counts": torch.full((4,), 7)}, ValueError, "ep_send_counts must hold numbers of rows"),
    ({"expert_scales": torch.ones(3, 3)}, ValueError, r"expert_scales must be \[3, 2\]"),
    ({"shared_expert_x": torch.zeros(2, 4)}, ValueError, r"shared_expert_x must be \[3, 4\], got \(2, 4\)"),
    ({"const_expert_num": 0.5}, TypeError, "const_expert_num must be an integer"),
    ({"copy_expert_num": 1}, TypeError, "x, which copy and constant experts give, must be a tensor"),
    ({"const_expert_num": 1, "ori_x": X}, TypeError, "alpha1, of the constant experts, must be a tensor"),
    ({"comm_quant_mode": 2}, ValueError, "comm_quant_mode=2 is not offered: rows travel as they are"),
    ({"elastic_info": torch.ones(1)}, ValueError, "elastic_info is not offered"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "message"), WRONG_COMBINE, ids=lambda value: str(value)[:40])
def test_arguments_of_combine_that_do_not_fit(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        combine(**changed)


def test_what_the_first_combine_keeps_in_reserve_must_be_left_out() -> None:
    sent = ascend.npu_moe_distribute_dispatch(X, IDS, "", 1, 0, 4)
    place: tuple[Any, ...] = (sent[0], IDS, sent[2], sent[4], torch.ones(3, 2), "", 1, 0, 4)
    ascend.npu_moe_distribute_combine(*place)
    for name, value in (("activation_scale", X), ("weight_scale", X), ("group_list", X), ("out_dtype", 1)):
        with pytest.raises(ValueError, match=f"{name} is not offered here"):
            ascend.npu_moe_distribute_combine(*place, **{name: value})
    with pytest.raises(ValueError, match=r"expand_idx must be \[6\]"):
        ascend.npu_moe_distribute_combine(*place[:2], sent[2][:5], *place[3:])


def test_a_shared_expert_x_may_have_two_leading_dimensions() -> None:
    shared = torch.randn(3, 4)
    assert torch.equal(combine(shared_expert_x=shared.view(1, 3, 4)), combine(shared_expert_x=shared))


A2 = {"x": torch.zeros(3, 32, dtype=torch.float16), "ep_world_size": 2}
LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.zeros(3, 32)}, "161002.*x as float16, bfloat16, got torch.float32"),
    ({"expert_ids": IDS.long()}, "expert_ids as int32"),
    ({"expert_scales": torch.ones(3, 2, dtype=torch.float64)}, "expert_scales as float32"),
    ({"expert_ids": torch.zeros(3, 2, dtype=torch.int32)}, "experts that differ within a token"),
    ({"expert_ids": torch.arange(17, dtype=torch.int32).expand(3, 17), "moe_expert_num": 18}, "1 to 16 experts"),
    ({"moe_expert_num": 1026}, "at most 1024 experts, got 1026"),
    ({"x_active_mask": torch.tensor([True, False, True])}, "active tokens in front of the others only"),
    ({"x": torch.zeros(3, 48, dtype=torch.float16)}, "on the A2 a hidden size up to 10240 that 32 divides; on the A3"),
    ({"ep_world_size": 1}, "on the A2 a world of 2, 3, .* ranks; on the A3 a hidden size from 1024 to 8192, a world"),
    ({"ep_world_size": 4, "shared_expert_rank_num": 2}, "on the A2 no shared experts; on the A3 a hidden size"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), LIMITS, ids=lambda value: str(value)[:40])
def test_limits_of_the_hardware(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        dispatch(**A2 | changed, strict=True)


@pytest.mark.parametrize("machine", ("A2", "A3"))
def test_strict_takes_what_one_machine_takes(machine: str) -> None:
    width = 32 if machine == "A2" else 1000 + 24
    ids = torch.tensor([[0, 1], [3, 2]], dtype=torch.int32)

    def run(rank: int) -> Tensor:
        x = torch.ones(2, width, dtype=torch.bfloat16)
        sent = ascend.npu_moe_distribute_dispatch_v2(x, ids, "", 2, rank, 4, strict=True)
        return ascend.npu_moe_distribute_combine_v2(
            sent[0], ids, sent[2], sent[4], torch.ones(2, 2), "", 2, rank, 4, strict=True
        )

    assert all(bool((out == 2).all()) for out in ranks.in_threads(2, run))
