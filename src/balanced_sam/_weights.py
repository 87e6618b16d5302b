"""Target weights: rare targets count more (INV, SQINV); one gather per batch."""

import math
import numbers
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from balanced_sam._bins import Rule, TargetBins
from balanced_sam._checks import check_callable, check_counts, check_real
from balanced_sam._grid import Bins, TargetGrid, check_bins, edges_and_shape, per_width

Scheme = Literal["inv", "sqinv", "none"]
_EXPONENTS: dict[str, float] = {"inv": 1.0, "sqinv": 0.5, "none": 0.0}


def inverse_weights(counts: Tensor, *, clip_counts: tuple[float, float] | None = None) -> Tensor:
    r"""Return the INV weight of each bin, on the paper's raw scale.

    .. math:: w(k) = \frac{1}{n_k}

    Args:
        counts: Samples per bin, of any shape; effective (smoothed) counts also work.
        clip_counts: Lowest and highest count, in samples. Counts outside these limits are set to
            the nearer one. The benchmark code for ages uses (5, 1000). No clipping if None.

    Returns:
        Weights, shape of ``counts``, float64, unit-free. An empty bin has the weight of the nearest
        occupied one (the mean of both at equal distance). In a grid it has the weight of the rarest
        bin.

    Raises:
        ValueError: If ``counts`` holds a negative number or no sample, or ``clip_counts`` is not a
            pair with 0 < low <= high.

    References:
        Yang et al. (2021), `Delving into Deep Imbalanced Regression
        <https://arxiv.org/abs/2102.09554>`_, Section 4.1.

    Example:
        >>> import torch
        >>> from balanced_sam import inverse_weights
        >>> inverse_weights(torch.tensor([0, 1, 4]))
        tensor([1.0000, 1.0000, 0.2500], dtype=torch.float64)
    """
    check_counts(counts)
    return _power(counts, 1.0, clip_counts)


def sqrt_inverse_weights(counts: Tensor) -> Tensor:
    r"""Return the SQINV weight of each bin, on the paper's raw scale.

    .. math:: w(k) = \sqrt{\frac{1}{n_k}}

    Args:
        counts: Samples per bin, of any shape; effective (smoothed) counts also work.

    Returns:
        Weights, shape of ``counts``, float64, unit-free. An empty bin has the weight of the nearest
        occupied one (the mean of both at equal distance). In a grid it has the weight of the rarest
        bin.

    Raises:
        ValueError: If ``counts`` holds a negative number or no sample.

    References:
        Liu et al. (2025), `Balanced Sharpness-Aware Minimization for Imbalanced Regression
        <https://arxiv.org/abs/2508.16973>`_.

    Example:
        >>> import torch
        >>> from balanced_sam import sqrt_inverse_weights
        >>> sqrt_inverse_weights(torch.tensor([0, 1, 4]))
        tensor([1.0000, 1.0000, 0.5000], dtype=torch.float64)
    """
    check_counts(counts)
    return _power(counts, 0.5)


