"""Target bins: the target range cut into intervals, the common ground of weights and regions."""

import math
import numbers
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from balanced_sam._checks import (
    check_choice,
    check_finite,
    check_number,
    check_one_target,
    check_real,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rule = Literal["auto", "doane", "fd", "rice", "scott", "sqrt", "stone", "sturges"]
_RULES: tuple[Rule, ...] = ("auto", "doane", "fd", "rice", "scott", "sqrt", "stone", "sturges")
_MOST_BINS = 100_000


class TargetBins:
    r"""Cut the target range into left-closed intervals :math:`b_k = [e_k, e_{k+1})`.

    Float targets need no rounding: the edges are compared in the targets' own dtype, so that the
    float32 value ``0.7`` lies in the bin that starts at ``0.7``. Some bins are too fine for a
    dtype: float32 cannot tell apart the minutes of a timestamp. Using such bins with targets of
    that dtype is an error. Values outside the range belong to the first or the last bin.

    Args:
        edges: The ``B + 1`` edges, finite and strictly increasing, in target units.

    Raises:
        ValueError: If there are fewer than two edges, or they are not finite and increasing.

    Example:
        >>> import torch
        >>> from balanced_sam import TargetBins
        >>> bins = TargetBins([0.0, 18.0, 65.0, 120.0])
        >>> bins.index(torch.tensor([17.9, 18.0, 200.0]))
        tensor([0, 1, 2])
    """

    def __init__(self, edges: Sequence[float] | Tensor) -> None:
        try:
            values = edges.tolist() if isinstance(edges, Tensor) else edges
            self._edges = tuple(float(edge) for edge in values)
        except TypeError:
            raise ValueError(
                f"Expected `edges` to be a flat sequence of numbers, but got {edges!r}."
            ) from None
        if len(self._edges) < 2:
            raise ValueError(
                f"Expected `edges` to hold at least two numbers, but got {len(self._edges)}."
            )
        for left, right in pairwise(self._edges):
            if not (math.isfinite(left) and math.isfinite(right) and left < right):
                raise ValueError(
                    "Expected `edges` to be finite and strictly increasing, but got "
                    f"{left} before {right}."
                )
        # How many edges equal the one before in a dtype: counted once and on the host, so that
        # `index` waits for no device and can be traced.
        self._merged = {
            dtype: len(self._edges) - len(set(self.edges.to(dtype).tolist()))
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
        }
        # The interior edges as tensors, one per (device, dtype) so far: a later `index` on that
        # device copies nothing from the host.
        self._interior: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def uniform(cls, low: float, high: float, *, width: float) -> "TargetBins":
        """Return bins of equal ``width`` that cover ``[low, high)``.

        Args:
            low: Left edge of the first bin, in target units.
            high: Right edge of the last bin, in target units.
            width: Width of a bin, in target units; must divide ``high - low``.

        Returns:
            ``(high - low) / width`` bins.

        Raises:
            TypeError: If an argument is not a number.
            ValueError: If ``width`` is not positive and finite or does not divide the range, or
                divides it into more than 100,000 bins.

        Example:
            >>> from balanced_sam import TargetBins
            >>> TargetBins.uniform(0, 10, width=0.1)
            TargetBins(100 bins from 0.0 to 10.0)
        """
        low, high = check_number("low", low), check_number("high", high)
        width = check_number("width", width)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"Expected `low` and `high` to be finite with low < high, but got {low} and {high}."
            )
        if not (math.isfinite(width) and width > 0):
            raise ValueError(f"Expected `width` to be positive and finite, but got {width}.")
        # Beyond, a width mistyped would use up the memory.
        if (high - low) / width > _MOST_BINS:
            raise ValueError(
                f"Expected `width` to cut the range {low} to {high} into at most {_MOST_BINS} "
                f"bins, but got width={width}."
            )
        bins = round((high - low) / width)
        if not math.isclose(bins * width, high - low, rel_tol=1e-9):
            more, fitting = math.ceil((high - low) / width), (high - low) / max(bins, 1)
            raise ValueError(
                f"Expected `width` to divide the range {low} to {high}, but got width={width}: "
                f"take high={float(Fraction(str(low)) + more * Fraction(str(width)))} or "
                f"width={fitting}."
            )
        # Exact decimals, rounded once: bins from 0.7 of width 0.1 have the edge 0.8, not a
        # neighbor of it, so that a float64 target of 0.8 lies in the bin that starts there.
        start, stop = Fraction(str(low)), Fraction(str(high))
        return cls([float(start + (stop - start) * k / bins) for k in range(bins + 1)])

    @classmethod
    def from_targets(cls, targets: Tensor, bins: int | Rule = "auto") -> "TargetBins":
        """Return bins of equal width that cover all targets, like those of :func:`numpy.histogram`.

        If all targets are whole numbers, of an integer or a float dtype, the edges lie midway
        between whole numbers. Each bin covers equally many of them; the last may cover fewer.

        Args:
            targets: Training targets of any shape, in target units, finite.
            bins: The number of bins (an upper limit for whole numbers), or the name of a rule of
                :func:`numpy.histogram_bin_edges`. ``"auto"`` copes with most targets being one
                value, ``"fd"`` does not. A heavy tail leaves bins empty. A rule assumes independent
                samples: for pixels or steps of a sequence, give a number.

        Returns:
            The bins; one if all targets are the same.

        Raises:
            TypeError: If ``targets`` is not a tensor of real numbers, or ``bins`` neither a number
                nor a name.
            ValueError: If ``targets`` is empty, not finite or of shape ``(N, d)`` with several
                targets per sample; or if ``bins`` gives no bin, more than 100,000 bins, or bins
                that are too fine for the dtype of ``targets``.

        Example:
            >>> import torch
            >>> from balanced_sam import TargetBins
            >>> TargetBins.from_targets(torch.tensor([18, 19, 19, 20, 21, 34]), 9).edges[:3]
            tensor([17.5000, 19.5000, 21.5000], dtype=torch.float64)
        """
        check_finite("targets", targets)
        check_one_target("targets", targets)
        values = targets.detach().to("cpu", torch.float64).flatten().numpy()
        number, low, high = number_of_bins(values, bins), values.min(), values.max()
        step = _step(values)
        if low == high:
            margin = max(0.5, abs(low) / 64)
            edges = [low - margin, low + margin]
        elif step is None:
            edges = np.linspace(low, high, number + 1).tolist()
        else:
            edges = _whole_edges(values, number, step, targets.dtype)
        if len(set(edges)) < len(edges):
            raise ValueError(
                f"Expected `targets` that torch.float64 can tell apart in {number} bins, but got "
                f"values from {low} to {high}. Subtract an offset from them, or take fewer bins."
            )
        made = cls(edges)
        made._interior_in(targets.dtype)
        return made

    @property
    def axes(self) -> tuple["TargetBins", ...]:
        """The bins of each target; there is one target here, so these bins alone."""
        return (self,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape ``(B,)`` of a tensor with one value for each bin."""
        return (len(self),)

    @property
    def edges(self) -> Tensor:
        """The edges, shape ``(B + 1,)``, float64, on the CPU (a fresh tensor each time)."""
        return torch.tensor(self._edges, dtype=torch.float64, device="cpu")

    def index(self, targets: Tensor) -> Tensor:
        """Return the bin of each target.

        Nothing waits for the device, so nothing is checked here: a NaN falls into the last bin.

        Args:
            targets: Targets of any shape, device and float or integer dtype, in target units.

        Returns:
            Indices into the bins, 0 to B - 1, shape of ``targets``, int64.

        Raises:
            TypeError: If ``targets`` is not a tensor of real numbers.
            ValueError: If the dtype of ``targets`` does not tell all edges apart.
        """
        check_real("targets", targets)
        if not targets.is_floating_point():
            targets = targets.to(torch.int64)
        # Made contiguous because bucketize warns of the copy that it would make itself.
        targets = targets.detach().contiguous()
        return torch.bucketize(targets, self._interior_edges(targets), right=True)

    def counts(self, targets: Tensor) -> Tensor:
        """Count the targets in each bin.

        Args:
            targets: Targets of any shape, in target units, finite.

        Returns:
            Number of targets per bin, shape ``(B,)``, int64.

        Raises:
            ValueError: If ``targets`` is empty, holds NaN or infinity or is of shape ``(N, d)``
                with several targets per sample, or its dtype does not tell all edges apart.
        """
        check_finite("targets", targets)
        check_one_target("targets", targets)
        return torch.bincount(self.index(targets).flatten(), minlength=len(self))

    def _interior_edges(self, targets: Tensor) -> Tensor:
        """Return all edges but the first and the last, where and as the targets are."""
        key = (targets.device, targets.dtype)
        if key in self._interior:
            return self._interior[key]
        interior = self._interior_in(targets.dtype).to(targets.device)
        # torch.export traces with a subclass of Tensor, which must not outlive the trace.
        if type(targets) is Tensor:
            self._interior[key] = interior
        return interior

    def _interior_in(self, dtype: torch.dtype) -> Tensor:
        """Return the interior edges in ``dtype``, on the CPU; raise if some fall together there."""
        if merged := self._merged.get(dtype, 0):
            raise ValueError(
                f"Expected `targets` in a dtype that tells the edges of {self} apart, but got "
                f"{dtype}, in which {merged} of {len(self) + 1} edges equal the one before. Keep "
                "the targets in torch.float64, or take wider bins."
            )
        interior = self.edges[1:-1]
        if not dtype.is_floating_point:
            # A whole number is past an edge if it is past the next whole number: nothing is rounded
            # but edges beyond int64.
            interior = interior.ceil().clamp(-(2**63), 2**63 - 1024)
        return interior.to(dtype)

    def __len__(self) -> int:
        """Return the number of bins B."""
        return len(self._edges) - 1

    def __eq__(self, other: object) -> bool:
        """Return whether ``other`` has the same edges."""
        return isinstance(other, TargetBins) and self._edges == other._edges

    def __hash__(self) -> int:
        """Return a hash of the edges."""
        return hash(self._edges)

    def __reduce__(self) -> tuple[type["TargetBins"], tuple[tuple[float, ...]]]:
        """Pickle and copy the edges alone, without the tensors derived from them."""
        return TargetBins, (self._edges,)

    def __repr__(self) -> str:
        """Return the number of bins and their range."""
        return f"TargetBins({len(self)} bins from {self._edges[0]} to {self._edges[-1]})"


def number_of_bins(values: "NDArray[np.float64]", bins: int | Rule) -> int:
    """Return how many bins a rule cuts the values into, or ``bins`` itself if it is a number."""
    if isinstance(bins, str):
        check_choice("bins", bins, _RULES)
        number = _by_rule(values, bins)
    elif isinstance(bins, numbers.Integral) and not isinstance(bins, bool):
        number = int(bins)
    else:
        raise TypeError(
            "Expected `bins` to be a number of bins or the name of a rule, but got "
            f"{type(bins).__name__}."
        )
    if not 1 <= number <= _MOST_BINS:
        advice = "" if number < 1 else " If the tail is that heavy, take the targets' logarithm."
        raise ValueError(
            f"Expected `bins` to give 1 to {_MOST_BINS} bins from {values.min()} to "
            f"{values.max()}, but got {bins!r}, which gives {number}.{advice}"
        )
    return number


def _by_rule(values: "NDArray[np.float64]", rule: Rule) -> int:
    """Return the number of bins by numpy's rule."""
    if rule not in ("auto", "fd"):
        return len(np.histogram_bin_edges(values, rule)) - 1
    # numpy makes the edges before anyone can count them, and before 2.3 its "auto" has no cap.
    size, (lower, upper) = len(values), np.percentile(values, [25, 75]).tolist()
    span, width = float(np.ptp(values)), 2 * (upper - lower) / size ** (1 / 3)
    if rule == "auto":
        width = min(max(width, span / size**0.5 / 2), span / (math.log2(size) + 1))
    return math.ceil(span / width) if width else 1


def _step(values: "NDArray[np.float64]") -> int | None:
    """Return the distance that divides all distances of whole numbers; None for other numbers."""
    # Beyond, all floats are whole numbers.
    if np.abs(values).max() >= 2**52 or (values != np.round(values)).any():
        return None
    return max(1, int(np.gcd.reduce(np.diff(np.unique(values)).astype(np.int64))))


def _whole_edges(
    values: "NDArray[np.float64]", number: int, step: int, dtype: torch.dtype
) -> list[float]:
    """Return edges midway between whole numbers, of at most ``number`` bins."""
    low, span = values.min(), np.ptp(values) + step
    width = step * math.ceil(span / (number * step))
    steps = np.append(width * np.arange(math.ceil(span / width)), span)
    edges = torch.from_numpy(low - step / 2 + steps)
    # Where the targets' dtype has nothing between two whole numbers, each edge is a whole number.
    is_exact = not dtype.is_floating_point or torch.equal(edges.to(dtype).to(edges.dtype), edges)
    exact: list[float] = edges.tolist() if is_exact else (low + steps).tolist()
    return exact
