"""The per-layer loss in the gradients: against the same loss written out on the model's own logits and choices."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moegate.hf.training import RoutingMonitor

from .small_models import LAYERS, TOP_K, Oracle, assert_same, batch, deepseek, gradients, qwen

COEFFICIENT = 0.05
MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "qwen": qwen,
    # Its own pooled loss is on, and must be neither in the loss nor in the gradient.
    "qwen_with_pooled": functools.partial(qwen, output_router_logits=True, router_aux_loss_coef=0.5),
    "deepseek": deepseek,
}


@functools.cache
def expected(name: str) -> tuple[float, dict[str, Tensor], float]:
    """Loss, gradients and balance of a model without moegate."""
    model = MODELS[name]()
    model.config.output_router_logits = False
    oracle, inputs = Oracle(model), batch()
    loss = model(**inputs).loss
    balance = oracle.balance(0, inputs["attention_mask"], sigmoid=name == "deepseek")
    (loss + COEFFICIENT * balance).backward()
    return (loss + COEFFICIENT * balance).item(), gradients(model), balance.item()


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "not_reentrant"])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients(name: str, checkpointing: str) -> None:
    model = MODELS[name]()
    if checkpointing != "none":
        model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    with RoutingMonitor(model, balance_loss=COEFFICIENT) as monitor:
        output = model(**batch())
        output.loss.backward()
        monitor.step()
    loss, wanted, balance = expected(name)
    assert output.loss.item() == pytest.approx(loss, rel=1e-5)
    assert_same(gradients(model), wanted)
    assert sum(monitor.layer_losses().values()) == pytest.approx(balance, rel=1e-5)
    assert monitor.window.tokens(0) == int(batch()["attention_mask"].sum())


def test_the_gradient_is_not_that_of_the_model_alone() -> None:
    model = qwen()
    model(**batch()).loss.backward()
    with pytest.raises(AssertionError):
        assert_same(gradients(model), expected("qwen")[1])


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_several_forwards_in_one_backward_keep_their_own_batches(reentrant: bool | None) -> None:
    first, second = batch(seed=1), batch(rows=2, seed=2, padded=False)
    model = qwen()
    oracle = Oracle(model)
    losses = [model(**inputs).loss for inputs in (first, second)]
    balances = [oracle.balance(call, inputs["attention_mask"]) for call, inputs in enumerate((first, second))]
    (losses[0] + COEFFICIENT * balances[0] + 3 * (losses[1] + COEFFICIENT * balances[1])).backward()
    wanted = gradients(model)
    model = qwen()
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    with RoutingMonitor(model, balance_loss=COEFFICIENT):
        (model(**first).loss + 3 * model(**second).loss).backward()
    assert_same(gradients(model), wanted)


def test_micro_batches_weigh_as_their_labels_do() -> None:
    batches = [batch(seed=1), batch(rows=2, seed=2, padded=False), batch(rows=1, length=5, seed=3)]
    items = sum(int((inputs["labels"][:, 1:] != -100).sum()) for inputs in batches)
    model = qwen()
    oracle = Oracle(model)
    for call, inputs in enumerate(batches):
        share = (inputs["labels"][:, 1:] != -100).sum() / items
        loss = model(**inputs).loss
        (share * (loss + COEFFICIENT * oracle.balance(call, inputs["attention_mask"]))).backward()
    wanted = gradients(model)
    model = qwen(output_router_logits=True, router_aux_loss_coef=0.5)
    with RoutingMonitor(model, balance_loss=COEFFICIENT):
        for inputs in batches:
            model(**inputs, num_items_in_batch=torch.tensor(items)).loss.backward()
    assert_same(gradients(model), wanted)


def test_a_trainer_that_adds_the_auxiliary_loss_itself() -> None:
    # As TRL does: the loss is made of other outputs, and outputs.aux_loss added with the configuration's coefficient.
    own = 0.25
    model = qwen(output_router_logits=True, router_aux_loss_coef=own)
    inputs = batch()
    labels = inputs.pop("labels")
    with RoutingMonitor(model, balance_loss=COEFFICIENT):
        output = model(**inputs)
        loss = model.loss_function(output.logits, labels, model.config.vocab_size)
        (7 * (loss + own * output.aux_loss)).backward()
    _, wanted, balance = expected("qwen")
    assert output.aux_loss.item() * own == pytest.approx(COEFFICIENT * balance, rel=1e-5)
    assert_same(gradients(model), {name: 7 * gradient for name, gradient in wanted.items()}, atol=1e-6)


@pytest.mark.parametrize("unclaimed", [1.0, 0.25, 0.0])
def test_a_trainer_that_reads_only_the_logits(unclaimed: float) -> None:
    inputs = batch()
    labels = inputs.pop("labels")
    model = qwen()
    oracle = Oracle(model)
    loss = model.loss_function(model(**inputs).logits, labels, model.config.vocab_size)
    (loss + unclaimed * COEFFICIENT * oracle.balance(0, inputs["attention_mask"])).backward()
    wanted = gradients(model)
    model = qwen()
    with RoutingMonitor(model, balance_loss=COEFFICIENT, unclaimed=unclaimed):
        model.loss_function(model(**inputs).logits, labels, model.config.vocab_size).backward()
    assert_same(gradients(model), wanted)


def test_a_bare_loop_adds_the_loss_itself() -> None:
    inputs = batch()
    labels = inputs.pop("labels")
    model = qwen()
    with RoutingMonitor(model, balance_loss=COEFFICIENT) as monitor:
        with pytest.raises(ValueError, match="no balance loss to add"):
            monitor.balance_loss()
        loss = model.loss_function(model(**inputs).logits, labels, model.config.vocab_size)
        (3 * (loss + monitor.balance_loss())).backward()
        with pytest.raises(ValueError, match="once"):
            monitor.balance_loss()
    assert_same(gradients(model), {name: 3 * gradient for name, gradient in expected("qwen")[1].items()}, atol=1e-6)


def test_a_second_backward_through_the_same_graph() -> None:
    model = qwen()
    with RoutingMonitor(model, balance_loss=COEFFICIENT):
        loss = model(**batch()).loss
        loss.backward(retain_graph=True)
        (2 * loss).backward()
    assert_same(gradients(model), {name: 3 * gradient for name, gradient in expected("qwen")[1].items()}, atol=1e-6)


def test_evaluation_has_the_loss_of_the_language_model_alone() -> None:
    model = qwen(output_router_logits=True, router_aux_loss_coef=0.5).eval()
    alone = model(**batch(), output_router_logits=False).loss
    with RoutingMonitor(model, balance_loss=COEFFICIENT) as monitor:
        assert model(**batch()).loss.item() == pytest.approx(alone.item(), rel=1e-6)
        assert monitor.layer_losses() == {}


@pytest.mark.parametrize("coefficient", [0.0, COEFFICIENT])
def test_the_models_own_loss_is_back_afterwards(coefficient: float) -> None:
    model = qwen(output_router_logits=True, router_aux_loss_coef=0.5)
    before = model(**batch()).loss
    with RoutingMonitor(model, balance_loss=coefficient):
        during = model(**batch()).loss
        # Between forwards the configuration is whole: a checkpoint may be saved at any time.
        assert model.config.router_aux_loss_coef == model.router_aux_loss_coef == 0.5
    assert model(**batch()).loss.item() == before.item() != during.item()


def test_the_models_own_weight() -> None:
    model = qwen(output_router_logits=True, router_aux_loss_coef=0.5)
    with RoutingMonitor(model, balance_loss="model"):
        output = model(**batch())
    # On the scale of the pooled loss, which is K at perfect balance.
    assert output.aux_loss.item() == pytest.approx(TOP_K / LAYERS * expected("qwen")[2], rel=1e-5)


def test_without_a_dictionary() -> None:
    model = qwen()
    with RoutingMonitor(model, balance_loss=COEFFICIENT):
        output = model(**batch(), return_dict=False)
        output[0].backward()
    assert_same(gradients(model), expected("qwen")[1])


def test_frozen_gates_take_no_harm() -> None:
    model = qwen()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lm_head" in name)
    with RoutingMonitor(model, balance_loss=COEFFICIENT) as monitor:
        model(**batch()).loss.backward()
        assert len(monitor.layer_losses()) == LAYERS
    assert gradients(model).keys() == {"lm_head.weight"}


def test_bfloat16() -> None:
    model = qwen().to(torch.bfloat16)
    with RoutingMonitor(model, balance_loss=COEFFICIENT):
        model(**batch()).loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_a_forward_that_fails_leaves_no_trace() -> None:
    model = qwen(router_aux_loss_coef=0.5)
    with RoutingMonitor(model, balance_loss=COEFFICIENT) as monitor:
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[10**6]]))
        assert model.router_aux_loss_coef == 0.5
        model(**batch()).loss.backward()
        monitor.step()
        assert monitor.window.tokens(0) == int(batch()["attention_mask"].sum())
    assert_same(gradients(model), expected("qwen")[1])


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), True, "pooled", [0.1]])
def test_a_bad_coefficient(bad: Any) -> None:
    with pytest.raises(ValueError, match="balance_loss="):
        RoutingMonitor(qwen(), balance_loss=bad)


def test_no_weight_to_take_from_the_model() -> None:
    model = qwen(router_aux_loss_coef=0.0)
    with (
        RoutingMonitor(model, balance_loss="model"),
        pytest.raises(ValueError, match="own router_aux_loss_coef, which is 0"),
    ):
        model(**batch())
