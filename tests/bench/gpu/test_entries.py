"""What is measured on a card: everything that must be reached, and the cases of the CPU benchmarks."""

import pytest

from moegate.bench.cases import Place
from moegate.bench.gpu.checks import CHECKS
from moegate.bench.gpu.entries import _PLANNED, DECODED, FEW_TOKENS, SHARES, SUITES, entries, tiny_problem
from moegate.bench.suites import gate, layer, plan

CARD = Place("cuda", accelerated=True, cache_bytes=200 * 2**20)


def keys(suite):
    return [entry.key for entry in entries(suite, CARD)]


def test_every_suite_has_a_share_of_the_time():
    assert SHARES.keys() == SUITES.keys() == _PLANNED.keys()
    assert sum(SHARES.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("suite", [name for name in SUITES if name != "checks"])
def test_keys_are_unique(suite):
    assert len(set(keys(suite))) == len(keys(suite)) > 2


def test_checks_have_names_and_run_without_a_suite_of_cases():
    assert entries("checks", CARD) == []
    assert len(CHECKS) >= 12


def test_whatever_must_be_reached_is_measured_and_comes_first():
    assert keys("gate")[0] == "softmax T=8192 E=256 K=8"
    assert {f"sigmoid bias T={tokens} E=256 K=8" for tokens in FEW_TOKENS} <= set(keys("gate"))
    assert {"softmax T=8192 E=512 K=8", "softmax bf16 backward T=8192 E=256 K=8"} <= set(keys("gate"))
    assert {"plan T=8192 E=256 K=8", "combine bf16 T=8192 E=256 K=8 D=7168"} <= set(keys("plan")[:2])
    assert keys("layer")[:2] == [
        f"layer forward{more} bf16 T=8192 D=2048 F=768 E=128 K=8" for more in ("", " + backward")
    ]
    assert keys("decode") == [f"decode bf16 T={tokens} D=2048 F=768 E=128 K=8" for tokens in DECODED]
    targets = {planned.target.us for planned in _PLANNED["gate"] if planned.target is not None}
    assert targets == {10, 3, 14, 6}
    assert all(planned.target.floors == 1.2 for planned in _PLANNED["decode"])


def test_published_times_are_marked_with_their_source():
    targets = [planned.target for suite in _PLANNED.values() for planned in suite if planned.target is not None]
    published = {target.published for target in targets if target.published}
    assert published
    assert all("pull request" in text or "systems" in text for text in published)


def test_the_cases_of_the_cpu_are_there():
    found = {planned.problem for planned in _PLANNED["more"]}
    for problems in (
        gate.PROBLEMS,
        gate.ONE_CALL,
        gate.GROWTH_IN_E,
        plan.PLANS,
        plan.ROWS,
        layer.FORWARD,
        layer.TRAINING,
    ):
        assert set(problems) <= found


@pytest.mark.parametrize("suite", [name for name in SUITES if name != "checks"])
def test_a_rehearsal_has_the_same_cases_and_tiny_sizes(suite):
    for planned in _PLANNED[suite]:
        tiny = tiny_problem(planned.problem)
        assert all(size <= 32 for size in tiny.shape.values())
        assert tiny.shape.keys() == planned.problem.shape.keys()
    assert [entry.key for entry in entries(suite, Place(accelerated=True), tiny=True)] == keys(suite)


def test_logits_have_copies_beyond_the_cache_where_few_suffice():
    assert CARD.copies(8192 * 256 * 4) == 25
    assert CARD.copies(64 * 256 * 4) == 0
    assert Place().copies(8) == 0
