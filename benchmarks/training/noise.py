"""Noise on the training targets: what a method makes of labels that are off."""

from dataclasses import replace

import torch

from benchmarks.datasets._memory import Samples
from benchmarks.experiment.dataset import Bins, Splits


def with_label_noise(splits: Splits, bins: Bins, *, level: float, seed: int) -> Splits:
    """Return the splits with a Gaussian added to each training target, once and for all.

    Args:
        splits: The data; what trains is in memory.
        bins: Of the targets. The counts are those of the noisy targets, as nobody knows others.
        level: Standard deviation, in target units.
        seed: Of the noise.

    Raises:
        ValueError: If the training samples are not in memory.
    """
    train = splits.train
    if not isinstance(train, Samples):
        raise ValueError("Expected training samples in memory for label_noise, but got files.")
    generator = torch.Generator().manual_seed(seed)
    targets = train.targets + level * torch.randn(train.targets.shape, generator=generator)
    return replace(
        splits,
        train=Samples(train.inputs, targets),
        train_targets=targets,
        train_counts=bins.counts(targets),
    )
