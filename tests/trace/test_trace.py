"""``Trace``: its checks, its load against brute force, and its parts."""

import pytest
import torch

from moegate.trace import Trace


def small(**changes):
    fields = {
        "indices": torch.tensor([[[0, 1], [2, -1]], [[1, 0], [0, 3]], [[-1, -1], [-1, -1]], [[1, 1], [3, 2]]]),
        "layers": ("low", "high"),
        "num_experts": (2, 4),
        "weights": torch.rand(4, 2, 2),
        "logits": torch.randn(4, 2, 4),
        "phases": torch.tensor([1, 1, 1, 2]),
        "document_ids": torch.tensor([0, 0, -1, 1]),
        "domain_ids": torch.tensor([0, 0, -1, 1]),
        "domains": ("code", "prose"),
        "metadata": {"rules": ["low rule", "high rule"], "model": "x"},
    }
    return Trace(**(fields | changes))


def test_load_by_hand():
    load = small().load
    assert load.tolist() == [[2, 4, 0, 0], [1, 0, 2, 2]]
    assert small().token_mask.tolist() == [True, True, False, True]
    assert (len(small()), small().num_layers, small().top_k) == (4, 2, 2)


def test_says_what_it_is():
    assert repr(small()).startswith("Trace(4 tokens, 2 layers, 2 or 4 experts, top_k=2, weights, logits, document_ids")
    assert (
        repr(Trace(torch.zeros(1, 1, 1, dtype=torch.int8), ("a",), (1,)))
        == "Trace(1 token, 1 layer, 1 experts, top_k=1)"
    )


def test_parts():
    trace = small()
    assert trace.select().indices is trace.indices
    part = trace.select(layers=["high"], phase="prefill")
    assert part.indices.tolist() == [[[2, -1]], [[0, 3]], [[-1, -1]]]
    assert (part.layers, part.num_experts, part.metadata["rules"]) == (("high",), (4,), ["high rule"])
    assert torch.equal(part.logits, trace.logits[:3, 1:])
    assert trace.select(layers=[0]).logits.shape == (4, 1, 2)
    assert trace.select(layers=[-1, 0]).layers == ("high", "low")
    assert trace.select(domain="prose").indices.tolist() == [[[1, 1], [3, 2]]]
    assert trace.select(document=0).weights.shape == (2, 2, 2)
    assert trace.select(tokens=trace.token_mask, phase="prefill").num_tokens == 2
    assert trace.select(domain="code", phase="decode").num_tokens == 0
    assert trace.select(layers=[]).indices.shape == (4, 0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["middle"]}, "There is no layer 'middle' in this trace; there are low, high"),
        ({"layers": [2]}, "layers must be names or numbers below 2, got 2"),
        ({"layers": [True]}, "layers must be names or numbers"),
        ({"phase": "training"}, "There is no phase 'training'"),
        ({"domain": "music"}, "There is no domain 'music' in this trace; there are code, prose"),
        ({"tokens": torch.ones(3, dtype=torch.bool)}, r"tokens must be a bool tensor \[4\]"),
        ({"tokens": torch.ones(4)}, r"tokens must be a bool tensor \[4\].* got torch.float32"),
        ({"tokens": [True] * 4}, r"tokens must be a bool tensor \[4\].* got list"),
    ],
)
def test_parts_that_are_not_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        small().select(**arguments)


def test_a_trace_that_does_not_know():
    with pytest.raises(ValueError, match="This trace has no phases"):
        small(phases=None).select(phase="decode")
    with pytest.raises(ValueError, match="This trace has no document_ids"):
        small(document_ids=None).select(document=0)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"indices": [[[0]]]}, TypeError, "indices must be a tensor of signed integers, got list"),
        ({"indices": torch.zeros(4, 2, 2)}, TypeError, "got torch.float32"),
        ({"indices": torch.zeros(4, 2, 2, dtype=torch.uint8)}, TypeError, "got torch.uint8"),
        ({"indices": torch.zeros(4, 2, 2, dtype=torch.bool)}, TypeError, "got torch.bool"),
        ({"indices": torch.zeros(4, 2, dtype=torch.int64)}, ValueError, "indices must have the shape"),
        ({"indices": torch.full((4, 2, 2), 2)}, ValueError, "indices of layer 'low' must be experts from 0 to 1"),
        ({"indices": torch.full((4, 2, 2), -2)}, ValueError, "got -2 to -2"),
        ({"layers": ("low",)}, ValueError, "layers must name each of the 2 layers"),
        ({"layers": ("low", "low")}, ValueError, "'low' is there twice"),
        ({"layers": ("low", 3)}, TypeError, "layers must be a tuple of strings"),
        ({"num_experts": (2,)}, ValueError, "num_experts must have a number for each of the 2 layers, got 1"),
        ({"num_experts": (2, 4.0)}, TypeError, "num_experts must be a tuple of integers"),
        ({"num_experts": (2, True)}, TypeError, "num_experts must be a tuple of integers"),
        ({"num_experts": (2, 0)}, ValueError, "num_experts must be from 1 up"),
        ({"weights": torch.rand(4, 2, 3)}, ValueError, r"weights must have the shape \(4, 2, 2\)"),
        ({"weights": torch.ones(4, 2, 2, dtype=torch.int8)}, TypeError, "weights must be a floating-point"),
        ({"logits": torch.rand(4, 2, 2)}, ValueError, r"logits must have the shape \(4, 2, 4\)"),
        ({"phases": torch.tensor([0, 1, 2, 3])}, ValueError, "phases must be from 0 to 2, got 0 to 3"),
        ({"phases": torch.tensor([0, 1, 2, -1])}, ValueError, "phases must be from 0 to 2, got -1"),
        ({"calls": torch.tensor([0, 1, 2, -1])}, ValueError, "calls must be from 0 up"),
        ({"calls": torch.zeros(3, dtype=torch.int8)}, ValueError, r"calls must have the shape \(4\)"),
        ({"token_ids": torch.zeros(4)}, TypeError, "token_ids must be a tensor of signed integers"),
        ({"token_ids": torch.full((4,), -2)}, ValueError, "token_ids must be from -1 up"),
        ({"domain_ids": torch.tensor([0, 1, 2, 0])}, ValueError, "domain_ids must be from -1 to 1, got 0 to 2"),
        ({"domains": ("x", "x")}, ValueError, "'x' is there twice"),
        ({"metadata": {"x": torch.zeros(1)}}, TypeError, "metadata must be a mapping of JSON values"),
        ({"metadata": 3}, TypeError, "metadata must be a mapping of JSON values"),
    ],
)
def test_what_does_not_fit(changes, kind, message):
    with pytest.raises(kind, match=message):
        small(**changes)


def test_lists_do_too():
    assert small(layers=["low", "high"], num_experts=[2, 4], domains=["code", "prose"]).layers == ("low", "high")
