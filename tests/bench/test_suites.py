"""Every suite: its cases have names of their own, and what moegate and the peers compute in them is right."""

import pytest
import torch

from moegate.bench.cases import sizes
from moegate.bench.measuring import verdicts
from moegate.bench.suites import SUITES, gate, layer, load_suite, plan, topk


@pytest.mark.parametrize("name", SUITES)
def test_keys_are_unique_and_some_are_quick(name):
    entries = load_suite(name).entries()
    for quick in (True, False):
        keys = [entry.key for entry in entries if entry.quick == quick]
        assert keys
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", SUITES)
def test_the_quick_cases_are_right(name):
    for entry in load_suite(name).entries():
        if entry.quick:
            case = entry.build()
            assert verdicts(case) == {}
            assert any(variant.ours for variant in case.variants)
            assert case.variants[0].ours
            assert entry.key.startswith(case.name)


def test_an_unknown_suite_is_refused():
    with pytest.raises(ValueError, match="choose one of gate, plan, layer, topk, ablation, or all"):
        load_suite("gates")


def test_the_gate_has_the_sizes_that_were_asked_for():
    found = {(p.name, p.num_tokens, p.num_experts, p.rule.top_k) for p in (*gate.PROBLEMS, *gate.ONE_CALL)}
    wide = {(64, 6), (128, 8), (256, 8), (384, 8), (512, 10), (896, 16), (2048, 32)}
    assert {("sigmoid bias", 4096, *pair) for pair in wide} <= found
    assert {
        ("sigmoid bias groups 8/4", 4096, 256, 8),
        ("softmax", 4096, 128, 8),
        ("softmax", 4096, 8, 2),
        ("sigmoid bias bf16", 4096, 256, 8),
        ("sqrt-softplus bias", 4096, 256, 8),
        ("sigmoid bias", 1, 256, 8),
    } <= found
    assert (gate.GROWTH_IN_T[0].num_tokens, gate.GROWTH_IN_T[-1].num_tokens) == (256, 65536)
    assert (gate.GROWTH_IN_E[0].num_experts, gate.GROWTH_IN_E[-1].num_experts) == (8, 65536)


@pytest.mark.parametrize("with_forward", [True, False])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_backward_of_a_gate(with_forward, score):
    rule = gate.GateRule(score, top_k=3, biased=score == "sigmoid")
    case = gate.backward_case(gate.Problem(rule, 20, 16), with_forward=with_forward)
    assert verdicts(case) == {}


def test_growth_keeps_memory():
    case = gate.growth_case(gate.Problem(gate.GateRule("softmax", top_k=2), 20, 16), "T")
    assert case.name == "growth in T"
    assert {name: fact() for name, fact in case.facts.items()}["output_bytes"] == 20 * 2 * 12


def test_a_compiled_gate_is_one_of_the_variants():
    problem = gate.Problem(gate.GateRule("softmax", top_k=2), 20, 16)
    names = [variant.name for variant in gate.forward_case(problem).variants]
    assert names[:4] == ["moegate topk_gate", "moegate.route", "PyTorch", "torch.compile"]


@pytest.mark.parametrize("build", [layer.forward_case, layer.experts_case, layer.training_case])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_in_both_types(build, dtype):
    case = build(layer.Problem(7, 64, 32, 8, 2, dtype))
    assert verdicts(case) == {}
    assert sizes(case.shape) == "T=7 D=64 F=32 E=8 K=2"


def test_a_wrong_peer_of_a_layer_is_found(monkeypatch):
    right = layer.pytorch_experts.loop
    monkeypatch.setattr(
        layer.pytorch_experts, "loop", lambda *weights: lambda *routed: right(*weights)(*routed) * 1.001
    )
    found = verdicts(layer.forward_case(layer.Problem(7, 64, 32, 8, 2, torch.float32)))
    assert list(found) == ["PyTorch expert loop"]
    assert "an output is off by" in found["PyTorch expert loop"]


def test_a_gradient_that_is_missing_is_found(monkeypatch):
    right = layer.pytorch_experts.loop
    monkeypatch.setattr(
        layer.pytorch_experts,
        "loop",
        lambda *weights: lambda hidden, *rest: right(*weights)(hidden.detach(), *rest) + 0 * hidden,
    )
    found = verdicts(layer.training_case(layer.Problem(7, 64, 32, 8, 2, torch.float32)))
    assert "a gradient of hidden states is off" in found["PyTorch expert loop"]


