"""Balanced MSE, BMC: how frequent a target is, the batch itself knows (Ren et al., 2022)."""

from functools import partial

from benchmarks.experiment.method import Method
from benchmarks.methods._balanced_mse import BMC, CONSTANTS, TUNED, stages

METHOD = Method(
    title="Balanced MSE (BMC)",
    stages=partial(stages, objective=BMC),
    constants=CONSTANTS,
    tuned=TUNED,
    place=10,
)
