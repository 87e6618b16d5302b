"""What the predictions for a test set leave in a record, and what a table reads from it.

The test set passes batch by batch and is not kept: sums per region and per bin, and of each sample
what the bootstrap needs to draw samples again. Of a vector of targets that is the error and the bin
of the target; of a depth map, for each region, how many pixels count, the sum of their squared
errors and the number within a factor of 1.25.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from balanced_sam import TargetBins, TargetGrid
from benchmarks.experiment.dataset import REGIONS, Bins, Dataset, is_counted
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
        self._samples: dict[str, list[Any]] = {}

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take up a batch; a target that is NaN does not count."""
        self._metrics.to(targets.device)
        counted = is_counted(targets, self._dataset.bins)
        self._metrics.update(predictions[counted], targets[counted])
        if is_map(targets, self._dataset):
            sample = self._sums_per_map(predictions, targets)
        else:
            sample = self._errors(predictions[counted], targets[counted])
        # As Python's numbers: small tensors that stay between large ones that go would keep the
        # allocator from giving those back.
        for name, values in sample.items():
            self._samples.setdefault(name, []).extend(values.tolist())

    def samples(self, selection: str) -> dict[str, list[Any]]:
        """Return of each sample its bin or number of targets, and what it adds to metrics."""
        return {
            name if name in ("bins", "counts") else f"{selection}.{name}": self._column(name)
            for name in self._samples
        }

    def result(self) -> dict[str, Any]:
        """Return the metrics per region and per bin."""
        report, name = self._metrics.report(), self._dataset.metrics[0]
        by_bin = np.ravel(report.by_bin[name]).tolist()
        return {
            "regions": {
                region: {metric: or_none(value) for metric, value in row.items()}
                for region, row in report.rows.items()
            },
            "by_bin": {name: [or_none(error, digits=4) for error in by_bin]},
        }

    def _column(self, name: str) -> list[Any]:
        """Return an entry of all samples, rounded to what matters."""
        values = np.array(self._samples[name])
        of_maps = name in ("counts", *_MAP_METRICS.values())
        column: list[Any] = (values.round(3).T if of_maps else values).tolist()
        return column

    def _errors(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the error of each sample, in whole resolutions, and the bin of its target."""
        errors = (predictions.double() - targets) / resolution(self._dataset.bins)
        return {"errors": errors.round(), "bins": self._dataset.bins.index(targets)}

    def _sums_per_map(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return each map's pixels, squared errors and hits per region, shapes ``(N, 3)``."""
        squared = (predictions.double() - targets).square()
        ratio = torch.maximum(predictions / targets, targets / predictions)
        hits = (ratio < THRESHOLD) & (predictions > 0) & (targets > 0)
        masks = torch.stack(
            [
                self._dataset.regions.mask(targets.nan_to_num(), region) & ~targets.isnan()
                for region in REGIONS[1:]
            ]
        )
        of_regions = {
            "counts": masks,
            "squared": torch.where(masks, squared, 0.0),
            "hits": masks & hits,
        }
        return {name: values.sum((-2, -1)).t() for name, values in of_regions.items()}


def resolution(bins: Bins) -> float:
    """Return the power of ten, in target units, in which the errors of samples are kept.

    It is at most a thousandth of the narrowest bin, from 0.001 to 1.
    """
    axes = bins.axes if isinstance(bins, TargetGrid) else (bins,)
    narrowest = min(float(axis.edges.diff().min()) for axis in axes)
    decimals: int = min(3, max(0, 3 - math.floor(math.log10(narrowest))))
    return 10.0**-decimals


def is_map(targets: Tensor, dataset: Dataset) -> bool:
    """Return whether a sample has a map of targets of one kind."""
    return targets.dim() > 1 and isinstance(dataset.bins, TargetBins)


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
        region: ``"all"``, ``"many"``, ``"medium"`` or ``"few"``.
        metric: ``"MAE"``, ``"bMAE"``, ``"GM"`` or ``"RMSE"`` of vectors, ``"RMSE"`` or
            ``"delta_1"`` of maps.

    Returns:
        Sums of absolute errors, of their logarithms, of squares or of hits, shape ``(N,)``, and of
        how many targets, shape ``(N,)``; 0 for a sample that has none in the region.
    """
    if "counts" in record.samples:
        rows = slice(None) if region == "all" else [REGIONS.index(region) - 1]
        counts = np.array(record.samples["counts"], dtype=float)
        sums = np.array(record.samples[f"{selection}.{_MAP_METRICS[metric]}"], dtype=float)
        return sums[rows].sum(axis=0), counts[rows].sum(axis=0)
    bins = sample_bins(record)
    errors = np.abs(np.array(record.samples[f"{selection}.errors"])).reshape(len(bins), -1)
    counted = np.ones(len(bins), dtype=bool)
    if region != "all":
        counted = dataset.regions.bin_mask(region).flatten().numpy()[bins]
    # One column an output.
    of_errors = _of_errors(errors, metric, resolution(dataset.bins)).mean(axis=1)
    return np.where(counted, of_errors, 0.0), counted.astype(float)


def sample_bins(record: Record) -> NDArray[np.int64]:
    """Return the bin of the target of each test sample, shape ``(N,)``."""
    return np.array(record.samples["bins"], dtype=np.int64)


def _of_errors(errors: Array, metric: str, unit: float) -> Array:
    """Return what errors, in ``unit``, add to a metric."""
    if metric == "GM":
        # An error that was rounded to 0 stands for one below half a unit.
        logarithms: Array = np.log(np.maximum(errors, 0.5) * unit)
        return logarithms
    return np.square(errors * unit) if metric == "RMSE" else errors * unit
