"""BSAM: SAM on the SQINV-weighted loss, both passes weighted (Liu et al., 2025)."""

from benchmarks.objectives import weighted
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="BSAM",
    summary="weights 1/sqrt(n) in both passes",
    stages=whole(weighted("sqinv"), balanced_sam),
    constants=("rho", "rho_warmup_epochs"),
)
