"""Arguments of a wrong kind that a user comes up with: each public name says which one is wrong."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import balanced_sam
from balanced_sam import (
    BalancedSAM,
    ShotRegions,
    TargetBins,
    TargetGrid,
    TargetWeights,
    balanced_mean_absolute_error,
    frozen_running_stats,
    geometric_mean_error,
    inverse_weights,
    mean_absolute_error,
    region_report,
    root_mean_squared_error,
    smooth_counts,
    sqrt_inverse_weights,
    threshold_accuracy,
    weighted_mean,
)
from balanced_sam.torchmetrics import RegionMetrics

Bins = TargetBins | TargetGrid
BINS = TargetBins([0.0, 1.0, 2.0])
GRID = TargetGrid(BINS)
REGIONS = ShotRegions(BINS, ["many", "few"])
COUNTS, TARGETS = torch.tensor([4, 1]), torch.tensor([0.5, 0.5, 1.5])
WEIGHTS = TargetWeights(BINS, COUNTS, COUNTS)
PAIR = {"predictions": TARGETS, "targets": TARGETS}

# What comes in place of each kind of argument
WRONG: dict[type, list[Any]] = {
    Tensor: [[0.5, 1.5], np.array([0.5, 1.5]), 0.5, None, torch.tensor([True, False])],
    TargetBins: [[0.0, 1.0, 2.0], BINS.edges, 2, REGIONS],
    Bins: [[0.0, 1.0, 2.0], BINS.edges, 2, REGIONS],
    TargetWeights: [BINS, COUNTS, None],
    ShotRegions: [BINS, ["many", "few"], None],
    nn.Module: [[nn.Linear(1, 1)], nn.Linear, None],
    float: [None, "1", torch.ones(2)],
}


def enter(module: Any) -> None:
    with frozen_running_stats(module):
        pass


def wrap(rho: float) -> object:
    layer = nn.Linear(1, 1)
    return BalancedSAM(layer.parameters(), torch.optim.SGD(layer.parameters()), rho=rho)


CALLS: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "BalancedSAM": (wrap, {"rho": 0.05}),
    "ShotRegions": (ShotRegions, {"bins": BINS, "labels": REGIONS.labels}),
    "ShotRegions.from_counts": (ShotRegions.from_counts, {"bins": BINS, "counts": COUNTS}),
    "ShotRegions.mask": (REGIONS.mask, {"targets": TARGETS, "region": "few"}),
    "ShotRegions.from_weights": (ShotRegions.from_weights, {"weights": WEIGHTS}),
    "TargetBins.from_targets": (TargetBins.from_targets, {"targets": TARGETS}),
    "TargetBins.uniform": (TargetBins.uniform, {"low": 0.0, "high": 2.0, "width": 1.0}),
    "TargetBins.index": (BINS.index, {"targets": TARGETS}),
    "TargetBins.counts": (BINS.counts, {"targets": TARGETS}),
    "TargetGrid": (TargetGrid, {"bins": BINS}),
    "TargetGrid.from_targets": (TargetGrid.from_targets, {"targets": TARGETS[:, None]}),
    "TargetGrid.index": (GRID.index, {"targets": TARGETS[:, None]}),
    "TargetGrid.counts": (GRID.counts, {"targets": TARGETS[:, None]}),
    "TargetWeights": (TargetWeights, {"bins": BINS, "counts": COUNTS, "bin_weights": COUNTS}),
    "TargetWeights.from_targets": (TargetWeights.from_targets, {"targets": TARGETS, "bins": BINS}),
    "TargetWeights.from_counts": (TargetWeights.from_counts, {"bins": BINS, "counts": COUNTS}),
    "TargetWeights.forward": (TargetWeights(BINS, COUNTS, COUNTS), {"targets": TARGETS}),
    "balanced_mean_absolute_error": (balanced_mean_absolute_error, PAIR | {"bins": BINS}),
    "frozen_running_stats": (enter, {"module": nn.BatchNorm1d(2)}),
    "geometric_mean_error": (geometric_mean_error, PAIR),
    "inverse_weights": (inverse_weights, {"counts": COUNTS}),
    "mean_absolute_error": (mean_absolute_error, PAIR),
    "region_report": (region_report, PAIR | {"regions": REGIONS}),
    "root_mean_squared_error": (root_mean_squared_error, PAIR),
    "smooth_counts": (smooth_counts, {"counts": COUNTS}),
    "sqrt_inverse_weights": (sqrt_inverse_weights, {"counts": COUNTS}),
    "threshold_accuracy": (threshold_accuracy, PAIR),
    "torchmetrics.RegionMetrics": (RegionMetrics, {"regions": REGIONS}),
    "torchmetrics.RegionMetrics.update": (RegionMetrics(REGIONS).update, PAIR),
    "weighted_mean": (weighted_mean, {"losses": TARGETS, "weights": TARGETS}),
}


def with_star(name: str, call: Callable[..., object], given: dict[str, Any]) -> None:
    """Call it; a grid takes its bins one after the other."""
    call(*given.values()) if name == "TargetGrid" else call(**given)


def arguments() -> Iterator[tuple[str, str, type]]:
    """Yield each public name with each argument of it that is of one of the kinds."""
    public = {name: getattr(balanced_sam, name) for name in balanced_sam.__all__}
    public["torchmetrics.RegionMetrics"] = RegionMetrics
    for owner, value in list(public.items()):
        members = vars(value) if inspect.isclass(value) else ()
        public |= {f"{owner}.{name}": getattr(value, name) for name in members if name[0] != "_"}
    # Torch calls the one, region_report the other.
    del public["TargetWeights.set_extra_state"], public["RegionReport"]
    for name, value in public.items():
        for parameter in inspect.signature(value).parameters.values() if callable(value) else ():
            for kind in WRONG:
                if parameter.annotation in (kind, kind | None):
                    yield name, parameter.name, kind


ARGUMENTS = sorted(arguments(), key=str)


def test_every_public_name_that_takes_such_arguments_is_called() -> None:
    assert CALLS.keys() == {name for name, _, _ in ARGUMENTS}
    for name, (call, valid) in CALLS.items():
        with_star(name, call, valid)


@pytest.mark.parametrize(
    ("name", "argument", "wrong"),
    [
        pytest.param(name, argument, wrong, id=f"{name}-{argument}-{type(wrong).__name__}")
        for name, argument, kind in ARGUMENTS
        for wrong in WRONG[kind]
    ],
)
def test_argument_of_a_wrong_kind_is_named(name: str, argument: str, wrong: Any) -> None:
    call, valid = CALLS[name]
    with pytest.raises(TypeError, match=rf"^Expected `{argument}` to (be|hold) .*, but got .*\.$"):
        with_star(name, call, valid | {argument: wrong})
