r"""
Target bins
===========

The bins of four kinds of targets, and a grid of two targets. :doc:`/bins` says what to do with
each.
"""

# %%
# A bar is a bin: its height is the number of samples per unit of the target, its color the region.

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.distributions import Gamma, LogNormal, NegativeBinomial

from balanced_sam import ShotRegions, TargetBins, TargetGrid, region_report

COLORS = {"many": "#0072B2", "medium": "#009E73", "few": "#D55E00"}


def draw(axes: plt.Axes, targets: Tensor, bins: TargetBins, label: str) -> None:
    """Draw the density of the targets in each bin, colored by region."""
    counts = bins.counts(targets)
    regions = ShotRegions.from_counts(bins, counts)
    density = counts / bins.edges.diff()
    for region, color in COLORS.items():
        heights = density.where(regions.bin_mask(region), 0)
        axes.stairs(heights, bins.edges, fill=True, color=color, label=f"{region}-shot")
    axes.set(xlabel=label, yscale="log", title=f"{len(bins)} bins")


def draw_one(targets: Tensor, bins: TargetBins, label: str) -> None:
    """Draw a figure of one kind of bins."""
    _, axes = plt.subplots(figsize=(5, 2.6), dpi=150, layout="constrained")
    draw(axes, targets, bins, label)
    axes.set_ylabel("Samples per unit")
    axes.legend(fontsize=9)
    plt.show()


# %%
# A heavy tail
# ------------
# Most bins of equal width are empty. Edges that grow with the target leave none empty.

torch.manual_seed(0)
prices = LogNormal(0.0, 1.5).sample((4000,))
edges = torch.logspace(prices.min().log2(), prices.max().log2(), 21, base=2)

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), dpi=150, layout="constrained")
draw(left, prices, TargetBins.from_targets(prices), "Price")
draw(right, prices, TargetBins(edges), "Price")
right.set_xscale("log")
left.set_ylabel("Samples per unit")
left.legend(fontsize=9)
plt.show()

# %%
# The logarithm
# -------------
# The logarithm of the same targets has no heavy tail. Now the lowest are rare, too.

logarithms = prices.log()
draw_one(logarithms, TargetBins.from_targets(logarithms), "Logarithm of the price")

# %%
# Many zeros
# ----------
# The zeros fill the first bin; the others tell the positive targets apart.

rain = Gamma(2.0, 1 / 8).sample((4000,)) * (torch.rand(4000) < 0.3)
draw_one(rain, TargetBins.from_targets(rain), "Rain (mm)")

# %%
# Whole numbers
# -------------
# The edges lie between whole numbers, and each bin covers equally many of them.

visits = NegativeBinomial(2.0, torch.tensor(0.8)).sample((4000,))
draw_one(visits, TargetBins.from_targets(visits), "Visits")

# %%
# Two targets
# -----------
# A grid has a bin for each combination. Here the report draws the error of predicting the mean; a
# dot is a few-shot bin; an empty one has no color.

pairs = torch.randn(4000, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.5]])
grid = TargetGrid.from_targets(pairs, 12)
regions = ShotRegions.from_counts(grid, grid.counts(pairs))
figure, axes = plt.subplots(figsize=(5, 4), dpi=150, layout="constrained")
# sphinx_gallery_thumbnail_number = 5
region_report(pairs.mean(dim=0).expand_as(pairs), pairs, regions).plot(ax=axes)
plt.show()
