"""AgeDB-DIR: 16 488 faces of well-known people, their ages checked by hand, few of them old."""

from pathlib import Path

from benchmarks.datasets._faces import face_dataset
from benchmarks.datasets._files import fetch

TABLE = "agedb.csv"
TABLE_URL = (
    "https://raw.githubusercontent.com/YyzHarry/imbalanced-regression/"
    "a6fdc45d45c04e6f5c40f43925bc66e580911084/agedb-dir/data/agedb.csv"
)
TABLE_BLOB = "78abfdb939ff5cf68672cf11ee9b84a0eb9e990a"
HOMEPAGE = "https://ibug.doc.ic.ac.uk/resources/agedb/"


def download(root: Path) -> None:
    """Fetch the table below ``root``.

    Raises:
        FileNotFoundError: If the images are not there, which only their authors give.
    """
    fetch(TABLE_URL, root / TABLE, git_blob=TABLE_BLOB)
    if not (root / "AgeDB").is_dir():
        raise FileNotFoundError(
            f"Expected the images in {root / 'AgeDB'}, but there is no such folder: ask the "
            f"authors for the password of their archive ({HOMEPAGE}) and unpack it in {root}."
        )


def image_path(number: int, age: int) -> str:
    """Return where an image goes: number, name, age and sex, as in the archive."""
    return f"AgeDB/{number}_NobodyAtAll_{age}_{'fm'[number % 2]}.jpg"


DATASET = face_dataset(
    title="AgeDB-DIR",
    source=(
        f"images from {HOMEPAGE} (Moschoglou et al., 2017): password by mail from the authors, for "
        "research; table from the DIR code (Yang et al., 2021), MIT licence. Its split is by "
        "image: the same person is in training and test"
    ),
    table=TABLE,
    counts=Path(__file__).with_name("agedb_counts.json"),
    download=download,
    image_path=image_path,
    published="agedb_dir",
)
