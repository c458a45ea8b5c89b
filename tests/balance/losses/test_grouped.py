"""The group-level loss: devices balanced, experts within them free."""

import pytest
import torch

import moegate
from moegate.balance.losses import group_load_balance, load_balance


def test_is_the_loss_of_the_groups_as_experts() -> None:
    logits = torch.randn(50, 6)
    mask = torch.rand(50) < 0.8
    routing = moegate.route(logits, moegate.recipes.mixtral(top_k=2), token_mask=mask)
    share = routing.selected_load.double().reshape(3, 2).sum(1) / routing.selected_load.sum()
    mean = logits[mask].double().softmax(-1).mean(0).reshape(3, 2).sum(1)
    assert group_load_balance(routing, 3).item() == pytest.approx(3 * (share * mean).sum().item(), rel=1e-5)


def test_one_expert_per_group_is_the_plain_loss_and_one_group_is_always_balanced() -> None:
    routing = moegate.route(torch.randn(50, 6), moegate.recipes.mixtral(top_k=2))
    torch.testing.assert_close(group_load_balance(routing, 6), load_balance(routing))
    torch.testing.assert_close(group_load_balance(routing, 1), torch.tensor(1.0))


@pytest.mark.parametrize("num_groups", [0, -1, 4, 7])
def test_groups_that_do_not_divide_are_refused(num_groups: int) -> None:
    routing = moegate.route(torch.randn(5, 6), moegate.recipes.switch())
    with pytest.raises(ValueError, match="does not divide the 6 experts"):
        group_load_balance(routing, num_groups)
