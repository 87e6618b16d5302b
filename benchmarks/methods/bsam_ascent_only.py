"""Ablation of BSAM: SQINV weights in the ascent, none in the descent."""

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import unweighted, weighted
from benchmarks.methods._sam import CONSTANTS, TUNED, two_passes

METHOD = Method(
    title="BSAM, weights in the ascent only",
    stages=two_passes(weighted("sqinv"), descent=unweighted),
    constants=CONSTANTS,
    tuned=TUNED,
    place=13,
)
