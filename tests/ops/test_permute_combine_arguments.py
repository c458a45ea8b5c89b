"""What the operators between tokens and rows are given by mistake: always a sentence, never a crash."""

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_support import not_on_triton

from moegate.ops import combine, dispatch_plan, permute
from moegate.ops.dispatch_plan import Places
from moegate.ops.library import available_isas, forced_isa

IMPLEMENTATIONS = ("reference", *available_isas())
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
SENTENCE = (
    r"^(hidden|rows|grad|slot|inverse|weights|torch\.\w+ \(|The size of tensor|Expected all tensors)"
    r"[^\n]*(must|holds)[^\n]*[.\]]"
)
TOKENS, TOP_K, ROWS, WIDTH = 4, 3, 7, 5
looks_at_numbers = not_on_triton("no number is looked at; test_gpu_permute_combine.py has what they count as there")


def call(implementation: str, name: str, *arguments: Any) -> Any:
    operator = getattr(torch.ops.moegate, name).default
    if implementation == "reference":
        return operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)
    with forced_isa(implementation):
        return operator(*arguments)


def sound() -> dict[str, Tensor]:
    index = torch.tensor([[0, 1, -1], [1, 0, 1], [-1, -1, -1], [2, 0, -1]])
    # Trimmed, as the function asks for it on the CPU alone.
    places = Places(*torch.ops.moegate.dispatch_plan(index, 3, 1, -1, False, True))
    assert places.slot.shape == (ROWS,)
    return {
        "hidden": torch.randn(TOKENS, WIDTH),
        "rows": torch.randn(ROWS, WIDTH),
        "slot": places.slot,
        "inverse": places.inverse,
        "weights": torch.rand(TOKENS, TOP_K),
    }


ARGUMENTS = {
    "permute": ("hidden", "slot", "inverse", "weights"),
    "combine": ("rows", "slot", "inverse", "weights"),
    "row_dots": ("rows", "hidden", "slot", "inverse"),
    "combine_backward": ("hidden", "rows", "slot", "inverse", "weights"),
    "permute_backward": ("rows", "hidden", "slot", "inverse", "weights"),
}


def wrong_matrices(values: Tensor) -> list[Tensor]:
    return [
        values[:-1],
        torch.cat([values, values]),
        values[0],
        values[None],
        values.int(),
        values.bool(),
        values.to(torch.complex64),
        values.to(torch.float8_e4m3fn),
        values[:0],
        torch.zeros(()),
    ]


def wrong_integers(values: Tensor) -> list[Tensor]:
    return [values.int(), values.double(), values[None], values[0], values.bool(), torch.zeros((), dtype=torch.int64)]


def wrong_weights(values: Tensor) -> list[Tensor]:
    return [
        values.double(),
        values.bfloat16(),
        values.long(),
        values[:, :-1],
        values[:-1],
        values[0],
        values.mT,
        torch.zeros(()),
        torch.zeros(0, TOP_K),
    ]


@every_implementation
@pytest.mark.parametrize("name", ARGUMENTS)
def test_each_argument_spoiled_alone(implementation: str, name: str) -> None:
    for spoiled in ARGUMENTS[name]:
        good = sound()
        wrongs = {"slot": wrong_integers, "inverse": wrong_integers, "weights": wrong_weights}.get(
            spoiled, wrong_matrices
        )(good[spoiled])
        for wrong in wrongs:
            given = good | {spoiled: wrong}
            with pytest.raises(RuntimeError, match=SENTENCE):
                call(implementation, name, *(given[argument] for argument in ARGUMENTS[name]))


@every_implementation
@pytest.mark.parametrize("name", ["row_dots", "combine_backward", "permute_backward"])
def test_matrices_that_differ(implementation: str, name: str) -> None:
    for change in (Tensor.double, Tensor.bfloat16, lambda values: values[:, 1:], lambda values: values[:, :0]):
        given = sound()
        given["rows"] = change(given["rows"])
        with pytest.raises(RuntimeError, match=r"must (have the same type and the same width|be)"):
            call(implementation, name, *(given[argument] for argument in ARGUMENTS[name]))


HUGE = (2**63 - 1, -(2**63), 2**31, -2, -(2**31) - 1, 2**40)


@looks_at_numbers
@every_implementation
@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_numbers_out_of_range(implementation: str, name: str, place: int) -> None:
    """The slot of a row, or the row of a slot: whichever of the two the operator reads."""
    read, limit = ("slot", TOKENS * TOP_K) if name in ("permute", "combine_backward") else ("inverse", ROWS)
    for wrong in (limit, limit + 1, *HUGE):
        given = sound()
        values = given[read].clone()
        values.view(-1)[place] = wrong
        given[read] = values
        with pytest.raises(RuntimeError, match=rf"^{read} holds .*{'' if implementation == 'reference' else wrong}"):
            call(implementation, name, *(given[argument] for argument in ARGUMENTS[name]))


