"""How a network is trained, whatever the method."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

Descent = Literal["sgd", "adam"]
"""The entries of ``benchmarks.methods._optimizers.BASES``."""
Schedule = Literal["cosine", "cosine_from_one", "tenth_halfway", "tenth_twice", "constant"]
"""The entries of ``benchmarks.methods._optimizers.SCHEDULES``."""


@dataclass(frozen=True)
class Recipe:
    """What all methods of a comparison share. What one method has of its own stands in its file."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    momentum: float = 0.9
    """Of SGD; Adam keeps its usual betas."""
    optimizer: Descent = "sgd"
    """Who descends."""
    schedule: Schedule = "cosine"
    """How the learning rate falls."""
    normalized: bool = True
    """Whether the weights have mean 1 over the training targets, or the paper's raw scale."""
    pretrained: bool = False
    """Whether the encoder starts from ImageNet weights, for the networks that have any."""
    label_noise: float | None = None
    """Standard deviation of noise that is added to the training targets, in target units."""

    def normalize(self, mean_weight: float) -> "Recipe":
        """Return the recipe for weights of mean 1 that trains as this one does with raw ones.

        With momentum SGD, raw weights of mean s equal weights of mean 1 with s times the learning
        rate and 1/s times the weight decay.
        """
        if self.normalized:
            return self
        return dataclasses.replace(
            self,
            normalized=True,
            lr=self.lr * mean_weight,
            weight_decay=self.weight_decay / mean_weight,
        )
