"""What every loss of a routing promises: no NaN without tokens, no trace of padding, right gradients."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import moegate
from moegate.balance import losses
from moegate.readings import ComputedReadings
from moegate.records import Routing

Loss = Callable[[Routing], Tensor]

LOSSES: dict[str, Loss] = {
    "load_balance": losses.load_balance,
    "first_choice_load_balance": losses.first_choice_load_balance,
    "sequence_load_balance": lambda routing: losses.sequence_load_balance(routing, 1),
    "global_load_balance": losses.global_load_balance,
    "global_load_balance, weighted": lambda routing: losses.global_load_balance(routing, token_weighted=True),
    "group_load_balance": lambda routing: losses.group_load_balance(routing, 1),
    "pooled_load_balance": lambda routing: losses.pooled_load_balance([routing, routing]),
    "importance_cv": losses.importance_cv,
    "importance_cv, dense": lambda routing: losses.importance_cv(routing, dense=True),
    "load_cv": losses.load_cv,
    "importance_load": losses.importance_load,
    "load_cross_entropy": losses.load_cross_entropy,
    "router_z": losses.router_z,
    "token_entropy": losses.token_entropy,
    "marginal_entropy": losses.marginal_entropy,
    "mutual_information": losses.mutual_information,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def routed(logits: Tensor, mask: Tensor | None = None, top_k: int = 2, scale: Tensor | None = None) -> Routing:
    """Routed with learned noise, so that every loss has what it reads."""
    return moegate.route(
        logits,
        moegate.recipes.noisy_topk(top_k=top_k),
        token_mask=mask,
        training=True,
        noise_scale=torch.full_like(logits, 0.7).detach() if scale is None else scale,
        generator=torch.Generator().manual_seed(5),
    )


@every_loss
@pytest.mark.parametrize("tokens", [0, 6])
def test_no_real_token_reads_exactly_zero_with_a_graph(loss: Loss, tokens: int) -> None:
    logits = torch.randn(tokens, 4, requires_grad=True)
    value = loss(routed(logits, torch.zeros(tokens, dtype=torch.bool)))
    assert value.shape == () and value.dtype == torch.float32
    assert value.item() == 0.0
    value.backward()
    assert logits.grad is not None and not logits.grad.any()


@every_loss
@pytest.mark.filterwarnings("ignore:.*router gets no gradient")  # of one expert, nobody expects any
def test_a_single_expert_is_finite(loss: Loss) -> None:
    logits = torch.randn(5, 1, requires_grad=True)
    value = loss(routed(logits, top_k=1))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_widened_before_any_arithmetic(loss: Loss, dtype: torch.dtype) -> None:
    logits = torch.randn(33, 4).to(dtype)
    scale = torch.full((33, 4), 0.7)
    values = [loss(routed(like, scale=scale)) for like in (logits, logits.float())]
    assert values[0].dtype == torch.float32
    assert values[0].item() == values[1].item()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(loss: Loss, dtype: torch.dtype) -> None:
    logits = torch.randn(33, 4, requires_grad=True)
    mask = torch.arange(33) < 29
    expected = loss(routed(logits, mask))
    (expected_gradient,) = torch.autograd.grad(expected, logits, allow_unused=True)
    with torch.autocast("cpu", dtype):
        value = loss(routed(logits, mask))
    (gradient,) = torch.autograd.grad(value, logits, allow_unused=True)
    assert value.dtype == torch.float32 and value.item() == expected.item()
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=0)


@every_loss
def test_evaluation_needs_nothing_of_training(loss: Loss) -> None:
    rule = moegate.recipes.noisy_topk(top_k=2)
    with torch.no_grad():
        value = loss(moegate.route(torch.randn(33, 4), rule, token_mask=torch.arange(33) < 29))
    assert value.shape == () and value.dtype == torch.float32 and torch.isfinite(value)


@every_loss
@pytest.mark.parametrize("padding", [1e4, float("inf"), float("nan")])
def test_padding_leaves_no_trace(loss: Loss, padding: float) -> None:
    mask = torch.tensor([True] * 12 + [False] * 5)
    real = torch.randn(12, 4)
    bad = torch.cat([real, torch.full((5, 4), padding)]).requires_grad_()
    good = torch.cat([real, torch.zeros(5, 4)]).requires_grad_()
    losses_of = [loss(routed(logits, mask)) for logits in (bad, good)]
    assert losses_of[0].item() == losses_of[1].item()
    for value in losses_of:
        value.backward()
    torch.testing.assert_close(bad.grad, good.grad, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [losses.router_z, losses.load_cv])
def test_padding_of_a_routing_recorded_elsewhere_leaves_no_trace(loss: Loss) -> None:
    """`moegate.route` clears the logits of padding; a record made by another system may hold anything there."""
    mask = torch.tensor([True] * 6 + [False] * 3)
    routing = routed(torch.randn(9, 4), mask)
    names = ("logits", "noisy_logits", "noise_scale")
    broken = {name: getattr(routing, name).masked_fill(~mask[:, None], float("nan")) for name in names}
    leaves = [value.requires_grad_() for value in broken.values()]
    readings = ComputedReadings(
        broken["logits"], routing.scores, routing.selection_scores, routing.ranking, broken["noisy_logits"]
    )
    value = loss(replace(routing, readings=readings, noise_scale=broken["noise_scale"]))
    assert value.item() == loss(routing).item()
    for gradient in torch.autograd.grad(value, leaves, allow_unused=True):
        assert gradient is None or (torch.isfinite(gradient).all() and not gradient[6:].any())


@every_loss
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_equals_finite_differences(loss: Loss, masked: bool) -> None:
    mask = torch.tensor([True, False, True, True, True, False, True]) if masked else None
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    value = loss(routed(logits, mask))
    assert value.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda z: loss(routed(z, mask)), logits)


@every_loss
def test_a_loss_leaves_the_routing_as_it_is(loss: Loss) -> None:
    routing = routed(torch.randn(9, 4), torch.arange(9) < 7)
    names = (*vars(routing), "logits", "scores", "selection_scores", "ranking", "noisy_logits")
    values = {name: getattr(routing, name) for name in names}
    tensors = {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}
    loss(routing)
    for name, value in tensors.items():
        torch.testing.assert_close(getattr(routing, name), value, rtol=0, atol=0)


def test_every_public_loss_of_a_routing_is_tested_here() -> None:
    others = {"LoadAccumulator", "row_cosine", "row_orthogonality", "smooth_load"}
    assert set(losses.__all__) - others <= set(LOSSES)


@pytest.mark.parametrize("name", moegate.recipes.names())
def test_every_family_of_router_has_finite_losses_and_gradients(name: str) -> None:
    logits = torch.randn(3, 16, 64, requires_grad=True)
    tokens = torch.arange(48).reshape(3, 16)
    routing = moegate.route(logits, moegate.recipes.get(name)(), token_ids=tokens, token_mask=tokens % 5 > 0)
    for key, loss in LOSSES.items():
        value = loss(routing)
        assert torch.isfinite(value), key
        if value.requires_grad:  # hash layers and random routing have constant scores
            (gradient,) = torch.autograd.grad(value, logits, retain_graph=True, allow_unused=True)
            assert gradient is None or torch.isfinite(gradient).all(), key


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_compiles_without_a_graph_break(name: str) -> None:
    torch._dynamo.reset()  # or the losses before count as recompilations
    loss = LOSSES[name]
    rule = moegate.recipes.mixtral(top_k=2)

    def through(logits: Tensor, mask: Tensor) -> Tensor:
        return loss(moegate.route(logits, rule, token_mask=mask))

    logits, mask = torch.randn(6, 4), torch.arange(6) < 4
    compiled = torch.compile(through, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, mask), through(logits, mask))


@pytest.mark.parametrize("name", ["load_balance", "importance_cv", "router_z"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_only_the_checkpointing_that_is_not_reentrant_keeps_the_graph_of_a_routing(name: str, reentrant: bool) -> None:
    """As the documentation says: PyTorch's reentrant mode runs the layer without a graph and returns that routing."""
    moe = moegate.MoE(8, 16, 4, moegate.recipes.mixtral(top_k=2))
    hidden = torch.randn(12, 8, requires_grad=True)
    _, routing = checkpoint(moe, hidden, use_reentrant=reentrant)
    value = LOSSES[name](routing)
    assert value.requires_grad == (not reentrant)
    if not reentrant:
        (gradient,) = torch.autograd.grad(value, moe.gate.weight)
        (expected,) = torch.autograd.grad(LOSSES[name](moe(hidden)[1]), moe.gate.weight)
        assert expected.any()
        torch.testing.assert_close(gradient, expected)
