"""Label density: the counts per bin, smoothed over neighboring bins (LDS)."""

import math
import numbers
from typing import Literal

import torch
from torch import Tensor

from balanced_sam._checks import check_choice, check_counts, check_number

Kernel = Literal["gaussian", "triangular", "laplace"]
Boundary = Literal["zeros", "reflect"]


def smooth_counts(
    counts: Tensor,
    *,
    kernel: Kernel = "gaussian",
    size: int = 5,
    sigma: float = 2.0,
    boundary: Boundary = "zeros",
) -> Tensor:
    r"""Return the effective counts of label distribution smoothing (LDS).

    .. math:: \tilde{n_k} = \sum_j \kappa(k - j) \, n_j , \qquad \max_j \kappa(j) = 1

    The kernels are the ones in the benchmark code that comes with the paper, so that results can be
    compared. Its ``"gaussian"`` is **not** the plain Gaussian: the code filters an impulse of only
    ``size`` entries with reflecting borders, which folds the tails back in. Size 5 and sigma 2 give
    [.858, .946, 1, .946, .858], nearly a box, where the plain Gaussian has [.607, .882, 1, ...].

    Args:
        counts: Samples per bin, or any non-negative function of them, shape ``(B,)``; the counts of
            a grid, shape ``(B_1, ..., B_d)``, are smoothed along each axis.
        kernel: ``"gaussian"`` (as above), ``"triangular"`` (falls to 0 at distance
            ``(size + 1) / 2``; ignores ``sigma``) or ``"laplace"`` (:math:`e^{-|j| / \sigma}`).
        size: Number of bins under the kernel, odd.
        sigma: Width of the kernel, in bins, positive.
        boundary: What lies outside the range: ``"zeros"``, or ``"reflect"`` for the counts mirrored
            at the border (``n_1 n_0 | n_0 n_1``), as the paper's depth experiment does.

    Returns:
        Effective counts, shape of ``counts``, float64, in samples.

    Raises:
        ValueError: If ``counts`` holds a negative number or no sample, or an option is out of its
            range.

    References:
        Yang et al. (2021), `Delving into Deep Imbalanced Regression
        <https://arxiv.org/abs/2102.09554>`_, Section 3.1.

    Example:
        >>> import torch
        >>> from balanced_sam import smooth_counts
        >>> smooth_counts(torch.tensor([0, 0, 9, 0]), kernel="triangular", size=3)
        tensor([0.0000, 4.5000, 9.0000, 4.5000], dtype=torch.float64)
    """
    check_counts(counts)
    check_choice("kernel", kernel, ("gaussian", "triangular", "laplace"))
    check_choice("boundary", boundary, ("zeros", "reflect"))
    if not isinstance(size, numbers.Integral) or size < 1 or size % 2 == 0:
        raise ValueError(f"Expected `size` to be an odd positive integer, but got size={size!r}.")
    if not 0 < check_number("sigma", sigma) < math.inf:
        raise ValueError(f"Expected `sigma` to be positive and finite, but got sigma={sigma}.")
    size = int(size)
    values = counts.detach().to("cpu", torch.float64)
    window = values.new_tensor(_window(kernel, size, sigma))
    for axis in range(values.dim()):
        padded = _pad(values.movedim(axis, -1), size // 2, boundary)
        values = (padded.unfold(-1, size, 1) @ window).movedim(-1, axis)
    return values.to(counts.device)


def _window(kernel: Kernel, size: int, sigma: float) -> list[float]:
    """Return the kernel at distances -size//2 to size//2, its maximum 1."""
    distances = [abs(j - size // 2) for j in range(size)]
    if kernel == "triangular":
        window = [1 - distance / ((size + 1) / 2) for distance in distances]
    elif kernel == "laplace":
        window = [math.exp(-distance / sigma) for distance in distances]
    else:
        window = _folded_gaussian(size, sigma)
    peak = max(window)
    return [value / peak for value in window]


def _folded_gaussian(size: int, sigma: float) -> list[float]:
    """Return an impulse in the middle of ``size`` entries after a reflecting Gaussian filter."""
    radius = int(4 * sigma + 0.5)  # where the benchmark code's filter cuts its tails
    window = []
    for position in range(size):
        # The middle of an odd number of entries is mirrored to every `size`-th place.
        first = (size // 2 - position + radius) % size - radius
        steps = range(first, radius + 1, size)
        window.append(sum(math.exp(-0.5 * (step / sigma) ** 2) for step in steps))
    return window


def _pad(values: Tensor, width: int, boundary: Boundary) -> Tensor:
    """Extend ``values`` by ``width`` entries on both sides of the last axis."""
    if boundary == "zeros":
        return torch.nn.functional.pad(values, (width, width))
    size = values.shape[-1]
    return values[..., [_reflect(position, size) for position in range(-width, size + width)]]


def _reflect(position: int, size: int) -> int:
    """Return the entry that ``position`` falls on, the borders being mirrors (b a | a b | b a)."""
    position %= 2 * size
    return min(position, 2 * size - 1 - position)
