"""One rank of a two-process run, started by test_ranks.py: ``python ranks.py RANK FOLDER``.

Routes this rank's part of the tokens and saves what the balance losses and controllers make of it.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import moegate
from moegate.balance import controllers, losses

NUM_EXPERTS, TOP_K, WORLD_SIZE = 6, 2, 2
RULE = moegate.RoutingRule(moegate.selection.TopK(TOP_K), score=moegate.scoring.Sigmoid())
PARTS = (slice(0, 10), slice(10, 40))  # uneven on purpose


def controllers_under_test() -> dict[str, controllers.BiasController]:
    """Rates large enough to see."""
    return {
        "sign": controllers.SignBias(NUM_EXPERTS, rate=0.1),
        "proportional": controllers.ProportionalBias(NUM_EXPERTS, rate=0.1),
        "pid": controllers.PIDBias(NUM_EXPERTS, kp=0.1, ki=0.1, kd=0.1),
        "quantile": controllers.QuantileBias(NUM_EXPERTS, TOP_K),
        "smebu": controllers.SMEBUBias(NUM_EXPERTS, rate=0.1),
    }


def updated(tokens: slice, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The biases after one update per batch."""
    biases = {}
    for name, controller in controllers_under_test().items():
        bias = torch.zeros(NUM_EXPERTS)
        for logits in batches:
            controller.observe(moegate.route(logits[tokens], RULE, bias=bias))
            controller.update(bias)
        biases[name] = bias
    return biases


def main(rank: int, folder: Path) -> None:
    """Join the group, compute, save."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD_SIZE)
    data = torch.load(folder / "data.pt")
    logits = data["logits"].clone().requires_grad_()
    routing = moegate.route(logits[PARTS[rank]], RULE, token_mask=data["mask"][PARTS[rank]])
    plain = losses.global_load_balance(routing)
    weighted = losses.global_load_balance(routing, token_weighted=True)
    (plain_gradient,) = torch.autograd.grad(plain, logits, retain_graph=True)
    (weighted_gradient,) = torch.autograd.grad(weighted, logits)
    accumulator = losses.LoadAccumulator(NUM_EXPERTS)
    for micro_batch in data["batches"]:
        last = moegate.route(micro_batch[PARTS[rank]], RULE)
        accumulated = losses.global_load_balance(last, load=accumulator.add(last))
    result = {
        "plain": plain.detach(),
        "weighted": weighted.detach(),
        "plain_gradient": plain_gradient,
        "weighted_gradient": weighted_gradient,
        "real_tokens": routing.real_tokens,
        "accumulated": accumulated.detach(),
        "own_load": accumulator.load,
        "biases": updated(PARTS[rank], data["batches"]),
    }
    torch.save(result, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
