"""Balanced MSE, BMC: how frequent a target is, the batch itself knows (Ren et al., 2022)."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.experiment.method import Method
from benchmarks.methods._balanced_mse import CONSTANTS, TUNED, BalancedMSE, stages

GROUP_SIZE = 256
"""Targets that are compared with each other at most: a batch of the ages recipe."""


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


METHOD = Method(
    title="Balanced MSE (BMC)",
    stages=partial(stages, objective=BMC),
    constants=CONSTANTS,
    tuned=TUNED,
    place=10,
)
