"""What is true of a method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.recipe import Recipe

Objective = Callable[[Dataset, Recipe, Splits], nn.Module]
"""Make the training loss, a function of the network, inputs and targets.

Its parameters, if it has any, are learned too, with the learning rate in its attribute ``lr``.
"""

Optimizers = Callable[[nn.Module, Recipe, nn.Module], tuple[Optimizer, list[LRScheduler]]]
"""Make the optimizer and what is stepped after each epoch, of the network, whose frozen parts stay
as they are, the recipe and the loss."""


def unchanged(network: nn.Module, splits: Splits) -> nn.Module:
    """Return the data set's network."""
    return network


@dataclass(frozen=True)
class Stage:
    """A part of training: from the start, or from what the stage before ended with.

    Of a data set with several selections, that is the network of the first.
    """

    objective: Objective
    optimizers: Optimizers
    epochs: int
    part: Literal["network", "head"] = "network"
    """What is trained. The head alone starts anew, and of the rest nothing moves but the statistics
    of BatchNorm."""
    network: Callable[[nn.Module, Splits], nn.Module] = unchanged
    """Make what is trained and predicts, of the data set's network and the data."""


@dataclass(frozen=True)
class Method:
    """All that is true of a method."""

    title: str
    stages: Callable[..., list[Stage]]
    """The parts of training, in their order: a function of the recipe, and by name of the method's
    constants."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """What the method has of its own, with the values of a data set on which nothing was tuned."""
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Other values, by data set, of the constants and of entries of the recipe."""
    place: int = 100
    """Where its row stands in a table; the same places by name."""
