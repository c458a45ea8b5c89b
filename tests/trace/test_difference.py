"""Two traces compared, against loops over their sets."""

import json
import math
from dataclasses import replace

import pytest
import torch

from moegate.trace import Trace, difference, margins
from moegate.trace.difference import diff
from moegate.trace.importers.building import ASSUMED


def traces(num_tokens: int = 30, num_layers: int = 3, num_experts: int = 6, top_k: int = 2) -> tuple[Trace, Trace]:
    """A trace and a disturbed one, with their slots in other orders; some tokens unseen by one or by both."""
    logits = torch.randn(num_tokens, num_layers, num_experts)
    found = []
    for noisy in (logits, logits + 0.3 * torch.randn_like(logits)):
        values, indices = noisy.topk(top_k)
        order = torch.rand(num_tokens, num_layers, top_k).argsort(dim=2)
        found.append((indices.gather(2, order), values.gather(2, order).softmax(dim=2), noisy))
    found[0][0][4] = -1
    found[1][0][4] = -1
    found[1][0][5, 1] = -1
    found[0][0][6, 2, 0] = -1
    ids = torch.arange(num_tokens) + 100
    names = tuple(f"layer {layer}" for layer in range(num_layers))
    a, b = (
        Trace(
            indices.to(dtype),
            names,
            (num_experts,) * num_layers,
            weights=weights.masked_fill(indices < 0, 0),
            logits=noisy,
            token_ids=ids,
            document_ids=ids // 10 - 10,
        )
        for (indices, weights, noisy), dtype in zip(found, (torch.int8, torch.int32), strict=True)
    )
    return a, b


def chosen(trace: Trace, token: int, layer: int) -> set[int]:
    return {expert for expert in trace.indices[token, layer].tolist() if expert >= 0}


def shares(trace: Trace, token: int, layer: int) -> dict[int, float]:
    pairs = zip(trace.indices[token, layer].tolist(), trace.weights[token, layer].tolist(), strict=True)
    weights = {expert: weight for expert, weight in pairs if expert >= 0}
    return {expert: weight / sum(weights.values()) for expert, weight in weights.items()}


def test_agreement_by_layer_and_over_all() -> None:
    a, b = traces()
    found = diff(a, b)
    decisions = agreements = parted = 0
    for layer, row in enumerate(found.layers):
        pairs = [(chosen(a, t, layer), chosen(b, t, layer)) for t in range(30)]
        pairs = [(one, other) for one, other in pairs if one and other]
        each = [len(one & other) / max(len(one), len(other)) for one, other in pairs]
        assert row.tokens == len(pairs)
        assert row.agreement == pytest.approx(sum(each) / len(each))
        assert row.exact == pytest.approx(sum(one == other for one, other in pairs) / len(pairs))
        assert row.chance == pytest.approx(sum(max(map(len, pair)) for pair in pairs) / len(pairs) / 6)
        decisions += len(pairs)
        agreements += sum(each)
        parted += sum(one != other for one, other in pairs)
    assert 0 < parted < decisions
    assert found.agreement == pytest.approx(agreements / decisions)
    assert found.decisions_differing == pytest.approx(parted / decisions)
    assert found.seen_by_one == 1
    assert found.tokens == 29


