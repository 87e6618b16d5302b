"""INV: samples weighted by the inverse of their bin's count, one pass (Yang et al., 2021)."""

from benchmarks.objectives import weighted_l1
from benchmarks.optimizers import sgd
from benchmarks.protocol import Method

METHOD = Method(
    title="INV",
    summary="weights 1/n, one pass",
    objective=weighted_l1("inv"),
    optimizers=sgd,
)
