"""Faces on disk, and what of an image the network sees.

Training sees a random crop, as in the BSAM code: 20 to 100 % of the area, from 3:4 to 4:3, scaled
to 224 x 224. Evaluation sees the middle 224 x 224 of the image whose short side became 256.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 224
"""Height and width that the network sees."""
SHORT_SIDE = 256
"""Of an image whose middle is evaluated."""

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge, in pixels."""


class Faces:
    """A split of faces on disk.

    Args:
        root: Folder of the data.
        paths: Where the images lie below it.
        ages: Their ages in years, shape ``(N,)``.
        train: Whether to crop at random, which the index alone seeds, or in the middle.
    """

    workers_help = True

    def __init__(self, root: Path, paths: Sequence[str], ages: Tensor, *, train: bool) -> None:
        self.root = root
        self.paths = paths
        self.targets = ages
        self.train = train

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a face, shape ``(3, 224, 224)``, of 8 bits, and its age."""
        sample = index % len(self)
        with Image.open(self.root / self.paths[sample]) as file:
            image = file.convert("RGB")
        image = _random_crop(image, seed=index) if self.train else _middle(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), self.targets[sample]


def random_box(width: int, height: int, *, seed: int) -> Box:
    """Return 20 to 100 % of an image's area, from 3:4 to 4:3, anywhere in it.

    Of ten shapes the first that fits is taken; if none does, as in a panorama, it is the largest
    one in the middle.
    """
    generator = torch.Generator().manual_seed(seed)
    for area, shape, across, down in torch.rand(10, 4, generator=generator).tolist():
        pixels = width * height * (0.2 + 0.8 * area)
        ratio = math.exp(math.log(4 / 3) * (2 * shape - 1))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return _middle_box(width, height, w, h)


def _random_crop(image: Image.Image, *, seed: int) -> Image.Image:
    """Return a random box of an image, scaled."""
    # Cropped before it is scaled: scaling a box of the whole image lets pixels beside the box in.
    image = image.crop(random_box(*image.size, seed=seed))
    return image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def _middle(image: Image.Image) -> Image.Image:
    """Return the middle of an image whose short side becomes 256."""
    short = min(image.size)
    width, height = (int(SHORT_SIDE * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop(_middle_box(width, height, SIZE, SIZE))


def _middle_box(width: int, height: int, w: int, h: int) -> Box:
    """Return a box of ``w`` times ``h`` pixels in the middle."""
    left, top = round((width - w) / 2), round((height - h) / 2)
    return left, top, left + w, top + h
