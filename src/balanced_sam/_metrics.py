"""Error metrics (MAE, RMSE, GM, delta, bMAE), and the report that computes them per region."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from balanced_sam._bins import TargetBins
from balanced_sam._checks import (
    check_choice,
    check_finite,
    check_number,
    check_one_target,
    check_predictions,
    check_type,
)
from balanced_sam._grid import Bins, check_bins
from balanced_sam._plot import plot_by_bin
from balanced_sam._regions import REGIONS, ShotRegions

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

Multioutput = Literal["uniform_average", "raw_values"]
_MULTIOUTPUT: tuple[Multioutput, ...] = ("uniform_average", "raw_values")


def mean_absolute_error(
    predictions: Tensor, targets: Tensor, *, multioutput: Multioutput | None = None
) -> Tensor:
    r"""Return the MAE.

    .. math:: \mathrm{MAE} = \frac{1}{N} \sum_i |y_i - \hat{y_i}|

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.
        multioutput: For several outputs, shape ``(..., d)``, as in scikit-learn:
            ``"uniform_average"`` returns the mean over the outputs, ``"raw_values"`` one value for
            each. If None, every number counts equally, whatever the shape.

    Returns:
        0-dim tensor, or shape ``(d,)`` with one value for each output, float64, in target units;
        NaN without a sample.

    Raises:
        ValueError: If the shapes differ.

    References:
        Yang et al. (2021), `Delving into Deep Imbalanced Regression
        <https://arxiv.org/abs/2102.09554>`_, Section 4.

    Example:
        >>> import torch
        >>> from balanced_sam import mean_absolute_error
        >>> mean_absolute_error(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0]))
        tensor(2., dtype=torch.float64)
    """
    errors = _mean(_absolute, predictions, targets, multioutput)
    return _over_outputs(errors, multioutput)


def root_mean_squared_error(
    predictions: Tensor, targets: Tensor, *, multioutput: Multioutput | None = None
) -> Tensor:
    r"""Return the RMSE.

    .. math:: \mathrm{RMSE} = \sqrt{\frac{1}{N} \sum_i (y_i - \hat{y_i})^2}

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.
        multioutput: For several outputs, shape ``(..., d)``, as in scikit-learn:
            ``"uniform_average"`` returns the mean over the outputs, ``"raw_values"`` one value for
            each. If None, every number counts equally, whatever the shape.

    Returns:
        0-dim tensor, or shape ``(d,)`` with one value for each output, float64, in target units;
        NaN without a sample.

    Raises:
        ValueError: If the shapes differ.

    References:
        Yang et al. (2021), `Delving into Deep Imbalanced Regression
        <https://arxiv.org/abs/2102.09554>`_, Section 4.

    Example:
        >>> import torch
        >>> from balanced_sam import root_mean_squared_error
        >>> root_mean_squared_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 2.0]))
        tensor(1.4142, dtype=torch.float64)
    """
    squares = _mean(_square, predictions, targets, multioutput)
    return _over_outputs(squares.sqrt(), multioutput)


def geometric_mean_error(
    predictions: Tensor, targets: Tensor, *, multioutput: Multioutput | None = None
) -> Tensor:
    r"""Return the GM, the geometric mean of the absolute errors.

    .. math:: \mathrm{GM} = \Bigl(\prod_i |y_i - \hat{y_i}|\Bigr)^{1/N}

    It is summed as logarithms. As in the literature there is no guard: one exact prediction
    makes it 0.

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.
        multioutput: For several outputs, shape ``(..., d)``, as in scikit-learn:
            ``"uniform_average"`` returns the mean over the outputs, ``"raw_values"`` one value for
            each. If None, every number counts equally, whatever the shape.

    Returns:
        0-dim tensor, or shape ``(d,)`` with one value for each output, float64, in target units;
        NaN without a sample.

    Raises:
        ValueError: If the shapes differ.

    References:
        Yang et al. (2021), `Delving into Deep Imbalanced Regression
        <https://arxiv.org/abs/2102.09554>`_, Section 4.

    Example:
        >>> import torch
        >>> from balanced_sam import geometric_mean_error
        >>> geometric_mean_error(torch.tensor([1.0, 6.0]), torch.tensor([2.0, 2.0]))
        tensor(2., dtype=torch.float64)
    """
    logarithms = _mean(_logarithm, predictions, targets, multioutput)
    return _over_outputs(logarithms.exp(), multioutput)


def threshold_accuracy(
    predictions: Tensor,
    targets: Tensor,
    *,
    threshold: float = 1.25,
    multioutput: Multioutput | None = None,
) -> Tensor:
    r"""Return :math:`\delta`, the share of predictions within a factor of the target.

    .. math:: \delta = \frac{1}{N} \sum_i
        \Bigl[ \max\Bigl(\frac{y_i}{\hat{y_i}}, \frac{\hat{y_i}}{y_i}\Bigr) < t \Bigr]

    The depth literature's :math:`\delta_1, \delta_2, \delta_3` have the thresholds 1.25,
    1.25\ :sup:`2` and 1.25\ :sup:`3`. A pair is a hit only if both numbers are positive.

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.
        threshold: The factor :math:`t`, above 1.
        multioutput: For several outputs, shape ``(..., d)``, as in scikit-learn:
            ``"uniform_average"`` returns the mean over the outputs, ``"raw_values"`` one value for
            each. If None, every number counts equally, whatever the shape.

    Returns:
        0-dim tensor, or shape ``(d,)`` with one value for each output, float64, a share from 0 to
        1; NaN without a sample.

    Raises:
        ValueError: If the shapes differ, or ``threshold`` is not above 1.

    References:
        Yang et al. (2021), `Delving into Deep Imbalanced Regression
        <https://arxiv.org/abs/2102.09554>`_, Section 4.

    Example:
        >>> import torch
        >>> from balanced_sam import threshold_accuracy
        >>> threshold_accuracy(torch.tensor([1.2, 1.3, -1.0]), torch.tensor([1.0, 1.0, 1.0]))
        tensor(0.3333, dtype=torch.float64)
    """
    if not check_number("threshold", threshold) > 1:
        raise ValueError(f"Expected `threshold` to be above 1, but got threshold={threshold}.")
    hits = _mean(partial(_hit, threshold=threshold), predictions, targets, multioutput)
    return _over_outputs(hits, multioutput)


def balanced_mean_absolute_error(
    predictions: Tensor,
    targets: Tensor,
    *,
    bins: Bins | None = None,
    multioutput: Multioutput = "uniform_average",
) -> Tensor:
    r"""Return the bMAE, the mean over target values of the MAE at each value.

    .. math:: \mathrm{bMAE} = \frac{1}{|K|} \sum_{k \in K} \frac{1}{N_k} \sum_{y_i \in k}
        |y_i - \hat{y_i}|

    Do not compare it with an MAE: on a skewed test set the two measure different things.

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.
        bins: Bins to average over; bins without a target are left out. If None, every distinct
            target is its own bin, as published for whole-number labels. Float targets need
            ``bins``. Several targets per sample need a grid.
        multioutput: With a grid, whether to return the mean over the outputs or one value for each.

    Returns:
        0-dim tensor, or shape ``(d,)`` with one value for each output, float64, in target units;
        NaN without a sample.

    Raises:
        ValueError: If the shapes differ, or targets ``(N, d)`` come without a grid.

    References:
        Ren et al. (2022), `Balanced MSE for Imbalanced Visual Regression
        <https://arxiv.org/abs/2203.16427>`_, Section 4.1.

    Example:
        >>> import torch
        >>> from balanced_sam import balanced_mean_absolute_error
        >>> balanced_mean_absolute_error(torch.tensor([3.0, 1.0, 1.0]), torch.tensor([1, 1, 5]))
        tensor(2.5000, dtype=torch.float64)
    """
    check_choice("multioutput", multioutput, _MULTIOUTPUT)
    check_predictions(predictions, targets)
    if bins is None:
        check_one_target("targets", targets)
        values, index = torch.unique(targets, return_inverse=True)
        sums = _bin_sums(predictions, targets, index, len(values), 1)
    else:
        sums = bin_sums(predictions, targets, bins)
    return _over_outputs(_balanced(sums), multioutput)


@dataclass(frozen=True)
class RegionReport:
    """The metrics on all test samples, on each region and in each bin.

    This is what :func:`region_report` returns.

    Attributes:
        rows: For ``"all"``, ``"many"``, ``"medium"`` and ``"few"`` the sample count (``"count"``)
            and ``"MAE"``, ``"GM"``, ``"RMSE"``, ``"bMAE"`` (target units), ``"delta_1"`` (share
            from 0 to 1); NaN for a region without a sample. With ``multioutput="raw_values"``
            ``"MAE_0"``, ``"MAE_1"`` and so on.
        by_bin: ``"count"``, ``"MAE"``, ``"GM"``, ``"RMSE"`` and ``"delta_1"`` of each bin, lists of
            the bins' shape; NaN for a bin without a sample.
        regions: The many-, medium- and few-shot bins.

    Example:
        >>> import torch
        >>> from balanced_sam import ShotRegions, TargetBins, region_report
        >>> regions = ShotRegions(TargetBins([0.0, 10.0, 20.0]), ["many", "few"])
        >>> print(region_report(torch.tensor([6.0, 15.0]), torch.tensor([5.0, 11.0]), regions))
        region  count    MAE     GM   RMSE  delta_1   bMAE
        all         2  2.500  2.000  2.915    0.500  2.500
        many        1  1.000  1.000  1.000    1.000  1.000
        medium      0    nan    nan    nan      nan    nan
        few         1  4.000  4.000  4.000    0.000  4.000
    """

    rows: dict[str, dict[str, float]]
    by_bin: dict[str, list[Any]] = field(repr=False)
    regions: ShotRegions = field(repr=False)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return a copy of ``rows`` in plain numbers, which JSON can hold except for NaN."""
        return {region: dict(row) for region, row in self.rows.items()}

    def to_markdown(self) -> str:
        """Return the table as Markdown, one line per region."""
        cells = self._cells()
        lines = [cells[0], ["---"] + ["---:"] * (len(cells[0]) - 1), *cells[1:]]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def plot(
        self, *, metric: str | None = None, ax: "matplotlib.axes.Axes | None" = None
    ) -> "tuple[matplotlib.figure.Figure, matplotlib.axes.Axes]":
        """Draw a metric per bin against the target, with shaded regions and the counts above.

        For a grid of two targets this is a heat map with a dot in each few-shot bin.

        Args:
            metric: A metric of ``by_bin``. If None, the MAE; with ``"raw_values"``, the MAE of the
                first output.
            ax: The axes to draw in; if None, the axes of a new figure.

        Returns:
            The figure and the axes of the metric.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
            ValueError: If ``metric`` is none of ``by_bin``, or there are more than two targets.
        """
        metrics = tuple(name for name in self.by_bin if name != "count")
        name = metrics[0] if metric is None else metric
        check_choice("metric", name, metrics)
        labels = {r: f"{r}-shot, {name} {self.rows[r][name]:.3g}" for r in REGIONS}
        return plot_by_bin(self.by_bin, name, self.regions, labels, ax)

    def __str__(self) -> str:
        """Return the table as plain text, columns aligned."""
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in cells
        )

    def _cells(self) -> list[list[str]]:
        """Return the header and the rows as text."""
        header = ["region", *next(iter(self.rows.values()))]
        return [header] + [
            [region] + [str(int(row["count"]))] + [f"{row[name]:.3f}" for name in header[2:]]
            for region, row in self.rows.items()
        ]


