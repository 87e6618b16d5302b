"""Ablation of BSAM: SQINV weights in the ascent, none in the descent."""

from functools import partial

from benchmarks.objectives import weighted_l1
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method

METHOD = Method(
    title="BSAM, weights in the ascent only",
    summary="weights 1/sqrt(n) in the first pass only",
    objective=weighted_l1("sqinv"),
    optimizers=partial(balanced_sam, unweighted_descent=True),
)
