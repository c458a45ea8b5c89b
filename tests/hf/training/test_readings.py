"""The tally, its summary, the alarms and the file of full counts."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moegate.hf.training import Alarms, LoadFile, RoutingWarning, Tally, layer_readings, summarize
from moegate.lab.logging.jsonl import read_metrics


def of(*loads: list[int]) -> Tally:
    """A tally of layers with these loads, one expert a token."""
    tally = Tally([len(load) for load in loads])
    for number, load in enumerate(loads):
        tally.add(number, torch.repeat_interleave(torch.arange(len(load)), torch.tensor(load))[:, None])
    return tally


def test_counting_with_a_mask_and_empty_slots() -> None:
    tally = Tally([3, 2])
    real = torch.tensor([True, False, True])
    index = torch.tensor([[0, 2], [1, 1], [-1, 0]])
    tally.add(0, index, real, entropy=torch.tensor([1.0, math.nan, 2.0]))
    tally.add(0, torch.tensor([[7, 1]]))  # 7 is past the last expert: nobody
    assert tally.load(0).tolist() == [2, 1, 1]
    assert tally.tokens(0) == 3
    assert tally.empty_fraction(0) == pytest.approx(2 / 6)
    assert tally.entropy(0) == pytest.approx(1.0)
    assert tally.load(1).tolist() == [0, 0]
    assert math.isnan(tally.empty_fraction(1)) and math.isnan(tally.entropy(1))
    twice = Tally([3, 2])
    twice.include(tally)
    twice.include(tally)
    assert twice.load(0).tolist() == [4, 2, 2]
    assert index.tolist() == [[0, 2], [1, 1], [-1, 0]]
    tally.clear()
    assert tally.tokens(0) == 0 and not tally.load(0).any()


def test_nothing_was_counted() -> None:
    assert summarize(Tally([4, 4])) == {}
    assert summarize(Tally([])) == {}
    assert Tally([]).over_ranks().num_experts == ()
    Alarms(["a"], [1]).look(Tally([4]), step=1)


def test_percentiles_are_of_the_bad_side() -> None:
    tally = of(*[[100 + 10 * layer, 100 - 10 * layer] for layer in range(10)], [0, 5])
    summary = summarize(tally, spread=[0.5, 0.1])
    violations = layer_readings(tally)["max_violation"]
    assert violations == pytest.approx([0.1 * layer for layer in range(10)] + [1.0])
    assert summary["max_violation/p50"] == pytest.approx(0.5)
    assert summary["max_violation/p90"] == pytest.approx(0.9)
    assert summary["max_violation/max"] == pytest.approx(1.0)
    assert summary["min_utilization/min"] == 0.0
    assert summary["min_utilization/p10"] == pytest.approx(0.1)
    assert summary["dead_fraction/max"] == 0.5
    assert summary["bias_spread/max"] == 0.5
    assert (summary["hottest_1/layer"], summary["hottest_1/expert"]) == (10.0, 1.0)
    assert (summary["coldest_1/layer"], summary["coldest_1/expert"]) == (10.0, 0.0)
    assert (summary["coldest_2/layer"], summary["coldest_2/expert"]) == (9.0, 1.0)
    assert "token_entropy/p50" not in summary  # no logits were seen


@pytest.mark.parametrize("shape", [(2, 4), (61, 256)])
def test_as_many_names_for_any_model(shape: tuple[int, int]) -> None:
    layers, experts = shape
    tally = Tally([experts] * layers)
    for layer in range(layers):
        tally.add(layer, torch.randint(experts, (64, 2)), entropy=torch.rand(64))
    assert len(summarize(tally, spread=[0.1] * layers)) == 3 * 7 + 2 * 3 * 3


def said(alarms: Alarms, tally: Tally, step: int = 1, spread: dict[int, float] | None = None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        alarms.look(tally, step=step, spread=spread)
    assert all(issubclass(warning.category, RoutingWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


def uniform(entropy: float) -> Tally:
    tally = Tally([4])
    tally.add(0, torch.arange(400)[:, None] % 4, entropy=torch.full((400,), entropy))
    return tally


def test_alarms_and_their_silence() -> None:
    alarms = Alarms(["one", "two"], [1, 1])
    assert said(alarms, of([50, 60, 40, 50], [20, 30, 20, 30])) == []
    (collapsed,) = said(alarms, of([50, 60, 40, 50], [200, 1, 1, 1]), step=7)
    assert "Step 7: two has collapsed: its load is that of 1.1 of 4 experts" in collapsed
    assert "balance_loss=0.01" in collapsed
    assert said(alarms, of([50, 60, 40, 50], [200, 1, 1, 1])) == []  # once
    assert said(alarms, of([5, 6, 0, 0], [5, 5, 5, 5])) == []  # too few tokens to call one dead
    (dead,) = said(alarms, of([100, 100, 0, 100], [50, 50, 50, 50]))
    assert "one sent nothing to 1 of 4 experts (2)" in dead
    (wide,) = said(alarms, of([50] * 4, [50] * 4), spread={0: 0.9, 1: 1.5})
    assert "two has a bias that spreads over 1.50" in wide


def test_a_router_that_decides_nothing() -> None:
    alarms = Alarms(["one"], [1])
    assert said(alarms, uniform(math.log(4)), step=100) == []  # it may still learn
    assert said(alarms, uniform(0.9 * math.log(4)), step=500) == []
    (stuck,) = said(alarms, uniform(math.log(4) - 1e-6), step=500)
    assert "one still gives every expert the same probability (1.0000 of log E)" in stuck


def test_the_file_is_cut_back_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "load.jsonl"
    file = LoadFile(path, ["a", "b"])
    for step in (1, 2, 3):
        file.write(of([step, 0], [1, 1, 1]), step=step, split="train")
    with path.open("a") as half:
        half.write('{"step": 4')
    resumed = LoadFile(path, ["a", "b"], resume_at=2)
    resumed.write(of([9, 9], [1, 1, 1]), step=3, split="eval")
    records = read_metrics(path)
    assert [(record["step"], record["split"]) for record in records] == [(1, "train"), (2, "train"), (3, "eval")]
    assert records[2]["load"] == [[9, 9], [1, 1, 1]]
    assert records[0]["tokens"] == [1, 3]
    LoadFile(path, ["a", "b"])
    assert path.read_text() == ""
    assert [entry.name for entry in path.parent.iterdir()] == ["load.jsonl"]
    assert json.dumps(records)


def test_the_entropy_of_masked_tokens_is_left_out() -> None:
    tally = Tally([2])
    nan: Tensor = torch.tensor([math.nan, 0.5])
    tally.add(0, torch.tensor([[0], [1]]), torch.tensor([False, True]), nan)
    assert tally.entropy(0) == 0.5
