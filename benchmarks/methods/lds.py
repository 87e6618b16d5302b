"""LDS: weights of label counts smoothed over neighbouring targets (Yang et al., 2021).

The weights are SQINV for ages and INV for depth, as in the paper's tables.
"""

from benchmarks.objectives import weighted
from benchmarks.optimizers import base
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="LDS",
    summary="weights of smoothed counts, one pass",
    stages=whole(weighted(None, smoothed=True), base),
)
