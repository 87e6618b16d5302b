"""Rooms: rendered rooms with furniture, whose depths have NYUD2-DIR's histogram.

RGB in, depth along the optical axis out (``_raycast``). The training rooms are chosen
out of many so that the histogram of their pixels is that of NYUD2-DIR's training pixels. As in
NYUD2-DIR a mask leaves equally many test pixels of each depth; the rooms for validation and test
are chosen for all depths equally, so that the mask leaves many.

On disk (:func:`write_miniature`) a room is a photograph ``<part>/<k>_colors.png`` and its depth in
millimetres ``<part>/<k>_depth.png`` of 16 bits, in which 0 does not count; the parts are ``train``,
``validation`` and ``test``.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn

from benchmarks.datasets._depths import BINS, COUNTS, REGIONS
from benchmarks.datasets._memory import Pair, in_memory
from benchmarks.datasets._raycast import Rooms, cast_depth, draw_paint, draw_rooms, render
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import squared_error
from benchmarks.experiment.recipe import Recipe
from benchmarks.networks.small_depth import SmallDepthNetwork

PARTS = ("train", "validation", "test")
SIZES = (800, 150, 200)
MINIATURE = (8, 4, 4)
"""Rooms in the parts."""
HEIGHT, WIDTH = 48, 64
"""Of the image; the map of depths is half as high and wide."""
NEAREST, FARTHEST = 0.7, 9.999
"""Depths that occur, in metres: those of NYUD2-DIR."""
POOL = 4000
"""Rooms to choose those of a part from."""
STEPS = 15
"""Of expectation maximisation: more come closer, but with the same few rooms again and again."""
NOISE = 0.02
"""Standard deviation of the sensor's noise."""


def load(root: Path | None) -> Splits:
    """Return the three splits, rendered anew or read from the files below ``root``."""
    if root is None:
        return in_memory(*_embedded(), bins=BINS, source=[COUNTS, torch.tensor(SIZES)])
    return in_memory(*_read_parts(root), bins=BINS)


@cache
def _embedded() -> tuple[Pair, Pair, Pair]:
    """Return the rooms of full size, rendered once a process."""
    return render_parts(SIZES)


def render_parts(sizes: tuple[int, int, int], *, pool: int = POOL) -> tuple[Pair, Pair, Pair]:
    """Return images and depths for training, validation and test, always the same ones."""
    train = _render(sizes[0], pool, COUNTS, Generator().manual_seed(0))
    return train, _held_out(sizes[1], pool, seed=1), _held_out(sizes[2], pool, seed=2)


def _held_out(n: int, pool: int, *, seed: int) -> Pair:
    """Return photographs of ``n`` rooms and their depths, equally many of each that occurs."""
    generator = Generator().manual_seed(seed)
    images, depths = _render(n, pool, COUNTS > 0, generator)
    return images, equally_often(depths, generator)


def _render(n: int, pool: int, counts: Tensor, generator: Generator) -> Pair:
    """Return photographs of ``n`` rooms and their depths, in proportion to ``counts``."""
    rooms = choose_rooms(n, draw_rooms(pool, generator), counts)
    images = render(rooms, draw_paint(rooms, generator), HEIGHT, WIDTH)
    images += NOISE * torch.randn(images.shape, generator=generator)
    depths = cast_depth(rooms, HEIGHT // 2, WIDTH // 2).clamp(NEAREST, FARTHEST)
    # Eight bits and millimetres, as the files of a depth camera have them.
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), (depths * 1000).round() / 1000


