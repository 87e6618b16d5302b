"""BSAM: SAM on the SQINV-weighted loss, both passes weighted (Liu et al., 2025)."""

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import weighted
from benchmarks.methods._sam import CONSTANTS, TUNED, two_passes

METHOD = Method(
    title="BSAM",
    stages=two_passes(weighted("sqinv")),
    constants=CONSTANTS,
    tuned=TUNED,
    place=12,
)