class TargetWeights(nn.Module):
    """Map targets to the weight of their bin.

    A module with two buffers and no parameters: it moves with ``.to(device)`` and is part of a
    ``state_dict``. Calling it is one binary search and one gather; no gradient flows and nothing
    waits for the device.

    Args:
        bins: The bins of the target range, or a grid of several.
        counts: Training samples per bin, shape ``bins.shape``.
        bin_weights: Weight of each bin, shape ``bins.shape``, finite and non-negative.

    Attributes:
        bins: The bins.
        counts: Training samples per bin, shape ``bins.shape``.
        bin_weights: Weight of each bin, shape ``bins.shape``, float32 unless the module is
            converted.

    Raises:
        ValueError: If a shape does not fit the bins, or a count or weight is out of its range. Also
            if converting the module, such as by ``.half()``, would make a weight 0 or infinite.

    Example:
        >>> import torch
        >>> from balanced_sam import TargetWeights
        >>> weights = TargetWeights.from_targets(torch.tensor([18, 19, 19, 19, 19, 20]))
        >>> weights(torch.tensor([19.0, 84.0]))
        tensor([0.7500, 1.5000])
    """

    counts: Tensor
    bin_weights: Tensor

    def __init__(self, bins: Bins, counts: Tensor, bin_weights: Tensor) -> None:
        super().__init__()
        check_bins(bins)
        check_counts(counts, bins.shape)
        check_real("bin_weights", bin_weights)
        if bin_weights.shape != counts.shape:
            raise ValueError(
                f"Expected `bin_weights` to have shape {tuple(counts.shape)}, one a bin, but got "
                f"{tuple(bin_weights.shape)}."
            )
        if not (torch.isfinite(bin_weights) & (bin_weights >= 0)).all():
            raise ValueError(
                "Expected `bin_weights` to be finite and non-negative, but got values from "
                f"{bin_weights.min().item()} to {bin_weights.max().item()}."
            )
        converted = bin_weights.detach().to(torch.float32, copy=True)
        _check_converted(bin_weights, converted)
        self.bins = bins
        self.register_buffer("counts", counts.detach().clone())
        self.register_buffer("bin_weights", converted)

    @classmethod
    def from_targets(
        cls,
        targets: Tensor,
        bins: Bins | int | Rule | None = None,
        *,
        scheme: Scheme | float = "sqinv",
        smoothing: Callable[[Tensor], Tensor] | None = None,
        clip_counts: tuple[float, float] | None = None,
        normalize: bool = True,
    ) -> "TargetWeights":
        """Fit the weights to training targets.

        Args:
            targets: Training targets of any shape (a vector, a stack of maps), in target units; for
                a grid, shape ``(..., d)``.
            bins: The bins of the target range, or a grid of several; for one target also the number
                of bins or a rule. None is the default of :meth:`TargetBins.from_targets`.
            scheme: As in :meth:`from_counts`.
            smoothing: As in :meth:`from_counts`.
            clip_counts: As in :meth:`from_counts`.
            normalize: As in :meth:`from_counts`.

        Returns:
            The weights, on the targets' device.

        Raises:
            TypeError: If ``bins`` is anything else, such as a list of edges.
            ValueError: If ``targets`` is empty, not finite or, without a grid, of shape ``(N, d)``
                with several targets per sample; or an option is out of its range.

        Warns:
            UserWarning: If there is no ``smoothing`` and one of these holds: all weights are the
                same though ``scheme`` is not 0; more than half of the bins of one target are empty;
                a grid has more bins than there are samples.

        Example:
            >>> import torch
            >>> from balanced_sam import TargetWeights
            >>> targets = torch.tensor([18, 19, 19, 19, 19, 20])
            >>> TargetWeights.from_targets(targets, scheme="inv").bin_weights
            tensor([2.0000, 0.5000, 2.0000])
        """
        if bins is None:
            bins = TargetBins.from_targets(targets)
        if isinstance(bins, int | np.integer | str):
            bins = TargetBins.from_targets(targets, bins)
        if not isinstance(bins, Bins):
            raise TypeError(
                "Expected `bins` to be a whole number of bins, the name of a rule, TargetBins or "
                f"TargetGrid, but got {type(bins).__name__}: edges go into `TargetBins(edges)`."
            )
        weights = cls.from_counts(
            bins,
            bins.counts(targets),
            scheme=scheme,
            smoothing=smoothing,
            clip_counts=clip_counts,
            normalize=normalize,
        )
        if _exponent(scheme) and smoothing is None:
            _warn(weights)
        return weights

    @classmethod
    def from_counts(
        cls,
        bins: Bins,
        counts: Tensor,
        *,
        scheme: Scheme | float = "sqinv",
        smoothing: Callable[[Tensor], Tensor] | None = None,
        clip_counts: tuple[float, float] | None = None,
        normalize: bool = True,
    ) -> "TargetWeights":
        r"""Fit the weights to the number of training samples in each bin.

        If bin widths differ, :math:`n` is the count per unit of the target, times the median width
        (the lower of the middle two if their number is even). Otherwise a narrow bin would count as
        rare.

        Args:
            bins: The bins of the target range, or a grid of several.
            counts: Training samples per bin, shape ``bins.shape``.
            scheme: The exponent :math:`a` of the weights :math:`n^{-a}`, 0 or more, or its name:
                ``"none"`` for 0, ``"sqinv"`` for 1/2, ``"inv"`` for 1. A larger exponent gives
                rare targets more weight.
            smoothing: LDS: a function from counts to effective counts, both of ``bins.shape``, such
                as :func:`smooth_counts` or a ``functools.partial`` of it. As in the benchmark code,
                smoothing acts after the power and the clipping, :math:`w = 1 / \tilde{n^a}`.
            clip_counts: Lowest and highest count, in samples; counts outside are set to the nearer
                limit.
            normalize: Scale the weights so that their mean over the training samples is 1, which
                keeps the learning rate's meaning. False keeps the paper's raw scale.

        Returns:
            The weights, on the counts' device.

        Raises:
            ValueError: If the counts or an option are out of their range.

        References:
            Yang et al. (2021), `Delving into Deep Imbalanced Regression
            <https://arxiv.org/abs/2102.09554>`_, Sections 3.1 and 4.1.

        Example:
            >>> import torch
            >>> from balanced_sam import TargetBins, TargetWeights
            >>> bins = TargetBins.uniform(0, 3, width=1)
            >>> TargetWeights.from_counts(bins, torch.tensor([16, 4, 1])).bin_weights
            tensor([0.7500, 1.5000, 3.0000])
        """
        check_bins(bins)
        check_counts(counts, bins.shape)
        exponent = _exponent(scheme)
        density = per_width(counts, bins)
        if smoothing is not None:
            check_callable("smoothing", smoothing)
        if smoothing is None or not exponent:
            bin_weights = _power(density, exponent, clip_counts)
        else:
            effective = smoothing(_clip(density, clip_counts).pow(exponent))
            check_counts(effective, bins.shape, name="smoothing(counts)")
            bin_weights = _power(effective, 1.0)
        if normalize:
            samples = counts.to(torch.float64)
            bin_weights = bin_weights * (samples.sum() / (samples * bin_weights).sum())
        return cls(bins, counts, bin_weights)

    def forward(self, targets: Tensor) -> Tensor:
        """Return the weight of each target.

        Args:
            targets: Targets of any shape, on the module's device, in target units; for a grid,
                shape ``(..., d)``.

        Returns:
            Weights, shape of ``targets`` (``(...)`` for a grid), dtype of ``bin_weights``,
            unit-free.

        Raises:
            TypeError: If ``targets`` is not a tensor of real numbers.
            ValueError: If ``targets`` is on another device.
        """
        index = self.bins.index(targets)
        if index.device != self.bin_weights.device:
            raise ValueError(
                f"Expected `targets` on {self.bin_weights.device}, where the weights are, but got "
                f"{index.device}: move the weights by `weights.to(targets.device)`."
            )
        return self.bin_weights.flatten()[index]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TargetWeights":
        """Move the buffers and convert the weights, as ``.to()`` does, unless a weight is lost."""
        _check_converted(self.bin_weights, fn(self.bin_weights))
        counts = self.counts
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # in torch
        if self.counts.dtype != counts.dtype:  # Regions follow from them: none is rounded.
            self.counts = counts.to(self.counts.device)
        return self

    def get_extra_state(self) -> Tensor:
        """Return the edges for the ``state_dict``: weights belong to their bins.

        Returns:
            The edges of each axis, and then the number of bins of each, float64.
        """
        return edges_and_shape(self.bins)

    def set_extra_state(self, state: Tensor) -> None:
        """Raise if a ``state_dict`` was made with other bins.

        Args:
            state: What :meth:`get_extra_state` of its module returned.

        Raises:
            ValueError: If it differs from that of this module.
        """
        if not torch.equal(state.to("cpu", torch.float64), edges_and_shape(self.bins)):
            raise ValueError(
                f"Expected a state_dict of weights over {self.bins}, but got one over others: "
                f"{state}."
            )

    def extra_repr(self) -> str:
        """Return the bins, for ``repr``."""
        return repr(self.bins)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    r"""Return the balanced loss of a batch: losses times weights, averaged over all elements.

    .. math:: L = \frac{1}{N} \sum_i q(y_i) \, \ell_i

    Shapes are checked. In a hand-written product, ``(N,)`` times ``(N, 1)`` silently makes
    ``(N, N)``.

    Args:
        losses: Loss of each element, shape ``(N,)`` or ``(N, ...)``, in loss units.
        weights: Weight of each element, same shape, or shape ``(N,)`` for one weight per sample.

    Returns:
        The balanced loss, a 0-dim tensor, in loss units.

    Raises:
        TypeError: If ``losses`` or ``weights`` is not a tensor of real numbers.
        ValueError: If the shapes differ in any other way, or there is no element.

    References:
        Liu et al. (2025), `Balanced Sharpness-Aware Minimization for Imbalanced Regression
        <https://arxiv.org/abs/2508.16973>`_.

    Example:
        >>> import torch
        >>> from balanced_sam import weighted_mean
        >>> weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0]))
        tensor(2.5000)
    """
    check_real("losses", losses)
    check_real("weights", weights)
    if weights.shape != losses.shape:
        if weights.dim() != 1 or weights.shape != losses.shape[:1]:
            raise ValueError(
                "Expected `weights` to have the shape of `losses`, or (N,) for losses (N, ...), "
                f"but got weights {tuple(weights.shape)} and losses {tuple(losses.shape)}."
            )
        weights = weights.reshape(-1, *[1] * (losses.dim() - 1))
    if losses.numel() == 0:
        raise ValueError("Expected `losses` to hold at least one value, but got an empty tensor.")
    return (losses * weights).mean()


