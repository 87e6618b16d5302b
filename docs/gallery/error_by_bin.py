"""
Error over the target range
===========================

The test error in each target bin, drawn from the records of the benchmark.
"""

# %%
# The records lie in the source repository beside the library, a file for each run. This script
# trains nothing. In a clone, ``PYTHONPATH=. python docs/gallery/error_by_bin.py`` runs it. The task
# is rotated digits: by how much is a handwritten digit rotated?

import matplotlib.pyplot as plt

from benchmarks.results.plots import error_by_target
from benchmarks.results.results import Results

plt.rcParams["figure.dpi"] = 150

results = Results("rotated_digits")
for method in results.methods:
    print(f"{method:22} {len(results.seeds(method)):2} seeds")

# %%
# BSAM beside its parts
# ---------------------
# BSAM is SQINV and SAM together. Each run is tested at the epoch with the lowest validation error;
# the lines are means over the seeds. The error is smallest where training samples are many and
# grows towards both ends, for every method. SAM alone, without weights, is lowest where samples are
# many and highest where they are few.

figure = error_by_target(results)
figure.set_size_inches(5, 5)
plt.show()

# %%
# BSAM beside others
# ------------------
# RRT and Balanced MSE (GAI) train a network without weights and then train a new last layer alone
# against the skew. A gap between two lines is no proof of a difference: the tables of the
# :doc:`results </results>` have the intervals, for each region.

figure = error_by_target(results, methods=("rrt", "balanced_mse_gai", "bsam"))
figure.set_size_inches(5, 5)
plt.show()
