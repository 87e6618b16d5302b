"""SQINV: samples weighted by the inverse root of their bin's count (Yang et al., 2021)."""

from benchmarks.objectives import weighted
from benchmarks.optimizers import base
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="SQINV",
    summary="weights 1/sqrt(n), one pass",
    stages=whole(weighted("sqinv"), base),
)
