"""Rules as values: JSON there and back, comparison, representation, and every error at construction."""

import json
import pickle
import subprocess
import sys
from typing import Any

import pytest

import moegate
from moegate import recipes
from moegate.capacity import Capacity
from moegate.estimators import ESTIMATORS
from moegate.extra import EXTRAS
from moegate.noise import NOISES
from moegate.rule import RoutingRule
from moegate.scoring import SCORES
from moegate.selection import SELECTIONS, GroupedTopK, TopK
from moegate.weighting import Weighting

RULES = {name: recipes.get(name)() for name in recipes.names()} | {
    "all parts": RoutingRule(
        GroupedTopK(3, num_groups=4, groups_kept=2, group_score="max"),
        score=moegate.scoring.SqrtSoftplus(),
        weighting=Weighting(renormalize=True, eps=1e-6, scale=2.5, apply_to="input"),
        noise=moegate.noise.GaussianNoise(0.25),
        estimator=moegate.estimators.StraightThrough(0.5),
        capacity=Capacity(1.5, min_capacity=4, multiple_of=8, drop="batch_priority", overflow="reroute"),
        rank_by="scores",
    ),
    "another ladder": RoutingRule(moegate.selection.EntropyK((0.1, 0.2, 0.3), (1, 2, 3, 4))),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@every_rule
def test_json_there_and_back(rule: RoutingRule) -> None:
    text = rule.to_json()
    again = RoutingRule.from_json(text)
    assert again == rule and hash(again) == hash(rule) and again.to_json() == text
    assert RoutingRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


@every_rule
def test_the_representation_makes_the_rule_again(rule: RoutingRule) -> None:
    parts = {
        part.__name__: part for table in (SELECTIONS, SCORES, NOISES, ESTIMATORS, EXTRAS) for part in table.values()
    }
    names = {**parts, "RoutingRule": RoutingRule, "Weighting": Weighting, "Capacity": Capacity}
    assert eval(repr(rule), names) == rule


@every_rule
def test_rules_pickle(rule: RoutingRule) -> None:
    assert pickle.loads(pickle.dumps(rule)) == rule


def test_rules_differ_when_a_part_does() -> None:
    assert len({rule.to_json() for rule in RULES.values()}) == len(set(RULES.values()))
    assert recipes.mixtral(2) != recipes.mixtral(3)


def test_a_rule_is_frozen() -> None:
    rule = RoutingRule()
    with pytest.raises(AttributeError):
        rule.selection = TopK(3)  # type: ignore[misc]
    assert rule.replace(selection=TopK(3)).selection == TopK(3) and rule.selection == TopK(2)


def test_parts_that_are_left_out_take_their_defaults() -> None:
    assert RoutingRule.from_dict({}) == RoutingRule()
    assert RoutingRule.from_dict({"selection": {"kind": "top_k"}}) == RoutingRule()
    assert RoutingRule.from_dict({"noise": None}) == RoutingRule()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"selections": {}}, ValueError, r"A rule has no part 'selections'. Did you mean 'selection'\?"),
        ({"selection": {"kind": "topk"}}, ValueError, r"Unknown selection 'topk'. Did you mean 'top_k'\?"),
        ({"selection": {"top_k": 2}}, ValueError, "must be an object with a 'kind'"),
        ({"selection": "top_k"}, ValueError, "must be an object with a 'kind'"),
        (
            {"selection": {"kind": "top_k", "topk": 2}},
            ValueError,
            r"'top_k' has no field 'topk'. Did you mean 'top_k'\?",
        ),
        ({"selection": {"kind": "top_k", "top_k": 0}}, ValueError, "top_k must be at least 1"),
        ({"selection": {"kind": "top_k", "top_k": "2"}}, TypeError, "top_k must be an integer, got '2'"),
        ({"selection": None}, TypeError, "selection must be a Selection"),
        ({"score": {"kind": "sigmoidal"}}, ValueError, r"Did you mean 'sigmoid'\?"),
        ({"rank_by": "score"}, ValueError, r"Did you mean 'scores'\?"),
        ([], TypeError, "A rule is an object of parts, got list"),
    ],
)
def test_descriptions_that_are_none(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RoutingRule.from_dict(data)


def test_text_that_is_no_json() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        RoutingRule.from_json("{")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"selection": 2}, "selection must be a Selection, got 2"),
        ({"selection": moegate.scoring.Sigmoid()}, r"selection must be a Selection, got Sigmoid\(\)"),
        ({"score": "sigmoid"}, "score must be a Score, got 'sigmoid'"),
        ({"noise": 0.1}, "noise must be a Noise or None, got 0.1"),
        ({"weighting": None}, "weighting must be a Weighting, got None"),
        ({"capacity": 1.25}, "capacity must be a Capacity or None, got 1.25"),
        ({"estimator": "ste"}, "estimator must be a Estimator or None"),
    ],
)
def test_parts_of_another_family(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        RoutingRule(**parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"score": moegate.scoring.Sigmoid()},
        {"weighting": Weighting(scale=2.0)},
        {"weighting": Weighting(apply_to="input")},
        {"estimator": moegate.estimators.StraightThrough()},
    ],
)
def test_parts_that_a_soft_routing_would_ignore(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"mixes by softmaxes of its own: leave {next(iter(parts))} at its default"):
        recipes.soft_moe().replace(**parts)


@pytest.mark.parametrize("num_experts", [0, -1])
def test_no_experts(num_experts: int) -> None:
    with pytest.raises(ValueError, match="num_experts must be at least 1"):
        RoutingRule().check(num_experts)


def test_a_pickled_rule_is_found_in_another_process() -> None:
    """The hash of a text differs from process to process, so it must not travel."""
    rule = moegate.recipes.deepseek_v3()
    hash(rule)
    code = (
        "import sys, pickle, moegate; rule = pickle.loads(sys.stdin.buffer.read()); "
        "print(rule in {moegate.recipes.deepseek_v3(): 1})"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(rule), capture_output=True, check=False)
    assert done.stdout.strip() == b"True", done.stderr
