"""Ablation of BSAM: SQINV weights in the descent, none in the ascent."""

from functools import partial

from benchmarks.objectives import weighted_l1
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method

METHOD = Method(
    title="BSAM, weights in the descent only",
    summary="weights 1/sqrt(n) in the second pass only",
    objective=weighted_l1("sqinv"),
    optimizers=partial(balanced_sam, unweighted_ascent=True),
)
