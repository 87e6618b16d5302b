"""Optimizers that several methods share, each with its schedule per epoch."""

from collections.abc import Callable, Iterable
from functools import partial

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from balanced_sam import BalancedSAM, LambdaRho
from benchmarks.protocol import Recipe

Optimizers = tuple[Optimizer, list[LRScheduler]]


def sgd(parameters: Iterable[nn.Parameter], recipe: Recipe, objective: nn.Module) -> Optimizers:
    """SGD with momentum, the learning rate a half cosine."""
    optimizer = _sgd(recipe)(parameters)
    return optimizer, [CosineAnnealingLR(optimizer, T_max=recipe.epochs)]


def balanced_sam(
    parameters: Iterable[nn.Parameter],
    recipe: Recipe,
    objective: nn.Module,
    *,
    unweighted_ascent: bool = False,
    unweighted_descent: bool = False,
) -> Optimizers:
    """BalancedSAM over SGD with momentum: the same, and rho grows to its value at the start."""
    contexts: dict[str, Callable[[], object]] = {}
    if unweighted_ascent:
        contexts["ascent_context"] = objective.unweighted
    if unweighted_descent:
        contexts["descent_context"] = objective.unweighted
    optimizer = BalancedSAM(parameters, _sgd(recipe), rho=recipe.rho, **contexts)
    warmup = LambdaRho(optimizer, partial(_warmup, epochs=recipe.rho_warmup_epochs))
    return optimizer, [CosineAnnealingLR(optimizer, T_max=recipe.epochs), warmup]


def _sgd(recipe: Recipe) -> Callable[[Iterable[nn.Parameter]], SGD]:
    return partial(SGD, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _warmup(epoch: int, *, epochs: int) -> float:
    return min(1.0, (epoch + 1) / max(epochs, 1))