def region_report(
    predictions: Tensor,
    targets: Tensor,
    regions: ShotRegions,
    *,
    multioutput: Multioutput = "uniform_average",
) -> RegionReport:
    """Return every metric on all samples, on each region and in each bin.

    Args:
        predictions: Model outputs, in target units: a vector or maps; for a grid, shape
            ``(..., d)``.
        targets: Targets, same shape, in target units.
        regions: The many-, medium- and few-shot bins.
        multioutput: With a grid, report the mean of a metric over the outputs
            (``"uniform_average"``) or one value for each (``"raw_values"``), as in scikit-learn. A
            sample's region always depends on all its targets together.

    Returns:
        The report; ``print`` shows it as a table, ``plot`` draws the error in each bin. A region
        without a sample has count 0 and NaN.

    Raises:
        TypeError: If ``regions`` are not :class:`ShotRegions`.
        ValueError: If the shapes differ, targets ``(N, d)`` come without a grid, or targets are NaN
            or infinite.

    References:
        Yang et al. (2021), `Delving into Deep Imbalanced Regression
        <https://arxiv.org/abs/2102.09554>`_, Section 4.

    Example:
        >>> import torch
        >>> from balanced_sam import ShotRegions, TargetBins, region_report
        >>> regions = ShotRegions(TargetBins([0.0, 10.0, 20.0, 30.0]), ["many", "medium", "few"])
        >>> report = region_report(torch.tensor([4.0, 25.0]), torch.tensor([5.0, 21.0]), regions)
        >>> report.rows["few"]["MAE"], report.rows["all"]["GM"], report.by_bin["count"]
        (4.0, 2.0, [1, 0, 1])
    """
    check_type("regions", regions, ShotRegions)
    check_choice("multioutput", multioutput, _MULTIOUTPUT)
    sums = bin_sums(predictions, targets, regions.bins)
    if targets.numel():
        check_finite("targets", targets)
    return report_from_sums(sums, regions, multioutput)


