"""Melting points: how hot a molecule melts, told from its formula; few melt very low or very high.

The Open Notebook melting points of the package chemicals, each with the SMILES, a formula in one
line, that the package's tables of identifiers have for the same CAS number. The network sees how
often each piece of up to four characters occurs in the SMILES, the pieces hashed to a fixed number
of features.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from balanced_sam import ShotRegions, TargetBins
from benchmarks.datasets._packages import FOLDS, TRAIN_SHARE, PackagedFile, split_at_random
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import absolute_error
from benchmarks.experiment.recipe import Recipe
from benchmarks.networks.perceptron import Perceptron

POINTS = PackagedFile(
    package="chemicals",
    version="1.5.2",
    path="chemicals/Phase Change/OpenNotebook Melting Points.tsv",
    sha256="a41cec098dce1dd603652342d4a9f0171b2f67625ebe80a1d3ab4b02a52f0bed",
)
"""A line a substance: CAS number and melting point in kelvin; the first line names them."""
IDENTIFIERS = tuple(
    PackagedFile(
        package=POINTS.package,
        version=POINTS.version,
        path=f"chemicals/Identifiers/chemical identifiers {name}",
        sha256=sha256,
    )
    for name, sha256 in (
        (
            "pubchem large.tsv",
            "3b9aac5ae8d270bafc9e72a6af5441ce580f0ce444d1dee48dc37e47474b91fc",
        ),
        (
            "pubchem small.tsv",
            "21fc5441ba4e159ec3b3993459d7cd0c6d375a1565c7304cc55580e8999ba42e",
        ),
    )
)
"""A line a substance: number in PubChem, CAS number, sum formula, weight, SMILES, and names."""
BINS = TargetBins.uniform(60, 780, width=10)
"""Table salt, which melts at 1077 K, is in the last bin."""
# fmt: off
COUNTS = torch.tensor([
    1, 1, 4, 3, 7, 15, 18, 58, 54, 80, 93, 123, 129, 166, 145, 163, 179, 187, 195, 233, 252, 269,
    322, 367, 554, 544, 524, 519, 472, 496, 455, 441, 396, 372, 393, 345, 352, 343, 303, 282, 238,
    219, 188, 180, 152, 95, 92, 66, 50, 64, 48, 36, 27, 16, 16, 8, 6, 12, 5, 3, 0, 0, 0, 1, 0, 2,
    2, 0, 0, 1, 1, 1,
])
# fmt: on
"""Molecules of each bin."""
FEATURES = 1024
LONGEST = 4
"""Characters of a piece."""


def load(root: Path | None, fold: int = 0) -> Splits:
    """Return the three splits of a fold, of the tables below ``root`` or of the package's."""
    smiles, kelvin = _read(root)
    text = torch.frombuffer(bytearray("\n".join(smiles), "utf-8"), dtype=torch.uint8)
    return split_at_random(encode(smiles), kelvin, BINS, fold=fold, source=[text, kelvin])


def _read(root: Path | None) -> tuple[list[str], Tensor]:
    """Return SMILES and melting points, in the order of the table of melting points."""
    path = POINTS.locate(root)
    names, *rows = _columns(path, 0, 1)
    if names != ("CAS", "Tm"):
        raise ValueError(f"Expected the columns CAS and Tm in {path}, but got {names}.")
    kelvin = {}
    for number, value in rows:
        try:
            kelvin[number] = float(value)
        except ValueError:
            raise ValueError(
                f"Expected a number in {path}, but got {value!r} for {number}."
            ) from None
    found = {
        number: smiles
        for table in IDENTIFIERS
        for number, smiles in _columns(table.locate(root), 1, 4)
        if number in kelvin
    }
    numbers = [number for number in kelvin if number in found]
    return [found[number] for number in numbers], torch.tensor([kelvin[n] for n in numbers])


def _columns(path: Path, first: int, second: int) -> Iterator[tuple[str, str]]:
    """Yield two columns, counted from 0, of each line of a table with tabs."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            cells = line.rstrip("\n").split("\t", second + 1)
            if len(cells) <= second:
                raise ValueError(
                    f"Expected at least {second + 1} columns in line {number} of {path}, but got "
                    f"{len(cells)}."
                )
            yield cells[first], cells[second]


def encode(smiles: list[str]) -> Tensor:
    """Return ``log(1 + count)`` of the pieces of each molecule, shape ``(N, FEATURES)``."""
    features = torch.zeros(len(smiles), FEATURES)
    for row, text in zip(features, smiles, strict=True):
        pieces = [
            zlib.crc32(text[start : start + length].encode()) % FEATURES
            for length in range(1, LONGEST + 1)
            for start in range(len(text) - length + 1)
        ]
        row += torch.bincount(torch.tensor(pieces), minlength=FEATURES)
    return features.log1p()


def write_miniature(root: Path) -> None:
    """Write 300 generated molecules below ``root``, in the package's formats."""
    generator = torch.Generator().manual_seed(0)
    root.mkdir(parents=True, exist_ok=True)
    points, large, small = ["CAS\tTm"], [], []
    for k in range(300):
        carbons, oxygens = torch.randint(1, 20, (2,), generator=generator).tolist()
        points.append(f"{k}-00-0\t{100 + 10 * carbons + 20 * oxygens + 0.15:.2f}")
        # The last ten have no SMILES.
        if k < 290:
            identifiers = large if k < 250 else small
            identifiers.append(f"{k}\t{k}-00-0\tC\t1.0\t{'C' * carbons + 'O' * oxygens}\tname")
    for table, lines in zip((POINTS, *IDENTIFIERS), (points, large, small), strict=True):
        (root / table.name).write_text("\n".join(lines) + "\n", encoding="utf-8")


DATASET = Dataset(
    title="Melting points",
    source=(
        "Open Notebook melting points (Bradley and others, CC0) and identifiers of PubChem inside "
        "the chemicals package (MIT)"
    ),
    target="Melting point (K)",
    unit="K",
    bins=BINS,
    regions=ShotRegions.from_counts(BINS, TRAIN_SHARE * COUNTS),
    counts={},
    folds=FOLDS,
    metrics=("MAE", "bMAE"),
    criterion=absolute_error,
    recipe=Recipe(epochs=20, batch_size=256, lr=2e-3, weight_decay=0.0, optimizer="adam"),
    network=lambda recipe: Perceptron(FEATURES, offset=400.0, scale=100.0),
    load=load,
    write_miniature=write_miniature,
    ours="everything but the methods",
)
