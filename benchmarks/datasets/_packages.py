"""Tables inside packages: where they lie, whether they are known, how their rows are split."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from balanced_sam import TargetBins
from benchmarks.datasets._memory import in_memory
from benchmarks.experiment.dataset import Splits

PARTS = 5
"""Of the samples: one for test, one for validation, the others for training."""
TRAIN_SHARE = (PARTS - 2) / PARTS


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


def split_at_random(inputs: Tensor, targets: Tensor, bins: TargetBins) -> Splits:
    """Return the splits of samples that were put into random order once and for all."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    test, validation, *train = ((inputs[i], targets[i]) for i in order.tensor_split(PARTS))
    of_train = torch.cat([pair[0] for pair in train]), torch.cat([pair[1] for pair in train])
    return in_memory(of_train, validation, test, bins)
