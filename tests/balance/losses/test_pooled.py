"""The pooled loss against transformers' function, and the collapse that it can't see."""

import pytest
import torch

import moegate
from moegate.balance.losses import load_balance, pooled_load_balance


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_is_the_function_of_transformers_over_k(top_k: int, masked: bool) -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    layers = [torch.randn(3 * 11, 8) for _ in range(4)]
    mask = torch.rand(3, 11) < 0.7 if masked else None
    theirs = mixtral.load_balancing_loss_func(
        tuple(layers), num_experts=8, top_k=top_k, attention_mask=None if mask is None else mask.long()
    )
    rule = moegate.recipes.mixtral(top_k=top_k)
    flat = None if mask is None else mask.reshape(-1)
    ours = pooled_load_balance([moegate.route(logits, rule, token_mask=flat) for logits in layers])
    torch.testing.assert_close(ours * top_k, theirs)


def test_one_layer_of_transformers_is_the_loss_per_layer() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = torch.randn(40, 8)
    routing = moegate.route(logits, moegate.recipes.mixtral(top_k=2))
    theirs = mixtral.load_balancing_loss_func((logits,), num_experts=8, top_k=2)
    torch.testing.assert_close(load_balance(routing) * 2, theirs)


def test_pooling_hides_the_collapse_of_every_layer() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    layers = []
    for layer in range(4):  # every token of layer l goes to expert l
        logits = torch.full((32, 4), -60.0)
        logits[:, layer] = 0.0
        layers.append(logits)
    routings = [moegate.route(logits, moegate.recipes.switch()) for logits in layers]
    assert [load_balance(routing).item() for routing in routings] == pytest.approx([4.0] * 4)
    assert pooled_load_balance(routings).item() == pytest.approx(1.0)
    theirs = mixtral.load_balancing_loss_func(tuple(layers), num_experts=4, top_k=1)
    assert theirs.item() == pytest.approx(1.0)  # "perfectly balanced", with 3 of 4 experts dead in each layer


def test_a_single_layer_is_the_plain_loss() -> None:
    routing = moegate.route(torch.randn(20, 4), moegate.recipes.mixtral(top_k=2))
    torch.testing.assert_close(pooled_load_balance([routing]), load_balance(routing))


def test_no_layers_or_unlike_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="routings is empty"):
        pooled_load_balance([])
    routings = [moegate.route(torch.randn(3, experts), moegate.recipes.switch()) for experts in (4, 8)]
    with pytest.raises(ValueError, match=r"different numbers of experts \[4, 8\]"):
        pooled_load_balance(routings)
