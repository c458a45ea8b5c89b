"""The two models: shapes, causality, and what they hand from layer to layer."""

import pytest
import torch
from torch import nn

import moegate
from moegate.lab.models import ByteLM, FeedForwardBlock, ImageClassifier


def make_moe(layer: int) -> moegate.MoE:
    return moegate.MoE(16, 8, 4, moegate.recipes.mixtral(top_k=2))


def test_one_routing_a_layer_and_one_token_an_image() -> None:
    logits, routings = ImageClassifier(16, 3, make_moe)(torch.rand(5, 784))
    assert logits.shape == (5, 10)
    assert [routing.num_tokens for routing in routings] == [5, 5, 5]


def test_an_image_is_classified_alike_whatever_is_beside_it() -> None:
    model = ImageClassifier(16, 2, make_moe).eval()
    images = torch.rand(6, 784)
    together, alone = model(images)[0], torch.cat([model(image[None])[0] for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_a_byte_never_sees_what_comes_after_it() -> None:
    model = ByteLM(16, 2, 2, make_moe, max_length=12).eval()
    text = torch.randint(256, (2, 12))
    changed = text.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 256
    before, after = model(text)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_every_parameter_gets_a_gradient() -> None:
    models = (ImageClassifier(16, 2, make_moe), ByteLM(16, 2, 2, make_moe, max_length=32))
    inputs = (torch.rand(64, 784), torch.randint(256, (8, 32)))
    for model, values in zip(models, inputs, strict=True):
        model(values)[0].square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool((parameter.grad != 0).any()), name


def test_each_layer_gets_the_routing_of_the_one_before() -> None:
    def with_residual_gate(layer: int) -> moegate.MoE:
        return moegate.MoE(16, 8, 4, moegate.recipes.mixtral(), gate=moegate.gates.ResidualGate(16, 4))

    for model, inputs in (
        (ImageClassifier(16, 2, with_residual_gate), torch.rand(5, 784)),
        (ByteLM(16, 2, 2, with_residual_gate), torch.randint(256, (1, 5))),
    ):
        gate = [module for module in model.modules() if isinstance(module, moegate.MoE)][1].gate
        before = model(inputs)[1][1].logits
        nn.init.ones_(gate.previous_weight)
        _, (first, second) = model(inputs)
        shift = first.logits.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(second.logits, before + shift, rtol=1e-4, atol=1e-5)


def test_token_ids_reach_the_router() -> None:
    def by_hash(layer: int) -> moegate.MoE:
        return moegate.MoE(16, 8, 4, moegate.recipes.hash_routing())

    model = ImageClassifier(16, 1, by_hash)
    _, (routing,) = model(torch.rand(4, 784), torch.tensor([3, 9, 3, 9]))
    index = routing.expert_index.flatten().tolist()
    assert index[:2] == index[2:]


def test_a_sequence_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="9 bytes is longer than max_length=8"):
        ByteLM(16, 1, 2, make_moe, max_length=8)(torch.zeros(1, 9, dtype=torch.int64))


def test_a_block_adds_to_its_input() -> None:
    block = FeedForwardBlock(8, nn.Linear(8, 8))
    hidden = torch.randn(3, 8)
    out, routing = block(hidden)
    expected = hidden + block.feed_forward(hidden / hidden.square().mean(-1, keepdim=True).sqrt())
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert routing is None
