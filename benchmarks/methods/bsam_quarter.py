"""BSAM whose first pass has a quarter of the batch, drawn by weight."""

from functools import partial

from benchmarks.objectives import weighted
from benchmarks.optimizers import balanced_sam
from benchmarks.protocol import Method
from benchmarks.stages import whole

METHOD = Method(
    title="BSAM, quarter",
    summary="BSAM whose ascent takes a quarter of the batch, drawn by weight",
    stages=whole(
        weighted("sqinv"),
        partial(balanced_sam, drawn_ascent=True, rho="rho_quarter"),
    ),
    constants=("rho_quarter", "rho_warmup_epochs"),
)
