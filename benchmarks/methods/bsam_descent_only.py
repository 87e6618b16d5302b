"""Ablation of BSAM: SQINV weights in the descent, none in the ascent."""

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import unweighted, weighted
from benchmarks.methods._sam import CONSTANTS, TUNED, two_passes

METHOD = Method(
    title="BSAM, weights in the descent only",
    stages=two_passes(weighted("sqinv"), ascent=unweighted),
    constants=CONSTANTS,
    tuned=TUNED,
    place=14,
)
