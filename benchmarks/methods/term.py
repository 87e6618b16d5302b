"""TERM: a tilted mean, to which large losses contribute more (Li et al., 2021)."""

import math
from functools import partial

from torch import Tensor

from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.method import Method
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import Loss
from benchmarks.methods._stages import whole


class TERM(Loss):
    r"""The tilted loss: the mean for t near 0, the largest loss for t near infinity.

    .. math:: \frac1t \log \frac1N \sum_i \exp(t \, \ell_i)
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, splits: Splits, *, t: float) -> None:
        super().__init__()
        if not 0 < t < math.inf:
            raise ValueError(f"Expected `term_t` to be positive and finite, but got term_t={t}.")
        self.criterion = dataset.criterion
        self.t = t

    def of(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of predictions, 0-dim, in the criterion's units."""
        losses = self.criterion(predictions, targets).flatten()
        return ((self.t * losses).logsumexp(dim=0) - math.log(len(losses))) / self.t


METHOD = Method(
    title="TERM",
    stages=lambda recipe, *, term_t: whole(partial(TERM, t=term_t))(recipe),
    constants={"term_t": 0.05},
    tuned={
        "nyud2_dir": {"term_t": 0.1},
    },
    place=8,
)
