"""INV: samples weighted by the inverse of their bin's count, one pass (Yang et al., 2021)."""

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import weighted
from benchmarks.methods._stages import whole

METHOD = Method(
    title="INV",
    stages=whole(weighted("inv")),
    place=2,
)
