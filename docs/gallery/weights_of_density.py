r"""
Density and weights
===================

What weight INV and SQINV give to a target, with and without LDS and clipping.
"""

# %%
# From a count to a weight
# ------------------------
# INV weights a bin of :math:`n` samples by :math:`1/n`, SQINV by :math:`1/\sqrt n`
# (:func:`~balanced_sam.inverse_weights`, :func:`~balanced_sam.sqrt_inverse_weights`). On two
# logarithmic scales both are straight lines, SQINV with half the slope. A number as ``scheme`` is
# the slope itself. ``clip_counts=(5, 1000)`` treats every bin of fewer than 5 samples as one of 5.

from functools import partial

import matplotlib.pyplot as plt
import torch

from balanced_sam import (
    ShotRegions,
    TargetWeights,
    inverse_weights,
    smooth_counts,
    sqrt_inverse_weights,
)

INV, SQINV = "#D55E00", "#0072B2"

samples = torch.arange(1, 3001)
figure, axes = plt.subplots(figsize=(5, 3.2), dpi=150, layout="constrained")
axes.loglog(samples, inverse_weights(samples), color=INV, label="INV")
clipped = inverse_weights(samples, clip_counts=(5, 1000))
axes.loglog(samples, clipped, ":", color=INV, lw=3, label="INV, clipped")
axes.loglog(samples, sqrt_inverse_weights(samples), color=SQINV, label="SQINV")
axes.set_xlabel("Training samples in the bin")
axes.set_ylabel("Raw weight")
axes.legend(fontsize=9)
plt.show()

# %%
# Over the target range
# ---------------------
# The targets are waiting times, as on the page about :ref:`the label density
# <sphx_glr_generated_gallery_label_density.py>`. :class:`~balanced_sam.TargetWeights` scales the
# weights so that their mean over the training samples is 1. LDS evens out the differences between
# neighboring bins. At the ends of the range a part of its kernel finds no samples, so that its
# weights rise; ``boundary="reflect"`` holds them down.

torch.manual_seed(0)
targets = torch.distributions.Gamma(2.0, 1 / 8).sample((4000,))

fit = partial(TargetWeights.from_targets, targets)
sqinv = fit()
schemes = {
    "INV": (fit(scheme="inv"), INV, "-"),
    "INV, clipped": (fit(scheme="inv", clip_counts=(5, 1000)), INV, ":"),
    "INV, LDS": (fit(scheme="inv", smoothing=smooth_counts), INV, "--"),
    "SQINV": (sqinv, SQINV, "-"),
    "SQINV, LDS": (fit(smoothing=smooth_counts), SQINV, "--"),
}

figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(5, 5), dpi=150, sharex=True, height_ratios=[1, 3], layout="constrained"
)
edges = sqinv.bins.edges
top.stairs(sqinv.counts, edges, fill=True, color="#777777")
top.set_ylabel("Samples\nper bin")
for name, (weights, color, line) in schemes.items():
    style = {"color": color, "ls": line, "lw": 1.6, "label": name}
    bottom.stairs(weights.bin_weights, edges, baseline=None, **style)
bottom.axhline(1, color="#999999", linewidth=1, zorder=0)
bottom.set_yscale("log")
bottom.set_xlim(edges[0], edges[-1])
bottom.set_xlabel("Target (waiting time, minutes)")
bottom.set_ylabel("Weight (mean over samples: 1)")
bottom.legend(fontsize=9)
plt.show()

# %%
# How far do they go?
# -------------------
# The largest weight of a training sample, and the share of all weight that lies on the few-shot
# samples. A sample of a large weight moves the network far when it comes. Clipping lowers the
# largest
# weight of INV, and the root in SQINV lowers it more. On these targets LDS hardly changes the
# largest weight of INV and raises the largest weight of SQINV.

few = ShotRegions.from_weights(sqinv).mask(targets, "few")
print(f"{'':12}  largest  few-shot")
print(f"{'none':12}  {1:7.1f}  {few.float().mean():8.1%}")
for name, (weights, _, _) in schemes.items():
    of_sample = weights(targets)
    print(f"{name:12}  {of_sample.max():7.1f}  {of_sample[few].sum() / of_sample.sum():8.1%}")
