"""Where a record comes from: code, versions, machine, data."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.dataset import Splits

_PACKAGES = (
    *("balanced-sam", "torch", "lightning", "torchmetrics", "numpy", "pillow", "kornia"),
    *("transformers", "scikit-learn"),
)


def provenance(splits: Splits, *, accelerator: str) -> dict[str, Any]:
    """Return what is needed to make a run again."""
    return {
        "commit": git_state("rev-parse", "HEAD"),
        # A new file of code counts, records do not.
        "dirty": bool(git_state("status", "--porcelain", "--untracked-files=no"))
        or bool(git_state("ls-files", "--others", "--exclude-standard", ":/*.py")),
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "device": device_name(accelerator),
        "threads": torch.get_num_threads(),
        "data_sha256": splits.checksum,
    }


def git_state(*arguments: str) -> str | None:
    """Return what git answers, None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def device_name(accelerator: str) -> str:
    """Return the name of the GPU, or the kind of processor."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"
