"""TERM: a tilted mean, to which large losses contribute more (Li et al., 2021)."""

import math

from torch import Tensor, nn

from benchmarks.optimizers import base
from benchmarks.protocol import Dataset, Method, Recipe, Splits
from benchmarks.stages import whole


class TERM(nn.Module):
    r"""The tilted loss: the mean for t near 0, the largest loss for t near infinity.

    .. math:: \frac1t \log \frac1N \sum_i \exp(t \, \ell_i)
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, splits: Splits) -> None:
        super().__init__()
        if not 0 < recipe.term_t < math.inf:
            raise ValueError(
                f"Expected `term_t` to be positive and finite, but got term_t={recipe.term_t}."
            )
        self.criterion = dataset.criterion
        self.t = recipe.term_t

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, 0-dim, in the criterion's units."""
        losses = self.criterion(predictions, targets).flatten()
        return ((self.t * losses).logsumexp(dim=0) - math.log(len(losses))) / self.t


METHOD = Method(
    title="TERM",
    summary="exponentially tilted mean of the losses, one pass",
    stages=whole(TERM, base),
    constants=("term_t",),
)
