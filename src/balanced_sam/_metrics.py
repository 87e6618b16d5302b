"""Error metrics (MAE, RMSE, GM, delta, bMAE), and the report that takes them per region."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from balanced_sam._bins import TargetBins
from balanced_sam._checks import check_predictions, check_type
from balanced_sam._plot import plot_by_bin
from balanced_sam._regions import REGIONS, ShotRegions

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_TITLES = ("All", "Many", "Med.", "Few")


def mean_absolute_error(predictions: Tensor, targets: Tensor) -> Tensor:
    r"""Return the MAE.

    .. math:: \mathrm{MAE} = \frac{1}{N} \sum_i |y_i - \hat y_i|

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.

    Returns:
        0-dim tensor, float64, in target units; NaN of no sample.

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
    predictions, targets = _as_float64(predictions, targets)
    return (predictions - targets).abs().mean()


def root_mean_squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    r"""Return the RMSE.

    .. math:: \mathrm{RMSE} = \sqrt{\frac{1}{N} \sum_i (y_i - \hat y_i)^2}

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.

    Returns:
        0-dim tensor, float64, in target units; NaN of no sample.

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
    predictions, targets = _as_float64(predictions, targets)
    return (predictions - targets).square().mean().sqrt()


def geometric_mean_error(predictions: Tensor, targets: Tensor) -> Tensor:
    r"""Return the GM, the geometric mean of the absolute errors.

    .. math:: \mathrm{GM} = \Bigl(\prod_i |y_i - \hat y_i|\Bigr)^{1/N}

    It is summed as logarithms. As in the literature there is no guard: one exact prediction
    makes it 0.

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.

    Returns:
        0-dim tensor, float64, in target units; NaN of no sample.

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
    predictions, targets = _as_float64(predictions, targets)
    return (predictions - targets).abs().log().mean().exp()


