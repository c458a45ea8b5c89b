"""Margins, entropies and logit sizes against NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import moegate
from moegate import metrics

RULES = {
    "logits": moegate.recipes.mixtral(top_k=2),
    "sigmoid": moegate.RoutingRule(moegate.selection.TopK(2), score=moegate.scoring.Sigmoid()),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("biased", [False, True])
def test_margin_is_at_the_edge_of_the_selection(rule: moegate.RoutingRule, biased: bool) -> None:
    logits, mask = torch.randn(50, 6), torch.rand(50) < 0.7
    bias = torch.randn(6) if biased else None
    routing = moegate.route(logits, rule, bias=bias, token_mask=mask)
    expected = []
    for token in np.flatnonzero(mask.numpy()):
        row = routing.ranking[token].double().numpy()
        chosen = routing.selected_index[token].numpy()
        last, first_out = row[chosen].min(), np.delete(row, chosen).max()
        expected.append((last - first_out) / abs(last))
    np.testing.assert_allclose(metrics.token_margin(routing).numpy(), expected, rtol=1e-12)
    assert metrics.margin(routing) == sorted(expected)[(len(expected) - 1) // 2]


def test_margin_of_a_dynamic_k_is_at_each_tokens_own_edge() -> None:
    routing = moegate.route(torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 4), moegate.recipes.gpt_oss(top_k=2))
    index = torch.tensor([[0, 1, 2, 3], [0, 1, 2, -1], [0, -1, -1, -1], [-1, -1, -1, -1]])
    routing = replace(routing, selected_index=index, expert_index=index)
    # The first token has all experts, the last one none: no edge.
    np.testing.assert_allclose(metrics.token_margin(routing).numpy(), [(2 - 1) / 2, (4 - 3) / 4])


def test_ties_and_zeros_have_margin_zero() -> None:
    routing = moegate.route(torch.zeros(3, 4), RULES["logits"])
    assert metrics.token_margin(routing).tolist() == [0.0, 0.0, 0.0]


def test_the_margin_predicts_which_choices_bf16_changes() -> None:
    logits = torch.randn(4000, 32) + 4.0
    exact, rounded = (moegate.route(like, RULES["logits"]) for like in (logits, logits.bfloat16()))
    changed = ~(exact.expert_index.sort(-1).values == rounded.expert_index.sort(-1).values).all(-1)
    margin = metrics.token_margin(exact)
    assert changed.any()
    assert (margin[changed] <= 2.0**-7).all()  # either score moves by up to 2^-8 of itself


def test_router_z_and_entropy() -> None:
    logits, mask = 3 * torch.randn(40, 5), torch.rand(40) < 0.6
    routing = moegate.route(logits, RULES["logits"], token_mask=mask)
    rows = logits[mask].double().numpy()
    lse = np.logaddexp.reduce(rows, axis=1)
    share = np.exp(rows - lse[:, None])
    assert metrics.router_z(routing) == pytest.approx(np.mean(lse**2), rel=1e-12)
    assert metrics.token_entropy(routing) == pytest.approx(-np.mean(np.sum(share * np.log(share), 1)), rel=1e-6)


def test_metrics_agree_with_the_losses_of_the_same_name() -> None:
    routing = moegate.route(torch.randn(40, 5), RULES["sigmoid"], token_mask=torch.rand(40) < 0.6)
    for name in ("router_z", "token_entropy"):
        loss = getattr(moegate.balance.losses, name)(routing)
        assert getattr(metrics, name)(routing) == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("tokens", [0, 3])
def test_without_real_tokens_they_are_nan(tokens: int) -> None:
    mask = torch.zeros(tokens, dtype=torch.bool)
    routing = moegate.route(torch.randn(tokens, 4), RULES["logits"], token_mask=mask)
    for metric in (metrics.margin, metrics.router_z, metrics.token_entropy):
        assert math.isnan(metric(routing))
    assert metrics.token_margin(routing).shape == (0,)


def test_one_expert_has_no_edge() -> None:
    rule = moegate.RoutingRule(moegate.selection.TopK(1))
    assert math.isnan(metrics.margin(moegate.route(torch.randn(3, 1), rule)))
