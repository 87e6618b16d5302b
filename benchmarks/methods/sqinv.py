"""SQINV: samples weighted by the inverse root of their bin's count (Yang et al., 2021)."""

from benchmarks.objectives import weighted_l1
from benchmarks.optimizers import sgd
from benchmarks.protocol import Method

METHOD = Method(
    title="SQINV",
    summary="weights 1/sqrt(n), one pass",
    objective=weighted_l1("sqinv"),
    optimizers=sgd,
)
