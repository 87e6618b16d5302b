"""BSAM with the BatchNorm statistics of the first pass alone; the paper's code takes both."""

from functools import partial

from benchmarks.objectives import weighted
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="BSAM, statistics of the clean pass",
    summary="BSAM whose second pass leaves the BatchNorm statistics alone",
    stages=whole(weighted("sqinv"), partial(balanced_sam, clean_statistics=True)),
    constants=("rho", "rho_warmup_epochs"),
)
