"""NYUD2-DIR: photographs of rooms and the depth of each pixel, mostly near, seldom far.

Below the folder lie ``nyu2_train.csv`` and ``nyu2_test.csv``, a photograph and its depth per row,
the files that they name, and ``test_balanced_mask.npy``, which leaves equally many test pixels of
each depth. There is no validation split, and the literature chooses the epoch on the test set: here
each 20th room is held out of training for that, and of its pixels about equally many of each depth
count, too.

As in the benchmark code, all is scaled to 320 x 240 pixels (the photograph bilinear, the depth by
its nearest neighbour, as all versions of Pillow do it when told) and cropped to the middle 304 x
228, in training after a flip and a rotation, and with depths half as high and wide. A rotated map
keeps the nearest depth where the benchmark code mixes depths by a spline.
"""

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.datasets._depths import BINS, COUNTS, REGIONS
from benchmarks.datasets._files import check_images, checksum, fetch, read_csv, unpack
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import squared_error
from benchmarks.experiment.recipe import Recipe

TRAIN_FILE, TEST_FILE = "nyu2_train.csv", "nyu2_test.csv"
MASK_FILE = "test_balanced_mask.npy"
ARCHIVE_URL = "https://drive.google.com/uc?id=1WoOZOBpOWfmwe7bknWS5PMUCLBPFKTOw"
ARCHIVE = ".nyud2_dir.zip"
"""The archive's name below the folder, until it is unpacked."""
MASK_URL = (
    "https://raw.githubusercontent.com/YyzHarry/imbalanced-regression/"
    "a6fdc45d45c04e6f5c40f43925bc66e580911084/nyud2-dir/data/test_balanced_mask.npy"
)

SCALED = (320, 240)
"""Width and height of a photograph, as Pillow takes them."""
DEPTH_MODES = ("L", "I", "I;16")
"""What Pillow calls the modes of grey images of 8 and 16 bits."""
CROPPED = (228, 304)
"""Height and width that the network sees."""
MASK_BLOB = "156c67de7a6901c50f15b011e07c42c67e6203c3"
"""Checksum of the mask in git."""

HELD_OUT = 20
"""Of so many rooms one is for validation."""
SAMPLED = 200
"""Training images whose depths stand for all."""

NEAREST = 0.7
"""No pixel is nearer, in metres."""
PUBLISHED = {
    "photographs for training and validation": 50_688,
    "photographs for testing": 654,
    "test pixels under the mask": 870_201,
    **{f"of them in bin {k}": 9357 if k >= 7 else 0 for k in range(len(BINS))},
    **{
        f"{region}-shot pixels for training and validation": int(
            COUNTS[REGIONS.bin_mask(region)].sum()
        )
        for region in ("many", "medium", "few")
    },
}
"""What :func:`check` counts, in its order."""

Frame = tuple[str, str]
"""Where a photograph and its depth lie, below the folder."""