def bin_sums(predictions: Tensor, targets: Tensor, bins: Bins) -> Tensor:
    """Return what the report needs, summed per bin, so that it adds up over batches and ranks.

    Rows: sample count, sum of absolute errors, of their logarithms, of squared errors, of hits
    within a factor of 1.25; shape ``(5, B, d)`` for ``d`` targets per sample, float64.
    """
    check_bins(bins)
    check_predictions(predictions, targets)
    if isinstance(bins, TargetBins):
        check_one_target("targets", targets)
    return _bin_sums(predictions, targets, bins.index(targets), len(bins), len(bins.axes))


def _bin_sums(
    predictions: Tensor, targets: Tensor, index: Tensor, bins: int, outputs: int
) -> Tensor:
    """Return the sums of :func:`bin_sums`, given the bin of each sample."""
    predictions, targets = _as_float64(predictions, targets)
    predictions, targets = predictions.reshape(-1, outputs), targets.reshape(-1, outputs)
    terms = torch.stack(
        [torch.ones_like(targets)]
        + [term(predictions, targets) for term in (_absolute, _logarithm, _square, _hit)]
    )
    sums = torch.zeros(5, bins, outputs, dtype=torch.float64, device=terms.device)
    return sums.index_add_(1, index.flatten().to(terms.device), terms)


