"""What an experiment is made of: a data set, a method, and the record of a run."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import TensorDataset

from balanced_sam import ShotRegions, TargetBins


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a data set; the same for all methods of a comparison."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    rho: float
    """Radius of the perturbation, for the methods that perturb."""
    rho_warmup_epochs: int
    """Epochs over which rho grows linearly to its value."""


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set, each of (input, target) pairs."""

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


@dataclass(frozen=True)
class Dataset:
    """All that is true of a data set."""

    title: str
    source: str
    """Where the data comes from and under which terms."""
    target: str
    """What the target is, with its unit: the axis label of a plot."""
    bins: TargetBins
    regions: ShotRegions
    recipe: Recipe
    network: Callable[[], nn.Module]
    load: Callable[[Path | None], Splits]
    """Read the data below a folder, or the embedded data if there is no folder."""
    write_miniature: Callable[[Path], None]
    """Lay a few generated samples below a folder, in the real layout."""
    published: str
    """The entry of ``records/published.json`` to set beside our own figures."""


@dataclass(frozen=True)
class Method:
    """All that is true of a method."""

    title: str
    summary: str
    objective: Callable[[TargetBins, Tensor], nn.Module]
    """Make the training loss, a function of predictions and targets, of the training targets."""
    optimizers: Callable[
        [Iterable[nn.Parameter], Recipe, nn.Module], tuple[Optimizer, list[LRScheduler]]
    ]
    """Make the optimizer and what is stepped after each epoch; the last argument is the loss."""
    epochs_factor: int = 1
    """How many times the recipe's epochs the method trains for."""


@dataclass(frozen=True)
class Record:
    """One run, self-sufficient: what was done, with what, and what came out."""

    dataset: str
    method: str
    seed: int
    recipe: dict[str, Any]
    """The resolved recipe: what was used, epochs after ``epochs_factor``."""
    history: list[dict[str, float]]
    """Per epoch: training loss and validation MAE per region."""
    best_epoch: int
    """The epoch, counted from 0, with the lowest overall validation MAE."""
    results: dict[str, Any]
    """Per selection, "best_validation" and "last_epoch": metrics per region on the test set, MAE
    per bin, and the predictions themselves."""
    test_targets: list[float]
    passes: int
    """Forward and backward passes over a batch: one a step, two for SAM."""
    seconds: float
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON can hold it."""
        return asdict(self)
