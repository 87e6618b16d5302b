"""Faces with their ages: all that AgeDB-DIR and IMDB-WIKI-DIR have in common.

Below the folder lie a table (``age,path,split``; the split is train, val or test) and the images
that it names. The recipe is that of the BSAM code, with the weights on its raw scale.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from balanced_sam import ShotRegions, TargetBins
from benchmarks.datasets._face_images import Faces
from benchmarks.datasets._files import Row, check_images, checksum, read_csv
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import absolute_error
from benchmarks.experiment.recipe import Recipe

COLUMNS = ("age", "path", "split")
SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""What the table calls the splits, and what we do."""
BINS = TargetBins.uniform(0, 121, width=1)
"""Years; ages above 120, which are wrong labels, fall into the last bin."""


def face_dataset(
    *,
    title: str,
    source: str,
    table: str,
    counts: Path,
    download: Callable[[Path], None],
    image_path: Callable[[int, int], str],
    published: str,
) -> Dataset:
    """Return a data set of faces.

    Args:
        title: What it is called.
        source: Where it comes from, and under which terms.
        table: Name of the table below the data's folder.
        counts: JSON file of what is published: images per year by split, as far as it is known.
        download: Fetch below a folder what may be fetched.
        image_path: Return where a generated image goes, given its number and age.
        published: The entry of the published figures.
    """
    known = json.loads(counts.read_text())
    per_year = {name: torch.tensor(known[name]) for name in SPLITS.values() if name in known}
    train = per_year["train"]
    regions = ShotRegions.from_counts(BINS, train)
    return Dataset(
        title=title,
        source=source,
        target="Age (years)",
        unit="years",
        bins=BINS,
        regions=regions,
        counts=per_year,
        metrics=("MAE", "GM"),
        criterion=absolute_error,
        recipe=Recipe(
            epochs=400,
            batch_size=256,
            lr=0.2,
            weight_decay=1e-4,
            schedule="cosine_from_one",
            normalized=False,
        ),
        network=_network,
        load=partial(load, table=table),
        write_miniature=partial(write_miniature, table=table, image_path=image_path),
        published=published,
        selections=("best_validation", "last_epoch"),
        ours="TERM's tilt and the radius of BSAM's cheaper variant; not tuned on this data",
        augmentation=_augmentation,
        download=download,
        check=partial(check, counts=per_year, regions=regions),
        clip_counts=(5, 1000),
        mean_weight=(train.double().sqrt().sum() / train.sum()).item(),
    )


def load(root: Path | None, *, table: str) -> Splits:
    """Return the three splits below ``root``.

    Raises:
        FileNotFoundError: If the table or an image is missing.
        ValueError: If the table or an image does not hold what it should.
    """
    if root is None:
        raise ValueError(f"Expected the folder that holds {table} and its images, but got none.")
    rows = read_csv(root / table, COLUMNS)
    faces = {name: _read_split(root, table, rows, name) for name in SPLITS}
    check_images(root, [(row["path"], place) for place, row in rows])
    train_ages = faces["train"].targets
    return Splits(
        train=faces["train"],
        validation=faces["val"],
        test=faces["test"],
        train_targets=train_ages,
        train_counts=BINS.counts(train_ages),
        checksum=checksum(root, [table], [row["path"] for _, row in rows]),
    )


def _read_split(root: Path, table: str, rows: list[Row], name: str) -> Faces:
    """Return the faces of a split."""
    chosen = [(place, row) for place, row in rows if _split(place, row) == name]
    if not chosen:
        raise ValueError(f"Expected rows of the split {name!r} in {root / table}, but got none.")
    ages = torch.tensor([_age(place, row) for place, row in chosen])
    return Faces(root, [row["path"] for _, row in chosen], ages, train=name == "train")


def _split(place: str, row: dict[str, str]) -> str:
    """Return the split of a row."""
    if row["split"] not in SPLITS:
        raise ValueError(f"Expected a split of {[*SPLITS]} in {place}, but got {row['split']!r}.")
    return row["split"]


def _age(place: str, row: dict[str, str]) -> float:
    """Return the age in a row."""
    try:
        age = float(row["age"])
    except ValueError:
        age = math.nan
    if not (math.isfinite(age) and age >= 0):
        raise ValueError(f"Expected an age in years in {place}, but got {row['age']!r}.")
    return age


def check(splits: Splits, *, counts: dict[str, Tensor], regions: ShotRegions) -> None:
    """Raise ``ValueError`` at the first count that is not that of the published data.

    Args:
        splits: The data at hand.
        counts: Published images per year, by split.
        regions: Which years are many-, medium- and few-shot.
    """
    found = {name: BINS.counts(getattr(splits, name).targets) for name in SPLITS.values()}
    words = {"train": "training", "validation": "validation", "test": "test"}
    for name, years in counts.items():
        _expect(int(years.sum()), f"{words[name]} images", found[name].sum())
    for name, years in counts.items():
        for region in ("many", "medium", "few"):
            shot = regions.bin_mask(region)
            _expect(
                int(years[shot].sum()),
                f"{region}-shot {words[name]} images",
                found[name][shot].sum(),
            )
    for name, years in counts.items():
        for age, count in enumerate(years.tolist()):
            _expect(count, f"{words[name]} images of age {age}", found[name][age])


def _expect(expected: int, what: str, found: Tensor) -> None:
    if found != expected:
        raise ValueError(f"Expected {expected} {what}, but got {int(found)}.")


def write_miniature(
    root: Path,
    *,
    table: str,
    image_path: Callable[[int, int], str],
    images: int = 40,
    size: tuple[int, int] | None = None,
) -> None:
    """Write generated faces below ``root``, the brighter the older; of five, three are to train on.

    Args:
        root: A folder, made if there is none.
        table: Name of the table.
        image_path: Return where an image goes, given its number and age.
        images: How many faces.
        size: Their width and height; varied between 60 and 120 pixels if None.
    """
    random = np.random.default_rng(0)
    lines = [",".join(COLUMNS)]
    for number in range(images):
        age = 3 + 37 * number % 93
        path = image_path(number, age)
        width, height = size or random.integers(60, 121, 2).tolist()
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        _draw_face(age, width, height, random).save(root / path, quality=90)
        lines.append(f"{age},{path},{('train', 'train', 'train', 'val', 'test')[number % 5]}")
    (root / table).write_text("\n".join(lines) + "\n")


def _draw_face(age: int, width: int, height: int, random: np.random.Generator) -> Image.Image:
    """Return a grey ellipse before a coloured background, as noisy as a photograph."""
    image = Image.new("RGB", (width, height), tuple(random.integers(0, 256, 3).tolist()))
    grey = 40 + 2 * age
    oval = (width // 4, height // 6, width - width // 4, height - height // 6)
    ImageDraw.Draw(image).ellipse(oval, fill=(grey, grey, grey))
    noise = random.normal(0, 8, (height, width, 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


# transformers and kornia take seconds to import, which `python -m benchmarks list` need not wait.


def _network(recipe: Recipe) -> nn.Module:
    """Return a ResNet-18 from random weights."""
    from benchmarks.networks.resnet import AgeNetwork, resnet18

    return AgeNetwork(resnet18())


def _augmentation() -> nn.Module:
    from benchmarks.datasets._face_augmentation import FaceAugmentation

    return FaceAugmentation()
