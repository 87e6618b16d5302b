"""IMDB-WIKI-DIR: over 200 000 faces from IMDb and Wikipedia, with noisy ages, few of them old."""

import shutil
from pathlib import Path

from benchmarks.datasets._faces import face_dataset
from benchmarks.datasets._files import fetch, unpack

TABLE = "imdb_wiki.csv"
TABLE_URL = (
    "https://raw.githubusercontent.com/YyzHarry/imbalanced-regression/"
    "a6fdc45d45c04e6f5c40f43925bc66e580911084/imdb-wiki-dir/data/imdb_wiki.csv"
)
TABLE_BLOB = "c1512e3da0de9076a0793b982c9a74cd872c0d8b"
HOMEPAGE = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/"


def download(root: Path) -> None:
    """Fetch the table and the images, eight gigabytes packed, below ``root``."""
    fetch(TABLE_URL, root / TABLE, git_blob=TABLE_BLOB)
    for name in ("imdb_crop", "wiki_crop"):
        if not (root / name).exists():
            _download_images(root, name)


def _download_images(root: Path, name: str) -> None:
    """Fetch and unpack a folder of images."""
    archive, draft = root / f"{name}.tar", root / f".{name}"
    fetch(f"{HOMEPAGE}static/{name}.tar", archive)
    # Moved when it is whole, so that a folder in its place is never half a one.
    unpack(archive, draft)
    (draft / name).replace(root / name)
    shutil.rmtree(draft)


def image_path(number: int, age: int) -> str:
    """Return where an image goes: a folder of two digits, date of birth, year of the photograph."""
    folder, name = f"{number % 100:02}", f"1900-1-{1 + number % 28}_{1900 + age}.jpg"
    if number % 2:
        return f"wiki_crop/{folder}/{number}_{name}"
    return f"imdb_crop/{folder}/nm{number:07}_rm{number}_{name}"


DATASET = face_dataset(
    title="IMDB-WIKI-DIR",
    source=(
        f"images from {HOMEPAGE} (Rothe et al., 2018), for academic research; table from the DIR "
        "code (Yang et al., 2021), MIT licence"
    ),
    table=TABLE,
    counts=Path(__file__).with_name("imdb_wiki_counts.json"),
    download=download,
    image_path=image_path,
    published="imdb_wiki_dir",
)