def test_tokens_and_the_first_layer_that_differs() -> None:
    a, b = traces()
    found = diff(a, b, extremes=30)
    differing = {}
    for token in range(30):
        layers = [
            layer
            for layer in range(3)
            if chosen(a, token, layer)
            and chosen(b, token, layer)
            and chosen(a, token, layer) != chosen(b, token, layer)
        ]
        if layers:
            differing[token] = layers
    assert found.tokens_differing == pytest.approx(len(differing) / 29)
    assert [row.first for row in found.layers] == [sum(v[0] == n for v in differing.values()) for n in range(3)]
    listed = {one.row: one for one in found.extremes}
    assert set(listed) == set(differing)
    for token, layers in differing.items():
        one = listed[token]
        assert (one.layers_differing, one.first_layer) == (len(layers), f"layer {layers[0]}")
        assert (one.token_id, one.document_id, one.other_row) == (token + 100, token // 10, token)
    counts = [one.layers_differing for one in found.extremes]
    assert counts == sorted(counts, reverse=True)


def test_margins_where_they_part_and_elsewhere() -> None:
    a, b = traces(num_tokens=200)
    for layer, row in enumerate(diff(a, b).layers):
        gaps = margins(a, layer).tolist()
        cells = [(chosen(a, t, layer), chosen(b, t, layer), gaps[t]) for t in range(200)]
        for value, equal in ((row.margin_same, True), (row.margin_parted, False)):
            wanted = sorted(g for x, y, g in cells if x and y and (x == y) == equal and not math.isnan(g))
            # torch's median is the lower one of two.
            assert value == pytest.approx(wanted[(len(wanted) - 1) // 2])
        assert row.margin_parted < row.margin_same
    only_second = diff(replace(a, logits=None), b).layers[0]
    assert only_second.margin_same is not None
    assert diff(replace(a, logits=None), replace(b, logits=None)).layers[0].margin_same is None
    assert "close calls" in diff(a, b).verdict


def test_the_weight_that_moved() -> None:
    a, b = traces()
    for layer, row in enumerate(diff(a, b).layers):
        moved = []
        for token in range(30):
            one, other = shares(a, token, layer), shares(b, token, layer)
            if one and other:
                moved.append(sum(abs(one.get(e, 0) - other.get(e, 0)) for e in range(6)) / 2)
        assert row.weight_moved == pytest.approx(sum(moved) / len(moved), abs=1e-6)
    assert diff(replace(a, weights=None), b).layers[0].weight_moved is None


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = traces()
    whole = diff(a, b).to_dict()
    monkeypatch.setattr(difference, "_CHUNK", 7)
    assert diff(a, b).to_dict() == whole


def test_the_same_trace_in_another_order_of_slots_is_the_same() -> None:
    a, _ = traces()
    found = diff(a, replace(a, indices=a.indices.flip(2), weights=a.weights.flip(2)))
    assert (found.agreement, found.tokens_differing, found.extremes) == (1.0, 0.0, ())
    assert found.layers[0].weight_moved == pytest.approx(0, abs=1e-6)
    assert found.verdict.startswith("The same experts for each of the 29 tokens")


def test_unrelated_traces_are_called_so() -> None:
    indices = [torch.rand(400, 2, 16).topk(2).indices for _ in range(2)]
    a, b = (Trace(one, ("x", "y"), (16, 16)) for one in indices)
    assert "No more alike than chance" in diff(a, b).verdict


def test_different_numbers_of_experts_per_token_compare_by_the_larger() -> None:
    a = Trace(torch.tensor([[[0, 1]]]), ("x",), (4,))
    b = Trace(torch.tensor([[[1]]]), ("x",), (4,))
    assert diff(a, b).agreement == diff(b, a).agreement == 0.5


def test_padding_of_another_shape_is_left_out() -> None:
    a, b = traces()
    keep = [token for token in range(30) if token != 4]
    narrow = replace(
        b, **{name: getattr(b, name)[keep] for name in ("indices", "weights", "logits", "token_ids", "document_ids")}
    )
    found = diff(a, narrow)
    assert found.agreement == diff(a, b).agreement
    assert any("Padded positions" in note for note in found.notes)


def test_sequences_are_compared_up_to_where_they_part() -> None:
    def generated(tokens: list[list[int]], experts: list[list[int]]) -> Trace:
        ids, index = (torch.tensor([value for row in rows for value in row]) for rows in (tokens, experts))
        documents = torch.tensor([number for number, row in enumerate(tokens) for _ in row])
        return Trace(index[:, None, None], ("x",), (9,), token_ids=ids, document_ids=documents)

    a = generated([[1, 2, 3, 4], [7, 8]], [[0, 1, 2, 3], [4, 5]])
    b = generated([[1, 2, 9], [7, 8, 6]], [[0, 8, 2], [4, 5, 6]])
    with pytest.raises(ValueError, match=r"differ at 4 of 6 tokens, first at token 2 \(3 and 9\).*common-prefix"):
        diff(a, b)
    found = diff(a, b, common_prefix=True)
    assert found.tokens == 4
    assert found.agreement == 0.75
    assert "first 4 tokens" in found.notes[0]


def test_rows_of_a_sequence_may_come_apart() -> None:
    documents = torch.tensor([0, 0, 1, 1, 0, 1])
    ids = torch.tensor([1, 2, 5, 6, 3, 7])
    a = Trace(torch.arange(6)[:, None, None], ("x",), (6,), token_ids=ids, document_ids=documents)
    order = documents.argsort(stable=True)
    b = replace(a, indices=a.indices[order], token_ids=ids[order], document_ids=documents[order])
    found = diff(a, b, common_prefix=True)
    assert (found.tokens, found.agreement) == (6, 1.0)


def test_what_can_not_be_compared_is_a_sentence() -> None:
    a, b = traces()
    with pytest.raises(ValueError, match="3 layers and the second 2"):
        diff(a, b.select(layers=[0, 1]))
    with pytest.raises(ValueError, match="6 experts in the first trace and 7"):
        diff(a, replace(b, num_experts=(7, 6, 6), logits=None))
    with pytest.raises(ValueError, match="29 tokens and the second 3"):
        diff(a, b.select(tokens=torch.arange(30) < 3))
    with pytest.raises(ValueError, match="one of the traces has none"):
        diff(a, replace(b, token_ids=None), common_prefix=True)
    with pytest.raises(ValueError, match="No sequence"):
        diff(a, replace(b, token_ids=b.token_ids + 1), common_prefix=True)
    with pytest.raises(ValueError, match="extremes is -1"):
        diff(a, b, extremes=-1)


def test_what_is_assumed_is_noted() -> None:
    a, b = traces()
    other = replace(
        b, layers=("0", "1", "2"), num_experts=(7, 7, 7), logits=None, token_ids=None, metadata={"notes": [ASSUMED]}
    )
    notes = " ".join(diff(a, other).notes)
    assert "compared by position: their names differ (layer 0 and 0)" in notes
    assert "no token ids" in notes


@pytest.mark.parametrize("notes", [1, None, "text", [[1]], {"a": 1}])
def test_notes_of_any_kind_are_no_obstacle(notes: object) -> None:
    a, b = (replace(trace, metadata={"notes": notes}) for trace in traces())
    assert diff(a, b).agreement == diff(replace(a, metadata={}), b).agreement


def test_traces_without_layers_are_refused() -> None:
    none = Trace(torch.zeros(3, 0, 2, dtype=torch.int8), (), ())
    with pytest.raises(ValueError, match="the traces have no layers"):
        diff(none, none)


def test_nothing_to_compare() -> None:
    empty = Trace(torch.zeros(0, 1, 2, dtype=torch.int8), ("x",), (4,), weights=torch.zeros(0, 1, 2))
    unseen = Trace(torch.full((2, 1, 2), -1), ("x",), (4,))
    for one in (empty, unseen):
        found = diff(one, one)
        assert "nothing to compare" in found.verdict
        json.dumps(found.to_dict(), allow_nan=False)
