"""Random routing: uniform and without replacement in training; a fixed hash in evaluation."""

import torch

import moegate

RULE = moegate.recipes.random_routing(top_k=2)


def test_every_pair_is_equally_likely() -> None:
    index = moegate.route(torch.randn(30_000, 5), RULE, training=True).expert_index
    ordered = index.sort(dim=-1).values
    assert not (ordered[:, 0] == ordered[:, 1]).any()
    pairs = torch.bincount(ordered[:, 0] * 5 + ordered[:, 1], minlength=25).double()
    pairs = pairs[pairs > 0]
    assert len(pairs) == 10
    assert float((pairs - 3000).abs().max()) < 6 * (3000 * 0.9) ** 0.5


def test_each_slot_is_uniform() -> None:
    index = moegate.route(torch.randn(30_000, 5), RULE, training=True).expert_index
    for slot in range(2):
        counts = torch.bincount(index[:, slot], minlength=5).double()
        assert float((counts - 6000).abs().max()) < 6 * (6000 * 0.8) ** 0.5


def test_the_default_type_does_not_make_it_uneven() -> None:
    """Keys in bfloat16 would have 256 values, and their ties would go to the first experts."""
    logits = torch.randn(4000, 256)
    torch.set_default_dtype(torch.bfloat16)
    index = moegate.route(logits, moegate.recipes.random_routing(1), training=True).expert_index
    first_half = int((index < 128).sum())
    assert abs(first_half - 2000) < 6 * 1000**0.5


def test_two_batches_draw_differently() -> None:
    logits = torch.randn(100, 8)
    first, second = (moegate.route(logits, RULE, training=True).expert_index for _ in range(2))
    assert not first.equal(second)


def test_evaluation_is_fixed_and_even() -> None:
    logits = torch.randn(20_000, 8)
    first, second = (moegate.route(logits, RULE).expert_index for _ in range(2))
    assert first.equal(second)
    load = torch.bincount(first.flatten(), minlength=8).double()
    assert float((load - 5000).abs().max()) < 6 * 5000**0.5


def test_evaluation_goes_by_token_ids_if_there_are_any() -> None:
    ids = torch.arange(100)
    first, second = (moegate.route(torch.randn(100, 8), RULE, token_ids=ids).expert_index for _ in range(2))
    assert first.equal(second)
