"""Airports: how high a place lies, told from its coordinates; few airports lie high.

Those of the package airportsdata (Python 3.11 or newer). The network sees the place on the unit
sphere through sines and cosines of fixed random waves, from as long as the equator to 100 km.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from balanced_sam import ShotRegions, TargetBins
from benchmarks.datasets._airports import read, write_miniature
from benchmarks.datasets._packages import FOLDS, TRAIN_SHARE, split_at_random
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import absolute_error
from benchmarks.experiment.recipe import Recipe
from benchmarks.networks.perceptron import Perceptron

BINS = TargetBins.uniform(0, 4600, width=100)
"""The 27 airports below the sea are in the first bin."""
# fmt: off
COUNTS = torch.tensor([
    8007, 3891, 4168, 2826, 1740, 1142, 896, 680, 497, 423, 383, 314, 343, 266, 227, 235, 159, 134,
    110, 73, 69, 60, 37, 43, 30, 31, 9, 13, 7, 10, 2, 7, 5, 4, 5, 3, 4, 7, 8, 6, 5, 4, 3, 4, 1, 2,
])
# fmt: on
"""Airports of each bin."""
WAVES = 256
LONGEST, SHORTEST = 40_000, 100
"""Lengths of the waves, in kilometers."""
EARTH_RADIUS = 6371
"""In kilometers."""


def load(root: Path | None, fold: int = 0) -> Splits:
    """Return the three splits of a fold, of the table below ``root`` or of the package's."""
    table = read(root)
    latitudes, longitudes, elevations = table
    inputs = encode(latitudes, longitudes)
    return split_at_random(inputs, elevations.float(), BINS, fold=fold, source=[table])


def encode(latitudes: Tensor, longitudes: Tensor) -> Tensor:
    """Return the features of places.

    Args:
        latitudes: In degrees, shape ``(N,)``, float64.
        longitudes: In degrees, shape ``(N,)``, float64.

    Returns:
        Sines and cosines, shape ``(N, 2 * WAVES)``, float32.
    """
    north, east = torch.deg2rad(latitudes), torch.deg2rad(longitudes)
    sphere = [north.cos() * east.cos(), north.cos() * east.sin(), north.sin()]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(WAVES, 3, dtype=torch.float64, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    lengths = torch.logspace(math.log10(LONGEST), math.log10(SHORTEST), WAVES, dtype=torch.float64)
    frequencies = 2 * math.pi * EARTH_RADIUS / lengths
    phases = torch.stack(sphere, dim=1) @ directions.T * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=1).float()


DATASET = Dataset(
    title="Airports",
    source="Coordinates and elevations of airports inside the airportsdata package (MIT)",
    target="Elevation (m)",
    unit="m",
    bins=BINS,
    regions=ShotRegions.from_counts(BINS, TRAIN_SHARE * COUNTS),
    counts={},
    folds=FOLDS,
    metrics=("MAE", "bMAE"),
    criterion=absolute_error,
    recipe=Recipe(epochs=40, batch_size=512, lr=2e-3, weight_decay=0.0, optimizer="adam"),
    network=lambda recipe: Perceptron(2 * WAVES, offset=300.0, scale=500.0, width=128),
    load=load,
    write_miniature=write_miniature,
    ours="everything but the methods",
)
