"""SAM on the unweighted loss (Foret et al., 2021)."""

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import weighted
from benchmarks.methods._sam import CONSTANTS, TUNED, two_passes

METHOD = Method(
    title="SAM",
    stages=two_passes(weighted("none")),
    constants=CONSTANTS,
    tuned=TUNED,
    place=11,
)
