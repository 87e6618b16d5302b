"""What an experiment is made of: a data set, a method, and the record of a run."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from balanced_sam import ShotRegions, TargetBins


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a data set; the same for all methods of a comparison."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    rho: float
    """Radius of the perturbation, for the methods that perturb."""
    term_t: float
    """Tilt of TERM."""
    rho_quarter: float = 0.05
    """Radius where the first pass has a quarter of the batch."""
    rho_warmup_epochs: int = 0
    """Epochs over which rho grows linearly to its value."""
    momentum: float = 0.9
    """Of SGD; Adam keeps its usual betas."""
    optimizer: str = "sgd"
    """Who descends, an entry of ``benchmarks.optimizers.BASES``."""
    schedule: str = "cosine"
    """How the learning rate falls, an entry of ``benchmarks.optimizers.SCHEDULES``."""
    normalized: bool = True
    """Whether the weights have mean 1 over the training targets, or the paper's raw scale."""
    retrain_epochs: int = 30
    """Epochs for which RRT retrains the head."""
    retrain_lr: float = 1e-3
    """Learning rate with which RRT retrains the head, by Adam."""
    balanced_mse_epochs: int = 10
    """Epochs of Balanced MSE on the head alone after a vanilla stage; 0 to train the whole network
    with it from the start."""
    balanced_mse_lr: float = 1e-4
    """Learning rate of that head, by Adam."""
    noise_sigma: float = 10.0
    """Where the noise scale of Balanced MSE starts, in target units."""
    noise_sigma_lr: float = 1e-2
    """Learning rate of the noise scale; 0 to keep it as it is."""
    mixture_components: int = 8
    """Gaussians in the mixture that Balanced MSE (GAI) fits to the training targets."""
    pretrained: bool = False
    """Whether the encoder starts from ImageNet weights, for the networks that have any."""


CONSTANTS = frozenset(
    {
        *("rho", "rho_quarter", "rho_warmup_epochs", "term_t", "retrain_epochs", "retrain_lr"),
        *("balanced_mse_epochs", "balanced_mse_lr", "noise_sigma", "noise_sigma_lr"),
        "mixture_components",
    }
)
"""Entries of a recipe that only some methods use, who name them."""


class Split(Protocol):
    """A part of a data set: pairs of an input and a target.

    A training split is endless: entry ``i + N * draw`` is sample ``i`` as the draw of that number
    crops it. The entries up to ``N`` of the other splits are their samples.
    """

    workers_help: bool
    """Whether processes that load ahead are worth their cost."""

    def __len__(self) -> int:
        """Return the number of samples, ``N``."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an input and its target, NaN where the target does not count."""
        ...


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set, and what is known of the training targets."""

    train: Split
    validation: Split
    test: Split
    train_targets: Tensor
    """Training targets, shape ``(N,)``, in target units; of billions of pixels a sample."""
    train_counts: Tensor
    """Training targets per bin, shape ``(B,)``."""
    checksum: str
    """SHA-256 of the data, for the record."""


@dataclass(frozen=True)
class Dataset:
    """All that is true of a data set."""

    title: str
    source: str
    """Where the data comes from and under which terms."""
    target: str
    """What the target is, with its unit: the axis label of a plot."""
    unit: str
    bins: TargetBins
    regions: ShotRegions
    counts: dict[str, Tensor]
    """Targets per bin of the full data set, as far as they are published, by split."""
    metrics: tuple[str, ...]
    """The metrics of the tables; the first chooses the epoch on the validation set."""
    criterion: Callable[[Tensor, Tensor], Tensor]
    """The loss of each element, a function of predictions and targets."""
    recipe: Recipe
    network: Callable[[Recipe], nn.Module]
    """Make the network; its attribute ``head`` is the last layer."""
    load: Callable[[Path | None], Splits]
    """Read the data below a folder, or the embedded data if there is no folder."""
    write_miniature: Callable[[Path], None]
    """Lay a few generated samples below a folder, in the real layout."""
    published: str
    """The entry of ``records/published.json`` to set beside our own figures."""
    ours: str = ""
    """What of the recipe is our own choice, because the literature gives none."""
    augmentation: Callable[[], nn.Module] | None = None
    """Make what changes a training batch, a function of inputs and targets, on the device."""
    download: Callable[[Path], None] | None = None
    """Fetch below a folder what may be fetched."""
    check: Callable[[Splits], None] | None = None
    """Raise ``ValueError`` at the first count that is not that of the full data set."""
    inv_clip: tuple[float, float] | None = None
    """Bounds of the counts for INV weights."""
    lds_scheme: Literal["inv", "sqinv"] = "sqinv"
    """The weights that LDS takes of smoothed counts."""
    lds_boundary: Literal["zeros", "reflect"] = "zeros"
    lds_first_bin: int = 0
    """Where LDS begins to smooth; targets do not reach into the bins before."""
    mean_weight: float = 1.0
    """Mean of the raw SQINV weights over the training targets, by which ``normalize`` converts."""
    test_selection: bool = False
    """Whether the literature chooses the epoch on the test set: reported beside, named so."""


Objective = Callable[[Dataset, Recipe, Splits], nn.Module]
"""Make the training loss, a function of predictions and targets.

Its parameters, if it has any, are learned too, with the learning rate in its attribute ``lr``.
"""

Optimizers = Callable[[nn.Module, Recipe, nn.Module], tuple[Optimizer, list[LRScheduler]]]
"""Make the optimizer and what is stepped after each epoch, of the network, whose frozen parts stay
as they are, the recipe and the loss."""


@dataclass(frozen=True)
class Stage:
    """A part of training: from the best network of the stage before, or from the start."""

    objective: Objective
    optimizers: Optimizers
    epochs: int
    part: Literal["network", "head", "new head"] = "network"
    """What is trained; the rest stays as it is, the statistics of BatchNorm included. A new head
    starts anew."""


@dataclass(frozen=True)
class Method:
    """All that is true of a method."""

    title: str
    summary: str
    stages: Callable[[Recipe], list[Stage]]
    """The parts of training, in their order."""
    constants: tuple[str, ...] = ()
    """Of ``CONSTANTS`` those that the method uses."""


@dataclass(frozen=True)
class Record:
    """One run, self-sufficient: what was done, with what, and what came out."""

    dataset: str
    method: str
    seed: int
    recipe: dict[str, Any]
    """The resolved recipe, as far as the method uses it, and the epochs of each stage."""
    history: list[dict[str, float | None]]
    """Per epoch: stage, training loss, and validation metrics per region; None where there is no
    target or no finite value."""
    best_epoch: int
    """The entry of ``history`` of the last stage's best epoch by the overall validation error."""
    results: dict[str, Any]
    """Per selection, such as "best_validation" and "last_epoch": metrics per region on the test
    set, the first of them per bin, and what each sample adds (``benchmarks.evaluation``)."""
    passes: float
    """Forward and backward passes over a batch: one a step, two for SAM; a part of one is a
    fraction."""
    seconds: float
    """How long the epochs took, their validation included."""
    provenance: dict[str, Any]
    samples: dict[str, Any] = field(default_factory=dict)
    """Of each test sample what does not depend on the predictions (``benchmarks.evaluation``)."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON can hold it."""
        return asdict(self)
