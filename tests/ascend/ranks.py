"""Worlds of ranks for the tests of distribute: threads that exchange in memory, and processes that use gloo."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from moegate.ascend import distribute_combine, distribute_dispatch, expert_parallel


class _Meeting:
    """Rows left by all ranks and taken by all ranks, again and again."""

    def __init__(self, world_size: int) -> None:
        self.left: list[tuple[Tensor, ...]] = [() for _ in range(world_size)]
        self.barrier = threading.Barrier(world_size, timeout=60)

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int], rank: int) -> Tensor:
        self.left[rank] = rows.split(list(sent))
        self.barrier.wait()
        arrived = [parts[rank] for parts in self.left]
        assert [len(part) for part in arrived] == list(received)
        self.barrier.wait()
        return torch.cat(arrived)


@contextmanager
def exchanging(meeting: _Meeting) -> Iterator[None]:
    with (
        mock.patch.object(expert_parallel, "exchange", meeting.exchange),
        mock.patch.object(distribute_dispatch, "exchange", meeting.exchange),
        mock.patch.object(distribute_combine, "exchange", meeting.exchange),
        mock.patch.object(distribute_dispatch, "process_group", lambda group, world_size, rank: rank),
        mock.patch.object(distribute_combine, "process_group", lambda group, world_size, rank: rank),
    ):
        yield


def in_threads(world_size: int, run: Callable[[int], Any]) -> list[Any]:
    """What ``run(rank)`` gives on each rank of a world of threads; graphs go across ranks."""
    results: list[Any] = [None] * world_size
    errors: list[BaseException] = []
    meeting = _Meeting(world_size)

    def work(rank: int) -> None:
        try:
            results[rank] = run(rank)
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    with exchanging(meeting):
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    first = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (first or errors)[0]
    return results


def in_processes(world_size: int, run: Callable[[int, Path], None], folder: Path) -> None:
    """Runs ``run(rank, folder)`` on each rank of a gloo world of processes; it leaves its results in the folder."""
    torch.multiprocessing.spawn(_work, (world_size, run, folder), nprocs=world_size)


def _work(rank: int, world_size: int, run: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size, init_method=f"file://{folder / 'meeting'}")
    try:
        run(rank, folder)
    finally:
        dist.destroy_process_group()
