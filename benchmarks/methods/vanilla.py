"""Vanilla: the loss unweighted, one pass."""

from benchmarks.objectives import weighted
from benchmarks.optimizers import base
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="Vanilla",
    summary="loss unweighted, one pass",
    stages=whole(weighted("none"), base),
)
