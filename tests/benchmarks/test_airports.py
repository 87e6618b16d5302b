"""Airports: what the package holds, the features of a place, and spoiled tables."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.datasets import airports
from benchmarks.datasets._airports import TABLE
from benchmarks.datasets.airports import BINS, COUNTS, DATASET, WAVES, encode
from benchmarks.experiment.dataset import Splits


@pytest.fixture(scope="module")
def splits() -> Splits:
    return airports.load(None)


def all_targets(splits: Splits) -> Tensor:
    return torch.cat([splits.train.targets, splits.validation.targets, splits.test.targets])


def encode_degrees(*places: tuple[float, float]) -> Tensor:
    return encode(*torch.tensor(places, dtype=torch.float64).T)


def test_the_package_holds_the_known_airports(splits: Splits) -> None:
    elevations = all_targets(splits)
    assert len(elevations) == 26893
    assert torch.equal(BINS.counts(elevations), COUNTS)
    assert elevations.dtype == torch.float32
    # 1 266 feet below the sea and 14 965 above.
    assert elevations.min().item() == pytest.approx(-385.88, abs=0.01)
    assert elevations.max().item() == pytest.approx(4561.33, abs=0.01)
    assert int((elevations < 0).sum()) == 27


def test_high_airports_are_rare(splits: Splits) -> None:
    elevations = all_targets(splits)
    few = elevations[DATASET.regions.mask(elevations, "few")]
    assert (len(few), DATASET.regions.labels.count("few")) == (170, 22)
    assert few.min() >= 2400


def test_the_checksum_is_that_of_the_table_on_every_processor(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sines of another processor differ in the last bit.
    monkeypatch.setattr(airports, "encode", lambda *places: encode(*places) + 1e-7)
    other = airports.load(None)
    assert not torch.equal(other.test.inputs, splits.test.inputs)
    assert other.checksum == splits.checksum
    DATASET.write_miniature(tmp_path)
    assert airports.load(tmp_path).checksum != splits.checksum


def test_hardly_two_airports_are_at_one_place(splits: Splits) -> None:
    inputs = torch.cat([splits.train.inputs, splits.validation.inputs, splits.test.inputs])
    # Some waves tell the places apart; to sort by all would take long.
    assert len(inputs[:, -8:].unique(dim=0)) == 26893 - 5


def test_an_elevation_of_zero_is_left_out(splits: Splits) -> None:
    with TABLE.locate(None).open(newline="", encoding="utf-8") as file:
        elevations = [float(row["elevation"]) for row in csv.DictReader(file)]
    assert elevations.count(0) == 1405
    assert len(elevations) - 1405 == len(all_targets(splits))
    assert (all_targets(splits) != 0).all()


def test_features_tell_places_apart_and_are_the_same_on_both_sides_of_the_date_line() -> None:
    date_line = encode_degrees((50.0, 180.0), (50.0, -180.0))
    torch.testing.assert_close(date_line[0], date_line[1], rtol=0, atol=1e-6)
    pole = encode_degrees((90.0, 0.0), (90.0, 120.0))
    torch.testing.assert_close(pole[0], pole[1], rtol=0, atol=1e-6)
    here, near, far = encode_degrees((50.0, 10.0), (50.0, 10.1), (50.0, 14.0))
    # 7 km off is almost the same place, 290 km off another one.
    assert 0 < (here - near).square().mean() < 0.1 < (here - far).square().mean()


def test_features_are_sines_and_cosines() -> None:
    features = encode_degrees((0.0, 0.0), (-33.9, 151.2))
    assert features.shape == (2, 2 * WAVES)
    assert features.dtype == torch.float32
    sines, cosines = features.split(WAVES, dim=1)
    torch.testing.assert_close(sines.square() + cosines.square(), torch.ones(2, WAVES))


def test_miniature_is_read_as_it_was_written(tmp_path: Path) -> None:
    airports.write_miniature(tmp_path)
    with (tmp_path / "airports.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    known = [row for row in rows if row["elevation"] != "0"]
    assert len(known) == 297
    expected = encode_degrees(*((float(row["lat"]), float(row["lon"])) for row in known))
    heights = torch.tensor([0.3048 * float(row["elevation"]) for row in known])
    splits = airports.load(tmp_path)
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [177, 60, 60]
    for part in parts:
        for k in range(len(part)):
            features, elevation = part[k]
            (place,) = (expected == features).all(dim=1).nonzero()[:, 0].tolist()
            torch.testing.assert_close(elevation, heights[place])


def _remove(path: Path) -> None:
    path.unlink()


def _rename_a_column(path: Path) -> None:
    path.write_text(path.read_text().replace('"lat"', '"latitude"'))


def _spoil_a_number(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[3] = '"M002","high",1.0,2.0'
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_remove, FileNotFoundError, r"Expected the file .*airports\.csv, but there is none"),
        (_rename_a_column, ValueError, r"Expected the columns \['lat', .* \['lat'\] not among"),
        (_spoil_a_number, ValueError, r"numbers in airports\.csv, row 4 .*'high'"),
    ],
)
def test_a_spoiled_table_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    airports.write_miniature(tmp_path)
    spoil(tmp_path / "airports.csv")
    with pytest.raises(error, match=message):
        airports.load(tmp_path)
