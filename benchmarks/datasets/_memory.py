"""Data in memory."""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.experiment.dataset import Bins, Splits, is_counted

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

    def __getitems__(self, indices: list[int]) -> Pair:
        """Return a batch at once: sample by sample it takes longer than a small network."""
        rows = torch.tensor(indices) % len(self)
        return self.inputs[rows], self.targets[rows]

    @staticmethod
    def collate(batch: Pair) -> Pair:
        """Return what :meth:`__getitems__` returned."""
        return batch


def in_memory(
    train: Pair, validation: Pair, test: Pair, bins: Bins, *, source: Sequence[Tensor] = ()
) -> Splits:
    """Return the splits of data in memory; a target that is NaN does not count.

    Args:
        train: Inputs and targets.
        validation: Likewise.
        test: Likewise.
        bins: Of the targets.
        source: What the checksum is taken of; if it is empty, all inputs and targets. It is needed
            where inputs are computed in floating point: they differ a little between processors,
            though the data are the same.
    """
    train_targets = train[1][is_counted(train[1], bins)]
    return Splits(
        train=Samples(*train),
        validation=Samples(*validation),
        test=Samples(*test),
        train_targets=train_targets,
        train_counts=bins.counts(train_targets),
        checksum=_checksum(source or (*train, *validation, *test)),
    )


def _checksum(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of what tensors hold."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
