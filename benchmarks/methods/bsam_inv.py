"""Ablation of BSAM: INV weights instead of SQINV, in both passes."""

from benchmarks.objectives import weighted
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="BSAM, INV weights",
    summary="weights 1/n in both passes",
    stages=whole(weighted("inv"), balanced_sam),
    constants=("rho", "rho_warmup_epochs"),
)
