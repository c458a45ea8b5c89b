"""One rank of a two-process run, started by test_record_parallel.py: ``python record_ranks.py RANK FOLDER``.

Trains a tiny model under DDP, then under FSDP, and saves what was recorded and what the tests' own hooks saw.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny_models import tiny_model
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from truth import Truth

from moegate.hf import record

WORLD_SIZE, STEPS = 2, 2


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, other ones and other lengths on every rank."""
    ids = torch.randint(3, 60, (2, 5 + rank + step), generator=torch.Generator().manual_seed(10 * rank + step))
    mask = torch.ones_like(ids)
    mask[0, : rank + 1] = 0
    return ids, mask


def wrapped(how: str) -> nn.Module:
    model = tiny_model("qwen3_moe", num_hidden_layers=2).train()
    if how == "ddp":
        return DistributedDataParallel(model)
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def trained(rank: int, how: str) -> dict[str, Any]:
    model = wrapped(how)
    truth = Truth(model)
    with record(model) as recording:
        for step in range(STEPS):
            ids, mask = batch(rank, step)
            model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    truth.remove()
    seen = torch.zeros(2, 8, dtype=torch.int64)
    for number, calls in enumerate(truth.calls.values()):
        for step, call in enumerate(calls):
            real = batch(rank, step)[1].flatten().bool()
            seen[number] += torch.bincount(call.index[real].flatten(), minlength=8)
    together = recording.statistics.reduce()
    return {
        "layers": recording.layers,
        "seen": seen,
        "load": recording.load,
        "together": together.load,
        "tokens": together.tokens,
        "calls": together.num_calls,
        "once": together.reduce() is together,
    }


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD_SIZE)
    torch.save({how: trained(rank, how) for how in ("ddp", "fsdp")}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
