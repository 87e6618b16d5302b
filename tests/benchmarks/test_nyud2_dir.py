"""NYUD2-DIR: its files, depths, bins and weights, and what training changes about its images."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from balanced_sam import TargetWeights
from benchmarks.datasets import nyud2_dir
from benchmarks.datasets._depth_augmentation import DepthAugmentation, Lighting
from benchmarks.datasets._depths import BINS, COUNTS, REGIONS
from benchmarks.datasets.nyud2_dir import CROPPED, DATASET, check, load
from benchmarks.experiment.dataset import Splits

PHOTOGRAPH, DEPTH = "nyu2_train/study_0003_out/1.jpg", "nyu2_train/study_0003_out/1.png"


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nyud2")
    DATASET.write_miniature(root)
    return root


@pytest.fixture(scope="module")
def splits(miniature: Path) -> Splits:
    return load(miniature)


def buckets(depths: Tensor) -> Tensor:
    """The benchmark code's rule, a float32 at a time."""
    return torch.tensor([min(int(depth * np.float32(10)), 99) for depth in depths.numpy()])


def test_bins_are_the_buckets_of_the_benchmark_code_for_every_stored_depth() -> None:
    of_8_bits = torch.arange(256).float() / 255 * 10
    of_16_bits = torch.arange(2**16).float() / 1000
    for depths in (of_8_bits, of_16_bits):
        assert torch.equal(BINS.index(depths), buckets(depths))


def test_regions_are_the_published_ones() -> None:
    assert [REGIONS.labels.count(label) for label in ("many", "medium", "few")] == [39, 15, 46]
    many, medium, few = (
        COUNTS[[REGIONS.labels[k] == label and k >= 7 for k in range(100)]]
        for label in ("many", "medium", "few")
    )
    # Cut by the training pixels of a bucket.
    assert few.max() < medium.min() <= medium.max() < many.min()


def test_counts_are_those_of_all_training_crops() -> None:
    assert COUNTS.sum() == 50_688 * 228 * 304
    assert (COUNTS > 0).nonzero().min() == 7


@pytest.mark.parametrize(
    ("scheme", "lowest", "highest"), [("sqinv", 0.609, 6.913), ("inv", 0.2585, 33.35)]
)
def test_weights_span_what_the_benchmark_code_gives(
    scheme: str, lowest: float, highest: float
) -> None:
    weights = TargetWeights.from_counts(BINS, COUNTS, scheme=scheme).bin_weights
    assert weights.min().item() == pytest.approx(lowest, rel=1e-3)
    assert weights.max().item() == pytest.approx(highest, rel=1e-3)
    assert (weights[:7] == weights[7]).all()


def test_training_sample_is_the_scaled_photograph_and_its_depth(splits: Splits) -> None:
    image, depths = splits.train[0]
    assert image.shape == (3, 240, 320)
    assert image.dtype == torch.uint8
    assert depths.shape == (240, 320)
    assert 0.7 < depths.min() < 1.0
    assert 9.0 < depths.max() < 10.0
    # The miniature's red is the depth.
    torch.testing.assert_close(image[0] / 255 * 10, depths, atol=0.2, rtol=0)


def test_training_split_is_endless(splits: Splits) -> None:
    image, depths = splits.train[1]
    again, depths_again = splits.train[1 + 3 * len(splits.train)]
    assert torch.equal(image, again)
    assert torch.equal(depths, depths_again)


def test_test_depths_are_the_millimetres_of_the_pixels_under_the_mask(
    splits: Splits, miniature: Path
) -> None:
    mask = np.load(miniature / "test_balanced_mask.npy")
    millimetres = np.array(Image.open(miniature / "nyu2_test/00001_depth.png"))
    cropped = millimetres[1::2, 1::2][6:234, 8:312]
    image, depths = splits.test[1]
    assert image.shape == (3, *CROPPED)
    assert np.array_equal(~depths.isnan().numpy(), mask[1] > 0)
    assert np.array_equal((depths * 1000).round().numpy()[mask[1] > 0], cropped[mask[1] > 0])


def test_validation_holds_out_whole_rooms(splits: Splits) -> None:
    # Both parts of the attic are one room.
    assert rooms(splits.validation) == {"attic_0001a_out", "attic_0001b_out"}
    assert rooms(splits.train) == {"cellar_0002_out", "study_0003_out"}


def rooms(split: nyud2_dir.Frames) -> set[str]:
    return {photograph.split("/")[1] for photograph, _ in split.frames}


def test_validation_counts_all_depths_about_equally_often() -> None:
    # As many pixels of each bin as the training images have, far fewer of the near ones count.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(COUNTS.double(), 400_000, replacement=True, generator=generator)
    depths = drawn / 10 + 0.05
    counted = torch.cat([nyud2_dir._equally_often(k, depths) for k in range(40)])
    counts = BINS.counts(depths.repeat(40)[counted])
    halves = counts[7:53].sum() / counts[53:].sum()
    assert halves.item() == pytest.approx(46 / 47, rel=0.1)
    assert not counts[:7].any()


