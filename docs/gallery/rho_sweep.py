"""
The error against rho
=====================

How the validation error depends on the radius of the perturbation, drawn from the records of the
benchmark.
"""

# %%
# Every point is the mean of a few runs that differ from the recipe in ``rho`` alone. Like all
# tuning it looks at validation data, never at the test set. Mind the error axes: they do not begin
# at 0, and each has its own range. In a clone,
# ``PYTHONPATH=. python docs/gallery/rho_sweep.py`` runs this script. It trains nothing.

import matplotlib.pyplot as plt

from benchmarks.results.plots import rho_sweep

plt.rcParams["figure.dpi"] = 150

# %%
# Rotated digits
# --------------
# Over all targets the error hardly depends on rho in this range. That of the few-shot targets does
# so more, without a trend: few samples and few seeds make it uncertain.

figure = rho_sweep("rotated_digits")
plt.show()

# %%
# Rooms
# -----
# The target is the depth of a pixel, in metres. With another network and another loss the values of
# rho are far smaller, and the largest of them has the highest error for both methods. So rho has to
# be tuned for each task.

figure = rho_sweep("rooms")
plt.show()
