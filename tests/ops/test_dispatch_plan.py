"""Places of slots in sorted rows: every instruction set and the reference against lists in plain Python."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from triton_support import ON_TRITON

from moegate.ops import dispatch_plan
from moegate.ops.dispatch_plan import Places
from moegate.ops.dispatch_plan.sizes import most_rows
from moegate.ops.library import KERNELS, available_isas, forced_isa

OPERATOR = torch.ops.moegate.dispatch_plan.default
IMPLEMENTATIONS = ("reference", *available_isas())
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def plan_by(implementation: str, index: Tensor, num_experts: int, **options: Any) -> Places:
    """The operator's raw result by one implementation."""
    capacity = options.get("capacity")
    limit = -1 if capacity is None else capacity
    fill, trim = options.get("fill", False), options.get("trim", True)
    return Places(*call(implementation, index, num_experts, options.get("alignment", 1), limit, fill, trim))


def call(implementation: str, *arguments: Any) -> tuple[Tensor, ...]:
    if implementation == "reference":
        return OPERATOR._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)
    if implementation == "triton":
        return OPERATOR(*arguments)
    with forced_isa(implementation):
        return OPERATOR(*arguments)


def expected(
    index: Tensor, num_experts: int, alignment: int = 1, capacity: int | None = None, fill: bool = False
) -> tuple[list[int], list[int], list[int], list[list[int]]]:
    """Slots put into one list per expert, in order."""
    served: list[list[int]] = [[] for _ in range(num_experts)]
    for slot, expert in enumerate(index.reshape(-1).tolist()):
        if expert >= 0 and (capacity is None or len(served[expert]) < capacity):
            served[expert].append(slot)
    rows, offsets = [], []
    for slots in served:
        wanted = capacity if fill and capacity is not None else -(-len(slots) // alignment) * alignment
        rows += slots + [-1] * (wanted - len(slots))
        offsets.append(len(rows))
    inverse = np.full(index.numel(), -1)
    for row, slot in enumerate(rows):
        if slot >= 0:
            inverse[slot] = row
    return [len(slots) for slots in served], offsets, rows, inverse.reshape(index.shape).tolist()


def untrimmed(index: Tensor, num_experts: int, **options: Any) -> tuple[Any, ...]:
    """What the lists say, with as many rows as there can be."""
    capacity = options.get("capacity")
    rule = options.get("alignment", 1), -1 if capacity is None else capacity, options.get("fill", False)
    counts, offsets, rows, inverse = expected(index, num_experts, **options)
    return counts, offsets, rows + [-1] * (most_rows(index.numel(), num_experts, *rule) - len(rows)), inverse


def as_lists(places: Places) -> tuple[Any, ...]:
    assert all(values.dtype == torch.int64 and values.is_contiguous() for values in places)
    return tuple(values.tolist() for values in places)


def drawn(tokens: int, top_k: int, num_experts: int, empty: float = 0.2) -> Tensor:
    """Experts at random, also twice in one token, some slots empty."""
    index = torch.randint(0, num_experts, (tokens, top_k))
    return index.masked_fill(torch.rand(tokens, top_k) < empty, -1)


CASES: dict[str, tuple[Callable[[], Tensor], int]] = {
    "random": (lambda: drawn(37, 5, 11), 11),
    "one expert": (lambda: torch.zeros(9, 3, dtype=torch.int64), 1),
    "all to the last": (lambda: torch.full((7, 2), 4), 5),
    "all empty": (lambda: torch.full((6, 4), -1), 3),
    "no tokens": (lambda: torch.zeros(0, 4, dtype=torch.int64), 5),
    "no slots": (lambda: torch.zeros(5, 0, dtype=torch.int64), 5),
    "one slot": (lambda: drawn(13, 1, 7), 7),
    "one token": (lambda: torch.tensor([[3, 0, 3, -1, 2]]), 4),
    "as many slots as experts": (lambda: drawn(5, 17, 17), 17),
    "many experts": (lambda: drawn(19, 8, 1031), 1031),
    "int32": (lambda: drawn(23, 3, 5).int(), 5),
    "transposed": (lambda: drawn(4, 29, 6).mT, 6),
    "every other": (lambda: drawn(22, 10, 6)[::2, 1::3], 6),
    "one row for all": (lambda: drawn(1, 6, 4).expand(12, 6), 4),
    "one slot for all": (lambda: torch.tensor([[2]]).expand(8, 5), 4),
}
every_case = pytest.mark.parametrize("case", CASES)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"alignment": 4},
    {"capacity": 2},
    {"capacity": 0},
    {"capacity": 3, "alignment": 8},
    {"capacity": 4, "fill": True},
    {"capacity": 0, "fill": True},
]


@every_implementation
@every_case
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_lists(implementation: str, case: str, options: dict[str, Any]) -> None:
    make, num_experts = CASES[case]
    index = make()
    assert as_lists(plan_by(implementation, index, num_experts, **options)) == expected(index, num_experts, **options)


