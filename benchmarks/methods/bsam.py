"""BSAM: SAM on the SQINV-weighted loss, both passes weighted (Liu et al., 2025)."""

from benchmarks.objectives import weighted_l1
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method

METHOD = Method(
    title="BSAM",
    summary="weights 1/sqrt(n) in both passes",
    objective=weighted_l1("sqinv"),
    optimizers=balanced_sam,
)
