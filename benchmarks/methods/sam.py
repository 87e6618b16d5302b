"""SAM on the unweighted loss (Foret et al., 2021)."""

from benchmarks.objectives import weighted_l1
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method

METHOD = Method(
    title="SAM",
    summary="loss unweighted, two passes",
    objective=weighted_l1("none"),
    optimizers=balanced_sam,
)
