"""The distribution of the labels: counts, regions, weightings and their pictures."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.experiment.registry import dataset_names, get_dataset
from benchmarks.results.labels import describe, train_counts


@pytest.mark.parametrize("name", dataset_names())
def test_labels_draws_and_describes_every_data_set(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["labels", name, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    counts = train_counts(get_dataset(name), None)
    regions = re.findall(r"\| (?:Many|Med\.|Few) +\| +\d+ \| +([\d,]+) \|", printed)
    assert sum(int(number.replace(",", "")) for number in regions) == counts.sum()
    with Image.open(tmp_path / f"{name}_labels.png") as image:
        colors = image.convert("RGB").getcolors(maxcolors=10**6)
    assert colors is not None
    assert len(colors) > 10


def test_labels_of_a_folder_are_those_of_its_files(tmp_path: Path) -> None:
    dataset = get_dataset("agedb_dir")
    dataset.write_miniature(tmp_path)
    counts = train_counts(dataset, tmp_path)
    assert counts.sum() == len(dataset.load(tmp_path).train)
    assert counts.sum() < train_counts(dataset, None).sum()


@pytest.mark.parametrize(
    ("name", "weighting", "row"),
    [
        ("agedb_dir", "SQINV", (0.696, 13.08, 0.714)),
        ("agedb_dir", "INV, counts clipped to 5 to 1000", (0.377, 26.6, 0.159)),
        ("imdb_wiki_dir", "SQINV", (0.670, 56.67, 0.510)),
        ("imdb_wiki_dir", "INV, counts clipped to 5 to 1000", (0.797, 159.5, 0.083)),
        ("nyud2_dir", "SQINV", (0.609, 6.913, None)),
        ("nyud2_dir", "INV", (0.2585, 33.35, None)),
    ],
)
def test_weightings_are_the_known_ones(
    name: str, weighting: str, row: tuple[float, float, float | None]
) -> None:
    dataset = get_dataset(name)
    text = describe(dataset, train_counts(dataset, None))
    line = next(line for line in text.splitlines() if line.startswith(f"| {weighting} "))
    found = [float(cell) for cell in line.split("|")[2:-1]]
    for value, expected in zip(found, row, strict=True):
        if expected is not None:
            assert value == pytest.approx(expected, rel=2e-3, abs=6e-4)


def test_effective_sample_fraction_is_one_for_equal_weights() -> None:
    dataset = get_dataset("rotated_digits")
    counts = torch.zeros(len(dataset.bins))
    counts[[30, 40, 50]] = 7
    fractions = re.findall(r"(\S+) \|$", describe(dataset, counts), re.MULTILINE)[-3:-1]
    assert fractions == ["1.000", "1.000"]


def test_a_picture_without_records_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"Expected records of one of \['sam'\] in"):
        main(["plot", "rotated_digits", "--methods", "sam", "--records", str(tmp_path)])


def test_a_picture_of_an_epoch_that_is_not_tested_says_so() -> None:
    with pytest.raises(SystemExit, match=r"\['last_epoch'\] of rotated_digits, but got 'best_val"):
        main(["plot", "rotated_digits", "--selection", "best_validation"])
