"""The picture of a report: the error in each bin over the target, the regions shaded."""

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from balanced_sam._regions import REGIONS, Region, ShotRegions

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

# Told apart by the color-blind, and seen on white as on black.
_COLORS: dict[Region, str] = {"many": "#0072B2", "medium": "#009E73", "few": "#D55E00"}


def plot_by_bin(
    by_bin: Mapping[str, list[float]],
    regions: ShotRegions,
    labels: Mapping[Region, str],
    ax: "matplotlib.axes.Axes | None",
) -> "tuple[matplotlib.figure.Figure, matplotlib.axes.Axes]":
    """Draw ``"MAE"`` over the target and ``"count"`` above it; return the figure and the axes."""
    try:
        import matplotlib.pyplot as plt
        from mpl_toolkits.axes_grid1 import (  # type: ignore[import-untyped]  # Has no types.
            make_axes_locatable,
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected matplotlib, which draws the plot, to be installed, but it is not: "
            "`pip install matplotlib`."
        ) from error
    ax = plt.subplots()[1] if ax is None else ax
    # Takes its room from `ax`, wherever that lies.
    above = make_axes_locatable(ax).append_axes("top", size="25%", pad=0.08, sharex=ax)
    edges = regions.bins.edges.tolist()
    for region in sorted(set(regions.labels), key=REGIONS.index):
        bins = regions.bin_mask(region).nonzero().flatten().tolist()
        left, width = [edges[k] for k in bins], [edges[k + 1] - edges[k] for k in bins]
        color, label = _COLORS[region], labels[region]
        for axes, name in ((ax, "MAE"), (above, "count")):
            heights = [by_bin[name][k] for k in bins]
            axes.bar(left, heights, width, align="edge", color=color, label=label)
    start = 0
    for region, run in groupby(regions.labels):
        stop = start + len(list(run))
        ax.axvspan(edges[start], edges[stop], color=_COLORS[region], alpha=0.2, linewidth=0)
        start = stop
    occupied = [k for k, count in enumerate(by_bin["count"]) if count] or range(len(edges) - 1)
    ax.set(xlabel="target", ylabel="MAE", xlim=(edges[occupied[0]], edges[occupied[-1] + 1]))
    ax.margins(y=0.4)  # room for the legend
    ax.legend(loc="upper center")
    # Bins of one sample are seen beside those of thousands.
    above.set(ylabel="count", ylim=(0.5, 2 * max(5, *by_bin["count"])))
    above.set_yscale("log")
    above.tick_params(labelbottom=False)
    return ax.figure, ax  # type: ignore[return-value]  # A subfigure does as well.