def threshold_accuracy(predictions: Tensor, targets: Tensor, *, threshold: float = 1.25) -> Tensor:
    r"""Return :math:`\delta`, the share of predictions within a factor of the target.

    .. math:: \delta = \frac{1}{N} \sum_i
        \Bigl[ \max\Bigl(\frac{y_i}{\hat y_i}, \frac{\hat y_i}{y_i}\Bigr) < t \Bigr]

    The depth literature's :math:`\delta_1, \delta_2, \delta_3` have the thresholds 1.25,
    1.25\ :sup:`2` and 1.25\ :sup:`3`. A pair that is not positive on both sides is never a hit.

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.
        threshold: The factor :math:`t`, above 1.

    Returns:
        0-dim tensor, float64, a share from 0 to 1; NaN of no sample.

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
    if not threshold > 1:
        raise ValueError(f"Expected `threshold` to be above 1, but got threshold={threshold}.")
    predictions, targets = _as_float64(predictions, targets)
    return _hits(predictions, targets, threshold).mean()


def balanced_mean_absolute_error(
    predictions: Tensor, targets: Tensor, *, bins: TargetBins | None = None
) -> Tensor:
    r"""Return the bMAE, the average over target values of each value's MAE.

    .. math:: \mathrm{bMAE} = \frac{1}{|K|} \sum_{k \in K} \frac{1}{N_k} \sum_{y_i \in k}
        |y_i - \hat y_i|

    Not to be set beside an MAE: on a skewed test set the two measure different things.

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.
        bins: Bins to average over, those without a target left out. If None every distinct target
            is its own bin, as published for whole-number labels; float targets need ``bins``.

    Returns:
        0-dim tensor, float64, in target units; NaN of no sample.

    Raises:
        ValueError: If the shapes differ.

    References:
        Ren et al. (2022), `Balanced MSE for Imbalanced Visual Regression
        <https://arxiv.org/abs/2203.16427>`_, Section 4.1.

    Example:
        >>> import torch
        >>> from balanced_sam import balanced_mean_absolute_error
        >>> balanced_mean_absolute_error(torch.tensor([3.0, 1.0, 1.0]), torch.tensor([1, 1, 5]))
        tensor(2.5000, dtype=torch.float64)
    """
    check_predictions(predictions, targets)
    if bins is not None:
        check_type("bins", bins, TargetBins)
    index = torch.unique(targets, return_inverse=True)[1] if bins is None else bins.index(targets)
    predictions, targets = _as_float64(predictions, targets)
    index = index.flatten().to(targets.device)
    errors = (predictions - targets).abs().flatten()
    counts = torch.bincount(index)
    sums = torch.zeros(len(counts), dtype=torch.float64, device=errors.device)
    sums.index_add_(0, index, errors)
    return (sums / counts)[counts > 0].mean()


@dataclass(frozen=True)
class RegionReport:
    """The metrics on all test samples, on each region and in each bin.

    This is what :func:`region_report` returns.

    Attributes:
        rows: For ``"All"``, ``"Many"``, ``"Med."`` and ``"Few"`` the sample count (``"count"``) and
            ``"MAE"``, ``"GM"``, ``"RMSE"``, ``"bMAE"`` (target units), ``"delta_1"`` (share from 0
            to 1); NaN for a region without a sample.
        by_bin: ``"count"``, ``"MAE"``, ``"GM"``, ``"RMSE"`` and ``"delta_1"`` of each bin, ``B``
            numbers each; NaN for a bin without a sample.
        regions: The many-, medium- and few-shot bins.
    """

    rows: dict[str, dict[str, float]]
    by_bin: dict[str, list[float]] = field(repr=False)
    regions: ShotRegions = field(repr=False)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return a copy of ``rows``, made of plain numbers that JSON can hold (NaN apart)."""
        return {region: dict(row) for region, row in self.rows.items()}

    def to_markdown(self) -> str:
        """Return the table as Markdown, one line a region."""
        cells = self._cells()
        lines = [cells[0], ["---"] + ["---:"] * (len(cells[0]) - 1), *cells[1:]]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def plot(
        self, *, ax: "matplotlib.axes.Axes | None" = None
    ) -> "tuple[matplotlib.figure.Figure, matplotlib.axes.Axes]":
        """Draw the MAE in each bin over the target, the regions shaded, and the counts above.

        Args:
            ax: The axes to draw in; those of a new figure if None.

        Returns:
            The figure and the axes of the MAE.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        titles = zip(REGIONS, _TITLES[1:], strict=True)
        labels = {r: f"{r}-shot, MAE {self.rows[title]['MAE']:.3g}" for r, title in titles}
        return plot_by_bin(self.by_bin, self.regions, labels, ax)

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
        header = ["Region", *next(iter(self.rows.values()))]
        return [header] + [
            [region] + [str(int(row["count"]))] + [f"{row[name]:.3f}" for name in header[2:]]
            for region, row in self.rows.items()
        ]


def region_report(predictions: Tensor, targets: Tensor, regions: ShotRegions) -> RegionReport:
    """Return every metric on all samples, on each region and in each bin.

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.
        regions: The many-, medium- and few-shot bins.

    Returns:
        The report; ``print`` shows it as a table, ``plot`` draws the error in each bin. A region
        without a sample has count 0 and NaN.

    Raises:
        TypeError: If ``regions`` are not :class:`ShotRegions`.
        ValueError: If the shapes differ.

    References:
        Yang et al. (2021), `Delving into Deep Imbalanced Regression
        <https://arxiv.org/abs/2102.09554>`_, Section 4.

    Example:
        >>> import torch
        >>> from balanced_sam import ShotRegions, TargetBins, region_report
        >>> regions = ShotRegions(TargetBins([0.0, 10.0, 20.0, 30.0]), ["many", "medium", "few"])
        >>> report = region_report(torch.tensor([4.0, 25.0]), torch.tensor([5.0, 21.0]), regions)
        >>> report.rows["Few"]["MAE"], report.rows["All"]["GM"], report.rows["Med."]["count"]
        (4.0, 2.0, 0)
    """
    check_type("regions", regions, ShotRegions)
    return report_from_sums(bin_sums(predictions, targets, regions.bins), regions)


def bin_sums(predictions: Tensor, targets: Tensor, bins: TargetBins) -> Tensor:
    """Return what the report needs, summed per bin, so that it adds up over batches and ranks.

    Rows: sample count, sum of absolute errors, of their logarithms, of squared errors, of hits
    within a factor of 1.25; shape ``(5, B)``, float64.
    """
    check_predictions(predictions, targets)
    index = bins.index(targets).flatten()
    predictions, targets = _as_float64(predictions, targets)
    errors = (predictions - targets).abs().flatten()
    hits = _hits(predictions, targets, 1.25).flatten()
    terms = torch.stack([torch.ones_like(errors), errors, errors.log(), errors.square(), hits])
    sums = torch.zeros(5, len(bins), dtype=torch.float64, device=errors.device)
    return sums.index_add_(1, index.to(errors.device), terms)


def report_from_sums(sums: Tensor, regions: ShotRegions) -> RegionReport:
    """Return the report of samples whose :func:`bin_sums` are ``sums``."""
    sums = sums.cpu()
    rows = {_TITLES[0]: _row(sums)}
    for region, title in zip(REGIONS, _TITLES[1:], strict=True):
        rows[title] = _row(sums[:, regions.bin_mask(region)])
    by_bin = {name: values.tolist() for name, values in _means(sums).items()}
    return RegionReport(rows, by_bin | {"count": sums[0].long().tolist()}, regions)


def _row(sums: Tensor) -> dict[str, float]:
    """Return the metrics over the bins of ``sums``, shape ``(5, any)``."""
    row = {name: value.item() for name, value in _means(sums.sum(dim=1)).items()}
    errors = (sums[1] / sums[0])[sums[0] > 0]
    return row | {"count": int(row["count"]), "bMAE": errors.mean().item()}


def _means(sums: Tensor) -> dict[str, Tensor]:
    """Return the metrics of the samples in ``sums``, shape ``(5, ...)``; of none NaN."""
    count = sums[0]
    error, log, square, hit = sums[1:] / count
    return {"count": count, "MAE": error, "GM": log.exp(), "RMSE": square.sqrt(), "delta_1": hit}


def _hits(predictions: Tensor, targets: Tensor, threshold: float) -> Tensor:
    """Return 1 where both are positive and within ``threshold`` of each other, else 0."""
    ratio = torch.maximum(targets / predictions, predictions / targets)
    return ((predictions > 0) & (targets > 0) & (ratio < threshold)).to(torch.float64)


def _as_float64(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float64 without gradients, once their shapes are checked."""
    check_predictions(predictions, targets)
    # Apple's GPUs have no float64.
    if targets.device.type == "mps":
        predictions, targets = predictions.cpu(), targets.cpu()
    return predictions.detach().to(torch.float64), targets.detach().to(torch.float64)
