"""SAM on the unweighted loss (Foret et al., 2021)."""

from benchmarks.objectives import weighted
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="SAM",
    summary="loss unweighted, two passes",
    stages=whole(weighted("none"), balanced_sam),
    constants=("rho", "rho_warmup_epochs"),
)
