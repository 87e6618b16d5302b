"""Ablation of BSAM: SQINV weights in the ascent, none in the descent."""

from functools import partial

from benchmarks.objectives import weighted
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="BSAM, weights in the ascent only",
    summary="weights 1/sqrt(n) in the first pass only",
    stages=whole(weighted("sqinv"), partial(balanced_sam, unweighted_descent=True)),
    constants=("rho", "rho_warmup_epochs"),
)
