"""Files inside packages: where they lie, whether they are known, how their samples are split."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch
from torch import Tensor

from balanced_sam import TargetBins
from benchmarks.datasets._memory import in_memory
from benchmarks.experiment.dataset import Splits

FOLDS = 5
"""Parts of the samples: in each fold another one for test, the next for validation, the others for
training."""
TRAIN_SHARE = (FOLDS - 2) / FOLDS


@dataclass(frozen=True)
class PackagedFile:
    """A file of a package, as one version of the package has it."""

    package: str
    """As pip calls it."""
    version: str
    path: str
    """Below the folder that packages are installed in."""
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return Path(self.path).name

    def locate(self, root: Path | None) -> Path:
        """Return where the file lies: right below ``root``, or checked in the package.

        Raises:
            FileNotFoundError: If there is no such file below ``root``, or no such package.
            ValueError: If the package's file is not the known one.
        """
        if root is not None:
            path = root / self.name
            if not path.is_file():
                raise FileNotFoundError(f"Expected the file {path}, but there is none.")
            return path
        # The package itself is not imported: that takes long, or needs further packages.
        try:
            path = Path(str(distribution(self.package).locate_file(self.path)))
        except PackageNotFoundError:
            raise FileNotFoundError(
                f"Expected the package {self.package}, which has the data, but it is not "
                f"installed. {self._advice}"
            ) from None
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no such file"
        if found != self.sha256:
            raise ValueError(
                f"Expected {self.name} of {self.package} {self.version} with the SHA-256 "
                f"{self.sha256}, but got that of {self.package} {version(self.package)}: {found}. "
                f"{self._advice}"
            )
        return path

    @property
    def _advice(self) -> str:
        return f"Type: python -m pip install {self.package}=={self.version}"


def split_at_random(
    inputs: Tensor,
    targets: Tensor,
    bins: TargetBins,
    *,
    fold: int,
    groups: Tensor | None = None,
    source: Sequence[Tensor] = (),
) -> Splits:
    """Return the splits of samples that were put into random order once and for all.

    Args:
        inputs: Of all samples, along the first axis.
        targets: Likewise.
        bins: Of the targets.
        fold: Which part is the test set, from 0 to ``FOLDS - 1``.
        groups: A whole number of each sample: those of one number stay together. None: each sample
            is by itself.
        source: As for :func:`~benchmarks.datasets._memory.in_memory`.

    Returns:
        The splits; their checksum is the same in all folds.
    """
    generator = torch.Generator().manual_seed(0)
    if groups is None:
        parts = torch.randperm(len(targets), generator=generator).tensor_split(FOLDS)
    else:
        names = groups.unique()
        of_parts = names[torch.randperm(len(names), generator=generator)].tensor_split(FOLDS)
        parts = tuple(torch.isin(groups, part).nonzero()[:, 0] for part in of_parts)
    test, validation, *others = parts[fold:] + parts[:fold]
    train = torch.cat(others)
    pairs = ((inputs[i], targets[i]) for i in (train, validation, test))
    return in_memory(*pairs, bins=bins, source=source or (inputs, targets))
