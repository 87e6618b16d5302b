"""
Error over the target range
===========================

The test error in each target bin, drawn from the records of the benchmark.
"""

# %%
# The records lie in the source repository beside the library, a file for each run. This script
# trains nothing. In a clone, ``PYTHONPATH=. python docs/gallery/error_by_bin.py`` runs it. The task
# is airports: predict the elevation of an airport from its coordinates.

import matplotlib.pyplot as plt

from benchmarks.results.families import FOLDER
from benchmarks.results.plots import error_by_target
from benchmarks.results.results import Results

plt.rcParams["figure.dpi"] = 150


def draw(exponent):
    """Draw the error of weights alone and of BSAM, with the weights n^-exponent."""
    results = Results("airports", FOLDER / exponent)
    figure = error_by_target(results, methods=("weighted", "bsam_weighted"))
    figure.set_size_inches(5, 5)
    plt.show()


# %%
# Without weights
# ---------------
# Each line is a mean over five folds and two seeds. The error is smallest where training samples
# are many, and grows with the elevation.

draw("0")

# %%
# With weights 1 / n
# ------------------
# Every bin counts alike in the loss. High places come out better, and low ones worse. A gap between
# two lines is no proof of a difference: :doc:`Does it pay? </pays>` has the intervals.

draw("1")
