"""The Switch/GShard loss: oracles in NumPy float64, hand-computed values, and the known ways to get it wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import moegate
from moegate.balance.losses import first_choice_load_balance, load_balance


def oracle(logits_TE: np.ndarray, index_TK: np.ndarray, mask_T: np.ndarray) -> float:
    """The formula, one token at a time."""
    num_experts = logits_TE.shape[1]
    counts, total, real = np.zeros(num_experts), np.zeros(num_experts), 0
    for row, chosen, is_real in zip(logits_TE.astype(np.float64), index_TK, mask_T, strict=True):
        if not is_real:
            continue
        real += 1
        exponents = np.exp(row - row.max())
        total += exponents / exponents.sum()
        for expert in chosen:
            if expert >= 0:
                counts[expert] += 1
    return float(num_experts * np.sum(counts / counts.sum() * total / real))


@pytest.mark.parametrize("top_k", [1, 2, 3, 7])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_oracle(top_k: int, masked: bool, dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(63, 7)).to(dtype)
    mask = torch.rand(63) < 0.7 if masked else None
    routing = moegate.route(logits, moegate.recipes.mixtral(top_k=top_k), token_mask=mask)
    real = np.ones(63, bool) if mask is None else mask.numpy()
    expected = oracle(logits.float().numpy(), routing.selected_index.numpy(), real)
    loss = load_balance(routing)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4)])
def test_perfect_balance_is_one_for_any_k(num_experts: int, top_k: int) -> None:
    # Row t prefers experts t, t+1, ... cyclically: every expert gets each rank equally often.
    ramp = torch.arange(num_experts, 0, -1.0)
    logits = torch.stack([ramp.roll(shift) for shift in range(num_experts)])
    routing = moegate.route(logits, moegate.recipes.mixtral(top_k=top_k))
    assert load_balance(routing).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_collapse_is_experts_over_k(top_k: int) -> None:
    logits = torch.full((16, 8), -60.0)
    logits[:, :top_k] = 0.0
    routing = moegate.route(logits, moegate.recipes.mixtral(top_k=top_k))
    assert load_balance(routing).item() == pytest.approx(8 / top_k, rel=1e-6)


def test_by_hand() -> None:
    # Softmax of [ln 3, 0] is [3/4, 1/4]; of [0, ln 4] is [1/5, 4/5]. f = [2/3, 1/3], P = [(3/4+3/4+1/5)/3, ...].
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0], [1.0, 4.0]]).log()
    routing = moegate.route(logits, moegate.recipes.switch())
    assert load_balance(routing).item() == pytest.approx(2 * (2 / 3 * 17 / 30 + 1 / 3 * 13 / 30), rel=1e-6)


def test_dynamic_k_divides_by_the_assignments_made() -> None:
    routing = moegate.route(torch.zeros(2, 2), moegate.recipes.mixtral(top_k=2))
    # Token 0 keeps both experts, token 1 only expert 0: three assignments, f = [2/3, 1/3], and P = [1/2, 1/2].
    uneven = torch.tensor([[0, 1], [0, -1]])
    routing = replace(routing, expert_index=uneven, selected_index=uneven)
    assert load_balance(routing).item() == pytest.approx(1.0, rel=1e-6)


def test_padding_is_not_counted() -> None:
    real = torch.randn(10, 4)
    padding = torch.tensor([9.0, 0.0, 0.0, 0.0]).expand(90, 4)
    mask = torch.arange(100) < 10
    rule = moegate.recipes.mixtral(top_k=2)
    padded = moegate.route(torch.cat([real, padding]), rule, token_mask=mask)
    alone = moegate.route(real, rule)
    assert load_balance(padded).item() == pytest.approx(load_balance(alone).item(), rel=1e-6)
    counted = moegate.route(torch.cat([real, padding]), rule)
    assert load_balance(counted) > load_balance(alone) + 0.5


def test_counts_before_dropping_unless_asked() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.0]]).repeat(8, 1)
    logits[-1] = torch.tensor([0.0, 9.0, 0.0, 0.0])
    routing = moegate.route(logits, moegate.recipes.switch())
    kept = routing.expert_index.clone()
    kept[2:7] = -1  # room for two tokens per expert
    routing = routing.with_assignment(kept, routing.weights)
    assert routing.load.tolist() == [2, 1, 0, 0]
    before, after = load_balance(routing).item(), load_balance(routing, dropped=True).item()
    assert before == pytest.approx(oracle(logits.numpy(), routing.selected_index.numpy(), np.ones(8)), rel=1e-5)
    assert after == pytest.approx(oracle(logits.numpy(), kept.numpy(), np.ones(8)), rel=1e-5)
    assert after < before - 0.5  # what counting after dropping hides


def test_load_replaces_the_counts() -> None:
    logits = torch.randn(32, 4)
    routing = moegate.route(logits, moegate.recipes.switch())
    for load in (torch.tensor([1, 2, 3, 4]), torch.tensor([0.1, 0.2, 0.3, 0.4])):
        expected = 4 * (logits.double().softmax(-1).mean(0) * load / load.sum()).sum()
        assert load_balance(routing, load=load).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(3,), (5,), (), (1, 4)])
def test_a_load_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    routing = moegate.route(torch.randn(2, 4), moegate.recipes.switch())
    with pytest.raises(ValueError, match=r"4 experts: pass one count per expert"):
        load_balance(routing, load=torch.ones(shape))


def test_the_gradient_goes_through_the_probabilities_only() -> None:
    logits = torch.randn(12, 5, requires_grad=True)
    load = torch.rand(5, requires_grad=True)
    routing = moegate.route(logits, moegate.recipes.mixtral(top_k=2))
    load_balance(routing, load=load).backward()
    assert load.grad is None
    share = load.detach() / load.detach().sum()
    probabilities = logits.detach().softmax(-1)
    # d/dz of E/T Σ f p: p_i (f_i - Σ f p) E/T.
    expected = 5 / 12 * probabilities * (share - (share * probabilities).sum(-1, keepdim=True))
    torch.testing.assert_close(logits.grad, expected)


def test_descending_the_loss_balances() -> None:
    logits = torch.randn(256, 8) + torch.tensor([2.0, 1.0] + [0.0] * 6)
    offset = torch.zeros(8, requires_grad=True)
    optimizer = torch.optim.SGD([offset], lr=0.5)
    rule = moegate.recipes.mixtral(top_k=2)
    first = moegate.metrics.max_violation(moegate.route(logits, rule))
    for _ in range(100):
        optimizer.zero_grad()
        load_balance(moegate.route(logits + offset, rule)).backward()
        optimizer.step()
    last = moegate.metrics.max_violation(moegate.route(logits + offset.detach(), rule))
    assert first > 1.0 and last < 0.25


@pytest.mark.parametrize("recipe", ["gshard", "mixtral", "dense", "top_p"])
def test_first_choice_sees_the_first_choice_only(recipe: str) -> None:
    logits = torch.randn(40, 6)
    mask = torch.rand(40) < 0.8
    routing = moegate.route(logits, moegate.recipes.get(recipe)(), token_mask=mask)
    first = np.where(mask.numpy(), logits.numpy().argmax(1), -1)[:, None]
    expected = oracle(logits.numpy(), first, mask.numpy())
    assert first_choice_load_balance(routing).item() == pytest.approx(expected, rel=1e-5)


def test_first_choice_ignores_tokens_that_no_expert_chose_and_takes_the_best_expert_of_the_others() -> None:
    routing = moegate.route(torch.randn(40, 6), moegate.recipes.expert_choice(capacity_factor=0.5))
    expected = np.full((40, 1), -1)
    for token, row in enumerate(routing.selected_index.tolist()):
        chosen = [expert for expert in row if expert >= 0]
        if chosen:
            expected[token] = max(chosen, key=lambda expert, token=token: routing.ranking[token, expert].item())
    assert (expected == -1).any()
    loss = first_choice_load_balance(routing).item()
    assert loss == pytest.approx(oracle(routing.logits.numpy(), expected, np.ones(40)), rel=1e-5)
