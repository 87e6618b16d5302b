"""BSAM that perturbs the normalisation layers along the gradient of a quarter of the batch."""

from functools import partial

from benchmarks.objectives import weighted
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="BSAM, normalisation, quarter",
    summary="BSAM on the normalisation layers, whose ascent takes a quarter of the batch",
    stages=whole(
        weighted("sqinv"),
        partial(balanced_sam, drawn_ascent=True, only_normalization=True, rho="rho_norm_quarter"),
    ),
    constants=("rho_norm_quarter", "rho_warmup_epochs"),
)
