"""Balanced MSE, GAI: how frequent a target is, a mixture of Gaussians knows (Ren et al., 2022)."""

from functools import partial

import numpy as np
import torch

# scikit-learn ships no type annotations.
from torch import Tensor

from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.method import Method
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._balanced_mse import CONSTANTS, TUNED, BalancedMSE, stages

FIT_SIZE = 200_000
"""Targets that are enough to fit the mixture to: a second's work, and all of IMDB-WIKI-DIR."""


class GAI(BalancedMSE):
    r"""Balanced MSE with the normaliser in closed form.

    .. math::
        -\log \mathcal N(y; \hat y, \sigma^2)
        + \log \int \mathcal N(y'; \hat y, \sigma^2) \, p_\text{train}(y') \, dy'
        = \frac{(y - \hat y)^2}{2 \sigma^2} + \frac12 \log \sigma^2
        + \log \sum_k \frac{w_k}{\sqrt{v_k + \sigma^2}}
        \exp \frac{-(\hat y - m_k)^2}{2 (v_k + \sigma^2)}

    The mixture is fitted to training targets. The released code fits that of depth to the centres
    of the bins instead, and gives the empty ones below 0.7 m the count of the first that is not.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        splits: Splits,
        *,
        mixture_components: int,
        **noise: float,
    ) -> None:
        super().__init__(dataset, recipe, splits, **noise)
        mixture = fit_mixture(splits.train_targets, mixture_components)
        for name, values in zip(("weights", "means", "variances"), mixture, strict=True):
            self.register_buffer(name, values.to(torch.float32))

    def losses(self, predictions: Tensor, targets: Tensor, variance: Tensor) -> Tensor:
        """Return the negative log-likelihoods, shape ``(N,)``."""
        noise = (targets - predictions).square() / (2 * variance) + variance.log() / 2
        spread = self.variances + variance
        distances = (predictions[:, None] - self.means).square() / spread
        normaliser = (self.weights.log() - spread.log() / 2 - distances / 2).logsumexp(dim=1)
        return noise + normaliser


def fit_mixture(targets: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a mixture of Gaussians, the same whatever the order of the targets.

    Args:
        targets: Training targets, any shape, in target units. Of more than ``FIT_SIZE``, evenly
            spaced quantiles are taken.
        components: Gaussians in the mixture; one for each distinct target if there are fewer.

    Returns:
        Weights, means and variances, each of shape ``(K,)``, float64.
    """
    ordered = np.sort(targets.numpy(force=True).astype(np.float64), axis=None)
    sample = ordered[:: -(-len(ordered) // FIT_SIZE)]
    # There is no more than one Gaussian to be told apart for each value.
    components = min(components, len(np.unique(sample)))
    # Here, as it takes seconds to import, of which the commands that train nothing are spared.
    from sklearn.mixture import GaussianMixture  # type: ignore[import-untyped]

    mixture = GaussianMixture(components, random_state=0).fit(sample.reshape(-1, 1))
    fitted = (mixture.weights_, mixture.means_, mixture.covariances_)
    weights, means, variances = (torch.from_numpy(values).flatten() for values in fitted)
    return weights, means, variances


METHOD = Method(
    title="Balanced MSE (GAI)",
    stages=partial(stages, objective=GAI),
    constants={**CONSTANTS, "mixture_components": 8},
    tuned={
        **TUNED,
        **{name: {**TUNED[name], "mixture_components": 16} for name in ("nyud2_dir", "rooms")},
    },
    place=9,
)
