"""One rank of a two-process run, started by test_ranks.py: ``python ranks.py RANK FOLDER``.

Routes this rank's part of the tokens and saves what the balance losses and controllers make of it.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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


def updated(tokens: slice, batches: list[Tensor]) -> dict[str, Tensor]:
    """The biases after one update per batch."""
    biases = {}
    for name, controller in controllers_under_test().items():
        bias = torch.zeros(NUM_EXPERTS)
        for logits in batches:
            controller.observe(moegate.route(logits[tokens], RULE, bias=bias))
            controller.update(bias)
        biases[name] = bias
    return biases


class Model(nn.Module):
    """A router that owns its controllers, as a model that is wrapped for data-parallel training does."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(NUM_EXPERTS, NUM_EXPERTS, bias=False)
        nn.init.eye_(self.gate.weight)
        self.controllers = nn.ModuleDict(controllers_under_test())

    def forward(self, inputs: Tensor) -> moegate.Routing:
        return moegate.route(self.gate(inputs), RULE)


def counted(model: nn.Module, owners: nn.ModuleDict, batches: list[Tensor], part: slice) -> dict[str, Tensor]:
    """What the controllers hold after an update, and two micro-batches into the next step."""
    result = {}
    for name, controller in owners.items():
        bias = torch.zeros(NUM_EXPERTS)
        for count in (2, 2):
            for inputs in batches[:count]:
                controller.observe(model(inputs[part]))
            result[f"{name}.load"] = controller.load.clone()
            result[f"{name}.reduced"] = controller.reduce(None)
            if isinstance(controller, controllers.QuantileBias):
                result[f"{name}.histogram"] = controller.histogram.clone()
                controller.forget()
                for inputs in batches[:count]:
                    controller.observe(model(inputs[part]))
            controller.update(bias)
        result[f"{name}.bias"] = bias
    return result


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
    model = Model()
    wrapped = DistributedDataParallel(model)
    bare = Model()
    result = {
        "under_ddp": counted(wrapped, model.controllers, data["batches"], PARTS[rank]),
        "without_ddp": counted(bare, bare.controllers, data["batches"], PARTS[rank]),
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
    dist.barrier()
    # Gloo's threads may still be running while the interpreter shuts down, which now and then aborts the process.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
