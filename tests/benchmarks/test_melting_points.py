"""Melting points: what the package holds, the features of a molecule, its network, errors."""

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.datasets import melting_points
from benchmarks.datasets.melting_points import BINS, COUNTS, DATASET, FEATURES, encode
from benchmarks.experiment.dataset import Splits
from benchmarks.networks.perceptron import Perceptron

POINTS = "OpenNotebook Melting Points.tsv"
LARGE, SMALL = (f"chemical identifiers pubchem {size}.tsv" for size in ("large", "small"))


@pytest.fixture(scope="module")
def splits() -> Splits:
    return melting_points.load(None)


def all_targets(splits: Splits) -> Tensor:
    return torch.cat([splits.train.targets, splits.validation.targets, splits.test.targets])


def test_the_package_holds_the_known_molecules(splits: Splits) -> None:
    kelvin = all_targets(splits)
    assert len(kelvin) == 11384
    assert torch.equal(BINS.counts(kelvin), COUNTS)
    assert kelvin.dtype == torch.float32
    # Carbon monoxide and table salt.
    assert kelvin.min().item() == pytest.approx(68.15)
    assert kelvin.max().item() == pytest.approx(1077.15)


def test_the_checksum_is_that_of_the_tables_on_every_processor(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Logarithms of another processor differ in the last bit.
    monkeypatch.setattr(melting_points, "encode", lambda smiles: encode(smiles) + 1e-7)
    other = melting_points.load(None)
    assert not torch.equal(other.test.inputs, splits.test.inputs)
    assert other.checksum == splits.checksum
    DATASET.write_miniature(tmp_path)
    assert melting_points.load(tmp_path).checksum != splits.checksum


def test_no_molecule_is_there_twice() -> None:
    smiles, _ = melting_points._read(None)
    assert len(set(smiles)) == len(smiles) == 11384
    assert all(smiles)


def test_both_tails_are_rare(splits: Splits) -> None:
    kelvin = all_targets(splits)
    few = kelvin[DATASET.regions.mask(kelvin, "few")]
    middle = kelvin.median()
    assert (int((few < middle).sum()), int((few > middle).sum())) == (49, 101)
    occupied = DATASET.regions.bin_mask("few") & (COUNTS > 0)
    assert int(occupied.sum()) == 21


def test_features_count_the_pieces_of_up_to_four_characters() -> None:
    expected = torch.zeros(FEATURES)
    for piece, times in {"C": 2, "O": 1, "CC": 1, "CO": 1, "CCO": 1}.items():
        expected[zlib.crc32(piece.encode()) % FEATURES] += times
    torch.testing.assert_close(encode(["CCO"])[0], expected.log1p())
    assert torch.equal(encode(["CCO", "N"])[0], encode(["N", "CCO"])[1])
    # 7 + 6 + 5 + 4 pieces.
    assert encode(["c1ccccc"]).expm1().sum().item() == pytest.approx(22)


def test_miniature_is_read_as_it_was_written(tmp_path: Path) -> None:
    melting_points.write_miniature(tmp_path)
    points = dict(row.split("\t") for row in (tmp_path / POINTS).read_text().splitlines()[1:])
    large, small = ((tmp_path / name).read_text().splitlines() for name in (LARGE, SMALL))
    assert (len(points), len(large), len(small)) == (300, 250, 40)
    rows = [row.split("\t") for row in large + small]
    expected = sorted((float(points[row[1]]), *encode([row[4]])[0].tolist()) for row in rows)
    splits = melting_points.load(tmp_path)
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [174, 58, 58]
    pairs = [part[k] for part in parts for k in range(len(part))]
    found = sorted((target.item(), *features.tolist()) for features, target in pairs)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def _remove_points(root: Path) -> None:
    (root / POINTS).unlink()


def _remove_identifiers(root: Path) -> None:
    (root / SMALL).unlink()


def _rename_a_column(root: Path) -> None:
    path = root / POINTS
    path.write_text(path.read_text().replace("Tm", "Tb"))


def _shorten_a_line(root: Path) -> None:
    path = root / LARGE
    path.write_text(path.read_text() + "291\t291-00-0\n")


def _spoil_a_number(root: Path) -> None:
    path = root / POINTS
    path.write_text(path.read_text() + "301-00-0\thot\n")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_remove_points, FileNotFoundError, r"Expected the file .*Melting Points\.tsv, but there"),
        (_remove_identifiers, FileNotFoundError, r"Expected the file .*small\.tsv, but there is"),
        (_rename_a_column, ValueError, r"columns CAS and Tm in .*Points\.tsv, but got .*'Tb'"),
        (_shorten_a_line, ValueError, r"at least 5 columns in line 251 of .*large\.tsv, but got 2"),
        (_spoil_a_number, ValueError, r"number in .*Points\.tsv, but got 'hot' for 301-00-0"),
    ],
)
def test_a_spoiled_table_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    melting_points.write_miniature(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        melting_points.load(tmp_path)


def test_network_starts_from_its_offset_and_ends_in_its_head() -> None:
    network = Perceptron(7, offset=3.0, scale=2.0, width=5)
    assert list(network.children())[-1] is network.head
    assert isinstance(network.head, nn.Linear)
    assert network(torch.rand(4, 7)).shape == (4,)
    nn.init.zeros_(network.head.weight)
    nn.init.constant_(network.head.bias, 0.5)
    assert torch.equal(network(torch.rand(4, 7)), torch.full((4,), 4.0))


def test_every_weight_of_the_network_is_learned() -> None:
    network = Perceptron(7, offset=3.0, scale=2.0, width=5)
    assert sum(isinstance(layer, nn.Linear) for layer in network.modules()) == 3
    network(torch.rand(64, 7)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
