"""Frozen numbers: what the published label histograms give, to the digits that were printed.

The histograms and where they come from are in ``label_histograms.json``.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from balanced_sam import (
    ShotRegions,
    TargetBins,
    TargetWeights,
    inverse_weights,
    region_report,
    smooth_counts,
    sqrt_inverse_weights,
)

HISTOGRAMS = json.loads(Path(__file__).with_name("label_histograms.json").read_text())
AGES = TargetBins.uniform(0, 121, width=1)
DEPTHS = TargetBins.uniform(0, 10, width=0.1)
AGEDB = torch.tensor(HISTOGRAMS["agedb"]["train"])
AGEDB_TEST = torch.tensor(HISTOGRAMS["agedb"]["test"])
IMDB_WIKI = torch.tensor(HISTOGRAMS["imdb_wiki"]["train"])
NYUD2 = torch.tensor(HISTOGRAMS["nyud2"]["train"])

agedb_sqinv = TargetWeights.from_counts(AGES, AGEDB)
agedb_inv = TargetWeights.from_counts(AGES, AGEDB, scheme="inv", clip_counts=(5, 1000))
imdb_wiki_sqinv = TargetWeights.from_counts(AGES, IMDB_WIKI)
imdb_wiki_inv = TargetWeights.from_counts(AGES, IMDB_WIKI, scheme="inv", clip_counts=(5, 1000))
nyud2_sqinv = TargetWeights.from_counts(DEPTHS, NYUD2)
nyud2_inv = TargetWeights.from_counts(DEPTHS, NYUD2, scheme="inv")


def mean_over_samples(bin_weights: Tensor, counts: Tensor) -> float:
    return ((bin_weights * counts).sum() / counts.sum()).item()


def lowest(weights: TargetWeights) -> float:
    return weights.bin_weights[weights.counts > 0].min().item()


def highest(weights: TargetWeights) -> float:
    return weights.bin_weights[weights.counts > 0].max().item()


def effective_fraction(weights: TargetWeights) -> float:
    r"""Return :math:`(\sum_i w_i)^2 / (N \sum_i w_i^2)` over the training samples."""
    w, n = weights.bin_weights.double(), weights.counts
    return ((w * n).sum() ** 2 / (n.sum() * (w.square() * n).sum())).item()


def agedb_test_images(region: str) -> float:
    ages = torch.arange(121).repeat_interleave(AGEDB_TEST)
    return region_report(ages, ages, ShotRegions.from_counts(AGES, AGEDB)).rows[region]["count"]


def lds_kernel(distance: int) -> float:
    impulse = torch.zeros(11)
    impulse[5] = 1
    return smooth_counts(impulse)[5 + distance].item()


def half_digit(printed: str) -> float:
    """Return half a unit in the last digit of a printed number."""
    return 0.5 * 10.0 ** -len(printed.partition(".")[2])


VALUES: list[tuple[str, Callable[[], float], str]] = [
    ("AgeDB-DIR training images", lambda: AGEDB.sum().item(), "12208"),
    ("AgeDB-DIR test images", lambda: agedb_test_images("all"), "2140"),
    ("AgeDB-DIR many-shot test images", lambda: agedb_test_images("many"), "1530"),
    ("AgeDB-DIR medium-shot test images", lambda: agedb_test_images("medium"), "448"),
    ("AgeDB-DIR few-shot test images", lambda: agedb_test_images("few"), "162"),
    (
        "AgeDB-DIR raw SQINV mean",
        lambda: mean_over_samples(sqrt_inverse_weights(AGEDB), AGEDB),
        ".07647",
    ),
    ("AgeDB-DIR SQINV min", lambda: lowest(agedb_sqinv), ".696"),
    ("AgeDB-DIR SQINV max", lambda: highest(agedb_sqinv), "13.08"),
    ("AgeDB-DIR SQINV effective", lambda: effective_fraction(agedb_sqinv), ".714"),
    ("AgeDB-DIR INV min", lambda: lowest(agedb_inv), ".377"),
    ("AgeDB-DIR INV max", lambda: highest(agedb_inv), "26.6"),
    ("AgeDB-DIR INV effective", lambda: effective_fraction(agedb_inv), ".159"),
    ("IMDB-WIKI-DIR training images", lambda: IMDB_WIKI.sum().item(), "191509"),
    (
        "IMDB-WIKI-DIR raw SQINV mean",
        lambda: mean_over_samples(sqrt_inverse_weights(IMDB_WIKI), IMDB_WIKI),
        ".01765",
    ),
    ("IMDB-WIKI-DIR SQINV min", lambda: lowest(imdb_wiki_sqinv), ".670"),
    ("IMDB-WIKI-DIR SQINV max", lambda: highest(imdb_wiki_sqinv), "56.67"),
    ("IMDB-WIKI-DIR SQINV effective", lambda: effective_fraction(imdb_wiki_sqinv), ".510"),
    ("IMDB-WIKI-DIR INV min", lambda: lowest(imdb_wiki_inv), ".797"),
    ("IMDB-WIKI-DIR INV max", lambda: highest(imdb_wiki_inv), "159.5"),
    ("IMDB-WIKI-DIR INV effective", lambda: effective_fraction(imdb_wiki_inv), ".083"),
    ("NYUD2-DIR SQINV min", lambda: lowest(nyud2_sqinv), ".609"),
    ("NYUD2-DIR SQINV max", lambda: highest(nyud2_sqinv), "6.913"),
    ("NYUD2-DIR INV min", lambda: lowest(nyud2_inv), ".2585"),
    ("NYUD2-DIR INV max", lambda: highest(nyud2_inv), "33.35"),
    ("NYUD2-DIR raw INV of empty buckets", lambda: 1 / inverse_weights(NYUD2)[0], "25848691"),
    ("LDS kernel at -2", lambda: lds_kernel(-2), ".8583"),
    ("LDS kernel at -1", lambda: lds_kernel(-1), ".9458"),
    ("LDS kernel at 0", lambda: lds_kernel(0), "1"),
    ("LDS kernel at 1", lambda: lds_kernel(1), ".9458"),
    ("LDS kernel at 2", lambda: lds_kernel(2), ".8583"),
]


@pytest.mark.parametrize(
    ("compute", "printed"), [row[1:] for row in VALUES], ids=[row[0] for row in VALUES]
)
def test_value_is_the_printed_one(compute: Callable[[], float], printed: str) -> None:
    assert float(compute()) == pytest.approx(float(printed), rel=0, abs=half_digit(printed))


def test_nyud2_weights_have_mean_one_over_pixels_and_extend_to_empty_buckets() -> None:
    for weights in (nyud2_sqinv, nyud2_inv):
        assert mean_over_samples(weights.bin_weights.double(), NYUD2) == pytest.approx(1, rel=1e-6)
        assert torch.equal(weights.bin_weights[:7], weights.bin_weights[7].expand(7))
