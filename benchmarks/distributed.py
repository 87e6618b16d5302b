"""Several processes that train one network, as ``torchrun`` starts them.

Each runs the network on its share of a batch, and all see the outputs of the whole batch. So the
loss, however it combines the elements of a batch, its gradient, and the metrics are those that a
single process computes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import BatchSampler


def is_launched() -> bool:
    """Return whether ``torchrun`` started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


@contextmanager
def together() -> Iterator[None]:
    """Wait for all processes, and let them speak with each other while the block runs."""
    distributed.init_process_group()
    try:
        yield
    finally:
        distributed.destroy_process_group()


def is_together() -> bool:
    """Return whether this is one of the processes of :func:`together`."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Return the number of this process, counted from 0; that one writes."""
    return distributed.get_rank() if is_together() else 0


def processes() -> int:
    """Return how many processes train the network."""
    return distributed.get_world_size() if is_together() else 1


def processes_here() -> int:
    """Return how many of them run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_together() else 1


def wait_for_all() -> None:
    """Return when all processes are here."""
    if is_together():
        distributed.barrier()


def described(strategy: str) -> dict[str, Any]:
    """Return what a record says of the processes: nothing of a single one."""
    return {"strategy": strategy, "processes": processes()} if is_together() else {}


class Shares(BatchSampler):
    """Batches, of each the share of one process.

    The shares of a batch are equally long, so that no process waits for another that has nothing
    more to do: what is missing at the end of a batch is repeated from its start.
    """

    def __init__(self, sampler: Any, batch_size: int, *, rank: int, processes: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        self._rank = rank
        self._processes = processes

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of the shares."""
        for batch in super().__iter__():
            size = -(-len(batch) // self._processes)
            start = self._rank * size
            yield [batch[i % len(batch)] for i in range(start, start + size)]


def batch_of_shares(share: Tensor, size: int) -> Tensor:
    """Return the batch whose shares the processes hold.

    Args:
        share: This process's outputs or targets, samples first.
        size: How many samples the batch has; what the shares repeat beyond is left out.

    Returns:
        The batch, the same on all processes. Gradients flow to this process's share, times the
        number of processes: :class:`DistributedDataParallel` and ``fully_shard`` take the mean of
        the processes' gradients, of which each is a part of the sum.
    """
    if not is_together():
        return share
    shares = [torch.empty_like(share) for _ in range(processes())]
    distributed.all_gather(shares, share.detach().contiguous())
    if share.requires_grad:
        share.register_hook(lambda gradient: gradient * processes())
    shares[rank()] = share
    return torch.cat(shares)[:size]


@torch.no_grad()
def average(values: Tensor) -> None:
    """Set the values to their mean over the processes."""
    if is_together():
        distributed.all_reduce(values)
        values /= processes()
