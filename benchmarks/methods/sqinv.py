"""SQINV: samples weighted by the inverse root of their bin's count (Yang et al., 2021)."""

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import weighted
from benchmarks.methods._stages import whole

METHOD = Method(
    title="SQINV",
    stages=whole(weighted("sqinv")),
    place=3,
)
