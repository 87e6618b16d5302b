"""The batches of any data."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from benchmarks.experiment.dataset import Split

Pair = tuple[Tensor, Tensor]
"""Inputs and targets, the samples along their first axis."""


class Draws(DistributedSampler[Pair]):
    """Shuffle by seed and epoch alone, so that a resumed run sees the same batches.

    What is random about decoding a sample, such as a crop, follows from the index alone, too: in
    each epoch of each seed another one of the same sample (see :class:`Split`).
    """

    def __init__(self, split: Split, *, seed: int, epoch: int) -> None:
        super().__init__(split, num_replicas=1, rank=0, seed=seed)  # type: ignore[arg-type]  # a Split has all that is used
        # Before Lightning tells the epoch, workers of a resumed run load ahead already.
        self.set_epoch(epoch)

    def __iter__(self) -> Any:
        """Yield the indices of an epoch."""
        draw = self.epoch + 100_000 * self.seed
        size = len(self.dataset)  # type: ignore[arg-type]  # a Split has a length
        return (index + size * draw for index in super().__iter__())


def training_batches(
    split: Split, *, batch_size: int, seed: int, epoch: int, workers: int | None = None
) -> DataLoader[Pair]:
    """Return shuffled batches, the next ``epoch`` first."""
    return _loader(split, batch_size, workers, Draws(split, seed=seed, epoch=epoch))


def evaluation_batches(
    split: Split, *, batch_size: int, workers: int | None = None
) -> DataLoader[Pair]:
    """Return the batches of a split in its order."""
    return _loader(split, batch_size, workers, SequentialSampler(split))


def _loader(
    split: Split, batch_size: int, workers: int | None, sampler: Sampler[Any]
) -> DataLoader[Pair]:
    """Return a loader; as many processes load ahead as torch has threads, where they help."""
    if workers is None:
        workers = torch.get_num_threads() if split.workers_help else 0
    dataset: Any = split
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=getattr(split, "collate", None),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=split.workers_help and torch.cuda.is_available(),
    )
