"""How the training targets are distributed, and what each weighting makes of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from balanced_sam import TargetWeights
from benchmarks.experiment.dataset import REGIONS, Dataset
from benchmarks.methods._losses import smooth_of
from benchmarks.results.cells import TITLES, markdown

Weighting = tuple[
    str,
    Literal["inv", "sqinv"],
    tuple[float, float] | None,
    Callable[[Tensor], Tensor] | None,
]


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
    rows = [["Region", "Bins", "Training targets", "Share"]]
    for region in REGIONS[1:]:
        inside = counts[dataset.regions.bin_mask(region)]
        number, occupied = int(inside.sum()), int((inside > 0).sum())
        share = f"{number / counts.sum():.2%}"
        rows.append([TITLES[region], str(occupied), f"{number:,}", share])
    weights = [["Weights, mean 1", "Lowest", "Highest", "Effective sample fraction"]]
    for title, scheme, clip, smoothing in _weightings(dataset):
        per_bin = TargetWeights.from_counts(
            dataset.bins, counts, scheme=scheme, clip_counts=clip, smoothing=smoothing
        ).bin_weights.double()
        used = per_bin[counts > 0]
        fraction = (counts * per_bin).sum() ** 2 / counts.sum() / (counts * per_bin**2).sum()
        weights.append([title, f"{used.min():.4f}", f"{used.max():.3f}", f"{fraction:.3f}"])
    return f"{markdown(rows)}\n\n{markdown(weights)}"


def _weightings(dataset: Dataset) -> list[Weighting]:
    """Return title, scheme, bounds of the counts and smoothing of each weighting."""
    listed: list[Weighting] = [("SQINV", "sqinv", None, None), ("INV", "inv", None, None)]
    if dataset.clip_counts is not None:
        low, high = dataset.clip_counts
        title = f"INV, counts clipped to {low:g} to {high:g}"
        listed.append((title, "inv", dataset.clip_counts, None))
    scheme = dataset.lds_scheme
    smoothing = partial(smooth_of, dataset=dataset)
    clip = dataset.clip_counts if scheme == "inv" else None
    return [*listed, (f"LDS ({scheme.upper()})", scheme, clip, smoothing)]
