"""Airports: how high a place lies, told from its coordinates; few airports lie high.

The elevations of the package airportsdata (Python 3.11 or newer), from feet to meters. An elevation
of 0 stands for an unknown one there, and is left out. The network sees the place on the unit sphere
through sines and cosines of fixed random waves, from as long as the equator to 100 km.
"""

import csv
import math
from pathlib import Path

import torch
from torch import Tensor

from balanced_sam import ShotRegions, TargetBins
from benchmarks.datasets._files import read_csv
from benchmarks.datasets._packages import FOLDS, TRAIN_SHARE, PackagedTable, split_at_random
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import absolute_error
from benchmarks.experiment.recipe import Recipe
from benchmarks.networks.perceptron import Perceptron

TABLE = PackagedTable(
    package="airportsdata",
    version="20260905",
    path="airports.csv",
    sha256="516c57d9d999f7a3be28ca649d2badbe3b972f07e57dc6173ab973b72d51cf52",
)
COLUMNS = ("lat", "lon", "elevation")
"""In degrees, degrees and feet."""
METERS_A_FOOT = 0.3048
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
    latitudes, longitudes, elevations = _read(TABLE.locate(root))
    return split_at_random(encode(latitudes, longitudes), elevations.float(), BINS, fold=fold)


def _read(path: Path) -> Tensor:
    """Return latitude, longitude and elevation in meters of the airports that have one."""
    rows = []
    for place, row in read_csv(path, COLUMNS):
        try:
            rows.append([float(row[column]) for column in COLUMNS])
        except ValueError as error:
            raise ValueError(f"Expected numbers in {place} ({path}), but got: {error}") from None
    latitudes, longitudes, feet = torch.tensor(rows, dtype=torch.float64).T
    return torch.stack([latitudes, longitudes, METERS_A_FOOT * feet])[:, feet != 0]


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


def write_miniature(root: Path) -> None:
    """Write 300 generated airports below ``root``, in the package's format."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(300, 3, dtype=torch.float64, generator=generator)
    root.mkdir(parents=True, exist_ok=True)
    with (root / TABLE.path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(("icao", "elevation", "lat", "lon"))
        for k, (north, east, up) in enumerate(shares.tolist()):
            # The higher the fewer, and every hundredth of unknown elevation.
            feet = 0 if k % 100 == 0 else round(1 + 12_000 * up**4)
            writer.writerow(
                (f"M{k:03}", feet, round(180 * north - 90, 6), round(360 * east - 180, 6))
            )


DATASET = Dataset(
    title="Airports",
    source="Coordinates and elevations of airports inside the airportsdata package (MIT)",
    target="Elevation (m)",
    unit="m",
    bins=BINS,
    regions=ShotRegions.from_counts(BINS, TRAIN_SHARE * COUNTS),
    counts={},
    folds=FOLDS,
    metrics=("MAE", "GM"),
    criterion=absolute_error,
    recipe=Recipe(epochs=40, batch_size=512, lr=2e-3, weight_decay=0.0, optimizer="adam"),
    network=lambda recipe: Perceptron(2 * WAVES, offset=300.0, scale=500.0, width=128),
    load=load,
    write_miniature=write_miniature,
    ours="everything but the methods; nothing of it is tuned",
)
