"""SQINV for twice the epochs: the control that spends as many passes as SAM and BSAM."""

from benchmarks.objectives import weighted_l1
from benchmarks.optimizers import sgd
from benchmarks.protocol import Method

METHOD = Method(
    title="SQINV, twice the epochs",
    summary="weights 1/sqrt(n), one pass, as many passes in all as BSAM",
    objective=weighted_l1("sqinv"),
    optimizers=sgd,
    epochs_factor=2,
)
