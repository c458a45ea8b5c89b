"""What the page counts, against counting by hand."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from moegate.report.inside import strongest_pairs
from moegate.report.traces.figures import (
    fair_ratio,
    load_by,
    over_phases,
    over_positions,
    over_recording,
    pair_counts,
    positions,
)
from moegate.trace import Trace

New = Callable[..., Trace]


def counted(trace: Trace, layer: int, rows: list[int]) -> list[int]:
    """Assignments of each expert, one row after the other."""
    seen = Counter(expert for row in rows for expert in trace.indices[row, layer].tolist())
    return [seen[expert] for expert in range(max(trace.num_experts))]


def with_padding(trace: Trace) -> Trace:
    """Every fifth row is padding, and layer 1 did not see every seventh."""
    indices = trace.indices.clone()
    indices[::5] = -1
    indices[::7, 1] = -1
    return replace(trace, indices=indices)


def test_loads_by_group_are_counted_row_by_row(new_trace: New) -> None:
    trace = with_padding(new_trace())
    group_T = np.arange(trace.num_tokens) % 4 - 1
    load = load_by(trace, group_T, 3)
    for group, layer in itertools.product(range(3), range(trace.num_layers)):
        assert load[group, layer].tolist() == counted(trace, layer, np.flatnonzero(group_T == group).tolist())


@pytest.mark.parametrize("windows", [1, 3, 7, 1000])
def test_the_recording_is_cut_into_even_parts_of_real_tokens(new_trace: New, windows: int) -> None:
    trace = with_padding(new_trace(tokens=60))
    real = trace.token_mask.nonzero().flatten().tolist()
    bins = over_recording(trace, windows)
    count = min(windows, len(real))
    assert len(bins.names) == len(bins.words) == len(bins.load_WLE) == count
    assert bins.load_WLE.sum(axis=0).tolist() == trace.load.tolist()
    for window, name in enumerate(bins.names):
        rows = [row for place, row in enumerate(real) if place * count // len(real) == window]
        assert real.index(rows[0]) == int(name)
        assert bins.load_WLE[window, 2].tolist() == counted(trace, 2, rows)


def test_positions_count_the_real_tokens_of_each_document(new_trace: New) -> None:
    trace = with_padding(new_trace(tokens=60, document_ids=torch.arange(60) % 3))  # in turns, as decoding gives them
    found = positions(trace)
    assert found is not None
    seen: Counter[int] = Counter()
    for row in range(60):
        if not trace.token_mask[row]:
            assert found[row] == -1
            continue
        assert found[row] == seen[row % 3]
        seen[row % 3] += 1


def test_positions_are_binned_by_their_power_of_two(new_trace: New) -> None:
    trace = new_trace(tokens=40)  # two documents of 20
    bins = over_positions(trace)
    assert bins is not None
    assert bins.names == ("0", "1", "2", "4", "8", "16")
    assert bins.words[2:4] == ("Positions 2 to 3", "Positions 4 to 7")
    assert bins.words[-1] == "Positions 16 to 19"
    rows = [document * 20 + place for document in (0, 1) for place in range(4, 8)]
    assert bins.load_WLE[3, 1].tolist() == counted(trace, 1, rows)


def test_phases_are_apart_and_one_phase_is_none(new_trace: New) -> None:
    trace = new_trace()
    bins = over_phases(trace)
    assert bins is not None
    assert bins.names == ("prefill", "decode")
    assert trace.phases is not None
    decoding = (trace.phases == 2).nonzero().flatten().tolist()
    assert bins.load_WLE[1, 3].tolist() == counted(trace, 3, decoding)
    assert over_phases(replace(trace, phases=torch.ones_like(trace.phases))) is None
    assert over_phases(replace(trace, phases=None)) is None
    assert over_positions(replace(trace, document_ids=None)) is None
    assert over_positions(replace(trace, document_ids=torch.arange(240))) is None, "one token a document"


def test_pairs_are_counted_token_by_token(new_trace: New) -> None:
    trace = with_padding(new_trace(top_k=3))
    pairs = pair_counts(trace)
    for layer in range(trace.num_layers):
        expected = np.zeros((8, 8), int)
        for row in trace.indices[:, layer].tolist():
            for one, other in itertools.permutations([expert for expert in row if expert >= 0], 2):
                expected[one, other] += 1
        assert pairs[layer].tolist() == expected.tolist()


def test_a_fair_share_is_of_the_layers_own_experts() -> None:
    ratio = fair_ratio(np.array([[4, 4, 0, 0], [1, 1, 1, 5], [0, 0, 0, 0]]), (2, 4, 4))
    assert ratio.tolist() == [[1, 1, 0, 0], [0.5, 0.5, 0.5, 2.5], [0, 0, 0, 0]]


def test_the_strongest_pairs_leave_out_what_was_hardly_seen() -> None:
    pairs = np.zeros((1, 4, 4))
    for one, other, count in ((0, 1, 100), (2, 3, 4), (0, 2, 30)):
        pairs[0, one, other] = pairs[0, other, one] = count
    share = pairs / pairs.sum() * 12
    (listed,) = strongest_pairs(pairs, share, np.ones((1, 4)), 10)
    assert [entry[:2] for entry in listed] == [[0, 1], [0, 2]], "experts 2 and 3 met four times only"
    assert listed[0][3] == pytest.approx(100 / 134, rel=0.01)
