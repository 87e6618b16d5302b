"""SQINV for twice the epochs: the control that spends as many passes as SAM and BSAM."""

from benchmarks.objectives import weighted
from benchmarks.optimizers import base
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="SQINV, twice the epochs",
    summary="weights 1/sqrt(n), one pass, as many passes in all as BSAM",
    stages=whole(weighted("sqinv"), base, epochs_factor=2),
)
