"""Optimizers that several methods share, each with its schedule per epoch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import cos, pi
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from balanced_sam import BalancedSAM, LambdaRho, frozen_running_stats
from benchmarks.protocol import Recipe

OptimizerAndSchedules = tuple[Optimizer, list[LRScheduler]]

BASES: dict[str, Callable[[Recipe], Callable[[Any], Optimizer]]] = {
    "sgd": lambda recipe: partial(
        SGD, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    ),
    "adam": lambda recipe: partial(Adam, lr=recipe.lr, weight_decay=recipe.weight_decay),
}

SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda epoch, epochs: _half_cosine(epoch / epochs),
    # As in the code of BSAM: counted from 1, down to a thousandth.
    "cosine_from_one": lambda epoch, epochs: 1e-3 + (1 - 1e-3) * _half_cosine((epoch + 1) / epochs),
    "tenth_halfway": lambda epoch, epochs: 0.1 if 2 * epoch >= epochs else 1.0,
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
    unweighted_ascent: bool = False,
    unweighted_descent: bool = False,
    clean_statistics: bool = False,
    drawn_ascent: bool = False,
    rho: str = "rho",
) -> OptimizerAndSchedules:
    """BalancedSAM over the recipe's optimizer; rho grows to its value at the start.

    Args:
        network: What is trained.
        recipe: Its entries.
        objective: The loss.
        unweighted_ascent: Leave the weights out in the first pass.
        unweighted_descent: Leave them out in the second.
        clean_statistics: Take the BatchNorm statistics of the first pass alone.
        drawn_ascent: Take a part of the batch, drawn by weight, in the first pass.
        rho: Which entry of the recipe is the radius.
    """
    contexts: dict[str, Any] = {}
    if unweighted_ascent:
        contexts["ascent_context"] = objective.unweighted
    if unweighted_descent:
        contexts["descent_context"] = objective.unweighted
    if clean_statistics:
        contexts["descent_context"] = partial(frozen_running_stats, network)
    if drawn_ascent:
        contexts["ascent_context"] = partial(_drawing, network, objective)
    optimizer = BalancedSAM(
        _groups(network, objective),
        BASES[recipe.optimizer](recipe),
        rho=getattr(recipe, rho),
        **contexts,
    )
    warmup = LambdaRho(optimizer, partial(_warmup, epochs=recipe.rho_warmup_epochs))
    return optimizer, [_schedule(optimizer, recipe), warmup]


def adam(
    lr: float, network: nn.Module, recipe: Recipe, objective: nn.Module
) -> OptimizerAndSchedules:
    """Adam at a constant rate, for the stages that train the head alone."""
    return Adam(_groups(network, objective), lr=lr), []


@contextmanager
def _drawing(network: nn.Module, objective: nn.Module) -> Iterator[None]:
    """Pass a part of the batch through, which is too small for the running statistics."""
    with objective.drawing(), frozen_running_stats(network):
        yield


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


def _factor(epoch: int, *, schedule: str, epochs: int) -> float:
    return SCHEDULES[schedule](epoch, epochs)


def _constant(epoch: int) -> float:
    return 1.0


def _half_cosine(share: float) -> float:
    return (1 + cos(pi * share)) / 2


def _warmup(epoch: int, *, epochs: int) -> float:
    return min(1.0, (epoch + 1) / max(epochs, 1))
