"""The picture of a report: the error in each bin against the target, with shaded regions."""

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from balanced_sam._regions import REGIONS, Region, ShotRegions

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

# Told apart by the color-blind, and seen on white as on black.
_COLORS: dict[Region, str] = {"many": "#0072B2", "medium": "#009E73", "few": "#D55E00"}


def plot_by_bin(
    by_bin: Mapping[str, list[Any]],
    metric: str,
    regions: ShotRegions,
    labels: Mapping[Region, str],
    ax: "matplotlib.axes.Axes | None",
) -> "tuple[matplotlib.figure.Figure, matplotlib.axes.Axes]":
    """Draw a metric and the counts of each bin; return the figure and the metric's axes."""
    if len(regions.bins.axes) > 2:
        raise ValueError(
            f"Expected one or two targets to draw, but got {len(regions.bins.axes)}: their errors "
            "per bin are in `by_bin`."
        )
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected matplotlib, which draws the plot, to be installed, but it is not: "
            "`pip install matplotlib`."
        ) from error
    ax = plt.subplots()[1] if ax is None else ax
    draw = _bars if len(regions.bins.axes) == 1 else _heat_map
    draw(by_bin["count"], by_bin[metric], metric, regions, labels, ax)
    return ax.figure, ax  # type: ignore[return-value]  # A subfigure does as well.


def _bars(
    counts: list[float],
    errors: list[float],
    metric: str,
    regions: ShotRegions,
    labels: Mapping[Region, str],
    ax: "matplotlib.axes.Axes",
) -> None:
    """Draw the metric against the target, with shaded regions and the counts above."""
    from mpl_toolkits.axes_grid1 import (  # type: ignore[import-untyped]  # Has no types.
        make_axes_locatable,
    )

    # Takes its room from `ax`, wherever that lies.
    above = make_axes_locatable(ax).append_axes("top", size="25%", pad=0.08, sharex=ax)
    edges = regions.bins.axes[0].edges.tolist()
    for region in sorted(set(regions.labels), key=REGIONS.index):
        bins = regions.bin_mask(region).nonzero().flatten().tolist()
        left, width = [edges[k] for k in bins], [edges[k + 1] - edges[k] for k in bins]
        color, label = _COLORS[region], labels[region]
        for axes, values in ((ax, errors), (above, counts)):
            heights = [values[k] for k in bins]
            axes.bar(left, heights, width, align="edge", color=color, label=label)
    start = 0
    for region, run in groupby(regions.labels):
        stop = start + len(list(run))
        ax.axvspan(edges[start], edges[stop], color=_COLORS[region], alpha=0.2, linewidth=0)
        start = stop
    occupied = [k for k, count in enumerate(counts) if count] or range(len(edges) - 1)
    ax.set(xlabel="target", ylabel=metric, xlim=(edges[occupied[0]], edges[occupied[-1] + 1]))
    ax.margins(y=0.4)  # room for the legend
    ax.legend(loc="upper center")
    # Bins of one sample are seen beside those of thousands.
    above.set(ylabel="count", ylim=(0.5, 2 * max(5, *counts)))
    above.set_yscale("log")
    above.tick_params(labelbottom=False)


def _heat_map(
    counts: list[list[float]],
    errors: list[list[float]],
    metric: str,
    regions: ShotRegions,
    labels: Mapping[Region, str],
    ax: "matplotlib.axes.Axes",
) -> None:
    """Draw the metric as a color over both targets, and a dot in the few-shot bins."""
    first, second = (axis.edges.numpy() for axis in regions.bins.axes)
    mesh = ax.pcolormesh(first, second, list(zip(*errors, strict=True)))
    ax.figure.colorbar(mesh, ax=ax, label=metric)
    rows, columns = np.nonzero(regions.bin_mask("few").numpy() & (np.array(counts) > 0))
    centers = [(edges[1:] + edges[:-1]) / 2 for edges in (first, second)]
    ax.plot(centers[0][rows], centers[1][columns], "o", ms=3, mfc="white", mec="black", mew=0.5)
    ax.set(xlabel="target 0", ylabel="target 1")
    lines = [labels["many"], labels["medium"], f"{labels['few']} (dots)"]
    ax.set_title("\n".join(lines), fontsize="small")
