"""Ablation of BSAM: INV weights instead of SQINV, in both passes."""

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import weighted
from benchmarks.methods._sam import CONSTANTS, TUNED, two_passes

METHOD = Method(
    title="BSAM, INV weights",
    stages=two_passes(weighted("inv")),
    constants=CONSTANTS,
    tuned=TUNED,
    place=16,
)
