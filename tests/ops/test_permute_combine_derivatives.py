"""Derivatives of the operators between tokens and rows: against finite differences, the compiler and each other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from triton_support import ON_TRITON

from moegate.ops import combine, dispatch_plan, permute
from moegate.ops.dispatch_plan import Places
from moegate.ops.library import available_isas, forced_isa

OPERATORS = torch.ops.moegate
TOKENS, TOP_K, NUM_EXPERTS, WIDTH = 4, 3, 5, 3
PLACES: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"alignment": 3},
    "dropped": {"capacity": 1},
    "filled": {"capacity": 3, "fill": True},
}
every_places = pytest.mark.parametrize("options", PLACES.values(), ids=PLACES.keys())


def drawn(options: dict[str, Any], tokens: int = TOKENS) -> Places:
    index = torch.randint(0, NUM_EXPERTS, (tokens, TOP_K)).masked_fill(torch.rand(tokens, TOP_K) < 0.2, -1)
    return dispatch_plan(index, NUM_EXPERTS, **options)


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.fixture(params=available_isas() or ["reference"])
def implementation(request: pytest.FixtureRequest) -> Any:
    """Every instruction set there is; without kernels the reference serves by itself."""
    if request.param == "reference":
        yield request.param
        return
    with forced_isa(request.param):
        yield request.param


def functions(places: Places) -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """Every operator with the inputs that it has derivatives by."""
    ways = places.slot, places.inverse
    hidden, rows = leaf(places.inverse.shape[0], WIDTH), leaf(places.slot.shape[0], WIDTH)
    weights = leaf(*places.inverse.shape)
    return {
        "permute": (lambda h: permute(h, *ways), (hidden,)),
        "weighted permute": (lambda h, w: permute(h, *ways, w), (hidden, weights)),
        "combine": (lambda r: combine(r, *ways), (rows,)),
        "weighted combine": (lambda r, w: combine(r, *ways, w), (rows, weights)),
        "row_dots": (lambda r, h: OPERATORS.row_dots(r, h, *ways), (rows, hidden)),
        "combine_backward": (lambda g, r, w: OPERATORS.combine_backward(g, r, *ways, w), (hidden, rows, weights)),
        "permute_backward": (lambda g, h, w: OPERATORS.permute_backward(g, h, *ways, w), (rows, hidden, weights)),
    }


@pytest.mark.usefixtures("implementation")
@every_places
@pytest.mark.parametrize("name", functions(Places(*(torch.zeros(1, 1, dtype=torch.int64),) * 4)))
def test_first_and_second_derivatives(options: dict[str, Any], name: str) -> None:
    function, inputs = functions(drawn(options))[name]
    # Fast means along a random direction instead of along each.
    assert torch.autograd.gradcheck(function, inputs, fast_mode=ON_TRITON)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=ON_TRITON)


@pytest.mark.parametrize("name", ["weighted permute", "weighted combine"])
@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_a_single_gradient_is_the_one_of_both(name: str, wanted: tuple[bool, bool]) -> None:
    function, inputs = functions(drawn({}))[name]
    both = torch.autograd.grad(function(*inputs).square().sum(), inputs)
    given = [values if wants else values.detach() for values, wants in zip(inputs, wanted, strict=True)]
    position = wanted.index(True)
    (alone,) = torch.autograd.grad(function(*given).square().sum(), given[position])
    torch.testing.assert_close(alone, both[position], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["weighted permute", "weighted combine", "permute", "combine"])
def test_only_what_is_read_again_is_saved(name: str) -> None:
    """Without a gradient of the weights, rows and tokens can be freed; they are most of a layer's memory."""
    function, inputs = functions(drawn({}))[name]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda values: saved.append(values) or values, lambda values: values):
        function(inputs[0], *(values.detach() for values in inputs[1:]))
        assert all(values.dtype == torch.int64 or values.shape == (TOKENS, TOP_K) for values in saved)
        saved.clear()
        if len(inputs) == 2:
            function(inputs[0].detach(), inputs[1])
            assert [values.shape for values in saved if values.dtype != torch.int64] == [inputs[0].shape]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_gradients_are_close_to_wide_ones(dtype: torch.dtype) -> None:
    places = drawn({}, tokens=50)
    ways = places.slot, places.inverse
    hidden = torch.randn(50, 65).to(dtype).requires_grad_()
    weights = torch.rand(50, TOP_K, requires_grad=True)
    grads = []
    for inputs in ((hidden, weights), (hidden.detach().double().requires_grad_(), weights)):
        out = combine(permute(inputs[0], *ways, inputs[1]).sin(), *ways, inputs[1])
        grads.append(torch.autograd.grad(out.double().square().sum(), inputs))
    (ours, ours_w), (wanted, wanted_w) = grads
    assert ours.dtype == dtype and ours_w.dtype == torch.float32
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), wanted, rtol=4 * unit, atol=8 * unit * float(wanted.abs().max()))
    torch.testing.assert_close(ours_w, wanted_w, rtol=4 * unit, atol=8 * unit * float(wanted_w.abs().max()))


