"""The inside of a run: curves, windows, chance of pairs, token views."""

import base64
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moegate.report.detail import LEVELS, Detail
from moegate.report.history import merge_windows
from moegate.report.inside import Texts, coactivation, curves, inside, quasi_independence
from moegate.report.loading import load_run
from moegate.report.records import History, LoadWindow, TokenView

Make = Callable[..., Path]
SMALL = Detail(windows=3, points=4, pair_experts=3, assignments=12, slots=1, every_seed=True)


def test_uniform_pairs_are_as_frequent_as_chance() -> None:
    pairs = np.ones((1, 6, 6)) - np.eye(6)
    factor = quasi_independence(pairs)[0]
    np.testing.assert_allclose(np.outer(factor, factor)[~np.eye(6, dtype=bool)], 1.0)


def test_pairs_made_by_chance_give_back_their_factors() -> None:
    truth = np.random.default_rng(0).uniform(0.5, 3.0, size=(4, 9))
    pairs = truth[:, :, None] * truth[:, None, :]
    pairs[:, np.arange(9), np.arange(9)] = 0
    np.testing.assert_allclose(quasi_independence(pairs), truth, rtol=1e-6)


def test_the_row_sums_of_the_model_are_those_of_the_data() -> None:
    counts = np.random.default_rng(1).integers(0, 50, size=(2, 8, 8)).astype(float)
    pairs = np.triu(counts, 1) + np.triu(counts, 1).transpose(0, 2, 1)
    factor = quasi_independence(pairs)
    expected = factor * (factor.sum(axis=1, keepdims=True) - factor)
    np.testing.assert_allclose(expected, pairs.sum(axis=2), rtol=1e-6)


def test_an_expert_without_pairs_breaks_nothing() -> None:
    pairs = np.zeros((1, 4, 4))
    pairs[0, 0, 1] = pairs[0, 1, 0] = 5
    assert np.isfinite(quasi_independence(pairs)).all()


def test_no_pairs_no_matrix() -> None:
    assert coactivation(np.eye(4)[None] * 9, 8) is None
    assert coactivation(None, 8) is None
    assert coactivation(np.ones((1, 1, 1)), 8) is None


def test_only_the_busiest_experts_of_a_large_layer_are_kept() -> None:
    pairs = np.zeros((1, 6, 6))
    for one, other, count in ((1, 4, 50), (1, 5, 30), (0, 2, 1)):
        pairs[0, one, other] = pairs[0, other, one] = count
    packed = coactivation(pairs, 3)
    assert packed is not None
    assert packed["experts"] == [[1, 4, 5]]
    assert packed["share"]["shape"] == [1, 3]


def test_curves_average_bins_and_leave_a_gap_where_a_run_diverged() -> None:
    history = History(
        step=(1, 2, 3, 4, 5, 6, 7),
        loss=(4.0, 2.0, 1.0, None, 3.0, 5.0, 9.0),
        tokens_per_second=(None,) * 7,
        max_violation=tuple(np.array([float(step)]) for step in range(7)),
        utilization=(None,) * 7,
        drop_rate=(None,) * 7,
    )
    packed = curves(history, 1, points=4)
    assert packed["step"] == [2, 4, 6, 7]
    assert packed["loss"] == [3.0, None, 4.0, 9.0]
    assert packed["utilization"] is None
    code = np.frombuffer(base64.b64decode(packed["max_violation"]["data"]), dtype="<u2")
    np.testing.assert_allclose(code / 65534 * packed["max_violation"]["largest"], [0.5, 2.5, 4.5, 6.0], atol=1e-3)


def test_windows_are_merged_evenly() -> None:
    windows = [LoadWindow(step, step, np.full((1, 2), 1.0)) for step in range(10)]
    merged = merge_windows(windows, 4)
    assert [(window.first_step, window.last_step) for window in merged] == [(0, 2), (3, 5), (6, 8), (9, 9)]
    assert [window.load_LE[0, 0] for window in merged] == [3, 3, 3, 1]


def unpack(view: dict[str, dict[str, object]]) -> np.ndarray:
    shape = view["experts"]["shape"]
    code = np.frombuffer(base64.b64decode(str(view["experts"]["data"])), dtype="u1").astype(int)
    return np.where(code == view["experts"]["none"], -1, code).reshape(shape)  # type: ignore[call-overload]


def test_token_views_put_the_strongest_expert_first_and_empty_slots_last(make_run: Make) -> None:
    run = load_run(make_run(layers=1))
    assert run.evaluation is not None
    view = TokenView(
        "d",
        ("a", "b"),
        np.array([[[3.0, 5.0, -1.0], [-1.0, 2.0, -1.0]]]),
        np.array([[[0.2, 0.7, 0.9], [0.0, -0.1, 0.0]]]),
        (),
    )
    run = replace(run, evaluation=replace(run.evaluation, token_views=(view,)))
    packed = inside(run, LEVELS[0], Texts())["views"][0]
    assert unpack(packed).tolist() == [[[5, 3, -1], [2, -1, -1]]]


def test_runs_that_show_the_same_text_share_it(make_run: Make) -> None:
    texts = Texts()
    for seed in range(3):
        inside(load_run(make_run(f"r{seed}", seed=seed)), LEVELS[0], texts)
    assert len(texts.items) == 4


def test_a_smaller_detail_is_smaller_everywhere(make_run: Make) -> None:
    texts = Texts()
    content = inside(load_run(make_run()), SMALL, texts)
    assert len(content["load"]["last_step"]) == 3
    assert len(content["curves"]["step"]) == 4
    assert content["pairs"]["shown"] == 3
    assert content["views"][0]["experts"]["shape"] == [3, 16, 1]
    assert texts.trimmed


def test_every_level_is_no_larger_than_the_one_before() -> None:
    names = ("windows", "points", "pair_experts", "assignments", "slots", "every_seed")
    for before, after in pairwise(LEVELS):
        assert all(getattr(after, name) <= getattr(before, name) for name in names)
        assert after != before


@pytest.mark.parametrize("kind", ["image", "text"])
def test_an_unfinished_run_has_curves_and_nothing_else(make_run: Make, kind: str) -> None:
    content = inside(load_run(make_run(kind=kind, finished=False)), LEVELS[0], Texts())
    assert set(content) == {"curves", "load"}