class Frames:
    """A split of photographs and depths on disk.

    Args:
        root: Folder of the data.
        frames: The files.
        counted: Which pixels of the crop count, a function of the sample's index and its depths.
            Without it, all do, and nothing is cropped.
    """

    workers_help = True

    def __init__(
        self,
        root: Path,
        frames: list[Frame],
        counted: Callable[[int, Tensor], Tensor] | None = None,
    ) -> None:
        self.root = root
        self.frames = frames
        self.counted = counted

    def __len__(self) -> int:
        """Return the number of photographs."""
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a photograph, ``(3, H, W)`` of 8 bits, and its depths in metres, ``(H, W)``."""
        photograph, depth = self.frames[index % len(self)]
        image, depths = _read_photograph(self.root / photograph), _read_depths(self.root / depth)
        if self.counted is None:
            return image, depths
        image, depths = _crop(image), _crop(depths)
        return image, depths.where(self.counted(index, depths), torch.nan)


def load(root: Path | None) -> Splits:
    """Return the three splits below ``root``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file does not hold what it should.
    """
    if root is None:
        raise ValueError("Expected the folder that holds NYUD2-DIR, but got none.")
    train, test = _read_frames(root, TRAIN_FILE), _read_frames(root, TEST_FILE)
    mask = _read_mask(root / MASK_FILE, len(test))
    rooms = sorted({_room(frame) for frame in train})
    held_out = set(rooms[::HELD_OUT])
    if len(rooms) == len(held_out):
        raise ValueError(f"Expected at least two rooms in {root / TRAIN_FILE}, but got {rooms}.")
    training = [frame for frame in train if _room(frame) not in held_out]
    validation = [frame for frame in train if _room(frame) in held_out]
    return Splits(
        train=Frames(root, training),
        validation=Frames(root, validation, _equally_often),
        test=Frames(root, test, partial(_under_mask, mask)),
        train_targets=_sample(root, training),
        train_counts=COUNTS,
        checksum=checksum(
            root,
            [TRAIN_FILE, TEST_FILE, MASK_FILE],
            [file for frame in train + test for file in frame],
        ),
    )


def check(splits: Splits) -> None:
    """Raise ``ValueError`` at the first count that is not that of the published data."""
    for (what, expected), found in zip(PUBLISHED.items(), _count(splits), strict=True):
        if found != expected:
            raise ValueError(f"Expected {expected} {what}, but got {found}.")


def _count(splits: Splits) -> Iterator[int]:
    """Yield what there is of each entry of ``PUBLISHED``; what takes minutes comes last."""
    yield len(splits.train) + len(splits.validation)
    yield len(splits.test)
    test = [splits.test[index][1] for index in range(len(splits.test))]
    pixels = sum(BINS.counts(depths[~depths.isnan()]) for depths in test)
    yield int(pixels.sum())
    yield from pixels.tolist()
    pixels = _count_crops(splits.train) + _count_crops(splits.validation)
    for region in ("many", "medium", "few"):
        yield int(pixels[REGIONS.bin_mask(region)].sum())


def _count_crops(split: Frames) -> Tensor:
    """Return how many pixels of the crops each bin has, all of them counting."""

    def count(frame: Frame) -> Tensor:
        return BINS.counts(_crop(_read_depths(split.root / frame[1])).flatten())

    with ThreadPool(os.cpu_count()) as pool:
        counts = pool.imap(count, split.frames, chunksize=16)
        return sum(tqdm(counts, "Counting pixels", len(split), delay=2, leave=False))


def download(root: Path) -> None:
    """Fetch the benchmark code's archive, some gigabytes, and its mask below ``root``."""
    archive = root / ARCHIVE
    if archive.exists() or not (root / TRAIN_FILE).is_file():
        fetch(ARCHIVE_URL, archive)
        unpack(archive, root, without="data/")
        # While it is there, unpacking is not done.
        archive.unlink()
    fetch(MASK_URL, root / MASK_FILE, git_blob=MASK_BLOB)


def write_miniature(root: Path) -> None:
    """Write four photographs of three rooms for training and two for testing below ``root``."""
    generator = torch.Generator().manual_seed(0)
    folders = ["attic_0001a_out", "attic_0001b_out", "cellar_0002_out", "study_0003_out"]
    train = [f"nyu2_train/{folder}/1" for folder in folders]
    test = [f"nyu2_test/{k:05}" for k in (0, 1)]
    for stem in train:
        image, depths = _draw(generator)
        _save(root / f"{stem}.jpg", image * 255, np.uint8)
        _save(root / f"{stem}.png", depths / 10 * 255, np.uint8)
    for stem in test:
        image, depths = _draw(generator)
        _save(root / f"{stem}_colors.png", image * 255, np.uint8)
        _save(root / f"{stem}_depth.png", depths * 1000, np.uint16)
    rows = [f"data/{stem}.jpg,data/{stem}.png\n" for stem in train]
    (root / TRAIN_FILE).write_text("".join(rows))
    rows = [f"data/{stem}_colors.png,data/{stem}_depth.png\n" for stem in test]
    (root / TEST_FILE).write_text("".join(rows))
    mask = torch.rand(len(test), *CROPPED, generator=generator) < 0.05
    np.save(root / MASK_FILE, mask.numpy().astype(np.uint8))


def _draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a photograph, ``(480, 640, 3)`` from 0 to 1, of a slanted wall and its depths."""
    rows, columns = torch.meshgrid(
        torch.linspace(0, 1, 480), torch.linspace(0, 1, 640), indexing="ij"
    )
    slant = torch.rand(1, generator=generator)
    depths = 0.8 + 8.8 * (slant * rows + (1 - slant) * columns)
    return torch.stack([depths / 10, 1 - depths / 10, columns], dim=-1), depths


def _save(path: Path, values: Tensor, dtype: type[np.generic]) -> None:
    """Write whole numbers of 8 or 16 bits as an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.round().numpy().astype(dtype)).save(path)


def _read_frames(root: Path, table: str) -> list[Frame]:
    """Return the files that a table names, all checked, without the ``data/`` before them."""
    frames, places = [], []
    for place, row in read_csv(root / table, ("photograph", "depth"), header=False):
        photograph, depth = (name.removeprefix("data/") for name in row.values())
        frames.append((photograph, depth))
        places.append(place)
    for files, modes in zip(zip(*frames, strict=True), (("RGB",), DEPTH_MODES), strict=True):
        check_images(root, list(zip(files, places, strict=True)), partial(_check_image, modes))
    return frames


def _check_image(modes: tuple[str, ...], image: Image.Image) -> None:
    """Raise unless an image is of one of some modes, as Pillow names them, and 4 : 3 in size."""
    if image.mode not in modes or 3 * image.width != 4 * image.height:
        raise ValueError(
            f"mode {image.mode} and size {image.size} instead of mode {' or '.join(modes)} and a "
            "size of 4 : 3"
        )


