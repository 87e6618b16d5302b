"""BSAM that perturbs the normalisation layers alone (Mueller et al., 2023)."""

from functools import partial

from benchmarks.objectives import weighted
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="BSAM, normalisation",
    summary="BSAM that perturbs the normalisation layers alone",
    stages=whole(
        weighted("sqinv"),
        partial(balanced_sam, only_normalization=True, rho="rho_norm"),
    ),
    constants=("rho_norm", "rho_warmup_epochs"),
)
