"""The argument checks that several modules share, in one wording: what was expected, what came."""

import math
import numbers

import torch
from torch import Tensor


def check_type(name: str, value: object, *expected: type) -> None:
    """Raise if ``value`` is not an instance of one of ``expected``."""
    if not isinstance(value, expected):
        names = " or ".join(kind.__name__ for kind in expected)
        raise TypeError(f"Expected `{name}` to be {names}, but got {type(value).__name__}.")


def check_callable(name: str, value: object) -> None:
    """Raise if ``value`` cannot be called."""
    if not callable(value):
        raise TypeError(f"Expected `{name}` to be callable, but got {type(value).__name__}.")


def check_number(name: str, value: object) -> float:
    """Return ``value`` as a float; raise if it is no number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"Expected `{name}` to be a number, but got {type(value).__name__}.")
    return float(value)


def check_rho(rho: object) -> float:
    """Return ``rho`` as a float; raise if it is not a non-negative, finite number."""
    value = rho if type(rho) is float else check_number("rho", rho)
    if not 0 <= value < math.inf:
        raise ValueError(f"Expected `rho` to be non-negative and finite, but got rho={rho}.")
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise if ``value`` is none of ``choices``."""
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Expected `{name}` to be one of {expected}, but got {value!r}.")


def check_real(name: str, values: object) -> None:
    """Raise if ``values`` is not a tensor of real numbers."""
    if not isinstance(values, Tensor):
        raise TypeError(f"Expected `{name}` to be a torch.Tensor, but got {type(values).__name__}.")
    if values.is_complex() or values.dtype is torch.bool:
        raise TypeError(
            f"Expected `{name}` to hold floats or integers, but got dtype {values.dtype}."
        )


def check_finite(name: str, values: Tensor) -> None:
    """Raise if ``values`` is empty or holds NaN or infinity (reads the values: waits for a GPU)."""
    check_real(name, values)
    if values.numel() == 0:
        raise ValueError(f"Expected `{name}` to hold at least one value, but got an empty tensor.")
    bad = ~torch.isfinite(values)
    if bad.any():
        raise ValueError(
            f"Expected `{name}` to be finite, but got {int(bad.sum())} NaN or infinite values "
            f"among {values.numel()}."
        )


def check_one_target(name: str, values: Tensor) -> None:
    """Raise if the values look like several targets per sample, which need a grid of bins."""
    if values.dim() == 2 and values.shape[1] > 1:
        raise ValueError(
            f"Expected `{name}` to hold one target a sample, shape (N,), (N, 1) or maps "
            f"(N, H, W), but got {tuple(values.shape)}. Several targets a sample need a "
            "TargetGrid; flatten values that are all of one kind."
        )


def check_counts(
    counts: Tensor, shape: tuple[int, ...] | None = None, *, name: str = "counts"
) -> None:
    """Raise if ``counts`` is negative somewhere, all zeros, or not one entry per bin."""
    check_finite(name, counts)
    if shape is not None and counts.shape != shape:
        raise ValueError(
            f"Expected `{name}` to have shape {shape}, one a bin, but got {tuple(counts.shape)}."
        )
    if (counts < 0).any():
        raise ValueError(
            f"Expected `{name}` to be non-negative, but got {counts.min().item()} "
            f"in bin {int(counts.argmin())}."
        )
    if not counts.any():
        raise ValueError(f"Expected `{name}` to hold at least one sample, but got all zeros.")


def check_predictions(predictions: Tensor, targets: Tensor) -> None:
    """Raise if the two are not real tensors of one shape and device."""
    check_real("predictions", predictions)
    check_real("targets", targets)
    if predictions.shape != targets.shape:
        raise ValueError(
            "Expected `predictions` and `targets` to have the same shape, but got "
            f"{tuple(predictions.shape)} and {tuple(targets.shape)}."
        )
    if predictions.device != targets.device:
        raise ValueError(
            "Expected `predictions` and `targets` on one device, but got "
            f"{predictions.device} and {targets.device}."
        )
