"""One rank of a two-process run, started by test_ranks.py: ``python ranks.py RANK FOLDER``."""

import functools
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))


def main(rank: int, folder: Path) -> None:
    """Three optimizer steps of two micro-batches on this rank's rows."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=2)
    torch.set_num_threads(1)
    from small_models import batch, deepseek

    from moegate.balance.controllers import PIDBias
    from moegate.hf.training import RoutingMonitor

    reduced: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        reduced.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    model = deepseek()
    monitor = RoutingMonitor(model, bias_controller=functools.partial(PIDBias, kp=0.01, ki=0.01), balance_loss=0.05)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for step in range(3):
        for micro in range(2):
            inputs = batch(rows=4, seed=10 * step + micro)
            part = {name: values[2 * rank : 2 * rank + 2] for name, values in inputs.items()}
            items = torch.tensor(int((inputs["labels"][:, 1:] != -100).sum()))
            # The mean over ranks is taken by the wrapper.
            (wrapped(**part, num_items_in_batch=items).loss * 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step()
    model.eval()
    with torch.no_grad():
        wrapped(**{name: values[2 * rank : 2 * rank + 2] for name, values in batch(seed=99).items()})
    evaluated = monitor.evaluation()
    torch.save(
        {
            "bias": [layer.mlp.gate.e_score_correction_bias for layer in model.model.layers],
            "gates": [layer.mlp.gate.weight.detach() for layer in model.model.layers],
            "load": [monitor.window.load(number) for number in range(2)],
            "evaluated": [evaluated.load(number) for number in range(2)],
            "reduced": reduced,
        },
        folder / f"rank{rank}.pt",
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
