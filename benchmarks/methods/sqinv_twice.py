"""SQINV for twice the epochs: the control that spends as many passes as SAM and BSAM."""

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import weighted
from benchmarks.methods._stages import whole

METHOD = Method(
    title="SQINV, twice the epochs",
    stages=whole(weighted("sqinv"), epochs_factor=2),
    place=4,
)
