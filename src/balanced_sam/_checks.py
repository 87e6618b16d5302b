"""The argument checks that several modules share, in one wording: what was expected, what came."""

import math
import numbers

import torch
from torch import Tensor


def check_rho(rho: object) -> float:
    """Return ``rho`` as a float; raise if it is not a non-negative, finite number."""
    if isinstance(rho, bool) or not isinstance(rho, numbers.Real):
        raise TypeError(f"Expected `rho` to be a number, but got {type(rho).__name__}.")
    value = float(rho)
    if not (math.isfinite(value) and value >= 0):
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


def check_counts(counts: Tensor, bins: int | None = None) -> None:
    """Raise if ``counts`` is not a non-negative vector with something in it, one entry a bin."""
    check_finite("counts", counts)
    if counts.dim() != 1 or (bins is not None and len(counts) != bins):
        expected = "(B,)" if bins is None else f"({bins},), one a bin"
        raise ValueError(
            f"Expected `counts` to have shape {expected}, but got {tuple(counts.shape)}."
        )
    if (counts < 0).any():
        raise ValueError(
            f"Expected `counts` to be non-negative, but got {counts.min().item()} "
            f"in bin {int(counts.argmin())}."
        )
    if not counts.any():
        raise ValueError("Expected `counts` to hold at least one sample, but got all zeros.")


def check_predictions(predictions: Tensor, targets: Tensor) -> None:
    """Raise if the two are not non-empty real tensors of one shape."""
    check_real("predictions", predictions)
    check_real("targets", targets)
    if predictions.shape != targets.shape:
        raise ValueError(
            "Expected `predictions` and `targets` to have the same shape, but got "
            f"{tuple(predictions.shape)} and {tuple(targets.shape)}."
        )
    if targets.numel() == 0:
        raise ValueError("Expected `targets` to hold at least one value, but got an empty tensor.")
