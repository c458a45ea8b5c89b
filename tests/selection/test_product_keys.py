"""Product keys, against Doge's block in transformers and a sum made by hand."""

import pytest
import torch

import moegate
from moegate.fusion import Fused, match
from moegate.selection import ProductKeyTopK


def rule_of(top_k: int) -> moegate.RoutingRule:
    return moegate.RoutingRule(ProductKeyTopK(top_k), score=moegate.scoring.SoftmaxSelected())


@pytest.mark.parametrize("score", ["softmax", "softmax_selected", "sigmoid"])
def test_is_top_k_of_all_sums(score: str) -> None:
    logits = torch.randn(50, 14, requires_grad=True)
    rule = moegate.RoutingRule(ProductKeyTopK(5), score=moegate.scoring.SCORES[score]())
    bias = torch.randn(49) * 0.01
    sums = (logits[:, :7, None] + logits[:, None, 7:]).flatten(1)
    expected = moegate.route(sums, rule.replace(selection=moegate.selection.TopK(5)), bias=bias)
    routing = moegate.route(logits, rule, bias=bias)
    assert routing.num_experts == 49 and routing.logits.equal(sums)
    assert routing.expert_index.equal(expected.expert_index) and routing.weights.equal(expected.weights)
    grads = [torch.autograd.grad(each.weights.square().sum(), logits)[0] for each in (routing, expected)]
    torch.testing.assert_close(*grads)
    assert isinstance(match(rule), Fused)


@pytest.mark.parametrize("normalized", [False, True])
def test_equals_doge(normalized: bool) -> None:
    from transformers import DogeConfig
    from transformers.models.doge.modeling_doge import DogeCDMoE

    block = DogeCDMoE(
        DogeConfig(
            hidden_size=16, intermediate_size=8, num_experts=25, num_experts_per_tok=4, norm_topk_prob=normalized
        )
    )
    hidden = torch.randn(2, 6, 16)
    seen: list[torch.Tensor] = []
    block.down_embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    _, router_logits = block(hidden)
    routing = moegate.route(torch.cat(tuple(router_logits), dim=-1), rule_of(4))
    assert routing.expert_index.equal(seen[0])
    sums = (router_logits[0][:, :, None] + router_logits[1][:, None, :]).flatten(1)
    torch.testing.assert_close(routing.weights, sums.gather(1, seen[0]).softmax(dim=-1), rtol=1e-6, atol=0)


def test_narrow_logits_are_added_wide() -> None:
    logits = torch.tensor([[1.0, 2.0, 256.0, 1.0]], dtype=torch.bfloat16)
    assert moegate.route(logits, rule_of(1)).logits.tolist() == [[257.0, 2.0, 258.0, 3.0]]


def test_a_layer_has_a_gate_of_two_keys() -> None:
    moe = moegate.MoE(8, 16, num_experts=9, rule=rule_of(2))
    assert moe.gate.weight.shape == (6, 8)
    biased = moegate.MoE(8, 16, num_experts=9, rule=rule_of(1), correction_bias=True)
    biased.gate.e_score_correction_bias[7] = 100.0
    assert biased(torch.randn(5, 8))[1].expert_index.tolist() == [[7]] * 5
    out, routing = moe(torch.randn(5, 8))
    assert routing.num_experts == 9 and out.shape == (5, 8)


def test_gradients() -> None:
    logits = (torch.tensor([[0.0, 1.0, 4.0, 0.5, 2.9, 0.1]], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: moegate.route(z, rule_of(2)).weights, (logits,))


def test_bounds() -> None:
    with pytest.raises(ValueError, match="an even number"):
        moegate.route(torch.randn(3, 5), rule_of(1))
    with pytest.raises(ValueError, match="a square of experts, and 8 is none: choose 4 or 9"):
        moegate.MoE(8, 16, num_experts=8, rule=rule_of(1))
    with pytest.raises(ValueError, match="top_k=5 exceeds the 4 experts"):
        moegate.route(torch.randn(3, 4), rule_of(5))
    with pytest.raises(ValueError, match="learned noise"):
        rule_of(2).replace(noise=moegate.noise.LearnedNoise())