def test_weights_of_another_type_get_gradients_of_their_own() -> None:
    places = drawn({})
    ways = places.slot, places.inverse
    weights = torch.rand(TOKENS, TOP_K, dtype=torch.bfloat16, requires_grad=True)
    wide = weights.detach().float().requires_grad_()
    rows = torch.randn(places.slot.shape[0], WIDTH)
    grads = [torch.autograd.grad(combine(rows, *ways, given).sum(), given)[0] for given in (weights, wide)]
    assert grads[0].dtype == torch.bfloat16 and grads[0].equal(grads[1].bfloat16())
    assert combine(rows.double(), *ways, wide).dtype == torch.float64


def test_what_needs_no_gradient_gets_none() -> None:
    places = drawn({})
    ways = places.slot, places.inverse
    hidden, weights = leaf(TOKENS, WIDTH), leaf(TOKENS, TOP_K)
    with torch.no_grad():
        assert not permute(hidden, *ways, weights).requires_grad
    assert not permute(hidden.detach(), *ways, weights.detach()).requires_grad
    assert permute(hidden.detach(), *ways, weights).requires_grad
    with torch.inference_mode():
        assert permute(hidden, *ways, weights).is_inference()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # PyTorch's own, when forward mode is loaded
@pytest.mark.parametrize("name", ["weighted permute", "weighted combine"])
def test_function_transforms(name: str) -> None:
    """``torch.func`` and forward mode: the same derivatives, by another way."""
    function, inputs = functions(drawn({}))[name]

    def loss(*inputs: Tensor) -> Tensor:
        return function(*inputs).square().sum()

    wanted = torch.autograd.grad(loss(*inputs), inputs)
    given = tuple(values.detach() for values in inputs)
    for ours, gradient in zip(torch.func.grad(loss, argnums=(0, 1))(*given), wanted, strict=True):
        torch.testing.assert_close(ours, gradient)
    tangents = tuple(torch.randn_like(values) for values in given)
    along = sum((gradient * tangent).sum() for gradient, tangent in zip(wanted, tangents, strict=True))
    torch.testing.assert_close(torch.func.jvp(loss, given, tangents)[1], along)
    with torch.autograd.forward_ad.dual_level():
        duals = map(torch.autograd.forward_ad.make_dual, given, tangents)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(loss(*duals)).tangent, along)


@pytest.mark.parametrize(
    ("options", "dtype"), [(PLACES["padded"], torch.float32), (PLACES["dropped"], torch.bfloat16)], ids=str
)
def test_the_registration_is_sound(options: dict[str, Any], dtype: torch.dtype) -> None:
    places = drawn(options)
    ways = places.slot, places.inverse
    hidden, rows = leaf(TOKENS, WIDTH, dtype=dtype), leaf(places.slot.shape[0], WIDTH, dtype=dtype)
    weights = leaf(TOKENS, TOP_K, dtype=torch.float32)
    for operator, arguments in (
        (OPERATORS.permute.default, (hidden, *ways, None)),
        (OPERATORS.permute.default, (hidden, *ways, weights)),
        (OPERATORS.combine.default, (rows, *ways, None)),
        (OPERATORS.combine.default, (rows, *ways, weights)),
        (OPERATORS.row_dots.default, (rows, hidden, *ways)),
        (OPERATORS.combine_backward.default, (hidden, rows, *ways, weights)),
        (OPERATORS.permute_backward.default, (rows, hidden, *ways, weights)),
    ):
        torch.library.opcheck(operator, arguments)


# --- compiled and exported ----------------------------------------------------------------------------------------


def there_and_back(index: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
    places = dispatch_plan(index, NUM_EXPERTS)
    rows = permute(hidden, places.slot, places.inverse, weights)
    return combine(rows.sin(), places.slot, places.inverse, weights)


@pytest.mark.usefixtures("compiler")
def test_one_graph_with_its_gradients() -> None:
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    hidden, weights = leaf(9, 17, dtype=torch.float32), leaf(9, TOP_K, dtype=torch.float32)
    for empty in (0.0, 0.4, 1.0):
        index = torch.randint(0, NUM_EXPERTS, (9, TOP_K)).masked_fill(torch.rand(9, TOP_K) < empty, -1)
        results = []
        for run in (there_and_back, compiled):
            out = run(index, hidden, weights)
            results.append((out, *torch.autograd.grad(out.square().sum(), (hidden, weights))))
        for ours, wanted in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(ours, wanted)


@pytest.mark.usefixtures("compiler")
def test_exported() -> None:
    class Both(nn.Module):
        def forward(self, index: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
            return there_and_back(index, hidden, weights)

    def inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(-1, NUM_EXPERTS, (tokens, TOP_K))
        return index, torch.randn(tokens, 8), torch.rand(tokens, TOP_K)

    tokens = torch.export.Dim("tokens", min=2, max=1000)
    exported = torch.export.export(Both(), inputs(5), dynamic_shapes=({0: tokens}, {0: tokens}, {0: tokens}))
    given = inputs(41)
    assert exported.module()(*given).equal(there_and_back(*given))
