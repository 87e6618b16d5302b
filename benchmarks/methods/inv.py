"""INV: samples weighted by the inverse of their bin's count, one pass (Yang et al., 2021)."""

from benchmarks.objectives import weighted
from benchmarks.optimizers import base
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="INV",
    summary="weights 1/n, one pass",
    stages=whole(weighted("inv"), base),
)
