"""The table of the package airportsdata: what the data sets of airports share.

An elevation of 0 stands for an unknown one there, and is left out.
"""

import csv
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.datasets._files import read_csv
from benchmarks.datasets._packages import PackagedFile

TABLE = PackagedFile(
    package="airportsdata",
    version="20260905",
    path="airportsdata/airports.csv",
    sha256="516c57d9d999f7a3be28ca649d2badbe3b972f07e57dc6173ab973b72d51cf52",
)
COLUMNS = ("lat", "lon", "elevation")
"""In degrees, degrees and feet."""
METERS_A_FOOT = 0.3048


def read(root: Path | None) -> Tensor:
    """Return latitude, longitude and elevation of the airports that have one.

    Args:
        root: Folder of the table; None for the package's.

    Returns:
        In degrees, degrees and meters, shape ``(3, N)``, float64.

    Raises:
        ValueError: If the table is spoiled.
    """
    path = TABLE.locate(root)
    rows = []
    for place, row in read_csv(path, COLUMNS):
        try:
            rows.append([float(row[column]) for column in COLUMNS])
        except ValueError as error:
            raise ValueError(f"Expected numbers in {place} ({path}), but got: {error}") from None
    latitudes, longitudes, feet = torch.tensor(rows, dtype=torch.float64).T
    return torch.stack([latitudes, longitudes, METERS_A_FOOT * feet])[:, feet != 0]


def write_miniature(root: Path) -> None:
    """Write 300 generated airports below ``root``, in the package's format."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(300, 3, dtype=torch.float64, generator=generator)
    root.mkdir(parents=True, exist_ok=True)
    with (root / TABLE.name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(("icao", "elevation", "lat", "lon"))
        for k, (north, east, up) in enumerate(shares.tolist()):
            # The higher the fewer, and every hundredth of unknown elevation.
            feet = 0 if k % 100 == 0 else round(1 + 12_000 * up**4)
            writer.writerow(
                (f"M{k:03}", feet, round(180 * north - 90, 6), round(360 * east - 180, 6))
            )