def test_validation_sample_is_always_the_same(splits: Splits) -> None:
    once, again = (splits.validation[1][1] for _ in range(2))
    assert torch.equal(once.nan_to_num(), again.nan_to_num())
    assert 0 < (~once.isnan()).sum() < once.numel() / 4


def test_training_targets_are_depths_of_the_training_rooms(splits: Splits) -> None:
    assert splits.train_targets.min() >= 0.7
    assert splits.train_targets.max() < 10
    assert len(splits.train_targets) == len(splits.train) * 17 * 16


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def save_mask(path: Path, shape: tuple[int, ...]) -> None:
    np.save(path, np.ones(shape, dtype=np.uint8))


@pytest.mark.parametrize(
    ("file", "spoil", "error", "message"),
    [
        (PHOTOGRAPH, Path.unlink, FileNotFoundError, "study_0003_out/1.jpg"),
        (DEPTH, truncate, ValueError, "study_0003_out/1.png"),
        (PHOTOGRAPH, truncate, ValueError, "study_0003_out/1.jpg"),
        (
            DEPTH,
            lambda path: Image.new("L", (640, 400)).save(path),
            ValueError,
            r"1.png \(nyu2_train.csv, row 4",
        ),
        (DEPTH, lambda path: Image.new("RGB", (640, 480)).save(path), ValueError, "I;16"),
        (DEPTH, lambda path: Image.new("P", (640, 480)).save(path), ValueError, "mode P .* 4 : 3"),
        ("nyu2_test.csv", Path.unlink, FileNotFoundError, "nyu2_test.csv"),
        (
            "nyu2_train.csv",
            lambda path: path.write_text(path.read_text() + "data/a.jpg\n"),
            ValueError,
            "nyu2_train.csv, row 5",
        ),
        (
            "nyu2_train.csv",
            lambda path: path.write_text("".join(path.read_text().splitlines(True)[:2])),
            ValueError,
            "at least two rooms",
        ),
        ("test_balanced_mask.npy", Path.unlink, FileNotFoundError, "test_balanced_mask.npy"),
        ("test_balanced_mask.npy", truncate, ValueError, "test_balanced_mask.npy"),
        (
            "test_balanced_mask.npy",
            lambda path: save_mask(path, (3, 228, 304)),
            ValueError,
            r"test_balanced_mask.npy to have shape \(2, 228, 304\).* but got \(3, 228, 304\)",
        ),
        (
            "test_balanced_mask.npy",
            lambda path: save_mask(path, (2, 114, 152)),
            ValueError,
            r"but got \(2, 114, 152\)",
        ),
    ],
)
def test_load_names_what_is_wrong(
    miniature: Path,
    tmp_path: Path,
    file: str,
    spoil: Callable[[Path], object],
    error: type[Exception],
    message: str,
) -> None:
    root = tmp_path / "data"
    shutil.copytree(miniature, root)
    spoil(root / file)
    with pytest.raises(error, match=message):
        load(root)


def test_load_without_a_folder_says_that_one_is_needed() -> None:
    with pytest.raises(ValueError, match="Expected the folder"):
        load(None)


def test_check_names_the_first_count_that_differs(splits: Splits) -> None:
    with pytest.raises(ValueError, match=r"Expected 50688 photographs .* but got 4"):
        check(splits)


