"""Data in memory, and the batches of any data."""

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from balanced_sam import TargetBins
from benchmarks.distributed import Shares, processes, rank
from benchmarks.protocol import Split, Splits

Pair = tuple[Tensor, Tensor]
"""Inputs and targets, the samples along their first axis."""


class Samples(Dataset[Pair]):
    """A split in memory."""

    workers_help = False

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.targets)

    def __getitem__(self, index: int) -> Pair:
        """Return an input and its target."""
        return self.inputs[index % len(self)], self.targets[index % len(self)]


def in_memory(train: Pair, validation: Pair, test: Pair, bins: TargetBins) -> Splits:
    """Return the splits of data in memory; a target that is NaN does not count."""
    digest = hashlib.sha256()
    for pair in (train, validation, test):
        for tensor in pair:
            digest.update(tensor.numpy().tobytes())
    train_targets = train[1][~train[1].isnan()]
    return Splits(
        train=Samples(*train),
        validation=Samples(*validation),
        test=Samples(*test),
        train_targets=train_targets,
        train_counts=bins.counts(train_targets),
        checksum=digest.hexdigest(),
    )


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
    """Return shuffled batches, the next ``epoch`` first; of each this process's share."""
    return _loader(split, batch_size, workers, Draws(split, seed=seed, epoch=epoch))


def evaluation_batches(
    split: Split, *, batch_size: int, workers: int | None = None
) -> DataLoader[Pair]:
    """Return the batches of a split in its order; of each this process's share."""
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
        batch_sampler=Shares(sampler, batch_size, rank=rank(), processes=processes()),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=split.workers_help and torch.cuda.is_available(),
    )
