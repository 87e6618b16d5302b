"""Hypothesis strategies for targets, bins, counts, regions and predictions."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from balanced_sam import ShotRegions, TargetBins

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INT_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# Two targets a sample need a grid.
shapes = (
    st.lists(st.integers(1, 4), max_size=3)
    .map(tuple)
    .filter(lambda shape: len(shape) != 2 or shape[1] == 1)
)


def rounded(value: float, dtype: torch.dtype) -> float:
    """Return the value in ``dtype``."""
    return torch.tensor(value, dtype=dtype).item()


@st.composite
def bins(draw: st.DrawFn, *, max_bins: int = 12) -> TargetBins:
    """Bins with edges between -100 and 100, arbitrary but apart in every dtype."""
    edges = st.floats(-100, 100, allow_subnormal=False) | st.integers(-100, 100).map(float)
    # float32 and float64 tell apart what these do.
    apart = (lambda edge: rounded(edge, torch.float16), lambda edge: rounded(edge, torch.bfloat16))
    drawn = draw(st.lists(edges, min_size=2, max_size=max_bins + 1, unique_by=apart))
    return TargetBins(sorted(drawn))


@st.composite
def counts(draw: st.DrawFn, *, min_bins: int = 1, max_bins: int = 30) -> Tensor:
    """Samples per bin, empty bins among them, at least one sample in all."""
    sizes = st.just(0) | st.integers(0, 30) | st.integers(0, 10**6)
    drawn = st.lists(sizes, min_size=min_bins, max_size=max_bins).filter(any)
    return torch.tensor(draw(drawn))


@st.composite
def targets_for(draw: st.DrawFn, bins: TargetBins, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Targets of any shape: on the edges, between them and outside."""
    shape = draw(shapes)
    if dtype.is_floating_point:
        values: st.SearchStrategy[Any] = st.sampled_from(bins.edges.tolist()) | st.floats(-150, 150)
    else:
        low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        values = st.integers(max(low, -150), min(high, 150))
    size = int(torch.Size(shape).numel())
    drawn = draw(st.lists(values, min_size=size, max_size=size))
    return torch.tensor(drawn, dtype=torch.float64).to(dtype).reshape(shape)


@st.composite
def regions(draw: st.DrawFn, *, max_bins: int = 12) -> ShotRegions:
    """Explicit labels over arbitrary bins; a region may have no bin."""
    drawn = draw(bins(max_bins=max_bins))
    labels = st.sampled_from(["many", "medium", "few"])
    return ShotRegions(drawn, draw(st.lists(labels, min_size=len(drawn), max_size=len(drawn))))


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], *, extreme: bool = False) -> Tensor:
    """Real numbers of any sign, dtype and, if ``extreme``, any magnitude of float64."""
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.int64]))
    if dtype is torch.int64:
        values: st.SearchStrategy[Any] = st.integers(-150, 150)
    elif dtype is torch.float64 and extreme:
        values = st.floats(allow_nan=False, allow_infinity=False)
    else:
        values = st.floats(-150, 150, width=16) | st.integers(-3, 3).map(float)
    size = int(torch.Size(shape).numel())
    drawn = draw(st.lists(values, min_size=size, max_size=size))
    return torch.tensor(drawn, dtype=dtype).reshape(shape)


@st.composite
def prediction_pairs(draw: st.DrawFn, *, extreme: bool = False) -> tuple[Tensor, Tensor]:
    """Predictions and targets of one shape; exact hits, zeros and negatives occur."""
    shape = draw(shapes)
    targets = draw(tensors(shape, extreme=extreme))
    predictions = draw(tensors(shape, extreme=extreme))
    if draw(st.booleans()):
        exact = draw(st.lists(st.booleans(), min_size=targets.numel(), max_size=targets.numel()))
        predictions = torch.where(torch.tensor(exact).reshape(shape), targets, predictions)
    return predictions, targets
