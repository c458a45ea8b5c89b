"""Two gloo processes against one process that has all the tokens."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import moegate
from moegate.balance.losses import load_balance

SCRIPT = Path(__file__).with_name("ranks.py")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RANKS = load_script()


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(11)
    skew = torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    return {
        "logits": torch.randn(40, 6, generator=generator) + skew,
        "mask": torch.rand(40, generator=generator) < 0.8,
        "batches": [torch.randn(40, 6, generator=generator) + skew for _ in range(3)],
    }


@pytest.fixture(scope="module")
def ranks(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two ranks saved."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(data, folder / "data.pt")
    source = str(Path(moegate.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    processes = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), str(folder)], env=environment) for rank in (0, 1)
    ]
    try:
        codes = [process.wait(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0]
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def single(data: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of all tokens in one process, and its gradient."""
    logits = data["logits"].clone().requires_grad_()
    loss = load_balance(moegate.route(logits, RANKS.RULE, token_mask=data["mask"]))
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def test_the_token_weighted_mean_of_the_ranks_is_the_loss_of_the_whole_batch(ranks, single) -> None:
    tokens = torch.stack([rank["real_tokens"] for rank in ranks]).float()
    assert tokens[0] != tokens[1]
    share = tokens / tokens.sum()
    torch.testing.assert_close(sum(w * rank["plain"] for w, rank in zip(share, ranks, strict=True)), single[0])
    gradient = sum(w * rank["plain_gradient"] for w, rank in zip(share, ranks, strict=True))
    torch.testing.assert_close(gradient, single[1])


def test_token_weighted_losses_need_only_the_plain_mean(ranks, single) -> None:
    torch.testing.assert_close((ranks[0]["weighted"] + ranks[1]["weighted"]) / 2, single[0])
    torch.testing.assert_close((ranks[0]["weighted_gradient"] + ranks[1]["weighted_gradient"]) / 2, single[1])


def test_accumulated_counts_are_summed_over_ranks_and_divided_by_their_own_sum(ranks, data) -> None:
    whole = [moegate.route(logits, RANKS.RULE) for logits in data["batches"]]
    load = torch.stack([routing.selected_load for routing in whole]).sum(0)
    assert torch.equal(ranks[0]["own_load"] + ranks[1]["own_load"], load)
    for part, rank in zip(RANKS.PARTS, ranks, strict=True):
        last = moegate.route(data["batches"][-1][part], RANKS.RULE)
        torch.testing.assert_close(rank["accumulated"], load_balance(last, load=load))


@pytest.mark.parametrize("name", list(RANKS.controllers_under_test()))
def test_controllers_agree_with_one_process_on_every_rank(name: str, ranks, data) -> None:
    expected = RANKS.updated(slice(None), data["batches"])[name]
    assert expected.abs().max() > 0.01
    for rank in ranks:
        torch.testing.assert_close(rank["biases"][name], expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", list(RANKS.controllers_under_test()))
def test_ddp_leaves_the_counts_of_each_rank_alone(name: str, ranks, data) -> None:
    """DDP overwrites the buffers of the other ranks with those of rank 0 before every forward."""
    whole = [moegate.route(logits, RANKS.RULE).selected_load for logits in data["batches"][:2]]
    assert not torch.equal(ranks[0]["under_ddp"][f"{name}.load"], ranks[1]["under_ddp"][f"{name}.load"])
    for rank in ranks:
        assert torch.equal(rank["under_ddp"][f"{name}.reduced"], whole[0] + whole[1])
        keys = [key for key in rank["without_ddp"] if key.startswith(name)]
        assert len(keys) >= 3
        for key in keys:
            torch.testing.assert_close(rank["under_ddp"][key], rank["without_ddp"][key], rtol=0, atol=0)
