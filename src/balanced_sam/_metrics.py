"""Error metrics (MAE, RMSE, GM, delta, bMAE), and the report that takes them per region."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_sam._bins import TargetBins
from balanced_sam._checks import check_number, check_predictions, check_type
from balanced_sam._regions import REGIONS, ShotRegions

_TITLES = ("All", "Many", "Med.", "Few")
_COLUMNS = ("count", "MAE", "GM", "RMSE", "delta_1", "bMAE")


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
    threshold = check_number("threshold", threshold)
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
    """The metrics on all test samples and on each region: what :func:`region_report` returns.

    Attributes:
        rows: For ``"All"``, ``"Many"``, ``"Med."`` and ``"Few"`` the sample count (``"count"``) and
            ``"MAE"``, ``"GM"``, ``"RMSE"``, ``"bMAE"`` (target units), ``"delta_1"`` (share from 0
            to 1); NaN for a region without a sample.

    Raises:
        ValueError: If ``rows`` are not such a table.
    """

    rows: dict[str, dict[str, float]]

    def __post_init__(self) -> None:
        """Raise if the rows are not those of a report."""
        if not _is_table(self.rows):
            raise ValueError(
                "Expected `rows` to be what `to_dict()` of a report returns, but got "
                f"{self.rows!r}."
            )

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return a copy of ``rows``, made of plain numbers that JSON can hold (NaN apart)."""
        return {region: dict(row) for region, row in self.rows.items()}

    def to_markdown(self) -> str:
        """Return the table as Markdown, one line a region."""
        cells = self._cells()
        lines = [cells[0], ["---"] + ["---:"] * (len(cells[0]) - 1), *cells[1:]]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

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
    """Return every metric on all samples and on each region.

    Args:
        predictions: Model outputs, any shape, in target units.
        targets: Targets, same shape, in target units.
        regions: The many-, medium- and few-shot bins.

    Returns:
        The report; ``print`` shows it as a table. A region without a sample has count 0 and NaN.

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
    return RegionReport(rows)


def _row(sums: Tensor) -> dict[str, float]:
    """Return the metrics over the bins of ``sums``, shape ``(5, any)``."""
    count = sums[0].sum().item()
    if count == 0:
        return {"count": 0} | dict.fromkeys(_COLUMNS[1:], math.nan)
    mean_error, mean_log, mean_square, accuracy = (sums[1:].sum(dim=1) / count).unbind()
    occupied = sums[0] > 0
    return {
        "count": int(count),
        "MAE": mean_error.item(),
        "GM": mean_log.exp().item(),
        "RMSE": mean_square.sqrt().item(),
        "delta_1": accuracy.item(),
        "bMAE": (sums[1] / sums[0])[occupied].mean().item(),
    }


def _is_table(rows: object) -> bool:
    """Return whether the rows have the regions and the columns of a report, all of them numbers."""
    return (
        isinstance(rows, dict)
        and tuple(rows) == _TITLES
        and all(isinstance(row, dict) and tuple(row) == _COLUMNS for row in rows.values())
        and all(isinstance(row["count"], int) for row in rows.values())
        and all(isinstance(x, (int, float)) for row in rows.values() for x in row.values())
    )


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
