"""
Label density and LDS
=====================

How many training samples each target bin holds, and what label distribution smoothing (LDS) makes
of it.
"""

# %%
# The targets are waiting times, drawn from a gamma distribution: most are short, a few are long.
# :class:`~balanced_sam.TargetBins` cuts their range and counts them, and
# :class:`~balanced_sam.ShotRegions` calls a bin many-shot above 100 samples and few-shot below 20.

import matplotlib.pyplot as plt
import torch

from balanced_sam import ShotRegions, TargetBins, smooth_counts

torch.manual_seed(0)
targets = torch.distributions.Gamma(2.0, 1 / 8).sample((4000,))
bins = TargetBins.from_targets(targets)
counts = bins.counts(targets)
regions = ShotRegions.from_counts(bins, counts)
print(bins)
print(regions)

# %%
# LDS
# ---
# :func:`~balanced_sam.smooth_counts` adds up neighboring bins under a kernel whose largest value
# is 1, so its effective counts are higher than the counts. To draw both in one picture we divide by
# the sum of the kernel: that is what one sample adds to all effective counts together. For weights
# of mean 1 such a factor does not matter.

impulse = torch.zeros(len(bins))
impulse[len(bins) // 2] = 1
kernel_sum = smooth_counts(impulse).sum()
density = smooth_counts(counts) / kernel_sum
print(f"Sum of the kernel: {kernel_sum:.2f}")

# %%
# Both panels show the same counts. The lower one has a logarithmic scale, on which one sees that
# LDS evens out the tail.

SHADES = {"many": "#ffffff", "medium": "#ececec", "few": "#d4d4d4"}

figure, panels = plt.subplots(2, 1, figsize=(5, 5.4), dpi=150, sharex=True, layout="constrained")
for axes in panels:
    for left, right, region in zip(bins.edges, bins.edges[1:], regions.labels, strict=False):
        axes.axvspan(left, right, color=SHADES[region], linewidth=0)
    axes.stairs(counts, bins.edges, fill=True, color="#0072B2", label="Samples")
    axes.stairs(density, bins.edges, baseline=None, color="#D55E00", linewidth=1.8, label="LDS")
    axes.set_ylabel("Training samples per bin")
panels[0].set_ylim(bottom=0)
panels[1].set_yscale("log")
panels[1].set_ylim(0.5, 1000)
panels[1].set_xlim(bins.edges[0], bins.edges[-1])
panels[1].set_xlabel("Target (waiting time, minutes)")

handles, labels = panels[0].get_legend_handles_labels()
handles += [plt.Rectangle((0, 0), 1, 1, fc=shade, ec="#999999") for shade in SHADES.values()]
labels += [f"{region.capitalize()}-shot" for region in SHADES]
panels[0].legend(handles, labels, fontsize=9)
plt.show()