def _exponent(scheme: object) -> float:
    """Return the exponent that the scheme is or names."""
    if isinstance(scheme, numbers.Real) and not isinstance(scheme, bool):
        exponent = float(scheme)
        if not 0 <= exponent < math.inf:
            raise ValueError(
                f"Expected `scheme` to be an exponent of 0 or more, but got scheme={scheme}."
            )
        return exponent
    if not isinstance(scheme, str) or scheme not in _EXPONENTS:
        raise ValueError(
            "Expected `scheme` to be an exponent or one of 'inv', 'sqinv', 'none', but got "
            f"{scheme!r}."
        )
    return _EXPONENTS[scheme]


def _power(
    counts: Tensor, exponent: float, clip_counts: tuple[float, float] | None = None
) -> Tensor:
    """Return counts to the power of minus the exponent, and a finite weight for empty bins."""
    samples = counts.detach().to(torch.float64)
    bin_weights = 1 / _clip(samples, clip_counts).pow(exponent)
    if counts.dim() == 1:
        return _fill_empty(samples, bin_weights)
    return torch.where(samples > 0, bin_weights, bin_weights[samples > 0].max())


def _warn(weights: TargetWeights) -> None:
    """Warn of bins that do not say what is rare."""
    bins, is_occupied = weights.bins, weights.counts > 0
    occupied = weights.bin_weights[is_occupied]
    if isinstance(bins, TargetGrid):
        # Most bins of a grid are empty as soon as the targets have to do with each other.
        is_too_fine = len(bins) > int(weights.counts.sum())
        came = f"{bins} has more bins than there are samples"
    else:
        is_too_fine = len(occupied) < len(bins) / 2
        came = f"{len(bins) - len(occupied)} bins of {bins} are empty"
    if torch.allclose(occupied, occupied[0], atol=0):
        message = f"All target weights are the same over {bins}: they change nothing."
    elif is_too_fine:
        message = (
            f"{came}, so the weights rest on few samples each. Take fewer bins, `smoothing`, or "
            "the logarithm of targets with a heavy tail."
        )
    else:
        return
    warnings.warn(message, UserWarning, stacklevel=3)


