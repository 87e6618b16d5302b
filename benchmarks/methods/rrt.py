"""RRT: a vanilla network whose last layer is trained anew with weights (Yang et al., 2021)."""

from functools import partial

from benchmarks.objectives import weighted
from benchmarks.optimizers import adam
from benchmarks.protocol import Method, Recipe, Stage
from benchmarks.stages import after_vanilla


def stages(recipe: Recipe) -> list[Stage]:
    """Return the vanilla stage and that of the new head, with SQINV weights."""
    head = Stage(
        weighted("sqinv"),
        partial(adam, recipe.retrain_lr),
        epochs=recipe.retrain_epochs,
        part="new head",
    )
    return after_vanilla(recipe, head)


METHOD = Method(
    title="RRT",
    summary="vanilla, then the last layer anew with weights 1/sqrt(n)",
    stages=stages,
    constants=("retrain_epochs", "retrain_lr"),
)