def test_tokens_choose_clearly():
    problem = layer.Problem(200, 8, 4, 16, 4, torch.bfloat16)
    gate_ED = torch.randn(16, 8).bfloat16() / 10
    tokens = layer.clear_tokens(problem, gate_ED)
    assert layer.margin(layer.probabilities(tokens, gate_ED), 4).min() >= 1e-4
    assert torch.equal(tokens, layer.clear_tokens(problem, gate_ED))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [plan.plan_case, plan.permute_case, plan.combine_case])
def test_the_plan_in_both_types(build, dtype):
    assert verdicts(build(plan.Problem(9, 8, 3, hidden=24, dtype=dtype))) == {}


def row_of(length, k, times):
    variants = {name: {"ours": False, "min_us": us} for name, us in times.items()}
    return {"shape": {"N": length, "k": k, "rows": 1}, "threads": 1, "variants": variants, "ratios": {}}


def flat(**changed):
    return {**dict.fromkeys(topk.NAMES, 100.0), **changed}


def test_crossovers_are_where_the_curves_meet():
    rows = [row_of(64, 1, flat(heap=1.0, blocked=2.0)), row_of(256, 1, flat(heap=4.0, blocked=2.0))]
    ((place, before, after),) = topk.crossovers(rows, 1, 1)
    assert (before, after) == ("heap", "blocked")
    assert place == pytest.approx(128)


def test_a_change_within_noise_is_no_crossover():
    rows = [row_of(64, 1, flat(heap=1.0, blocked=1.02)), row_of(256, 1, flat(heap=1.02, blocked=1.0))]
    assert topk.crossovers(rows, 1, 1) == []


def test_a_crossover_that_was_within_noise_before_is_at_the_lower_length():
    rows = [
        row_of(16, 1, flat(heap=1.0, blocked=2.0)),
        row_of(64, 1, flat(heap=1.02, blocked=1.0)),
        row_of(256, 1, flat(heap=2.0, blocked=1.0)),
    ]
    ((place, *names),) = topk.crossovers(rows, 1, 1)
    assert (place, names) == (64, ["heap", "blocked"])


def test_the_ways_of_the_kernel_are_those_of_its_source(project_root):
    headers = "".join((project_root / "src/moegate/ops/cpu" / name).read_text() for name in ("selection.h", "vector.h"))
    for name, value in (("kLanes", topk._LANES), ("kMostMaxima", topk._MOST_MAXIMA)):
        assert f"constexpr int64_t {name} = {value};" in headers
    assert "orders_all(int64_t size) { return size <= 2 * kLanes; }" in headers
    assert "bool chooses_few(int64_t size, int64_t k) { return k <= kLanes || size <= kLanes; }" in headers
    assert "return 2 * k <= kLanes ? bound_from_few_lanes<1>" in headers
    assert "if (size <= kLanes) {\n    order_one_block(keys, keys);" in headers
    assert "const int64_t width = padded(3 * k);\n  if (width <= kMostMaxima && 2 * width <= size)" in headers


@pytest.mark.parametrize(
    ("length", "k", "way"),
    [
        (8, 8, "all"),
        (16, 1, "all"),
        (32, 1, "16"),
        (32, 17, "all"),
        (33, 16, "32"),
        (256, 8, "16"),
        (65536, 16, "32"),
        (128, 17, "64"),
        (127, 17, "none"),
        (65536, 64, "192"),
        (65536, 342, "none"),
    ],
)
def test_the_way_of_the_kernel_at_a_size(length, k, way):
    assert topk.kernel_way(length, k) == way


def test_topk_measures_every_length_and_k():
    grid = {entry.key for entry in topk.entries() if not entry.quick}
    assert {"topk N=8 k=1", "topk N=8 k=8", "topk N=65536 k=1", "topk N=65536 k=64"} <= grid
    assert "topk N=8 k=16" not in grid


def test_the_longest_rows_have_their_memory_measured(monkeypatch):
    monkeypatch.setattr(topk, "LENGTHS", (64,))
    facts = {name: fact() for name, fact in topk.topk_case(64, 4).facts.items()}
    assert facts["scratch_bytes"]["torch.topk"] == 16 * 64
    assert set(facts["peak_bytes"]) == {*topk.NAMES, topk.OURS, topk.TORCH}
