"""Dense routing: every expert, weighted by its score."""

import torch

import moegate


def test_the_weights_are_the_softmax_in_the_order_of_the_experts() -> None:
    logits = torch.randn(6, 5)
    routing = moegate.route(logits, moegate.recipes.dense())
    assert routing.expert_index.tolist() == [[0, 1, 2, 3, 4]] * 6
    torch.testing.assert_close(routing.weights, logits.softmax(dim=-1))
    assert routing.load.tolist() == [6] * 5
