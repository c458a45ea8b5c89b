"""The evaluation against the same numbers from plain loops."""

import json
import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch

from moegate.lab.training.building import build_model, routed_layers
from moegate.lab.training.evaluation import evaluate, median_speed
from moegate.lab.training.tasks import make_task


@pytest.mark.parametrize("task_name", ["image", "text"])
def test_every_number_is_what_a_loop_over_tokens_gives(task_name: str, tiny: Any) -> None:
    config = tiny(task_name, router="switch", num_layers=2, balance="none")
    model, task = build_model(config).eval(), make_task(config)
    found = evaluate(model, task, 2, 8)
    scores: dict[str, list[float]] = {name: [] for name in task.domains}
    losses: list[float] = []
    load = np.zeros((2, 8), dtype=int)
    chosen = np.zeros((2, 8), dtype=int)
    by_domain = np.zeros((2, len(task.domains), 8), dtype=int)
    for batch in task.evaluation():
        with torch.no_grad():
            logits, routings = model(batch.inputs, batch.token_ids)
        per_example = batch.num_tokens // len(batch.domain)
        probability = logits.double().softmax(-1).reshape(batch.num_tokens, -1).numpy()
        for token, target in enumerate(batch.targets.flatten().tolist()):
            domain = int(batch.domain[token // per_example])
            losses.append(-math.log(probability[token, target]))
            right = float(probability[token].argmax() == target)
            scores[task.domains[domain]].append(right if task_name == "image" else losses[-1] / math.log(2))
            for layer, routing in enumerate(routings):
                for expert in routing.expert_index[token].tolist():
                    load[layer, expert] += expert >= 0
                for expert in routing.selected_index[token].tolist():
                    chosen[layer, expert] += 1
                    by_domain[layer, domain, expert] += 1
    means = {name: statistics.fmean(values) for name, values in scores.items()}
    assert found["per_domain"] == pytest.approx(means)
    assert found["value"] == pytest.approx(statistics.fmean(means.values()))
    assert found["loss"] == pytest.approx(statistics.fmean(losses), rel=1e-5)
    assert found["load"] == load.tolist()
    assert found["domain_load"] == by_domain.tolist()
    assert found["drop_rate"] == pytest.approx(1 - np.mean(load.sum(1) / chosen.sum(1)))
    assert 0 < found["drop_rate"] < 1, "the test must see drops"
    violations = chosen.max(1) / chosen.mean(1) - 1
    assert found["max_violation_per_layer"] == pytest.approx(violations)
    assert found["max_violation"] == pytest.approx(violations.mean())
    share = chosen / chosen.sum(1, keepdims=True)
    entropy = -np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0).sum(1)
    assert found["utilization"] == pytest.approx(np.mean(np.exp(entropy) / 8))
    assert found["experts_per_token"] == pytest.approx(load.sum() / (2 * len(losses)))


def test_coactivation_counts_pairs(tiny: Any) -> None:
    config = tiny(top_k=3)
    model = build_model(config)
    table = np.array(evaluate(model, make_task(config), 2, 8)["coactivation"])
    assert (table == table.transpose(0, 2, 1)).all()
    assert table.sum(axis=(1, 2)).tolist() == [1000 * 9] * 2
    assert np.trace(table, axis1=1, axis2=2).tolist() == [1000 * 3] * 2


def test_a_dense_control_has_a_score_and_no_balance(tiny: Any) -> None:
    config = tiny(control="dense")
    found = evaluate(build_model(config), make_task(config), 0, 8)
    assert 0 <= found["value"] <= 1
    assert [found[name] for name in ("utilization", "max_violation", "drop_rate", "experts_per_token")] == [None] * 4
    assert found["load"] == found["domain_load"] == found["coactivation"] == []
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("router", ["topk", "expert_choice", "soft", "top_p", "relu", "gshard"])
def test_the_token_view_has_an_entry_a_token_and_layer(router: str, tiny: Any) -> None:
    config = tiny("text", router=router, num_layers=2)
    model = build_model(config)
    views = evaluate(model, make_task(config), 2, 8)["token_view"]
    for view in views:
        assert len(view["experts"]) == len(view["weights"]) == len(routed_layers(model)) == 2
        for experts, weights in zip(view["experts"], view["weights"], strict=True):
            assert len(experts) == len(weights) == len(view["tokens"]) == 16
            for chosen, weight in zip(experts, weights, strict=True):
                assert len(chosen) == len(weight)
                assert all(-1 <= expert < 8 for expert in chosen)
                assert all(value == 0 for expert, value in zip(chosen, weight, strict=True) if expert == -1)
    json.dumps(views, allow_nan=False)


def test_evaluation_draws_nothing_and_leaves_the_model_as_it_was(tiny: Any) -> None:
    config = tiny(router="noisy_topk")
    model, task = build_model(config), make_task(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, other = (evaluate(model, task, 2, 8) for _ in range(2))
    del one["inference_tokens_per_second"], other["inference_tokens_per_second"]
    assert one == other
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_speed_is_the_median_without_the_first_steps() -> None:
    assert median_speed([100.0] * 5 + [1.0, 2.0, 4.0], 10) == 5.0
    assert median_speed([2.0], 10) == 5.0
