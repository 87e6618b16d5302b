"""Weights, metrics and Balanced Sharpness-Aware Minimization for rare target values in PyTorch."""

from balanced_sam._batch_norm import frozen_running_stats
from balanced_sam._bins import TargetBins
from balanced_sam._density import smooth_counts
from balanced_sam._grid import TargetGrid
from balanced_sam._metrics import (
    RegionReport,
    balanced_mean_absolute_error,
    geometric_mean_error,
    mean_absolute_error,
    region_report,
    root_mean_squared_error,
    threshold_accuracy,
)
from balanced_sam._optimizer import BalancedSAM
from balanced_sam._regions import ShotRegions
from balanced_sam._schedule import LambdaRho
from balanced_sam._weights import (
    TargetWeights,
    inverse_weights,
    sqrt_inverse_weights,
    weighted_mean,
)

__version__ = "0.1.0"

__all__ = [
    "BalancedSAM",
    "LambdaRho",
    "RegionReport",
    "ShotRegions",
    "TargetBins",
    "TargetGrid",
    "TargetWeights",
    "balanced_mean_absolute_error",
    "frozen_running_stats",
    "geometric_mean_error",
    "inverse_weights",
    "mean_absolute_error",
    "region_report",
    "root_mean_squared_error",
    "smooth_counts",
    "sqrt_inverse_weights",
    "threshold_accuracy",
    "weighted_mean",
]
