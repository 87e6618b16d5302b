"""LDS: weights of label counts smoothed over neighbouring targets (Yang et al., 2021).

The weights are SQINV for ages and INV for depth, as in the paper's tables.
"""

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import weighted
from benchmarks.methods._stages import whole

METHOD = Method(
    title="LDS",
    stages=whole(weighted(None, smoothed=True)),
    place=5,
)
