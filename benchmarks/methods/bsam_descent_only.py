"""Ablation of BSAM: SQINV weights in the descent, none in the ascent."""

from functools import partial

from benchmarks.objectives import weighted
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="BSAM, weights in the descent only",
    summary="weights 1/sqrt(n) in the second pass only",
    stages=whole(weighted("sqinv"), partial(balanced_sam, unweighted_ascent=True)),
    constants=("rho", "rho_warmup_epochs"),
)
