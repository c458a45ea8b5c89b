"""Rule 1: arithmetic in float32, float64 stays float64, and widening is exact."""

import hostile
import numpy as np
import oracle
import pytest
import torch
from hypothesis import example, given
from routers import NUM_EXPERTS, RULES, routed
from torch import Tensor

import moegate
from moegate.rule import RoutingRule
from moegate.scoring import SCORES

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@every_rule
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_route_as_their_float32_values(rule: RoutingRule, training: bool, dtype: torch.dtype) -> None:
    narrow = torch.randn(2, 9, NUM_EXPERTS).mul(3).to(dtype)
    ours = routed(narrow, rule, training=training, generator=7)
    wide = routed(narrow.float(), rule, training=training, generator=7)
    assert ours.expert_index.equal(wide.expert_index)
    for name in ("weights", "logits", "scores", "ranking"):
        assert getattr(ours, name).dtype == torch.float32
        assert getattr(ours, name).equal(getattr(wide, name)), name


@every_rule
def test_float64_stays_float64(rule: RoutingRule) -> None:
    routing = routed(torch.randn(5, NUM_EXPERTS, dtype=torch.float64), rule)
    assert {routing.weights.dtype, routing.scores.dtype, routing.logits.dtype} == {torch.float64}
    assert routing.expert_index.dtype == torch.int64


def test_float64_tells_apart_what_float32_cannot() -> None:
    logits = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    rule = moegate.recipes.mixtral(top_k=1).replace(weighting=moegate.Weighting())
    assert moegate.route(logits, rule).expert_index.tolist() == [[1]]
    assert moegate.route(logits.float(), rule).expert_index.tolist() == [[0]]


@pytest.mark.parametrize("kind", sorted(SCORES))
@hostile.thorough
@given(logits=hostile.logits())
# Whether this is drawn depends on what else pytest has imported, from which Hypothesis takes numbers to try.
@example(logits=torch.tensor([[-60000.0, -1024.0]], dtype=torch.float64))
def test_scores_equal_the_formula(kind: str, logits: Tensor) -> None:
    routing = moegate.route(logits, RoutingRule(moegate.selection.TopK(1), score=SCORES[kind]()))
    expected = oracle.SCORES[kind](oracle.widened(logits))
    exact = logits.dtype == torch.float64
    np.testing.assert_allclose(
        oracle.widened(routing.scores), expected, rtol=1e-12 if exact else 2e-6, atol=0 if exact else 1e-37
    )
