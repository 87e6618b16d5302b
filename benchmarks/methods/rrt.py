"""RRT: a vanilla network whose last layer is trained anew with weights (Yang et al., 2021)."""

from functools import partial

from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import weighted
from benchmarks.methods._optimizers import adam
from benchmarks.methods._stages import after_vanilla


def stages(recipe: Recipe, *, retrain_epochs: int, retrain_lr: float) -> list[Stage]:
    """Return the vanilla stage and that of the new head, with SQINV weights."""
    head = Stage(
        weighted("sqinv"),
        partial(adam, retrain_lr),
        epochs=retrain_epochs,
        part="head",
    )
    return after_vanilla(recipe, head)


METHOD = Method(
    title="RRT",
    summary="vanilla, then the last layer anew with weights 1/sqrt(n)",
    stages=stages,
    constants={"retrain_epochs": 30, "retrain_lr": 1e-3},
    tuned={
        "nyud2_dir": {"retrain_epochs": 3},
        "rooms": {"retrain_epochs": 5, "retrain_lr": 0.1},
        "rotated_digits": {"retrain_lr": 1.0},
    },
    place=7,
)
