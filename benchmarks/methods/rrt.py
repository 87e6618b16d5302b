"""RRT: a vanilla network whose head is trained anew with weights (Yang et al., 2021)."""

from functools import partial

from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import weighted
from benchmarks.methods._optimizers import adam, base
from benchmarks.methods._stages import after_vanilla


def stages(recipe: Recipe, *, retrain_epochs: int, retrain_lr: float) -> list[Stage]:
    """Return the vanilla stage and that of the new head, with SQINV weights.

    For depth the released code trains the head by the recipe of the network: ``retrain_lr`` is 0.
    """
    by_adam = partial(adam, lr=retrain_lr, schedule="tenth_twice")
    head = Stage(
        weighted("sqinv"),
        by_adam if retrain_lr else base,
        epochs=retrain_epochs,
        part="head",
    )
    return after_vanilla(recipe, head)


METHOD = Method(
    title="RRT",
    stages=stages,
    constants={"retrain_epochs": 90, "retrain_lr": 1e-3},
    tuned={
        "nyud2_dir": {"retrain_epochs": 10, "retrain_lr": 0.0},
    },
    place=7,
)
