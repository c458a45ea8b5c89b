"""What the monitor counts, and how it moves the biases; loops written out."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM, SwitchTransformersConfig
from transformers import SwitchTransformersForConditionalGeneration as Switch

from moegate.balance.controllers import BiasController, PIDBias, ProportionalBias, QuantileBias, SignBias, SMEBUBias
from moegate.hf import moe_layers
from moegate.hf.training import RoutingMonitor, freeze_routers, router_is_frozen, train_routers_only

from .small_models import EXPERTS, LAYERS, TOP_K, Oracle, batch, deepseek, gradients, qwen

RATE = 0.01
sign = functools.partial(SignBias, rate=RATE)


def bias_of(model: Any, layer: int = 0) -> Tensor:
    return model.model.layers[layer].mlp.gate.e_score_correction_bias


def ernie() -> Ernie4_5_MoeForCausalLM:
    """Its bias is a parameter of shape ``[1, E]``."""
    torch.manual_seed(7)
    return Ernie4_5_MoeForCausalLM(
        Ernie4_5_MoeConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=32,
            moe_intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            moe_num_experts=EXPERTS,
            moe_k=TOP_K,
            moe_layer_start_index=0,
            moe_num_shared_experts=0,
        )
    ).train()


def test_training_and_evaluation_are_counted_apart() -> None:
    model = qwen()
    oracle = Oracle(model)
    batches = [batch(seed=1), batch(rows=2, length=9, seed=2), batch(rows=3, seed=3)]
    with RoutingMonitor(model) as monitor:
        for inputs in batches[:2]:
            model(**inputs)
        model.eval()
        model(**batches[2])
        monitor.step()
        evaluated = monitor.evaluation()
        assert monitor.evaluation().tokens(0) == 0
    calls = list(oracle.received)
    for number in range(LAYERS):
        oracle.received[number] = calls[number][:2]
        assert monitor.window.load(number).tolist() == oracle.load(number, [b["attention_mask"] for b in batches[:2]])
        oracle.received[number] = calls[number][2:]
        assert evaluated.load(number).tolist() == oracle.load(number, [batches[2]["attention_mask"]])


@pytest.mark.parametrize("passed", ["by_name", "by_position", "none"])
def test_masks(passed: str) -> None:
    model = qwen()
    inputs = batch()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with RoutingMonitor(model) as monitor:
        if passed == "by_name":
            model(input_ids=ids, attention_mask=mask)
        elif passed == "by_position":
            model(ids, mask)
        else:
            model(ids)
        monitor.step()
    assert monitor.window.tokens(1) == (ids.numel() if passed == "none" else int(mask.sum()))


def test_an_inner_model_that_is_called_by_itself() -> None:
    model = qwen()
    inputs = batch()
    with RoutingMonitor(model) as monitor:
        model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        monitor.step()
    assert monitor.window.tokens(0) == int(inputs["attention_mask"].sum())


def test_generation_counts_each_token_once() -> None:
    model = qwen(use_cache=True, eos_token_id=None).eval()
    inputs = batch(rows=2, length=6, padded=False)
    inputs["attention_mask"][0, :2] = 0  # padded on the left
    with RoutingMonitor(model) as monitor:
        model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=4,
            do_sample=False,
            use_cache=True,
        )
        # The last token that comes out goes nowhere.
        assert monitor.evaluation().tokens(0) == 10 + 2 * 3


def test_an_encoder_and_a_decoder_have_masks_of_their_own() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
    sparse = {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "expert_capacity": 64}
    model = Switch(SwitchTransformersConfig(vocab_size=32, decoder_start_token_id=0, **sizes, **sparse)).train()
    mask, decoder_mask = torch.ones(2, 7, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    mask[0, 4:] = 0
    decoder_mask[1, 2:] = 0
    with RoutingMonitor(model, balance_loss=0.1) as monitor:
        output = model(
            input_ids=torch.randint(3, 32, (2, 7)),
            attention_mask=mask,
            decoder_attention_mask=decoder_mask,
            labels=torch.randint(3, 32, (2, 5)),
        )
        output.loss.backward()
        monitor.step()
    tokens = {layer.name.split(".")[0]: monitor.window.tokens(n) for n, layer in enumerate(monitor.layers)}
    assert tokens == {"encoder": 11, "decoder": 7}
    assert all(gate.weight.grad.any() for gate in (layer.gate.classifier for layer in monitor.layers))


def test_the_mean_drifts_nowhere_and_frozen_stays_frozen() -> None:
    model = deepseek()
    bias_of(model).copy_(torch.linspace(4.0, 5.0, EXPERTS))
    for parameter in model.model.layers[1].mlp.gate.parameters():
        parameter.requires_grad_(False)
    with RoutingMonitor(model, bias_controller=sign) as monitor:
        assert monitor.bias is not None and monitor.bias.frozen == [monitor.layers[1].name]
        for seed in range(5):
            model(**batch(seed=seed))
            monitor.step()
    assert bias_of(model).mean().item() == pytest.approx(4.5, abs=1e-5)
    assert not torch.allclose(bias_of(model), torch.linspace(4.0, 5.0, EXPERTS))
    assert not bias_of(model, 1).any()


def test_nothing_moves_without_tokens_or_when_the_step_is_skipped() -> None:
    model = deepseek()
    with RoutingMonitor(model, bias_controller=sign) as monitor:
        monitor.step()
        model.eval()(**batch())
        monitor.step()
        model.train()(**batch())
        monitor.step(skipped=True)
        assert not bias_of(model).any()
        assert monitor.window.tokens(0) == 0
        model(**batch(padded=False))
        monitor.step()
        assert bias_of(model).any()
        assert monitor.window.tokens(0) == batch()["input_ids"].numel()


def test_small_steps_add_up_in_bfloat16() -> None:
    model = deepseek().to(torch.bfloat16)
    bias_of(model).fill_(4.0)  # neighbours of 4 are 0.03 apart
    load_E = torch.zeros(EXPERTS, dtype=torch.int64)
    load_E[0] = 8
    with RoutingMonitor(model, bias_controller=sign) as monitor:
        assert monitor.bias is not None
        for _ in range(20):
            monitor.bias.update(lambda _: load_E)
    # Each step takes 0.0175 from expert 0 and gives 0.0025 to the others.
    assert bias_of(model).float().tolist() == torch.tensor([3.65] + [4.05] * 7).bfloat16().float().tolist()


def test_what_something_else_writes_is_taken_over() -> None:
    model = deepseek()
    with RoutingMonitor(model, bias_controller=sign) as monitor:
        model(**batch())
        monitor.step()
        bias_of(model).fill_(7.0)  # such as a checkpoint that is loaded
        model(**batch())
        monitor.step()
    assert bias_of(model).mean().item() == pytest.approx(7.0)


def test_a_bias_that_is_a_parameter() -> None:
    model = ernie()
    (parameter,) = [p for name, p in model.named_parameters() if "layers.0" in name and "correction_bias" in name]
    assert parameter.shape == (1, EXPERTS)
    parameter.requires_grad_(True)
    with RoutingMonitor(model, bias_controller=sign, balance_loss=0.1) as monitor:
        assert not parameter.requires_grad
        assert monitor.bias is not None and monitor.bias.frozen == []
        model(**batch()).loss.backward()
        monitor.step()
    assert parameter.abs().max().item() > 0.5 * RATE
    assert parameter.grad is None


@pytest.mark.parametrize("make", [SignBias, ProportionalBias, PIDBias, SMEBUBias])
def test_controllers_resume(make: type[BiasController]) -> None:
    model, other = deepseek(), deepseek()
    with RoutingMonitor(model, bias_controller=make) as monitor:
        for seed in range(2):
            model(**batch(seed=seed))
            monitor.step()
        state = {name: value.clone() for name, value in monitor.state_dict().items()}
        model(**batch(seed=2))
        monitor.step()
    with RoutingMonitor(other, bias_controller=make) as resumed:
        resumed.load_state_dict(state)
        other(**batch(seed=2))
        resumed.step()
    assert torch.equal(bias_of(other), bias_of(model))
    assert bias_of(other).any()


def test_states_that_do_not_fit() -> None:
    with RoutingMonitor(deepseek(), bias_controller=PIDBias) as monitor:
        state = monitor.state_dict()
        with pytest.raises(ValueError, match="of another model or controller"):
            monitor.load_state_dict({name: value.flatten()[:4] for name, value in state.items()})
        with pytest.raises(ValueError, match="of another model or controller"):
            monitor.load_state_dict({**state, "more": torch.zeros(1)})
    with RoutingMonitor(deepseek()) as plain:
        plain.load_state_dict({})
        with pytest.raises(ValueError, match="no bias_controller"):
            plain.load_state_dict(state)


def test_what_cannot_be_balanced() -> None:
    with pytest.raises(ValueError, match="No MoE layer of this model has a selection bias"):
        RoutingMonitor(qwen(), bias_controller=SignBias)
    with pytest.raises(ValueError, match="QuantileBias reads the scores"):
        RoutingMonitor(deepseek(), bias_controller=functools.partial(QuantileBias, top_k=2))
    with pytest.raises(ValueError, match="no MoE layer"):
        RoutingMonitor(torch.nn.Linear(2, 2))


def test_freezing() -> None:
    model = ernie()
    assert not router_is_frozen(moe_layers(model)[0])
    assert all("gate" in name for name in freeze_routers(model))
    assert all(map(router_is_frozen, moe_layers(model)))
    trained = train_routers_only(model)
    assert len(trained) == 2
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(trained)
    model(**batch()).loss.backward()
    assert gradients(model).keys() == set(trained)
    for change in (freeze_routers, train_routers_only):
        with pytest.raises(ValueError, match="no MoE layer"):
            change(torch.nn.Linear(2, 2))


def test_closing_leaves_no_hooks() -> None:
    model = deepseek()

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    monitor = RoutingMonitor(model, balance_loss=0.1, bias_controller=SignBias)
    assert hooks() > before
    monitor.close()
    monitor.close()
    assert hooks() == before


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled(compiler: None) -> None:
    model = qwen(num_hidden_layers=1)
    with RoutingMonitor(model, balance_loss=0.05) as monitor:
        torch.compile(model, backend="eager")(**batch()).loss.backward()
        monitor.step()
    found = gradients(model)
    plain = qwen(num_hidden_layers=1)
    with RoutingMonitor(plain, balance_loss=0.05) as other:
        plain(**batch()).loss.backward()
        other.step()
    assert monitor.window.load(0).tolist() == other.window.load(0).tolist()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