def _read_mask(path: Path, size: int) -> Tensor:
    """Return where a pixel of the test crops counts, shape ``(size, 228, 304)``."""
    try:
        mask = np.load(path)
    except (ValueError, EOFError) as error:
        raise ValueError(f"Expected an array in {path}, but got: {error}.") from error
    if mask.shape != (size, *CROPPED):
        raise ValueError(
            f"Expected the mask in {path} to have shape {(size, *CROPPED)}, one map a row of "
            f"{TEST_FILE}, but got {mask.shape}."
        )
    return torch.from_numpy(mask).bool()


def _read_photograph(path: Path) -> Tensor:
    """Return a photograph of 8 bits, shape ``(3, 240, 320)``."""
    values = _read_scaled(path, Image.Resampling.BILINEAR)
    return torch.from_numpy(values).permute(2, 0, 1)


def _read_depths(path: Path) -> Tensor:
    """Return depths in metres, shape ``(240, 320)``: 8 bits are 10 m, 16 bits are millimetres."""
    values = _read_scaled(path, Image.Resampling.NEAREST)
    depths = torch.from_numpy(values.astype(np.float32))
    return depths / 255 * 10 if values.dtype == np.uint8 else depths / 1000


def _read_scaled(path: Path, resampling: Image.Resampling) -> NDArray[np.generic]:
    """Return the values of an image."""
    with Image.open(path) as image:
        return np.array(image.resize(SCALED, resampling))


def _crop(values: Tensor) -> Tensor:
    """Return the middle of a photograph or a map."""
    height, width = CROPPED
    top, left = (values.shape[-2] - height) // 2, (values.shape[-1] - width) // 2
    return values[..., top : top + height, left : left + width]


def _room(frame: Frame) -> str:
    """Return the room of a photograph: its folder, of which the letter is a part of the room."""
    return re.sub(r"(\d)[a-z]?_out$", r"\1", PurePath(frame[0]).parent.name)


def _under_mask(mask: Tensor, index: int, depths: Tensor) -> Tensor:
    """Return which pixels of a test crop count."""
    return mask[index]


def _equally_often(index: int, depths: Tensor) -> Tensor:
    """Return which pixels count for all depths to count about equally often: a draw by depth."""
    occupied = COUNTS > 0
    chances = torch.where(occupied, COUNTS[occupied].min() / COUNTS, 0)
    draws = torch.rand(depths.shape, generator=torch.Generator().manual_seed(index))
    return draws < chances[BINS.index(depths)]


def _sample(root: Path, frames: list[Frame]) -> Tensor:
    """Return depths of some training pixels, shape ``(N,)``."""
    some = frames[:: max(1, len(frames) // SAMPLED)]
    depths = torch.cat(
        [_crop(_read_depths(root / depth))[::14, ::19].flatten() for _, depth in some]
    )
    return depths[depths >= NEAREST]


def _make_network(recipe: Recipe) -> nn.Module:
    """Return the ResNet-50 with the decoder of Hu et al."""
    # Who only lists the data sets or needs the bins is spared seconds of imports.
    from benchmarks.networks.depth import DepthNetwork
    from benchmarks.networks.resnet import resnet50

    return DepthNetwork(resnet50(pretrained=recipe.pretrained))


def _make_augmentation() -> nn.Module:
    """Return what changes a training batch."""
    from benchmarks.datasets._depth_augmentation import DepthAugmentation

    return DepthAugmentation(CROPPED)


DATASET = Dataset(
    title="NYUD2-DIR",
    source=(
        "NYU Depth Dataset V2 (Silberman et al., 2012) as prepared by Yang et al. (2021), who name "
        "an archive to download"
    ),
    target="Depth (metres)",
    unit="m",
    bins=BINS,
    regions=REGIONS,
    counts={"train": COUNTS},
    metrics=("RMSE", "delta_1"),
    criterion=squared_error,
    recipe=Recipe(
        epochs=10,
        batch_size=32,
        lr=1e-4,
        weight_decay=1e-4,
        optimizer="adam",
        schedule="tenth_halfway",
        pretrained=True,
    ),
    network=_make_network,
    load=load,
    write_miniature=write_miniature,
    published="nyud2_dir",
    ours=(
        "rho, also of BSAM's cheaper variant, and TERM's tilt, not tuned on this data; the weights "
        "of BSAM (SQINV in both passes); the rooms held out for validation; the encoder starts "
        "from the ImageNet weights of microsoft/resnet-50, not from those of the benchmark code; a "
        "rotated map keeps the nearest depth"
    ),
    augmentation=_make_augmentation,
    download=download,
    check=check,
    lds_scheme="inv",
    lds_boundary="reflect",
    lds_first_bin=7,
    selections=("best_validation", "last_epoch", "best_test"),
)