@every_implementation
@every_case
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_fixed_number_of_rows_only_adds_padding_at_the_end(
    implementation: str, case: str, options: dict[str, Any]
) -> None:
    make, num_experts = CASES[case]
    index = make()
    trimmed = plan_by(implementation, index, num_experts, **options)
    fixed = plan_by(implementation, index, num_experts, trim=False, **options)
    rows = trimmed.slot.shape[0]
    assert fixed.slot[:rows].equal(trimmed.slot) and bool((fixed.slot[rows:] == -1).all())
    assert fixed.slot.shape[0] >= rows
    assert options.get("alignment", 1) > 1 or options.get("fill") or fixed.slot.shape[0] == index.numel()
    for ours, theirs in zip((fixed[0], fixed[1], fixed[3]), (trimmed[0], trimmed[1], trimmed[3]), strict=True):
        assert ours.equal(theirs)


@every_implementation
def test_the_most_experts_of_a_gate(implementation: str) -> None:
    index = drawn(61, 9, 65_536)
    index[0, 0] = 65_535
    assert as_lists(plan_by(implementation, index, 65_536)) == expected(index, 65_536)


def by_sorting(index: Tensor, num_experts: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots and inverse by NumPy, for sizes that lists are too slow for."""
    flat = index.reshape(-1).numpy()
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] >= 0]
    ends = np.bincount(flat[order], minlength=num_experts).cumsum()
    starts = np.concatenate([[0], ends[:-1]])
    slots = order[np.arange(order.size) - starts[flat[order]] < capacity]
    inverse = np.full(flat.size, -1)
    inverse[slots] = np.arange(slots.size)
    return slots, inverse


@every_implementation
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("tokens", "top_k", "num_experts"), [(8209, 5, 7), (4099, 8, 257), (32_771, 1, 2), (3, 20_011, 64), (40_009, 3, 1)]
)
@pytest.mark.parametrize("capacity", [None, 2003])
def test_threads_change_nothing(
    implementation: str, threads: int, tokens: int, top_k: int, num_experts: int, capacity: int | None
) -> None:
    index = drawn(tokens, top_k, num_experts, empty=0.1)
    torch.set_num_threads(threads)
    places = plan_by(implementation, index, num_experts, capacity=capacity)
    slots, inverse = by_sorting(index, num_experts, index.numel() if capacity is None else capacity)
    assert np.array_equal(places.slot.numpy(), slots) and np.array_equal(places.inverse.reshape(-1).numpy(), inverse)
    assert int(places.offsets[-1]) == slots.size


def test_the_function_is_the_operator() -> None:
    """On a GPU, for which the interpreter stands here, nothing waits for the number of rows."""
    index = drawn(21, 4, 6)
    wanted = untrimmed if ON_TRITON else expected
    for options in OPTIONS[:4] + OPTIONS[5:]:
        assert as_lists(dispatch_plan(index, 6, **options)) == wanted(index, 6, **options)
    on_meta = dispatch_plan(index.to("meta"), 6)
    assert [tuple(values.shape) for values in on_meta] == [(6,), (6,), (84,), (21, 4)]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.zeros(2, 2), 3), {}, TypeError, "index must be int32 or int64, got torch.float32"),
        ((torch.zeros(2, 2, dtype=torch.int16), 3), {}, TypeError, "convert it"),
        ((torch.zeros(2, dtype=torch.int64), 3), {}, ValueError, r"index must be \[T, K\], .* got \(2,\)"),
        ((torch.zeros(2, 2, dtype=torch.int64), 0), {}, ValueError, "num_experts=0"),
        ((torch.zeros(2, 2, dtype=torch.int64), 3), {"alignment": 0}, ValueError, "alignment=0"),
        ((torch.zeros(2, 2, dtype=torch.int64), 3), {"capacity": -1}, ValueError, "capacity=-1"),
        ((torch.zeros(2, 2, dtype=torch.int64), 3), {"fill": True}, ValueError, "fill=True pads to the capacity"),
        (
            (torch.zeros(2, 2, dtype=torch.int64), 3),
            {"fill": True, "capacity": 4, "alignment": 2},
            ValueError,
            "leave alignment 1",
        ),
    ],
)
def test_what_the_function_refuses(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dispatch_plan(*arguments, **options)


@every_implementation
@pytest.mark.parametrize("wrong", [5, -2, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("place", [(0, 0), (5, 1), (9_999, 2)])
def test_an_index_out_of_range_is_named(implementation: str, wrong: int, place: tuple[int, int]) -> None:
    index = drawn(10_000, 3, 5)
    index[place] = wrong
    torch.set_num_threads(2)
    message = "number below -1 or above 4" if implementation == "reference" else f"index.* is {wrong}: an expert is a"
    with pytest.raises(RuntimeError, match=message):
        plan_by(implementation, index, 5)
    if -(2**31) <= wrong < 2**31:
        with pytest.raises(RuntimeError, match=message):
            plan_by(implementation, index.int(), 5)


FINE: dict[str, Any] = {"num_experts": 3, "alignment": 1, "capacity": -1, "fill": False, "trim": True}


@every_implementation
@pytest.mark.parametrize(
    ("index", "changes"),
    [
        (torch.zeros(2, 2), {}),
        (torch.zeros(2, 2, dtype=torch.bool), {}),
        (torch.zeros(2, 2, dtype=torch.complex64), {}),
        (torch.zeros((), dtype=torch.int64), {}),
        (torch.zeros(4, dtype=torch.int64), {}),
        (torch.zeros(2, 2, 2, dtype=torch.int64), {}),
        *((torch.zeros(2, 2, dtype=torch.int64), {"num_experts": n}) for n in (0, -1, 2**24 + 1, 2**62, -(2**63))),
        *((torch.zeros(2, 2, dtype=torch.int64), {"alignment": n}) for n in (0, -4, 2**20 + 1, 2**63 - 1)),
        *((torch.zeros(2, 2, dtype=torch.int64), {"capacity": n}) for n in (-2, -(2**63))),
        (torch.zeros(2, 2, dtype=torch.int64), {"fill": True}),
        (torch.zeros(2, 2, dtype=torch.int64), {"fill": True, "capacity": 2**48}),
        (torch.zeros(2, 2, dtype=torch.int64), {"fill": True, "capacity": 2**63 - 1}),
    ],
)
def test_raw_arguments_that_can_not_be(implementation: str, index: Tensor, changes: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=r"^(index|num_experts=|alignment=|capacity=|To fill).*\.$"):
        call(implementation, index, *(FINE | changes).values())


@every_implementation
def test_a_huge_capacity_is_none(implementation: str) -> None:
    index = drawn(9, 3, 4)
    assert as_lists(plan_by(implementation, index, 4, capacity=2**63 - 1)) == expected(index, 4)


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("options", [(1, -1, False), (4, -1, False), (1, 2, False), (1, 2, True)])
def test_the_registration_is_sound(trim: bool, options: tuple[int, int, bool]) -> None:
    for index in (drawn(7, 3, 5), drawn(0, 2, 5), drawn(6, 4, 5).int().mT):
        torch.library.opcheck(OPERATOR, (index, 5, *options, trim))


@pytest.mark.usefixtures("compiler")
def test_compiled() -> None:
    def plan(index: Tensor) -> Places:
        places = dispatch_plan(index, 6, alignment=2)
        return Places(*(values + 0 for values in places))

    compiled = torch.compile(plan, fullgraph=True, backend="aot_eager")
    for empty in (0.0, 0.5, 1.0):
        index = drawn(9, 3, 6, empty=empty)
        counts, offsets, slot, inverse = compiled(index)
        want = expected(index, 6, alignment=2)
        assert (counts.tolist(), offsets.tolist(), inverse.tolist()) == (want[0], want[1], want[3])
        assert slot.tolist() == want[2] + [-1] * (9 * 3 + 6 - len(want[2]))


@pytest.mark.usefixtures("compiler")
def test_exported() -> None:
    class Plan(nn.Module):
        def forward(self, index: Tensor) -> tuple[Tensor, ...]:
            return tuple(dispatch_plan(index, 6))

    tokens = torch.export.Dim("tokens", min=2, max=1000)
    exported = torch.export.export(Plan(), (drawn(9, 3, 6),), dynamic_shapes=({0: tokens},))
    index = drawn(31, 3, 6)
    counts, _, slot, inverse = exported.module()(index)
    want = expected(index, 6)
    assert counts.tolist() == want[0] and inverse.tolist() == want[3]
    assert slot.tolist() == want[2] + [-1] * (31 * 3 - len(want[2]))


POISONED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_dispatch_plan import CASES, OPTIONS, IMPLEMENTATIONS, as_lists, expected, plan_by
assert torch.empty(1000, dtype=torch.int64).ne(0).all(), "the allocator gives clean memory"
torch.manual_seed(0)
for implementation in IMPLEMENTATIONS:
    for make, num_experts in CASES.values():
        for options in OPTIONS:
            index = make()
            assert as_lists(plan_by(implementation, index, num_experts, **options)) == expected(
                index, num_experts, **options
            )
"""


@pytest.mark.skipif(not KERNELS.loaded, reason=f"the reference needs no memory of its own: {KERNELS.reason}")
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc fills fresh memory with a byte")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer brings an allocator of its own")
def test_on_poisoned_memory(request: pytest.FixtureRequest) -> None:
    """Kernels allocate in C++, where the poison of the other tests does not reach; the C library has one of its own."""
    done = subprocess.run(
        [sys.executable, "-c", POISONED, str(request.path.parent)],
        env=os.environ | {"MALLOC_PERTURB_": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
