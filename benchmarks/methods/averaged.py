"""An average of the weights over training predicts, its BatchNorm statistics estimated anew."""

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks.experiment.dataset import Splits
from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import weighted
from benchmarks.methods._optimizers import base


class Averaged(nn.Module):
    """A network that trains, and whose exponential average predicts.

    The average passes each training batch forward, too, where there is BatchNorm, whose statistics
    are not an average: they come from these passes. Of the passes in a table they are none.

    Args:
        network: What trains.
        decay: Of the average at each step, in the end. After t steps it is (1 + t) / (10 + t) at
            most, or the average would long hold the weights of the start.
    """

    steps: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.network = network
        # AveragedModel would take the network's statistics, or average them.
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.register_buffer("steps", torch.tensor(0))
        self.has_statistics = any(isinstance(layer, _BatchNorm) for layer in network.modules())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the predictions of the network in training, else of the average."""
        if not self.training:
            return self.average(inputs)
        self._update()
        if self.has_statistics:
            with torch.no_grad():
                self.average(inputs)
        return self.network(inputs)

    def _update(self) -> None:
        steps = self.steps.item()
        update = get_ema_multi_avg_fn(min(self.decay, (1 + steps) / (10 + steps)))
        update(list(self.average.parameters()), list(self.network.parameters()), steps)
        self.steps += 1


def _averaged(network: nn.Module, splits: Splits, *, decay: float) -> nn.Module:
    return Averaged(network, decay)


def _stages(recipe: Recipe, *, exponent: float, decay: float) -> list[Stage]:
    made = partial(_averaged, decay=decay)
    return [Stage(weighted(exponent), base, recipe.epochs, network=made)]


METHOD = Method(
    title="Weight average",
    stages=_stages,
    constants={"exponent": 0.5, "decay": 0.999},
    tuned={
        "airports": {"exponent": 1.0, "decay": 0.99},
        "melting_points": {"epochs": 40, "decay": 0.99},
        "rooms": {"exponent": 1.0, "decay": 0.99},
        "rotated_and_scaled_digits": {"exponent": 0.75, "decay": 0.99},
        "rotated_digits": {"decay": 0.99},
        "satellite_elevation": {"epochs": 20, "exponent": 1.0, "decay": 0.99},
    },
    place=7,
)