@looks_at_numbers
@every_implementation
def test_numbers_out_of_range_among_many(implementation: str) -> None:
    """Found by whichever thread comes by."""
    tokens, width = 3001, 64
    torch.set_num_threads(2)
    places = dispatch_plan(torch.randint(0, 5, (tokens, 2)), 5)
    for place in (0, 1500, 6001):
        slot, inverse = places.slot.clone(), places.inverse.clone()
        slot[place] = 2 * tokens
        inverse.view(-1)[place] = -7
        with pytest.raises(RuntimeError, match=r"^slot holds"):
            call(implementation, "permute", torch.randn(tokens, width), slot, places.inverse, None)
        with pytest.raises(RuntimeError, match=r"^inverse holds"):
            call(implementation, "combine", torch.randn(2 * tokens, width), places.slot, inverse, None)


@looks_at_numbers
@every_implementation
def test_no_slots_and_no_tokens_leave_nothing_in_range(implementation: str) -> None:
    rows, one = torch.randn(3, WIDTH), torch.zeros(3, dtype=torch.int64)
    for shape in ((0, 4), (4, 0), (0, 0)):
        inverse = torch.zeros(shape, dtype=torch.int64)
        with pytest.raises(RuntimeError, match=r"^slot holds"):
            call(implementation, "permute", rows.new_zeros(shape[0], WIDTH), one, inverse, None)
        out = call(implementation, "permute", rows.new_zeros(shape[0], WIDTH), one - 1, inverse, None)
        assert out.shape == (3, WIDTH) and not out.any()
        out = call(implementation, "combine", rows, one - 1, inverse, None)
        assert out.shape == (shape[0], WIDTH) and not out.any()
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"^inverse holds"):
        call(implementation, "combine", rows[:0], none, torch.zeros(2, 2, dtype=torch.int64), None)


@every_implementation
def test_ways_that_are_not_each_others_inverse_are_safe(implementation: str) -> None:
    """Repeated rows and slots: what comes out is the caller's, but it comes out."""
    hidden, rows, weights = torch.randn(TOKENS, WIDTH), torch.randn(ROWS, WIDTH), torch.rand(TOKENS, TOP_K)
    slot, inverse = torch.full((ROWS,), 5), torch.full((TOKENS, TOP_K), 6)
    given = {"hidden": hidden, "rows": rows, "slot": slot, "inverse": inverse, "weights": weights}
    for name, arguments in ARGUMENTS.items():
        out = call(implementation, name, *(given[argument] for argument in arguments))
        for values in out if isinstance(out, tuple) else (out,):
            assert bool(values.isfinite().all())


def anything(generator: random.Random) -> Tensor:
    """A tensor of any kind."""
    shape = [generator.choice((0, 1, 2, 3, 4, 5, 7, 12)) for _ in range(generator.choice((0, 1, 1, 2, 2, 2, 3)))]
    dtype = generator.choice((torch.float32, torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int64))
    values = torch.randint(-1, 12, shape).to(dtype)
    if shape and generator.random() < 0.3:
        values = values[:1].expand(shape) if shape[0] else values
    return values.mT if len(shape) == 2 and generator.random() < 0.3 else values


@looks_at_numbers
@every_implementation
@pytest.mark.parametrize("seed", range(4))
def test_anything_at_all(implementation: str, seed: int) -> None:
    generator = random.Random(seed)
    served = 0
    for name, _ in itertools.product(ARGUMENTS, range(150)):
        given = sound()
        for argument in ARGUMENTS[name]:
            if generator.random() < 0.4:
                given[argument] = anything(generator)
        try:
            call(implementation, name, *(given[argument] for argument in ARGUMENTS[name]))
            served += 1
        except RuntimeError as error:
            assert "INTERNAL ASSERT" not in str(error) and "shim" not in str(error)
    assert served > 20


# --- the public functions ------------------------------------------------------------------------------------------


def test_what_the_functions_refuse() -> None:
    given = sound()
    ways = given["slot"], given["inverse"]
    with pytest.raises(ValueError, match=r"hidden \(3, 5\) and inverse \(4, 3\) do not fit: expected \[T, D\]"):
        permute(given["hidden"][1:], *ways)
    with pytest.raises(ValueError, match=r"hidden \(5,\)"):
        permute(given["hidden"][0], *ways)
    with pytest.raises(ValueError, match=r"rows \(6, 5\), slot \(7,\) and inverse \(4, 3\) do not fit"):
        combine(given["rows"][1:], *ways)
    for function, values in ((permute, given["hidden"]), (combine, given["rows"])):
        with pytest.raises(ValueError, match=r"weights \(4, 2\) must be \(4, 3\), one for each slot"):
            function(values, *ways, given["weights"][:, 1:])


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.bool, torch.complex64, torch.complex128, torch.float8_e5m2], ids=str
)
def test_other_types_are_served_too(dtype: torch.dtype) -> None:
    given = sound()
    ways = given["slot"], given["inverse"]
    hidden = torch.randint(0, 2, (TOKENS, WIDTH)).to(dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    rows = permute(hidden, *ways)
    assert rows.dtype == dtype and rows.to(wide).equal(hidden.to(wide)[given["slot"] // TOP_K])
    assert permute(hidden, *ways, given["weights"]).dtype == dtype
    used = (given["inverse"] >= 0).sum(dim=1, keepdim=True)
    out = combine(rows, *ways)
    assert out.dtype == dtype and out.to(wide).equal((used * hidden.to(wide)).to(dtype).to(wide))
