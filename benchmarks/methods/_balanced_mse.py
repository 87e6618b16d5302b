"""What the forms of Balanced MSE share (Ren et al., 2022): noise scale, scaling, BMC and stages.

Both are the negative log-likelihood of a target under Gaussian noise around the prediction, were
all targets equally frequent. They differ in how they know how frequent a target is.
"""

import math
from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.method import Objective, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import Loss
from benchmarks.methods._optimizers import adam
from benchmarks.methods._stages import after_vanilla, whole

CONSTANTS = {
    "balanced_mse_epochs": 10,
    "balanced_mse_lr": 1e-4,
    "noise_sigma": 10.0,
    "noise_sigma_lr": 1e-2,
}
"""Epochs on a new head after another stage, or 0 for a published method to train the whole network
from the start; the learning rate of that head, by Adam; where the noise scale starts, in target
units; and its learning rate, 0 to keep it as it is."""
_OF_DEPTH: dict[str, Any] = {"noise_sigma": 1.0, "noise_sigma_lr": 0.0}
TUNED_HEAD: dict[str, dict[str, Any]] = {
    # As many steps as ten epochs of IMDB-WIKI-DIR, of which the published constants are.
    "agedb_dir": {"balanced_mse_epochs": 156},
    "nyud2_dir": _OF_DEPTH,
    "rooms": _OF_DEPTH,
}
"""Where a head is trained after another network."""
TUNED = TUNED_HEAD | {
    name: _OF_DEPTH | {"balanced_mse_epochs": 0} for name in ("nyud2_dir", "rooms")
}
"""Of the published methods, which train a depth network from the start."""


GROUP_SIZE = 256
"""Targets that are compared with each other at most: a batch of the ages recipe."""


class BalancedMSE(Loss):
    """The mean negative log-likelihood times twice the variance of the noise, held constant.

    Targets below the lowest bin that holds a training target do not count: the released code
    leaves depths below 0.7 m out of the loss, where a rotation has blurred or emptied the border
    of a map. Of ages there are none.
    """

    sigma: Tensor
    """Scale of the noise, 0-dim, in target units: learned, or as the recipe fixes it."""

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        splits: Splits,
        *,
        noise_sigma: float,
        noise_sigma_lr: float,
    ) -> None:
        if len(dataset.bins.axes) > 1:
            raise ValueError(
                f"Expected one target a sample for Balanced MSE, but {dataset.title} has "
                f"{len(dataset.bins.axes)}."
            )
        super().__init__()
        if not 0 < noise_sigma < math.inf:
            raise ValueError(
                "Expected `noise_sigma` to be positive and finite, but got "
                f"noise_sigma={noise_sigma}."
            )
        self.bins = dataset.bins
        self.lowest_bin = int(splits.train_counts.nonzero()[0])
        self.lr = noise_sigma_lr
        sigma = torch.tensor(noise_sigma)
        if self.lr > 0:
            self.sigma = nn.Parameter(sigma)
        else:
            self.register_buffer("sigma", sigma)

    def of(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of predictions, 0-dim, in squared target units."""
        counted = self.bins.index(targets) >= self.lowest_bin
        variance = self.sigma.square()
        losses = self.losses(predictions[counted], targets[counted], variance)
        # A batch in which nothing counts has the loss 0, not 0/0.
        return losses.sum() / max(len(losses), 1) * (2 * variance).detach()

    @abstractmethod
    def losses(self, predictions: Tensor, targets: Tensor, variance: Tensor) -> Tensor:
        """Return the negative log-likelihoods.

        Args:
            predictions: Predictions, shape ``(N,)``, in target units.
            targets: Targets, shape ``(N,)``, in target units.
            variance: Variance of the noise, 0-dim.

        Returns:
            A loss for each target, shape ``(N,)``, unit-free.
        """


class BMC(BalancedMSE):
    r"""Balanced MSE as a choice of the right target among those of the batch.

    .. math::
        -\log \frac{\exp \bigl(-(\hat y_i - y_i)^2 / 2 \sigma^2\bigr)}
        {\sum_j \exp \bigl(-(\hat y_i - y_j)^2 / 2 \sigma^2\bigr)}

    The pixels of a batch of maps are too many to compare all with all. Our choice: element i
    belongs to group i modulo the number of groups, so that every group spans the whole batch and
    their sizes differ by one at most, and is compared with its group.
    """

    def losses(self, predictions: Tensor, targets: Tensor, variance: Tensor) -> Tensor:
        """Return the cross-entropies, shape ``(N,)``; 0 where a target is alone."""
        size = len(targets)
        groups = max(-(-size // GROUP_SIZE), 1)
        rows = _grouped(predictions, groups)[:, :, None]
        columns = _grouped(targets, groups)[:, None]
        real = _grouped(torch.ones_like(targets, dtype=torch.bool), groups)[:, None]
        logits = torch.where(real, 0, -torch.inf) - (rows - columns).square() / (2 * variance)
        losses = logits.logsumexp(dim=2) - logits.diagonal(dim1=1, dim2=2)
        return losses.T.flatten()[:size]


def _grouped(values: Tensor, groups: int) -> Tensor:
    """Return the values with a row for each group, the shorter rows filled with zeros."""
    return functional.pad(values, (0, -len(values) % groups)).view(-1, groups).T


def stages(
    recipe: Recipe,
    *,
    objective: Objective,
    balanced_mse_epochs: int,
    balanced_mse_lr: float,
    **constants: Any,
) -> list[Stage]:
    """Return the parts of training: a new head after a vanilla stage, or all from the start.

    The released code does the first for ages and the second for depth.
    """
    objective = partial(objective, **constants)
    if not balanced_mse_epochs:
        return whole(objective)(recipe)
    return after_vanilla(recipe, head(objective, balanced_mse_epochs, balanced_mse_lr))


def head(objective: Objective, epochs: int, lr: float) -> Stage:
    """Return the stage that trains a new head."""
    return Stage(objective, partial(adam, lr=lr), epochs=epochs, part="head")


def bmc_head(*, balanced_mse_epochs: int, balanced_mse_lr: float, **constants: Any) -> Stage:
    """Return the stage that trains a new head by BMC.

    Raises:
        ValueError: If it has no epoch.
    """
    if balanced_mse_epochs < 1:
        raise ValueError(
            "Expected balanced_mse_epochs to be at least 1 for a new head, but got "
            f"{balanced_mse_epochs}."
        )
    return head(partial(BMC, **constants), balanced_mse_epochs, balanced_mse_lr)
