"""Vanilla: the loss unweighted, one pass."""

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import weighted
from benchmarks.methods._stages import whole

METHOD = Method(
    title="Vanilla",
    stages=whole(weighted("none")),
    place=1,
)
