"""Random perturbation: steps at weights with noise on each filter, one pass (Li et al., 2022)."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.experiment.dataset import Dataset
from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import WeightedLoss, weighted
from benchmarks.methods._stages import whole


class NoisyLoss(WeightedLoss):
    r"""A weighted loss of the network at :math:`w + \epsilon`.

    An element of a filter :math:`w_j` is moved by Gaussian noise with the standard deviation
    :math:`\sigma \lVert w_j \rVert`, which counts as a constant. Vectors, biases and the scales of
    BatchNorm, stay where they are. This is the perturbed half of the published loss, whose other
    half, the loss without noise, would be a second pass.

    References:
        Li et al. (2022), `Efficient Generalization Improvement Guided by Random Weight Perturbation
        <https://arxiv.org/abs/2211.11489>`_.
    """

    def __init__(self, dataset: Dataset, weights: nn.Module, *, noise_scale: float) -> None:
        super().__init__(dataset, weights)
        self.noise_scale = noise_scale

    def forward(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of the network with noise on a batch, 0-dim."""
        noisy = {
            name: parameter + self._noise(parameter.detach())
            for name, parameter in network.named_parameters()
            if parameter.dim() > 1
        }
        return self.of(functional_call(network, noisy, (inputs,)), targets)

    def _noise(self, weights: Tensor) -> Tensor:
        norms = weights.flatten(1).norm(dim=1).view(-1, *[1] * (weights.dim() - 1))
        return self.noise_scale * norms * torch.randn_like(weights)


def _stages(recipe: Recipe, *, exponent: float, noise_scale: float) -> list[Stage]:
    return whole(weighted(exponent, kind=partial(NoisyLoss, noise_scale=noise_scale)))(recipe)


METHOD = Method(
    title="Random perturbation",
    stages=_stages,
    constants={"exponent": 0.5, "noise_scale": 0.01},
    tuned={
        "airports": {"epochs": 80, "exponent": 1.0, "noise_scale": 0.003},
        "melting_points": {"epochs": 40, "exponent": 1.0},
    },
    place=7,
)
