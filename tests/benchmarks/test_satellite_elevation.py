"""Satellite elevation: the places that are taken, their crops, and how they are split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.datasets import _airports, satellite_elevation
from benchmarks.datasets._packages import split_at_random
from benchmarks.datasets.satellite_elevation import (
    BINS,
    COUNTS,
    DATASET,
    IMAGE,
    SIZE,
    TOGETHER,
    cells,
    crops,
)
from benchmarks.experiment.dataset import Splits


@pytest.fixture(scope="module")
def splits() -> Splits:
    return satellite_elevation.load(None)


def numbers(*pixels: tuple[int, int]) -> Tensor:
    """Return what an image has at rows and columns that says where it is, see ``globe``."""
    return torch.tensor([[row, column // 256, column % 256] for row, column in pixels])


def globe(height: int = 180) -> Tensor:
    """Return an image whose pixels say their row and their column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(2 * height), indexing="ij")
    return torch.stack([rows, columns // 256, columns % 256], dim=2).to(torch.uint8)


def middle(images: Tensor) -> Tensor:
    return images[:, :, SIZE // 2, SIZE // 2].long()


def degrees(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_packages_hold_the_known_places(splits: Splits) -> None:
    parts = (splits.train, splits.validation, splits.test)
    elevations = torch.cat([part.targets for part in parts])
    assert len(elevations) == 12897
    assert torch.equal(BINS.counts(elevations), COUNTS)
    images = torch.cat([part.inputs for part in parts])
    assert images.shape == (12897, 3, SIZE, SIZE)
    assert images.dtype == torch.uint8
    few = elevations[DATASET.regions.mask(elevations, "few")]
    assert (len(few), DATASET.regions.labels.count("few")) == (172, 24)


def test_a_cell_has_the_places_of_two_degrees() -> None:
    places = _airports.read(None)[:2]
    together = cells(places, TOGETHER)
    (corner,) = cells(degrees(50.0, 10.0)[:, None], TOGETHER)
    inside = (places >= degrees(50.0, 10.0)[:, None]) & (places < degrees(52.0, 12.0)[:, None])
    assert torch.equal(together == corner, inside.all(dim=0))


def test_about_a_third_of_the_test_crops_overlap_by_more_than_half(splits: Splits) -> None:
    # The places themselves, split as their crops are.
    latitudes, longitudes, elevations = _airports.read(None)
    first = satellite_elevation._first_of_each(cells(torch.stack([latitudes, longitudes]), 0.5))
    places = torch.stack([latitudes, longitudes])[:, first]
    numbered = split_at_random(
        places.T, elevations[first].float(), BINS, fold=0, groups=cells(places, TOGETHER)
    )
    assert torch.equal(numbered.test.targets, splits.test.targets)
    away = (numbered.test.inputs[:, None] - numbered.train.inputs).abs()
    away[:, :, 1] = torch.minimum(away[:, :, 1], 360 - away[:, :, 1])
    shared = (1 - away * 15 / SIZE).clamp(min=0).prod(dim=2).amax(dim=1)
    assert 0.25 < (shared > 0.5).double().mean() < 0.4


def test_cells_of_all_places_have_numbers_of_their_own() -> None:
    north, east = torch.meshgrid(
        torch.arange(-89.0, 90, 2), torch.arange(-179.0, 180, 2), indexing="ij"
    )
    places = torch.stack([north.flatten(), east.flatten()])
    assert len(cells(places, 2.0).unique()) == places.shape[1]
    assert torch.equal(cells(places, 2.0), cells(places + 0.99, 2.0))


def test_a_crop_has_its_place_in_the_middle() -> None:
    images = crops(globe(), degrees(90, 0, -45), degrees(-180, 0, 90))
    assert images.shape == (3, 3, SIZE, SIZE)
    assert torch.equal(middle(images), numbers((0, 0), (90, 180), (135, 270)))
    # North is up, and the west on the left.
    up_and_left = images[1, :, 0, 0].long()
    assert torch.equal(up_and_left, numbers((90 - SIZE // 2, 180 - SIZE // 2))[0])


def test_a_crop_goes_on_beyond_the_date_line_and_repeats_the_row_at_a_pole() -> None:
    (image,) = crops(globe(), degrees(0), degrees(-180))
    assert torch.equal(image[:, SIZE // 2, SIZE // 2 - 1].long(), numbers((90, 359))[0])
    (east,) = crops(globe(), degrees(0), degrees(180))
    assert torch.equal(east, image)
    (pole,) = crops(globe(), degrees(90), degrees(0))
    assert (pole[0, : SIZE // 2] == 0).all()
    (south,) = crops(globe(), degrees(-90), degrees(0))
    assert (south[0, SIZE // 2 :] == 179).all()


def test_miniature_has_the_crops_of_its_image(tmp_path: Path) -> None:
    satellite_elevation.write_miniature(tmp_path)
    splits = satellite_elevation.load(tmp_path)
    parts = (splits.train, splits.validation, splits.test)
    assert sum(len(part) for part in parts) == 297 - 1
    # The crops are those of the image beside the table.
    with Image.open(tmp_path / IMAGE.name) as image:
        earth = torch.from_numpy(np.array(image))
    _, latitudes, longitudes = _airports.read(tmp_path)[[2, 0, 1]]
    expected = crops(earth, latitudes, longitudes)
    found = torch.cat([part.inputs for part in parts])
    are_equal = (found.flatten(1)[:, None] == expected.flatten(1)).all(dim=2)
    assert are_equal.any(dim=1).all()


def test_of_places_in_one_cell_the_first_is_taken(tmp_path: Path) -> None:
    satellite_elevation.write_miniature(tmp_path)
    table = tmp_path / "airports.csv"
    lines = table.read_text().splitlines()
    # Two more in the cell of the first whose elevation is known.
    _, _, latitude, longitude = lines[2].split(",")
    lines += [f'"X{k}",{feet},{latitude},{longitude}' for k, feet in enumerate((14999, 14998))]
    table.write_text("\n".join(lines))
    splits = satellite_elevation.load(tmp_path)
    parts = (splits.train, splits.validation, splits.test)
    assert sum(len(part) for part in parts) == 297 - 1
    assert max(float(part.targets.max()) for part in parts) < 0.3048 * 14998


def test_no_image_is_named(tmp_path: Path) -> None:
    satellite_elevation.write_miniature(tmp_path)
    (tmp_path / IMAGE.name).unlink()
    with pytest.raises(FileNotFoundError, match=r"Expected the file .*bmng\.jpg, but there is"):
        satellite_elevation.load(tmp_path)
