"""The sanitizer of Triton kernels finds what it is there for, and nothing else."""

import math

import pytest
import torch
from triton_support import only_on_triton

triton = pytest.importorskip("triton")
tl = triton.language

pytestmark = only_on_triton


@triton.jit
def copy(source, target, size, READ: tl.constexpr, WRITTEN: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place, mask=place < size + READ), mask=place < size + WRITTEN)


@triton.jit
def to_one_place(target):
    tl.store(target, tl.program_id(0))


@triton.jit
def at_once(target, DIFFERENT: tl.constexpr):
    lane = tl.arange(0, 4)
    tl.store(target + lane * 0, lane * DIFFERENT)


@triton.jit
def from_a_neighbour(target, BARRIER: tl.constexpr):
    me = tl.program_id(0)
    tl.store(target + me, me)
    if BARRIER:
        tl.debug_barrier()
    tl.store(target + 8 + me, tl.load(target + 1 - me))


@triton.jit
def own(target, BARRIER: tl.constexpr):
    lane = tl.arange(0, 4)
    tl.store(target + lane, lane)
    if BARRIER:
        tl.debug_barrier()
    tl.store(target + 4 + lane, tl.load(target + 3 - lane))


@triton.jit
def every_second(source, target):
    me = tl.program_id(0)
    value = tl.load(source + me)
    if me % 2 == 0:
        tl.store(target + me, tl.load(target + me) + value)


@triton.jit
def exp_and_max(target):
    lane = tl.arange(0, 2)
    value = tl.exp(tl.load(target + lane))
    tl.store(target + lane, tl.maximum(value, tl.max(value, axis=0)))


@triton.jit
def counted(target, SEM: tl.constexpr):
    ticket = tl.atomic_add(target, 1, sem=SEM)
    tl.store(target + 1, ticket)


def refused(match: str) -> pytest.RaisesExc:
    """A race is found behind the last program, all else within one, where the interpreter wraps what is raised."""
    return pytest.raises(Exception, match=match)


def test_what_stays_inside_passes() -> None:
    source, target = torch.arange(13.0), torch.zeros(13)
    copy[(4,)](source, target, 13, READ=0, WRITTEN=0, BLOCK=4)
    assert target.equal(source)


@pytest.mark.parametrize(("read", "written", "what"), [(1, 0, "a load"), (0, 1, "a store")])
def test_one_element_too_many(read: int, written: int, what: str) -> None:
    # The elements behind belong to the same memory, but not to the tensors that the kernel was given.
    source, target = torch.zeros(32)[:13], torch.zeros(32)[:13]
    with refused(rf"copy, program \(3, 0, 0\): {what} of 1 elements outside of the tensors"):
        copy[(4,)](source, target, 13, READ=read, WRITTEN=written, BLOCK=4)


def test_programs_that_store_to_one_place() -> None:
    target = torch.zeros(1, dtype=torch.int32)
    to_one_place[(1,)](target)
    with refused("to_one_place: programs race, several store to 1 of the addresses"):
        to_one_place[(2,)](target)


def test_a_program_that_loads_what_another_one_stores() -> None:
    target = torch.zeros(16, dtype=torch.int32)
    with refused("from_a_neighbour: programs race, one loads what another one stores"):
        from_a_neighbour[(2,)](target, BARRIER=True)


@pytest.mark.may_race
def test_races_can_be_allowed() -> None:
    to_one_place[(2,)](torch.zeros(1, dtype=torch.int32))


def test_programs_that_return_early_are_no_race() -> None:
    source, target = torch.arange(8.0), torch.zeros(8)
    every_second[(8,)](source, target)
    assert target.tolist() == [0, 0, 2, 0, 4, 0, 6, 0]


def test_infinities_and_nan_raise_no_warning() -> None:
    target = torch.tensor([1e30, float("inf")])
    exp_and_max[(1,)](target)
    assert target.tolist() == [math.inf, math.inf]
    target[:] = float("nan")
    exp_and_max[(1,)](target)
    assert target.isnan().all()


def test_a_store_of_different_values_to_one_address() -> None:
    target = torch.zeros(4, dtype=torch.int32)
    at_once[(1,)](target, DIFFERENT=0)
    with refused("stores different values to one address at once"):
        at_once[(1,)](target, DIFFERENT=1)


def test_a_load_of_what_was_stored_needs_a_barrier() -> None:
    target = torch.zeros(8, dtype=torch.int32)
    own[(1,)](target, BARRIER=True)
    assert target.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    with refused("own, program .* loads where it stored, with no barrier between"):
        own[(1,)](target, BARRIER=False)


def test_an_atomic_that_orders_programs_is_trusted() -> None:
    target = torch.zeros(2, dtype=torch.int32)
    counted[(3,)](target, SEM="acq_rel")
    assert target.tolist() == [3, 2]
    with refused("counted: programs race"):
        counted[(3,)](target, SEM="relaxed")


def test_an_atomic_outside() -> None:
    with refused("an atomic of 1 elements outside of the tensors"):
        counted[(1,)](torch.zeros(0, dtype=torch.int32), SEM="relaxed")