def _check_converted(given: Tensor, converted: Tensor) -> None:
    """Raise if a weight becomes 0 or infinite in another dtype: its samples would not count."""
    if converted.dtype == given.dtype or converted.is_meta:
        return
    before, after = given.cpu(), converted.cpu()
    if not (torch.isfinite(after) & ((after > 0) == (before > 0))).all():
        raise ValueError(
            f"Expected all `bin_weights` to stay finite, and positive ones to stay positive, in "
            f"{converted.dtype}, but got values from {before.min().item():g} to "
            f"{before.max().item():g}. Normalize them, or take a dtype of a wider range."
        )


def _clip(counts: Tensor, clip_counts: tuple[float, float] | None) -> Tensor:
    """Return the counts held within ``clip_counts``."""
    if clip_counts is None:
        return counts
    try:
        low, high = clip_counts
        is_pair = 0 < low <= high
    except (TypeError, ValueError):  # no numbers, or not two
        is_pair = False
    if not is_pair:
        raise ValueError(
            "Expected `clip_counts` to be a pair with 0 < low <= high, where high may be "
            f"`math.inf`, but got {clip_counts!r}."
        )
    return counts.clamp(low, high)


def _fill_empty(counts: Tensor, bin_weights: Tensor) -> Tensor:
    """Return the weights, an empty bin's from the nearest occupied bin or from both at a tie."""
    occupied = (counts > 0).nonzero().squeeze(1)
    positions = torch.arange(len(counts), device=counts.device)
    before = torch.searchsorted(occupied, positions, right=True) - 1
    after = torch.searchsorted(occupied, positions)
    # Beyond the outermost occupied bins, both neighbors are that bin.
    left, right = occupied[before.clamp(min=0)], occupied[after.clamp(max=len(occupied) - 1)]
    # 1 where the left neighbor is nearer, 0 where the right one is, 1/2 at equal distance.
    share = (1 + torch.sign((right - positions).abs() - (positions - left).abs())) / 2
    return share * bin_weights[left] + (1 - share) * bin_weights[right]
