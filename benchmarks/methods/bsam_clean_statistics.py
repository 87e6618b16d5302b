"""BSAM with the BatchNorm statistics of the first pass alone; the paper's code takes both."""

from balanced_sam import frozen_running_stats
from benchmarks.experiment.method import Method
from benchmarks.methods._losses import weighted
from benchmarks.methods._sam import CONSTANTS, TUNED, two_passes

METHOD = Method(
    title="BSAM, statistics of the clean pass",
    stages=two_passes(
        weighted("sqinv"), descent=lambda network, objective: frozen_running_stats(network)
    ),
    constants=CONSTANTS,
    tuned=TUNED,
    place=15,
)
