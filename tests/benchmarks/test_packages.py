"""Files inside packages, and samples that are split at random."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from balanced_sam import TargetBins
from benchmarks.datasets import _packages
from benchmarks.datasets._airports import TABLE
from benchmarks.datasets._packages import FOLDS, PackagedFile, split_at_random
from benchmarks.datasets.melting_points import IDENTIFIERS, POINTS
from benchmarks.datasets.satellite_elevation import IMAGE

FILES = [TABLE, POINTS, *IDENTIFIERS, IMAGE]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_installed_file_is_the_known_one(file: PackagedFile) -> None:
    assert file.locate(None).name == file.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_constraints_pin_the_version_of_the_file(file: PackagedFile) -> None:
    constraints = Path(__file__).parents[2] / "constraints.txt"
    assert f"{file.package}=={file.version}" in constraints.read_text().splitlines()


def test_a_file_below_a_folder_is_taken_from_there(tmp_path: Path) -> None:
    path = tmp_path / "OpenNotebook Melting Points.tsv"
    with pytest.raises(FileNotFoundError, match=r"Expected the file .*Points\.tsv, but there is"):
        POINTS.locate(tmp_path)
    path.touch()
    assert POINTS.locate(tmp_path) == path


def test_a_package_that_is_not_installed_says_what_to_type() -> None:
    missing = dataclasses.replace(TABLE, package="no_such_package", version="1.0")
    message = "the package no_such_package, .* Type: python -m pip install no_such_package==1.0"
    with pytest.raises(FileNotFoundError, match=message):
        missing.locate(None)


@pytest.mark.parametrize("change", [{"sha256": 64 * "0"}, {"path": "airportsdata/moved.csv"}])
def test_a_file_of_another_version_names_both(change: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(_packages, "version", lambda package: "20270101")
    found = "no such file" if "path" in change else TABLE.sha256
    message = (
        rf"of airportsdata {TABLE.version} .*, but got that of airportsdata 20270101: {found}\. "
        rf"Type: python -m pip install airportsdata=={TABLE.version}"
    )
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TABLE, **change).locate(None)


def test_a_fifth_each_is_for_validation_and_test() -> None:
    targets = torch.arange(100.0)
    bins = TargetBins.uniform(0, 100, width=10)
    splits = split_at_random(2 * targets[:, None], targets, bins, fold=0)
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [60, 20, 20]
    drawn = torch.cat([part.targets for part in parts])
    assert not torch.equal(drawn, targets)
    assert torch.equal(drawn.sort().values, targets)
    for part in parts:
        assert torch.equal(part.inputs[:, 0], 2 * part.targets)


def test_the_same_samples_are_split_alike() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    targets = torch.arange(50.0)
    bins = TargetBins.uniform(0, 50, width=10)
    first, second = (split_at_random(targets[:, None], targets, bins, fold=0) for _ in range(2))
    assert torch.equal(first.test.targets, second.test.targets)
    assert first.checksum == second.checksum
    assert torch.equal(torch.get_rng_state(), before)


def test_each_sample_is_tested_in_one_fold_and_validates_in_another() -> None:
    targets = torch.arange(103.0)
    bins = TargetBins.uniform(0, 103, width=1)
    folds = [split_at_random(targets[:, None], targets, bins, fold=k) for k in range(FOLDS)]
    for name in ("test", "validation"):
        parts = [getattr(splits, name).targets for splits in folds]
        assert torch.equal(torch.cat(parts).sort().values, targets)
    for splits in folds:
        parts = [splits.train.targets, splits.validation.targets, splits.test.targets]
        assert torch.equal(torch.cat(parts).sort().values, targets)
        assert splits.checksum == folds[0].checksum


def test_groups_stay_together_and_each_is_tested_in_one_fold() -> None:
    targets = torch.arange(90.0)
    bins = TargetBins.uniform(0, 90, width=1)
    # Groups of 1 to 5 samples, which do not lie beside each other.
    groups = (torch.arange(90) * 7) % 30
    groups[groups > 25] = 25
    tested = []
    for fold in range(FOLDS):
        splits = split_at_random(targets[:, None], targets, bins, fold=fold, groups=groups)
        parts = [splits.train, splits.validation, splits.test]
        names = [set(groups[part.targets.long()].tolist()) for part in parts]
        assert not names[0] & names[1] | names[1] & names[2] | names[0] & names[2]
        assert sum(map(len, parts)) == 90
        tested += splits.test.targets.tolist()
    assert sorted(tested) == targets.tolist()
