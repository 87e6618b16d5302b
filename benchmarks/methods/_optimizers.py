"""Optimizers that several methods share, each with its schedule per epoch."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from math import cos, pi
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from balanced_sam import BalancedSAM, LambdaRho
from benchmarks.experiment.recipe import Descent, Recipe, Schedule

OptimizerAndSchedules = tuple[Optimizer, list[LRScheduler]]
Context = Callable[[nn.Module, nn.Module], AbstractContextManager[Any]]
"""Makes the context of a pass, of the network and the loss."""

BASES: dict[Descent, Callable[[Recipe], Callable[[Any], Optimizer]]] = {
    "sgd": lambda recipe: partial(
        SGD, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    ),
    "adam": lambda recipe: partial(Adam, lr=recipe.lr, weight_decay=recipe.weight_decay),
}

SCHEDULES: dict[Schedule, Callable[[int, int], float]] = {
    "cosine": lambda epoch, epochs: _half_cosine(epoch / epochs),
    # As in the code of BSAM: counted from 1, down to a thousandth.
    "cosine_from_one": lambda epoch, epochs: 1e-3 + (1 - 1e-3) * _half_cosine((epoch + 1) / epochs),
    "tenth_halfway": lambda epoch, epochs: 0.1 if 2 * epoch >= epochs else 1.0,
    # As in the code of DIR for ages: from 60 and from 80 of 90.
    "tenth_twice": lambda epoch, epochs: (
        0.1 ** ((3 * epoch >= 2 * epochs) + (9 * epoch >= 8 * epochs))
    ),
    "constant": lambda epoch, epochs: 1.0,
}
"""The learning rate's factor in an epoch, counted from 0, of so many."""


def base(network: nn.Module, recipe: Recipe, objective: nn.Module) -> OptimizerAndSchedules:
    """The recipe's optimizer, one pass a step."""
    optimizer = BASES[recipe.optimizer](recipe)(_groups(network, objective))
    return optimizer, [_schedule(optimizer, recipe)]


def balanced_sam(
    network: nn.Module,
    recipe: Recipe,
    objective: nn.Module,
    *,
    rho: float,
    warmup_epochs: int,
    ascent: Context | None = None,
    descent: Context | None = None,
) -> OptimizerAndSchedules:
    """BalancedSAM over the recipe's optimizer; rho grows to its value at the start.

    Args:
        network: What is trained.
        recipe: Its entries.
        objective: The loss.
        rho: Radius of the perturbation.
        warmup_epochs: Epochs over which rho grows linearly to its value.
        ascent: Makes what the first pass runs in.
        descent: Makes what the second pass runs in.
    """
    contexts = {"ascent_context": ascent, "descent_context": descent}
    optimizer = BalancedSAM(
        _groups(network, objective),
        BASES[recipe.optimizer](recipe),
        rho=rho,
        **{k: partial(make, network, objective) for k, make in contexts.items() if make},
    )
    warmup = LambdaRho(optimizer, partial(_warmup, epochs=warmup_epochs))
    return optimizer, [_schedule(optimizer, recipe), warmup]


def adam(
    network: nn.Module,
    recipe: Recipe,
    objective: nn.Module,
    *,
    lr: float,
    schedule: Schedule = "constant",
) -> OptimizerAndSchedules:
    """Adam without weight decay, for stages that train the head alone."""
    own = replace(recipe, optimizer="adam", lr=lr, weight_decay=0.0, schedule=schedule)
    return base(network, own, objective)


def _groups(network: nn.Module, objective: nn.Module) -> list[dict[str, Any]]:
    """Return the parameter groups: what the stage trains, and the loss's own if it learns any."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in network.parameters() if p.requires_grad]}
    ]
    if learned := list(objective.parameters()):
        groups.append({"params": learned, "lr": objective.lr, "weight_decay": 0.0})
    return groups


def _schedule(optimizer: Optimizer, recipe: Recipe) -> LRScheduler:
    """Return the schedule of the network's group; what the loss learns keeps its rate."""
    factor = partial(_factor, schedule=recipe.schedule, epochs=recipe.epochs)
    others = [_constant] * (len(optimizer.param_groups) - 1)
    return LambdaLR(optimizer, [factor, *others])


def _factor(epoch: int, *, schedule: Schedule, epochs: int) -> float:
    return SCHEDULES[schedule](epoch, epochs)


def _constant(epoch: int) -> float:
    return 1.0


def _half_cosine(share: float) -> float:
    return (1 + cos(pi * share)) / 2


def _warmup(epoch: int, *, epochs: int) -> float:
    return min(1.0, (epoch + 1) / max(epochs, 1))
