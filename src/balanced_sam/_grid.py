"""A grid of target bins: several targets at once, with one bin for each combination."""

import math

import torch
from torch import Tensor

from balanced_sam._bins import Rule, TargetBins, number_of_bins
from balanced_sam._checks import check_finite, check_real, check_type

_MOST_BINS = 4_000_000


class TargetGrid:
    r"""Cut the space of several targets into the combinations of their bins.

    Values that are each frequent may be rare in combination. For several targets per sample, use a
    grid wherever :class:`TargetBins` are used for one target. Targets then have shape ``(..., d)``,
    and a tensor with one value for each bin has the grid's shape :math:`(B_1, \ldots, B_d)`.

    Args:
        bins: The bins of each target, in the order of the targets' last axis.

    Attributes:
        axes: The bins of each target.

    Raises:
        TypeError: If there is anything but :class:`TargetBins`.
        ValueError: If there are no bins, or more than 4,000,000 combinations.

    Example:
        >>> import torch
        >>> from balanced_sam import TargetBins, TargetGrid
        >>> grid = TargetGrid(TargetBins([0, 10, 20]), TargetBins([0, 1, 2, 3]))
        >>> grid.counts(torch.tensor([[5.0, 0.5], [15.0, 2.5], [16.0, 2.5]]))
        tensor([[1, 0, 0],
                [0, 0, 2]])
    """

    def __init__(self, *bins: TargetBins) -> None:
        for each in bins:
            check_type("bins", each, TargetBins)
        self.axes = bins
        # Before the memory is spent: weights, counts and errors have an entry each.
        if not bins or len(self) > _MOST_BINS:
            raise ValueError(
                f"Expected `bins` of one target or more, with at most {_MOST_BINS} combinations, "
                f"but got {self}. Take fewer bins of each target."
            )

    @classmethod
    def from_targets(cls, targets: Tensor, bins: int | Rule = "auto") -> "TargetGrid":
        r"""Return a grid of bins of equal width that covers all targets.

        Each target is cut as by :meth:`TargetBins.from_targets`. With more targets, a rule
        gives each of them fewer bins: :math:`N^{1/3 - 1/(d + 2)}` times fewer than for one target
        alone. This rate is the best one for large samples.

        Args:
            targets: Training targets, shape ``(N, d)`` or ``(..., d)``, in target units, finite.
            bins: The number of bins of each target, or a rule, as for
                :meth:`TargetBins.from_targets`.

        Returns:
            The grid.

        Raises:
            TypeError: If ``targets`` is not a tensor of real numbers, or ``bins`` neither a number
                nor a name.
            ValueError: If ``targets`` is empty, not finite or a vector; or there would be no bin,
                or more than 4,000,000 combinations.

        References:
            Scott (2015), `Multivariate Density Estimation
            <https://doi.org/10.1002/9781118575574>`_, Section 3.4.

        Example:
            >>> import torch
            >>> from balanced_sam import TargetGrid
            >>> TargetGrid.from_targets(torch.rand(1000, 2), 10).shape
            (10, 10)
        """
        check_finite("targets", targets)
        if targets.dim() < 2:
            raise ValueError(
                f"Expected `targets` of shape (N, d), but got {tuple(targets.shape)}. One target a "
                "sample needs TargetBins."
            )
        columns = targets.detach().reshape(-1, targets.shape[-1]).unbind(-1)
        fewer = len(columns[0]) ** (1 / 3 - 1 / (len(columns) + 2))
        made = []
        for column in columns:
            number = number_of_bins(column.to("cpu", torch.float64).numpy(), bins)
            made.append(
                TargetBins.from_targets(
                    column, math.ceil(number / fewer) if isinstance(bins, str) else number
                )
            )
        return cls(*made)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of bins of each target."""
        return tuple(map(len, self.axes))

    def index(self, targets: Tensor) -> Tensor:
        """Return the flat bin index of each sample, in row-major order (last target fastest).

        Args:
            targets: Targets, shape ``(..., d)``, of any device and float or integer dtype.

        Returns:
            Indices, 0 to B - 1, shape ``(...)``, int64.

        Raises:
            TypeError: If ``targets`` is not a tensor of real numbers.
            ValueError: If there are not ``d`` targets per sample, or their dtype does not tell all
                edges apart.
        """
        check_real("targets", targets)
        if targets.dim() == 0 or targets.shape[-1] != len(self.axes):
            raise ValueError(
                f"Expected `targets` of shape (..., {len(self.axes)}), one a sample for each axis "
                f"of {self}, but got {tuple(targets.shape)}."
            )
        first, *others = zip(self.axes, targets.unbind(-1), strict=True)
        index = first[0].index(first[1])
        for bins, column in others:
            index.mul_(len(bins)).add_(bins.index(column))
        return index

    def counts(self, targets: Tensor) -> Tensor:
        """Count the samples in each bin.

        Args:
            targets: Targets, shape ``(..., d)``, in target units, finite.

        Returns:
            Number of samples per bin, of the grid's shape, int64.

        Raises:
            ValueError: If ``targets`` is empty, holds NaN or infinity or does not have ``d``
                targets per sample, or its dtype does not tell all edges apart.
        """
        check_finite("targets", targets)
        flat = torch.bincount(self.index(targets).flatten(), minlength=len(self))
        return flat.reshape(self.shape)

    def __len__(self) -> int:
        """Return the number of bins B, the product of the numbers of bins of the targets."""
        return math.prod(self.shape)

    def __eq__(self, other: object) -> bool:
        """Return whether ``other`` is a grid of the same bins."""
        return isinstance(other, TargetGrid) and self.axes == other.axes

    def __hash__(self) -> int:
        """Return a hash of the bins."""
        return hash(self.axes)

    def __reduce__(self) -> tuple[type["TargetGrid"], tuple[TargetBins, ...]]:
        """Pickle and copy the bins."""
        return TargetGrid, self.axes

    def __repr__(self) -> str:
        """Return the number of bins of each target."""
        return f"TargetGrid({' x '.join(map(str, self.shape))} bins)"


Bins = TargetBins | TargetGrid
"""Bins of one target or of several: ``axes``, ``shape``, ``index``, ``counts``, ``len``."""


def check_bins(bins: object) -> None:
    """Raise if these are no bins."""
    check_type("bins", bins, TargetBins, TargetGrid)


def edges_and_shape(bins: Bins) -> Tensor:
    """Return one tensor that tells bins from all others, for a ``state_dict``."""
    return torch.cat([*(axis.edges for axis in bins.axes), torch.tensor(bins.shape, device="cpu")])


def per_width(counts: Tensor, bins: Bins) -> Tensor:
    """Return the counts scaled to the median bin width, float64; unchanged if widths are equal."""
    density = counts.to(torch.float64)
    for axis, one in enumerate(bins.axes):
        edges, widths = one.edges, one.edges.diff()
        median, middle = widths.median(dim=0)
        # Edges are rounded, perhaps to float32: what is meant to be of one width differs by that.
        is_float32 = torch.equal(edges, edges.float().double())
        rounding = torch.finfo(torch.float32 if is_float32 else torch.float64).eps
        sizes = torch.maximum(edges[:-1].abs(), edges[1:].abs())
        allowed = 4 * rounding * (sizes + sizes[middle])
        allowed = allowed.clamp(min=1e-6 * median, max=1e-2 * median)
        is_equal = (widths - median).abs() <= allowed
        ratios = torch.where(is_equal, 1.0, widths / median)
        shape = [1] * len(bins.shape)
        shape[axis] = -1
        density = density / ratios.reshape(shape).to(density.device)
    return density
