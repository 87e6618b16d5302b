"""Tables inside packages: where they lie, whether they are known, how their rows are split."""

import hashlib
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from balanced_sam import TargetBins
from benchmarks.datasets._memory import checksum, in_memory
from benchmarks.experiment.dataset import Splits

FOLDS = 5
"""Parts of the samples: in each fold another one for test, the next for validation, the others for
training."""
TRAIN_SHARE = (FOLDS - 2) / FOLDS


@dataclass(frozen=True)
class PackagedTable:
    """A table of a package, as one version of the package has it."""

    package: str
    version: str
    path: str
    """Below the package's folder."""
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return Path(self.path).name

    def locate(self, root: Path | None) -> Path:
        """Return where the table lies: right below ``root``, or checked in the package.

        Raises:
            FileNotFoundError: If there is no such file below ``root``, or no such package.
            ValueError: If the package's table is not the known one.
        """
        if root is not None:
            path = root / self.name
            if not path.is_file():
                raise FileNotFoundError(f"Expected the table {path}, but there is no such file.")
            return path
        # The package itself is not imported: that takes long, or needs further packages.
        spec = find_spec(self.package)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                f"Expected the package {self.package}, which has the data, but it is not "
                f"installed. {self._advice}"
            )
        path = Path(spec.origin).parent / self.path
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


def split_at_random(inputs: Tensor, targets: Tensor, bins: TargetBins, *, fold: int) -> Splits:
    """Return the splits of samples that were put into random order once and for all.

    Args:
        inputs: Of all samples, along the first axis.
        targets: Likewise.
        bins: Of the targets.
        fold: Which part is the test set, from 0 to ``FOLDS - 1``.

    Returns:
        The splits; their checksum is the same in all folds.
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    parts = order.tensor_split(FOLDS)
    test, validation, *others = parts[fold:] + parts[:fold]
    train = torch.cat(others)
    splits = in_memory(*((inputs[i], targets[i]) for i in (train, validation, test)), bins=bins)
    return replace(splits, checksum=checksum((inputs, targets)))
