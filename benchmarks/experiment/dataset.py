"""What is true of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from balanced_sam import ShotRegions, TargetBins, TargetGrid
from benchmarks.experiment.recipe import Recipe

REGIONS = ("all", "many", "medium", "few")
"""What errors are taken on: all targets and each of the ``ShotRegions``."""


Bins = TargetBins | TargetGrid


def is_counted(targets: Tensor, bins: Bins) -> Tensor:
    """Return which targets count, those that are not NaN: of a grid, which samples."""
    is_nan = targets.isnan()
    return ~(is_nan.any(-1) if isinstance(bins, TargetGrid) else is_nan)


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
    bins: Bins
    regions: ShotRegions
    counts: dict[str, Tensor]
    """Targets per bin of the full data set, as far as they are published, by split."""
    metrics: tuple[str, ...]
    """The metrics of the tables; the first chooses the epoch on the validation set."""
    criterion: Callable[[Tensor, Tensor], Tensor]
    """The loss of each element, a function of predictions and targets."""
    recipe: Recipe
    network: Callable[[Recipe], nn.Module]
    """Make the network; its attribute ``head`` is its end, which some methods train anew."""
    load: Callable[..., Splits]
    """Read the data below a folder, or the embedded data if there is no folder; where there are
    folds also a function of the number of the fold, which is 0 unless it is said."""
    write_miniature: Callable[[Path], None]
    """Lay a few generated samples below a folder, in the real layout."""
    published: str = ""
    """The entry of ``records/published.json`` to set beside our own figures, if there is one."""
    folds: int = 1
    """Parts of the samples each of which is the test set of some runs, where a single one would
    have too few rare targets."""
    ours: str = ""
    """What of the recipe is our own choice, because the literature gives none."""
    augmentation: Callable[[], nn.Module] | None = None
    """Make what changes a training batch, a function of inputs and targets, on the device."""
    download: Callable[[Path], None] | None = None
    """Fetch below a folder what may be fetched."""
    check: Callable[[Splits], None] | None = None
    """Raise ``ValueError`` at the first count that is not that of the full data set."""
    clip_counts: tuple[float, float] | None = None
    """Bounds of the counts for INV weights."""
    lds_scheme: Literal["inv", "sqinv"] = "sqinv"
    """The weights that LDS takes of smoothed counts."""
    lds_boundary: Literal["zeros", "reflect"] = "zeros"
    lds_first_bin: int = 0
    """Where LDS begins to smooth; targets do not reach into the bins before."""
    mean_weight: float = 1.0
    """Mean of the raw SQINV weights over the training targets, by which ``normalize`` converts."""
    selections: tuple[str, ...] = ("last_epoch",)
    """Whose network is tested: that of the last epoch, or where the literature chooses otherwise
    also of ``"best_validation"`` or ``"best_test"``, the epoch with the lowest error. A second
    stage goes on from the first of them."""

    def fold(self, seed: int) -> int:
        """Return which fold the run of a seed is tested on."""
        return seed % self.folds

    def load_for(self, seed: int, root: Path | None) -> Splits:
        """Return the splits of the run of a seed."""
        return self.load(root) if self.folds == 1 else self.load(root, fold=self.fold(seed))
