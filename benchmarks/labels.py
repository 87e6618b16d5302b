"""How the training targets are distributed, and what each weighting makes of them."""

from pathlib import Path
from typing import Literal

from torch import Tensor

from balanced_sam import TargetWeights
from benchmarks.evaluation import REGIONS
from benchmarks.protocol import Dataset
from benchmarks.tables import markdown


def train_counts(dataset: Dataset, data: Path | None) -> Tensor:
    """Return the training targets per bin, shape ``(B,)``.

    Args:
        dataset: The data set.
        data: Folder of the data; the shipped histogram if None, or the embedded data.
    """
    if data is None and "train" in dataset.counts:
        return dataset.counts["train"]
    return dataset.load(data).train_counts


def describe(dataset: Dataset, counts: Tensor) -> str:
    """Return tables of the regions and of the weightings.

    The effective sample fraction is (sum of weights)^2 / (N times the sum of their squares): 1 if
    all weights are equal, 1/N if one sample has all the weight.
    """
    labels = dataset.regions.labels
    rows = [["Region", "Bins", "Training targets", "Share"]]
    for title, region in REGIONS.items():
        inside = [i for i, label in enumerate(labels) if label == region and counts[i] > 0]
        number = int(counts[inside].sum())
        rows.append([title, str(len(inside)), f"{number:,}", f"{number / counts.sum():.2%}"])
    weights = [["Weights, mean 1", "Lowest", "Highest", "Effective sample fraction"]]
    for title, scheme, clip in _weightings(dataset):
        per_bin = TargetWeights.from_counts(
            dataset.bins, counts, scheme=scheme, clip=clip
        ).bin_weights.double()
        used = per_bin[counts > 0]
        fraction = (counts * per_bin).sum() ** 2 / counts.sum() / (counts * per_bin**2).sum()
        weights.append([title, f"{used.min():.4f}", f"{used.max():.3f}", f"{fraction:.3f}"])
    return f"{markdown(rows)}\n\n{markdown(weights)}"


def _weightings(
    dataset: Dataset,
) -> list[tuple[str, Literal["inv", "sqinv"], tuple[float, float] | None]]:
    """Return title, scheme and bounds of the counts of each weighting."""
    if dataset.inv_clip is None:
        return [("SQINV", "sqinv", None), ("INV", "inv", None)]
    low, high = dataset.inv_clip
    clipped = f"INV, counts clipped to {low:g} to {high:g}"
    return [("SQINV", "sqinv", None), ("INV", "inv", None), (clipped, "inv", dataset.inv_clip)]
