"""Vanilla: the loss unweighted, one pass."""

from benchmarks.objectives import weighted_l1
from benchmarks.optimizers import sgd
from benchmarks.protocol import Method

METHOD = Method(
    title="Vanilla",
    summary="loss unweighted, one pass",
    objective=weighted_l1("none"),
    optimizers=sgd,
)
