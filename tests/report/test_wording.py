"""Rules, labels and numbers in words."""

import pytest

from moegate import recipes
from moegate.report.records import Setting
from moegate.report.wording import describe_rule, describe_software, label


def test_deepseek_v3_reads_in_the_order_it_works() -> None:
    assert describe_rule(recipes.deepseek_v3(8, num_groups=8, groups_kept=4).to_dict()) == (
        "sigmoid of each logit → take the 8 best experts from the 4 best of 8 groups → "
        "weights renormalised to sum 1, weights × 2.5"
    )


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_reads(name: str) -> None:
    words = describe_rule(recipes.get(name)().to_dict())
    assert words
    assert not {"{", "}", "None"} & set(words.split())


def test_an_unknown_part_is_shown_by_its_name_and_settings() -> None:
    rule = {"selection": {"kind": "magic", "power": 3, "limit": None}, "sparkle": {"kind": "blue"}}
    assert describe_rule(rule) == "selection magic (power 3) → sparkle blue"


def test_a_known_part_without_its_setting_is_shown_by_its_name() -> None:
    assert describe_rule({"selection": {"kind": "top_k"}}) == "selection top k"


def test_one_line_for_all_values_of_k() -> None:
    rule = recipes.topk(4).to_dict()
    assert "take the K best experts" in describe_rule(rule, top_k="K")
    assert rule["selection"]["top_k"] == 4


@pytest.mark.parametrize("rule", [{}, {"selection": None}, {"selection": "top_k"}])
def test_no_rule_no_words(rule: dict[str, object]) -> None:
    assert describe_rule(rule) == ""


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (Setting("text", "switch", None, "none", None, True), "switch"),
        (Setting("text", "topk", 2, "none", "dense", True), "dense model of the same active size, K = 2"),
        (Setting("text", "topk", 2, "none", "frozen", True), "topk with a frozen random gate, K = 2"),
    ],
)
def test_labels(setting: Setting, words: str) -> None:
    assert label(setting) == words


def test_one_thread_is_one_thread() -> None:
    assert describe_software({"torch": "2.13.0", "threads": 1}) == "PyTorch 2.13.0 · 1 thread"
    assert describe_software({"threads": 2}) == "2 threads"
    assert describe_software({"transformers": "5.23.0", "moegate": "1"}) == "moegate 1 · transformers 5.23.0"
    assert describe_software({}) == ""