def choose_rooms(n: int, rooms: Rooms, counts: Tensor) -> Rooms:
    """Return ``n`` of the rooms, the depths of their pixels as ``counts`` say."""
    depths = cast_depth(rooms, HEIGHT // 4, WIDTH // 4).flatten(1)
    fits = (depths >= NEAREST).all(dim=1) & (depths <= FARTHEST).all(dim=1)
    room = torch.arange(len(depths))[:, None]
    histograms = torch.bincount(
        (BINS.index(depths) + len(BINS) * room).flatten(), minlength=len(BINS) * len(depths)
    ).view(-1, len(BINS))
    weights = mixture_weights(histograms / depths.shape[1], counts / counts.sum(), fits.double())
    # Evenly spaced along the summed weights: a room is taken once where its weight is 1 / n.
    chosen = torch.searchsorted(
        weights.cumsum(dim=0), (torch.arange(n, dtype=torch.float64) + 0.5) / n
    )
    return Rooms(*(values[chosen] for values in rooms))


def mixture_weights(histograms: Tensor, shares: Tensor, start: Tensor) -> Tensor:
    r"""Return the weights of histograms whose mixture comes close to ``shares``.

    By expectation maximisation:

    .. math:: w_i \leftarrow w_i \sum_k h_{ik} \, s_k \, / \, \sum_j w_j h_{jk}

    Args:
        histograms: Shares of the bins in each room, shape ``(N, B)``.
        shares: Shares to come close to, shape ``(B,)``.
        start: Weights to start from, shape ``(N,)``.

    Returns:
        Weights of sum 1, shape ``(N,)``, float64.
    """
    histograms, weights = histograms.double(), start / start.sum()
    for _ in range(STEPS):
        mixture = weights @ histograms
        weights = weights * (histograms @ (shares / mixture.clamp(min=1e-12)))
    return weights / weights.sum()


def equally_often(depths: Tensor, generator: Generator) -> Tensor:
    """Return the depths, NaN but for a random choice of equally many in each occupied bin."""
    flat = depths.flatten()
    order = torch.randperm(len(flat), generator=generator)
    index = BINS.index(flat[order])
    counts = BINS.counts(flat)
    by_bin = order[index.argsort(stable=True)]
    rank = torch.arange(len(flat)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    kept = by_bin[rank < counts[counts > 0].min()]
    targets = torch.full_like(flat, torch.nan)
    targets[kept] = flat[kept]
    return targets.view_as(depths)


class RandomFlip(nn.Module):
    """Show each room of a batch in the mirror, or not."""

    def forward(self, images: Tensor, depths: Tensor) -> Pair:
        """Return images, shape ``(N, 3, H, W)``, and depths, flipped together at random."""
        flips = torch.rand(len(images), 1, 1, device=images.device) < 0.5
        images = torch.where(flips[..., None], images.flip(-1), images)
        return images, torch.where(flips, depths.flip(-1), depths)


def write_miniature(root: Path) -> None:
    """Write a few rendered rooms below ``root``."""
    for part, (images, depths) in zip(PARTS, render_parts(MINIATURE, pool=200), strict=True):
        (root / part).mkdir(parents=True, exist_ok=True)
        millimetres = (depths.nan_to_num(0.0) * 1000).round().numpy().astype(np.uint16)
        for k in range(len(images)):
            colours = Image.fromarray(images[k].permute(1, 2, 0).contiguous().numpy())
            colours.save(root / part / f"{k}_colors.png")
            Image.fromarray(millimetres[k]).save(root / part / f"{k}_depth.png")


def _read_parts(root: Path) -> tuple[Pair, Pair, Pair]:
    """Return the images and depths of the three parts below ``root``."""
    train, validation, test = (_read_part(root / part) for part in PARTS)
    for path, depth in zip(_photographs(root / PARTS[0]), train[1], strict=True):
        if depth.isnan().any():
            raise ValueError(f"Expected a depth in every pixel of training, but {path} lacks some.")
    return train, validation, test


def _read_part(folder: Path) -> Pair:
    """Return the images and depths of a folder, the depths NaN where they do not count."""
    paths = _photographs(folder)
    images = [_read(path, "RGB", HEIGHT, WIDTH).permute(2, 0, 1) for path in paths]
    depths = [
        _read(path.with_name(path.name.replace("_colors", "_depth")), "I", HEIGHT // 2, WIDTH // 2)
        for path in paths
    ]
    millimetres = torch.stack(depths).float()
    return torch.stack(images), (millimetres / 1000).where(millimetres > 0, torch.nan)


def _photographs(folder: Path) -> list[Path]:
    """Return the photographs in a folder, in the order of their names."""
    paths = sorted(folder.glob("*_colors.png"))
    if not paths:
        raise FileNotFoundError(f"Expected files *_colors.png in {folder}, but there are none.")
    return paths


def _read(path: Path, mode: str, height: int, width: int) -> Tensor:
    """Return the pixels of a file, shape ``(height, width, ...)``; mode I is 16 bits of grey."""
    if not path.is_file():
        raise FileNotFoundError(f"Expected the file {path}, but there is none.")
    try:
        with Image.open(path) as image:
            image.load()
    # Each of Pillow's decoders has exceptions of its own.
    except Exception as error:
        raise ValueError(f"Expected a readable image at {path}, but got: {error}") from None
    # Some versions of Pillow say "I", some "I;16".
    if image.mode.split(";")[0] != mode or image.size != (width, height):
        raise ValueError(
            f"Expected {path} to have {width} x {height} pixels of mode {mode}, but got "
            f"{image.width} x {image.height} of mode {image.mode}."
        )
    return torch.from_numpy(np.array(image).astype(np.uint8 if mode == "RGB" else np.int32))


DATASET = Dataset(
    title="Rooms",
    source="rendered by ray casting; depth histogram of NYUD2-DIR (Yang et al., 2021)",
    target="Depth along the optical axis (m)",
    unit="m",
    bins=BINS,
    regions=REGIONS,
    counts={},
    metrics=("RMSE", "delta_1"),
    criterion=squared_error,
    recipe=Recipe(
        epochs=40,
        batch_size=32,
        optimizer="adam",
        lr=1e-2,
        weight_decay=1e-4,
    ),
    network=lambda recipe: SmallDepthNetwork(offset=3.0, scale=1.0),
    load=load,
    write_miniature=write_miniature,
    published="nyud2_dir",
    augmentation=RandomFlip,
    lds_scheme="inv",
    lds_boundary="reflect",
    lds_first_bin=7,
    ours="everything but the methods",
)