def report_from_sums(sums: Tensor, regions: ShotRegions, multioutput: Multioutput) -> RegionReport:
    """Return the report of samples whose :func:`bin_sums` are ``sums``."""
    sums, shape = sums.cpu(), regions.bins.shape
    counts = sums[0, :, 0].long().reshape(shape).tolist()
    by_bin = {
        name: values.reshape(shape).tolist() for name, values in _means(sums, multioutput).items()
    }
    rows = rows_from_sums(sums, regions, multioutput)
    return RegionReport(rows, {"count": counts} | by_bin, regions)


def rows_from_sums(
    sums: Tensor, regions: ShotRegions, multioutput: Multioutput
) -> dict[str, dict[str, float]]:
    """Return the rows of the report of samples whose :func:`bin_sums` are ``sums``."""
    sums = sums.cpu()
    rows = {"all": _row(sums, multioutput)}
    for region in REGIONS:
        rows[region] = _row(sums[:, regions.bin_mask(region).flatten()], multioutput)
    return rows


def _row(sums: Tensor, multioutput: Multioutput) -> dict[str, float]:
    """Return the metrics over the bins of ``sums``, shape ``(5, any, d)``."""
    total = sums.sum(dim=1)
    means = _means(total, multioutput) | _named("bMAE", _balanced(sums), multioutput)
    return {"count": int(total[0, 0])} | {name: value.item() for name, value in means.items()}


