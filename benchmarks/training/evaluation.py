"""What the predictions for a test set leave in a record, and what a table reads from it.

The test set passes batch by batch and is not kept: sums per region and per bin, and of each sample
what the bootstrap needs to draw samples again. Of a vector of targets that is the prediction; of a
depth map, for each region, how many pixels count, the sum of their squared errors and the number
within a factor of 1.25.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.experiment.dataset import REGIONS, Dataset
from benchmarks.experiment.record import Record

Array = NDArray[np.float64]
THRESHOLD = 1.25
_MAP_METRICS = {"RMSE": "squared", "delta_1": "hits"}


class Evaluation:
    """The errors on a test set, taken up batch by batch."""

    def __init__(self, dataset: Dataset) -> None:
        # torchmetrics takes seconds to import, which tables need not wait.
        from balanced_sam.torchmetrics import RegionMetrics

        self._dataset = dataset
        self._metrics = RegionMetrics(dataset.regions)
        self._bin_sums = torch.zeros(2, len(dataset.bins), dtype=torch.float64)
        self._samples: dict[str, list[Any]] = {}

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take up a batch; a target that is NaN does not count."""
        counted = ~targets.isnan()
        self._metrics.to(targets.device)
        self._metrics.update(predictions[counted], targets[counted])
        self._add_to_bins(predictions[counted], targets[counted])
        if targets.dim() == 1:
            sample = {"predictions": predictions, "targets": targets}
        else:
            sample = self._sums_per_map(predictions, targets)
        # As Python's numbers: small tensors that stay between large ones that go would keep the
        # allocator from giving those back.
        for name, values in sample.items():
            self._samples.setdefault(name, []).extend(values.t().tolist())

    def samples(self, selection: str) -> dict[str, list[Any]]:
        """Return of each sample its target, or how many it has, and what it adds to the metrics."""
        return {
            name if name in ("targets", "counts") else f"{selection}.{name}": self._column(name)
            for name in self._samples
        }

    def result(self) -> dict[str, Any]:
        """Return the metrics per region and per bin."""
        counts, sums = self._bin_sums
        errors = sums / counts
        name = self._dataset.metrics[0]
        per_bin = errors.sqrt() if name == "RMSE" else errors
        regions = self._metrics.report().to_dict()
        return {
            "regions": {
                region: {metric: or_none(value) for metric, value in row.items()}
                for region, row in regions.items()
            },
            "per_bin": {name: [or_none(error, digits=4) for error in per_bin.tolist()]},
        }

    def _column(self, name: str) -> list[Any]:
        """Return an entry of all samples, rounded to what matters."""
        values = np.array(self._samples[name])
        column: list[Any] = (values if name == "counts" else values.round(3)).T.tolist()
        return column

    def _add_to_bins(self, predictions: Tensor, targets: Tensor) -> None:
        """Add the errors to the sums per bin."""
        errors = (predictions.double() - targets.double()).abs()
        if self._dataset.metrics[0] == "RMSE":
            errors = errors.square()
        index = self._dataset.bins.index(targets)
        ones = torch.ones_like(errors)
        size = len(self._dataset.bins)
        sums = [torch.bincount(index, weights, size) for weights in (ones, errors)]
        self._bin_sums += torch.stack(sums).cpu()

    def _sums_per_map(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return each map's pixels, squared errors and hits per region, shapes ``(3, N)``."""
        squared = (predictions.double() - targets).square()
        ratio = torch.maximum(predictions / targets, targets / predictions)
        hits = (ratio < THRESHOLD) & (predictions > 0) & (targets > 0)
        masks = torch.stack(
            [
                self._dataset.regions.mask(targets.nan_to_num(), region) & ~targets.isnan()
                for region in REGIONS.values()
            ]
        )
        pixels = (-2, -1)
        return {
            "counts": masks.sum(pixels),
            "squared": torch.where(masks, squared, 0.0).sum(pixels),
            "hits": (masks & hits).sum(pixels),
        }


def or_none(value: float, *, digits: int | None = None) -> float | None:
    """Return a number, rounded if asked to, or None for NaN and infinity, which JSON lacks."""
    if not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


def sample_sums(
    record: Record, dataset: Dataset, selection: str, region: str, metric: str
) -> tuple[Array, Array]:
    """Return what each test sample of a region adds to a metric.

    Args:
        record: A run.
        dataset: Its data set.
        selection: An entry of the record's results.
        region: ``"All"``, ``"Many"``, ``"Med."`` or ``"Few"``.
        metric: ``"MAE"``, ``"GM"`` or ``"RMSE"`` of vectors, ``"RMSE"`` or ``"delta_1"`` of maps.

    Returns:
        Sums of absolute errors, of their logarithms, of squares or of hits, shape ``(N,)``, and of
        how many targets, shape ``(N,)``.
    """
    if "counts" in record.samples:
        rows = slice(None) if region == "All" else [list(REGIONS).index(region)]
        counts = np.array(record.samples["counts"], dtype=float)
        sums = np.array(record.samples[f"{selection}.{_MAP_METRICS[metric]}"], dtype=float)
        return sums[rows].sum(axis=0), counts[rows].sum(axis=0)
    targets = np.array(record.samples["targets"])
    errors = np.abs(np.array(record.samples[f"{selection}.predictions"]) - targets)
    mask = np.ones(len(targets), dtype=bool)
    if region != "All":
        mask = dataset.regions.mask(torch.from_numpy(targets), REGIONS[region]).numpy()
    return _of_errors(errors[mask], metric), np.ones(mask.sum())


def _of_errors(errors: Array, metric: str) -> Array:
    if metric == "GM":
        # Stored with three decimals: an error of 0 stands for one below half of that.
        logarithms: Array = np.log(np.maximum(errors, 5e-4))
        return logarithms
    return np.square(errors) if metric == "RMSE" else errors