def test_check_counts_photographs_and_pixels(
    splits: Splits, miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.load(miniature / "test_balanced_mask.npy") > 0
    test = [bins_of_crop(path, 1000) for path in sorted(miniature.glob("nyu2_test/*_depth.png"))]
    train = [bins_of_crop(path, 25.5) for path in sorted(miniature.glob("nyu2_train/*/*.png"))]
    under_mask = np.bincount(np.concatenate([d[m] for d, m in zip(test, mask, strict=True)]))
    pixels = np.bincount(np.concatenate(train, axis=None), minlength=100)
    labels = np.array(REGIONS.labels)
    found = [
        *(4, 2, mask.sum(), *under_mask, *[0] * (100 - len(under_mask))),
        *(pixels[labels == region].sum() for region in ("many", "medium", "few")),
    ]
    published = dict(zip(nyud2_dir.PUBLISHED, found, strict=True))
    monkeypatch.setattr(nyud2_dir, "PUBLISHED", published)
    check(splits)
    few = "few-shot pixels for training and validation"
    published[few] -= 1
    with pytest.raises(ValueError, match=f"Expected {published[few]} {few}, but"):
        check(splits)


def bins_of_crop(path: Path, units: float) -> NDArray[np.int64]:
    """Bins of the crop's pixels, an image's units being so many a metre."""
    crop = np.array(Image.open(path))[1::2, 1::2][6:234, 8:312]
    return (crop / np.float32(units) * np.float32(10)).astype(int).clip(0, 99)


def test_published_pixels_are_those_of_all_crops() -> None:
    regions = [n for what, n in nyud2_dir.PUBLISHED.items() if "-shot" in what]
    assert sum(regions) == 50_688 * 228 * 304
    tested = [n for what, n in nyud2_dir.PUBLISHED.items() if "bin" in what]
    assert sum(tested) == nyud2_dir.PUBLISHED["test pixels under the mask"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_download_lays_the_archive_and_the_mask_below_the_folder(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    def fake_fetch(url: str, path: Path, *, git_blob: str | None = None) -> None:
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".zip":
            assert git_blob is None
            with zipfile.ZipFile(path, "w") as archive:
                for file in sorted(miniature.glob("nyu2_*/**/*.*")) + sorted(
                    miniature.glob("*.csv")
                ):
                    archive.write(file, Path("data") / file.relative_to(miniature))
        else:
            assert git_blob == nyud2_dir.MASK_BLOB
            shutil.copy(miniature / path.name, path)

    monkeypatch.setattr(nyud2_dir, "fetch", fake_fetch)
    if interrupted:
        # The tables and some images were unpacked already.
        fake_fetch("", tmp_path / "nyud2" / nyud2_dir.ARCHIVE)
        shutil.copy(miniature / "nyu2_train.csv", tmp_path / "nyud2")
        (tmp_path / "nyud2" / PHOTOGRAPH).parent.mkdir(parents=True)
        (tmp_path / "nyud2" / PHOTOGRAPH).touch()
    nyud2_dir.download(tmp_path / "nyud2")
    assert not list((tmp_path / "nyud2").glob("*.zip"))
    assert len(load(tmp_path / "nyud2").test) == 2


def waves() -> tuple[Tensor, Tensor]:
    """Grey images that tell their depth, with detail in both directions."""
    rows, columns = torch.meshgrid(torch.arange(240.0), torch.arange(320.0), indexing="ij")
    depths = 3 + torch.sin(columns / 5) + torch.cos(rows / 6 + columns / 9)
    depths = depths.expand(4, 240, 320)
    return (0.3 + 0.06 * depths).unsqueeze(1).repeat(1, 3, 1, 1), depths


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_augmentation_keeps_image_and_depth_aligned(seed: int) -> None:
    torch.manual_seed(seed)
    images, depths = DATASET.augmentation()(*waves())
    for image, depth in zip(images.mean(1)[:, 1::2, 1::2], depths, strict=True):
        inside = depth > 0
        # One pixel off, they correlate by .95 only.
        assert torch.corrcoef(torch.stack([image[inside], depth[inside]]))[0, 1] > 0.98


def test_augmentation_gives_the_crop_and_depths_of_half_its_size() -> None:
    images, depths = DATASET.augmentation()(*waves())
    assert images.shape == (4, 3, 228, 304)
    assert depths.shape == (4, 114, 152)
    assert images.dtype == depths.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1


def test_augmentation_mixes_no_depths() -> None:
    images, depths = waves()
    steps = depths.round()
    _, augmented = DATASET.augmentation()(images, steps)
    # What comes from outside has depth 0.
    assert set(augmented.unique().tolist()) <= {0.0, *steps.unique().tolist()}


def test_augmentation_without_rotation_is_the_crop_or_its_mirror_image() -> None:
    torch.manual_seed(0)
    images, depths = waves()
    _, augmented = DepthAugmentation(CROPPED, degrees=0.0)(images, depths)
    crop = depths[0, 6:234, 8:312]
    mirrored = crop.flip(1)
    kept = [torch.equal(depth, crop[1::2, 1::2]) for depth in augmented]
    flipped = [torch.equal(depth, mirrored[1::2, 1::2]) for depth in augmented]
    assert [a != b for a, b in zip(kept, flipped, strict=True)] == [True] * 4
    assert any(kept)
    assert any(flipped)


def test_augmentation_follows_the_seed() -> None:
    augmentation = DATASET.augmentation()
    torch.manual_seed(1)
    once = augmentation(*waves())
    torch.manual_seed(1)
    again = augmentation(*waves())
    other = augmentation(*waves())
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
    assert not torch.equal(once[1], other[1])


def test_lighting_has_the_covariance_of_colours() -> None:
    torch.manual_seed(0)
    lighting = Lighting(0.1)
    added = lighting(torch.zeros(20_000, 3, 1, 1)).flatten(1)
    expected = 0.01 * lighting.components @ lighting.components.T
    torch.testing.assert_close(torch.cov(added.T), expected, atol=1e-5, rtol=0.05)
