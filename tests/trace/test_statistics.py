"""The statistics of a trace, against loops over its tokens."""

import json
import math

import pytest
import torch

from moegate import metrics
from moegate.trace import Loads, Trace
from moegate.trace import statistics as stats

SIZES = (5, 9)
"""Experts of the two layers."""


def example(num_tokens: int = 40, *, top_k: int = 3) -> Trace:
    """Two layers with different numbers of experts, empty slots, unseen and padded tokens, everything recorded."""
    logits = torch.full((num_tokens, 2, max(SIZES)), -math.inf)
    indices = torch.full((num_tokens, 2, top_k), -1, dtype=torch.int8)
    for layer, size in enumerate(SIZES):
        logits[:, layer, :size] = torch.randn(num_tokens, size)
        biased = logits[:, layer, :size] + torch.randn(size)
        indices[:, layer] = biased.topk(top_k).indices.to(torch.int8)
    indices[3, :, 2] = -1
    indices[5, 1] = -1
    indices[7] = -1
    weights = torch.rand(num_tokens, 2, top_k).masked_fill(indices < 0, 0)
    domain_ids = torch.randint(0, 2, (num_tokens,)).index_fill(0, torch.tensor([0]), -1)
    return Trace(
        indices, ("a", "b"), SIZES, weights=weights, logits=logits, domain_ids=domain_ids, domains=("en", "de")
    )


def sets(trace: Trace, layer: int) -> list[set[int]]:
    return [{expert for expert in row if expert >= 0} for row in trace.indices[:, layer].tolist()]


def test_the_table_reads_the_loads_as_the_metrics_do() -> None:
    trace = example()
    for layer, row in enumerate(stats.layer_table(trace, listed=2)):
        load = [sum(expert in chosen for chosen in sets(trace, layer)) for expert in range(SIZES[layer])]
        fair = sum(load) / len(load)
        assert row.layer == trace.layers[layer]
        assert row.tokens == sum(bool(chosen) for chosen in sets(trace, layer))
        assert row.assignments == sum(load)
        assert row.greatest_load == pytest.approx(max(load) / fair)
        assert row.least_load == pytest.approx(min(load) / fair)
        assert row.max_violation == pytest.approx(metrics.max_violation(load))
        assert row.normalized_entropy == pytest.approx(metrics.normalized_entropy(load))
        assert row.dead_experts == load.count(0)
        assert [expert for expert, _ in row.hottest] == sorted(range(len(load)), key=lambda e: -load[e])[:2]
        assert row.coldest[0][1] == pytest.approx(min(load) / fair)


def test_loads_give_what_needs_no_tokens() -> None:
    trace = example()
    known = stats.layer_table(trace)
    rows = stats.layer_table(Loads(trace.load, trace.layers, trace.num_experts))
    for row, other in zip(rows, known, strict=True):
        assert (row.tokens, row.margin, row.weight_entropy) == (None, None, None)
        assert row.cv == other.cv and row.hottest == other.hottest


def test_coactivation_counts_tokens_of_pairs() -> None:
    trace = example()
    for layer, size in enumerate(SIZES):
        expected = [[sum({i, j} <= chosen for chosen in sets(trace, layer)) for j in range(size)] for i in range(size)]
        assert stats.coactivation(trace, layer).tolist() == expected


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = example()
    pairs, gaps = stats.coactivation(trace, 0), stats.margins(trace, 0)
    monkeypatch.setattr(stats, "_CHUNK", 7)
    assert torch.equal(stats.coactivation(trace, 0), pairs)
    assert torch.equal(stats.margins(trace, 0).nan_to_num(9), gaps.nan_to_num(9))


def test_margins_are_those_of_each_token() -> None:
    trace = example()
    for layer, size in enumerate(SIZES):
        for token, chosen in enumerate(sets(trace, layer)):
            logits = trace.logits[token, layer, :size].tolist()
            found = stats.margins(trace, layer)[token].item()
            if chosen:
                others = [logits[expert] for expert in range(size) if expert not in chosen]
                assert found == pytest.approx(min(logits[expert] for expert in chosen) - max(others), abs=1e-6)
            else:
                assert math.isnan(found)


def test_a_token_with_all_experts_has_no_margin() -> None:
    trace = Trace(torch.tensor([[[0, 1]]]), ("a",), (2,), logits=torch.tensor([[[1.0, 0.0]]]))
    assert math.isnan(stats.margins(trace, 0)[0])
    assert math.isnan(stats.layer_table(trace)[0].margin)


def test_weight_entropy_leaves_out_unseen_tokens() -> None:
    weights = torch.tensor([[[0.5, 0.5]], [[2.0, 0.0]], [[0.0, 0.0]]])
    trace = Trace(torch.tensor([[[0, 1]], [[0, 1]], [[-1, -1]]]), ("a",), (2,), weights=weights)
    assert stats.weight_entropy(trace, 0) == pytest.approx(math.log(2) / 2)


def test_domains_are_counted_by_token() -> None:
    trace = example()
    for layer, size in enumerate(SIZES):
        expected = [[0] * size for _ in range(2)]
        for chosen, domain in zip(sets(trace, layer), trace.domain_ids.tolist(), strict=True):
            for expert in chosen if domain >= 0 else ():
                expected[domain][expert] += 1
        assert stats.domain_load(trace, layer).tolist() == expected
        assert stats.domain_specialization(trace)[layer] == metrics.domain_nmi(torch.tensor(expected))


def test_totals_leave_out_what_is_not_known() -> None:
    loads = Loads(torch.tensor([[4, 0], [0, 0], [2, 2]]), ("a", "b", "c"), (2, 2, 2))
    table = stats.layer_table(loads)
    total = stats.totals(table)
    assert total["max_violation"] == {"min": 0.0, "p50": 0.5, "p90": pytest.approx(0.9), "max": 1.0}
    assert total["dead_experts"]["max"] == 2
    assert total["margin"]["p50"] is None
    json.dumps([row.to_dict() for row in table], allow_nan=False)


@pytest.mark.parametrize("call", [stats.margins, stats.weight_entropy, stats.domain_load])
def test_what_was_not_recorded_is_a_sentence(call: object) -> None:
    with pytest.raises(ValueError, match="record it with"):
        call(Trace(torch.tensor([[[0]]]), ("a",), (2,)), 0)


def test_an_empty_trace_has_statistics() -> None:
    trace = Trace(
        torch.zeros(0, 1, 2, dtype=torch.int8), ("a",), (3,), weights=torch.zeros(0, 1, 2), logits=torch.zeros(0, 1, 3)
    )
    (row,) = stats.layer_table(trace)
    assert row.tokens == 0 and row.dead_experts == 3
    assert stats.coactivation(trace, 0).tolist() == [[0] * 3] * 3
    json.dumps(row.to_dict(), allow_nan=False)