def _means(sums: Tensor, multioutput: Multioutput) -> dict[str, Tensor]:
    """Return the metrics of the samples in ``sums``, shape ``(5, ..., d)``; NaN if none."""
    error, logarithm, square, hit = sums[1:] / sums[0]
    metrics = {"MAE": error, "GM": logarithm.exp(), "RMSE": square.sqrt(), "delta_1": hit}
    named: dict[str, Tensor] = {}
    for name, values in metrics.items():
        named |= _named(name, values, multioutput)
    return named


def _named(name: str, values: Tensor, multioutput: Multioutput) -> dict[str, Tensor]:
    """Return a metric by its name: the mean over the outputs, the last axis, or each."""
    if multioutput == "uniform_average":
        return {name: values.mean(dim=-1)}
    return {f"{name}_{j}": value for j, value in enumerate(values.unbind(-1))}


def _balanced(sums: Tensor) -> Tensor:
    """Return the bMAE of each output, shape ``(d,)``."""
    counts, errors = sums[:2]
    means: Tensor = errors / counts
    return means[counts[:, 0] > 0].mean(dim=0)


def _mean(
    term: Callable[[Tensor, Tensor], Tensor],
    predictions: Tensor,
    targets: Tensor,
    multioutput: Multioutput | None,
) -> Tensor:
    """Return the mean of what each sample adds, shape ``(d,)``; ``(1,)`` if all counts alike."""
    predictions, targets = _as_float64(predictions, targets)
    if multioutput is not None:
        check_choice("multioutput", multioutput, _MULTIOUTPUT)
    outputs = targets.shape[-1] if multioutput and targets.dim() > 1 else 1
    terms: Tensor = term(predictions, targets).reshape(-1, outputs)
    return terms.mean(dim=0)


def _over_outputs(values: Tensor, multioutput: Multioutput | None) -> Tensor:
    """Return the values of the outputs, shape ``(d,)``, or their mean."""
    return values if multioutput == "raw_values" else values.mean()


def _absolute(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the absolute errors."""
    return (predictions - targets).abs()


def _logarithm(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the logarithms of the absolute errors."""
    return (predictions - targets).abs().log()


def _square(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the squared errors."""
    return (predictions - targets).square()


def _hit(predictions: Tensor, targets: Tensor, threshold: float = 1.25) -> Tensor:
    """Return 1 where both are positive and within ``threshold``, NaN without a target, else 0."""
    ratio = torch.maximum(targets / predictions, predictions / targets)
    hits = ((predictions > 0) & (targets > 0) & (ratio < threshold)).to(torch.float64)
    return hits.where(~targets.isnan(), torch.nan)


def _as_float64(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float64 without gradients, once their shapes are checked."""
    check_predictions(predictions, targets)
    # Apple's GPUs have no float64.
    if targets.device.type == "mps":
        predictions, targets = predictions.cpu(), targets.cpu()
    return predictions.detach().to(torch.float64), targets.detach().to(torch.float64)
