"""Faces: their crops, augmentation, tables, counts, and the two data sets made of them."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from balanced_sam import ShotRegions, TargetWeights
from benchmarks.__main__ import main
from benchmarks.costs import loading
from benchmarks.datasets import agedb_dir, imdb_wiki_dir
from benchmarks.datasets._face_augmentation import FaceAugmentation
from benchmarks.datasets._face_images import Faces, random_box
from benchmarks.datasets._faces import BINS
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.plan import plan
from benchmarks.experiment.registry import method_names

DATASETS = {"agedb_dir": agedb_dir.DATASET, "imdb_wiki_dir": imdb_wiki_dir.DATASET}
AGEDB = agedb_dir.DATASET
IMDB_WIKI = imdb_wiki_dir.DATASET

sides = st.integers(1, 2000)


def faces_of(image: Image.Image, root: Path, *, train: bool) -> Faces:
    image.save(root / "face.png")
    return Faces(root, ["face.png"], torch.tensor([30.0]), train=train)


@given(sides, sides, st.integers(0, 2**40))
def test_random_box_lies_in_the_image_and_follows_from_the_seed(
    width: int, height: int, seed: int
) -> None:
    left, top, right, bottom = box = random_box(width, height, seed=seed)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert random_box(width, height, seed=seed) == box


@given(st.integers(0, 2**40))
def test_random_box_keeps_a_fifth_of_the_area_and_its_shape(seed: int) -> None:
    left, top, right, bottom = random_box(1000, 1000, seed=seed)
    width, height = right - left, bottom - top
    # To the pixel that rounding costs.
    assert (width + 1) * (height + 1) >= 0.2 * 1000**2
    assert (width - 1) / (height + 1) <= 4 / 3
    assert (height - 1) / (width + 1) <= 4 / 3


def test_random_box_draws_areas_shapes_and_places_evenly() -> None:
    boxes = torch.tensor([random_box(1000, 1000, seed=seed) for seed in range(4000)]).double()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    fits = width * height < 0.7e6  # below that every shape fits, and none is drawn again
    areas = (width * height)[fits] / 1e6
    shapes = (width / height).log()[fits] / math.log(4 / 3)
    places = (boxes[:, 0] / (1000 - width))[fits]
    for values, low, high in [(areas, 0.2, 0.7), (shapes, -1, 1), (places, 0, 1)]:
        shares = torch.histc(values, bins=5, min=low, max=high) / len(values)
        # Six standard deviations of a share.
        assert (shares - 0.2).abs().max() < 6 * (0.2 * 0.8 / len(values)) ** 0.5


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 100), (434, 0, 567, 100)), ((100, 1000), (0, 434, 100, 567))]
)
def test_random_box_of_a_panorama_is_the_middle(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    # Of 20 % or more of so long an image no shape fits.
    assert random_box(*size, seed=0) == box


def test_training_face_is_another_crop_in_each_draw_but_the_same_for_an_index(
    tmp_path: Path,
) -> None:
    faces = faces_of(Image.linear_gradient("L"), tmp_path, train=True)
    (first, age), (again, _), (later, later_age) = faces[0], faces[0], faces[1]
    assert first.shape == (3, 224, 224)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert age == later_age == 30


def test_training_face_shows_nothing_but_its_box(tmp_path: Path) -> None:
    left, top, right, bottom = random_box(300, 400, seed=7)
    image = Image.new("RGB", (300, 400), "white")
    image.paste("black", (left, top, right, bottom))
    seen, _ = faces_of(image, tmp_path, train=True)[7]
    assert seen.max() == 0


@pytest.mark.parametrize(("width", "height"), [(256, 256), (256, 300), (512, 600)])
def test_evaluated_face_is_the_middle_of_the_image_with_short_side_256(
    tmp_path: Path, width: int, height: int
) -> None:
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    seen, _ = faces_of(image, tmp_path, train=False)[0]
    resized = image.resize((256, 256 * height // width), Image.Resampling.BILINEAR)
    top = (resized.height - 224) // 2
    expected = resized.crop((16, top, 240, top + 224))
    assert seen.permute(1, 2, 0).numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_face_of_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = "face.tif" if mode == "CMYK" else "face.png"
    Image.new(mode, (300, 300)).save(tmp_path / name)
    seen, _ = Faces(tmp_path, [name], torch.tensor([30.0]), train=False)[0]
    assert seen.shape == (3, 224, 224)


def test_augmentation_keeps_shape_range_and_ages() -> None:
    torch.manual_seed(0)
    images, ages = torch.rand(16, 3, 32, 24), torch.arange(16.0)
    changed, same_ages = FaceAugmentation()(images, ages)
    assert changed.shape == images.shape
    assert 0 <= changed.min() < changed.max() <= 1
    assert torch.equal(same_ages, ages)
    torch.manual_seed(0)
    images = torch.rand(16, 3, 32, 24)
    assert torch.equal(FaceAugmentation()(images, ages)[0], changed)


def test_augmentation_flips_half_jitters_four_fifths_and_greys_a_fifth() -> None:
    torch.manual_seed(0)
    # Left darker than right, and coloured.
    image = (
        torch.linspace(0.3, 0.6, 8).repeat(3, 8, 1) * torch.tensor([1.0, 0.8, 0.6])[:, None, None]
    )
    changed, _ = FaceAugmentation()(image.repeat(2000, 1, 1, 1), torch.zeros(2000))
    flipped = changed[:, 0, 0, 0] > changed[:, 0, 0, -1]
    grey = (changed.amax(1) - changed.amin(1)).amax((1, 2)) < 1e-6
    untouched = torch.isclose(changed, image).all((1, 2, 3)) | torch.isclose(
        changed, image.flip(-1)
    ).all((1, 2, 3))
    for event, share in [(flipped, 0.5), (grey, 0.2), (untouched, 0.2 * 0.8)]:
        assert event.double().mean().item() == pytest.approx(share, abs=0.04)


@pytest.fixture(params=DATASETS)
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return DATASETS[request.param]


@pytest.fixture
def root(tmp_path: Path, dataset: Dataset) -> Path:
    dataset.write_miniature(tmp_path)
    return tmp_path


def test_miniature_loads_as_the_splits_it_was_written_as(root: Path, dataset: Dataset) -> None:
    splits = dataset.load(root)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [24, 8, 8]
    assert torch.equal(splits.train_counts, BINS.counts(splits.train_targets))
    for split in (splits.train, splits.validation, splits.test):
        image, age = split[len(split) - 1]
        assert image.shape == (3, 224, 224)
        assert age.dtype == torch.float32
    assert splits.train[24][1] == splits.train[0][1]


def test_miniature_is_the_same_each_time(tmp_path: Path, dataset: Dataset) -> None:
    for folder in ("one", "two"):
        dataset.write_miniature(tmp_path / folder)
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


def test_miniature_has_the_names_of_the_data(tmp_path: Path) -> None:
    for dataset in DATASETS.values():
        dataset.write_miniature(tmp_path)
    assert len(list(tmp_path.glob("AgeDB/*_*_*_[fm].jpg"))) == 40
    assert len(list(tmp_path.glob("imdb_crop/[0-9][0-9]/nm*_rm*_*-*-*_*.jpg"))) == 20
    assert len(list(tmp_path.glob("wiki_crop/[0-9][0-9]/*_*-*-*_*.jpg"))) == 20


def test_miniature_faces_get_brighter_with_age(root: Path, dataset: Dataset) -> None:
    test = dataset.load(root).test
    seen = sorted(
        (age.item(), image[:, 112, 112].float().mean().item())
        for image, age in map(test.__getitem__, range(8))
    )
    assert seen[0][1] < seen[4][1] < seen[-1][1]


def test_checksum_is_the_same_until_the_table_changes(root: Path, dataset: Dataset) -> None:
    before = dataset.load(root).checksum
    assert dataset.load(root).checksum == before
    table = next(root.glob("*.csv"))
    table.write_text(table.read_text().replace("train", "val", 1))
    assert dataset.load(root).checksum != before


def change_table(root: Path, old: str, new: str) -> None:
    table = root / "agedb.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def edit(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: change_table(root, old, new)


def truncate(root: Path) -> None:
    image = root / "AgeDB/0_NobodyAtAll_3_f.jpg"
    image.write_bytes(image.read_bytes()[:-50])


ROW = "3,AgeDB/0_NobodyAtAll_3_f.jpg,train"
PATH = "AgeDB/0_NobodyAtAll_3_f.jpg"

ERRORS: list[tuple[Callable[[Path], None], type[Exception], str]] = [
    (lambda root: (root / "agedb.csv").unlink(), FileNotFoundError, r"table .*agedb\.csv"),
    (edit("age,path", "years,path"), ValueError, r"columns .* in .*agedb\.csv, but got \['years'"),
    (edit(ROW, f"x,{PATH},train"), ValueError, r"age in years in agedb\.csv, row 2, but got 'x'"),
    (edit(ROW, f",{PATH},train"), ValueError, r"age in years in agedb\.csv, row 2, but got ''"),
    (edit(ROW, f"nan,{PATH},train"), ValueError, r"agedb\.csv, row 2, but got 'nan'"),
    (edit(ROW, f"inf,{PATH},train"), ValueError, r"agedb\.csv, row 2, but got 'inf'"),
    (edit(ROW, f"-3,{PATH},train"), ValueError, r"agedb\.csv, row 2, but got '-3'"),
    (edit(ROW, f"3,{PATH},dev"), ValueError, r"a split of .* in agedb\.csv, row 2, but got 'dev'"),
    (edit(",val", ",test"), ValueError, r"split 'val' in .*agedb\.csv, but got none"),
    (edit(ROW, f"3,{PATH}"), ValueError, r"3 values in agedb\.csv, row 2"),
    (edit("AgeDB/0_", "AgeDB/x_"), FileNotFoundError, r"AgeDB/x_.* \(agedb\.csv, row 2\)"),
    (truncate, ValueError, r"readable image at .*AgeDB/0_.* \(agedb\.csv, row 2\).* truncated"),
]


@pytest.mark.parametrize(("damage", "error", "message"), ERRORS)
def test_load_error_names_file_and_row(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    AGEDB.write_miniature(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        AGEDB.load(tmp_path)


def test_load_without_a_folder_says_what_it_should_hold(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"folder that holds .*\.csv and its images, but got none"):
        dataset.load(None)


def faces_with(counts: Tensor) -> Faces:
    """A split with so many faces per year, none of them on disk."""
    ages = torch.arange(121.0).repeat_interleave(counts)
    return Faces(Path(), [""] * len(ages), ages, train=True)


def agedb_splits(train: Tensor, validation: Tensor, test: Tensor) -> Splits:
    faces = [faces_with(counts) for counts in (train, validation, test)]
    return Splits(*faces, train_targets=faces[0].targets, train_counts=train, checksum="")


def moved(counts: Tensor, source: int, goal: int) -> Tensor:
    """The counts after one face turned from an age to another."""
    counts = counts.clone()
    counts[source] -= 1
    counts[goal] += 1
    return counts


def one_less(counts: Tensor) -> Tensor:
    return counts - torch.nn.functional.one_hot(torch.tensor(30), 121)


def check_agedb(**changes: Tensor) -> None:
    assert AGEDB.check is not None
    AGEDB.check(agedb_splits(**(AGEDB.counts | changes)))


def test_check_accepts_the_published_counts() -> None:
    check_agedb()


TRAIN, VALIDATION, TEST = (AGEDB.counts[name] for name in ("train", "validation", "test"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": one_less(TRAIN), "test": one_less(TEST)},
            "12208 training images, but got 12207",
        ),
        ({"validation": one_less(VALIDATION)}, "2140 validation images, but got 2139"),
        ({"test": one_less(TEST)}, "2140 test images, but got 2139"),
        ({"test": moved(TEST, 30, 3)}, "1530 many-shot test images, but got 1529"),
        ({"test": moved(TEST, 18, 3)}, "448 medium-shot test images, but got 447"),
        ({"train": moved(TRAIN, 30, 31)}, "325 training images of age 30, but got 324"),
    ],
)
def test_check_names_the_first_count_that_differs(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Expected {message}.$"):
        check_agedb(**changes)


def test_check_leaves_splits_alone_whose_ages_are_not_published() -> None:
    train = IMDB_WIKI.counts["train"]
    few = torch.ones(121, dtype=torch.int64)
    assert IMDB_WIKI.check is not None
    IMDB_WIKI.check(agedb_splits(train, few, few))
    with pytest.raises(ValueError, match="191509 training images, but got 191508"):
        IMDB_WIKI.check(agedb_splits(one_less(train), few, few))


def region_sizes(counts: Tensor, regions: ShotRegions) -> list[int]:
    return [int(counts[regions.bin_mask(name)].sum()) for name in ("many", "medium", "few")]


def test_regions_have_the_published_sizes() -> None:
    assert region_sizes(AGEDB.counts["test"], AGEDB.regions) == [1530, 448, 162]
    assert [AGEDB.counts[name].sum() for name in AGEDB.counts] == [12208, 2140, 2140]
    assert IMDB_WIKI.counts["train"].sum() == 191509


def test_age_above_120_falls_into_the_last_bin() -> None:
    assert BINS.index(torch.tensor([0.0, 30.0, 30.9, 120.0, 186.0])).tolist() == [
        0,
        30,
        30,
        120,
        120,
    ]


@pytest.mark.parametrize(
    ("dataset", "mean", "lr", "weight_decay"),
    [(AGEDB, 0.07647, 0.0153, 1.3e-3), (IMDB_WIKI, 0.01765, 0.00353, 5.7e-3)],
)
def test_mean_weight_is_that_of_raw_sqinv_and_converts_the_recipe(
    dataset: Dataset, mean: float, lr: float, weight_decay: float
) -> None:
    train = dataset.counts["train"]
    weights = TargetWeights.from_counts(BINS, train, scheme="sqinv", normalize=False)
    over_samples = (weights.bin_weights.double() * train).sum() / train.sum()
    assert dataset.mean_weight == pytest.approx(mean, abs=5e-6)
    assert dataset.mean_weight == pytest.approx(over_samples.item(), rel=1e-6)
    recipe = dataset.recipe.normalize(dataset.mean_weight)
    assert recipe.lr == pytest.approx(lr, rel=5e-3)
    assert recipe.weight_decay == pytest.approx(weight_decay, rel=1e-2)


def test_recipes_differ_in_rho_and_the_steps_of_a_new_head_alone() -> None:
    assert IMDB_WIKI.recipe == AGEDB.recipe
    for method in method_names():
        of_agedb, of_imdb_wiki = (plan(name, method).constants for name in DATASETS)
        if "rho" in of_agedb:
            assert (of_agedb.pop("rho"), of_imdb_wiki.pop("rho")) == (0.2, 0.05)
        if "balanced_mse_epochs" in of_agedb:
            both = of_agedb.pop("balanced_mse_epochs"), of_imdb_wiki.pop("balanced_mse_epochs")
            assert both == (156, 10)
        assert of_agedb == of_imdb_wiki


def test_network_returns_an_age_a_face(dataset: Dataset) -> None:
    network = dataset.network(dataset.recipe)
    assert network(torch.rand(2, 3, 64, 64)).shape == (2,)


def test_agedb_download_fetches_the_table_and_says_what_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = {}

    def fake_fetch(url: str, path: Path, *, git_blob: str) -> None:
        fetched[path.name] = git_blob

    monkeypatch.setattr(agedb_dir, "fetch", fake_fetch)
    with pytest.raises(
        FileNotFoundError, match=r"AgeDB, but there is no such folder: ask the auth"
    ):
        agedb_dir.download(tmp_path)
    (tmp_path / "AgeDB").mkdir()
    agedb_dir.download(tmp_path)
    assert fetched == {"agedb.csv": agedb_dir.TABLE_BLOB}


def test_imdb_wiki_download_unpacks_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = {}

    def fake_fetch(url: str, path: Path, *, git_blob: str | None = None) -> None:
        fetched[path.name] = git_blob

    def fake_unpack(archive: Path, folder: Path) -> None:
        (folder / archive.stem / "00").mkdir(parents=True)

    monkeypatch.setattr(imdb_wiki_dir, "fetch", fake_fetch)
    monkeypatch.setattr(imdb_wiki_dir, "unpack", fake_unpack)
    (tmp_path / "wiki_crop").mkdir()
    imdb_wiki_dir.download(tmp_path)
    assert fetched == {"imdb_wiki.csv": imdb_wiki_dir.TABLE_BLOB, "imdb_crop.tar": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imdb_crop", "wiki_crop"]
    assert (tmp_path / "imdb_crop" / "00").is_dir()


def test_loading_counts_the_images_of_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: list[int] = []
    measure_rate = loading._rate

    def rate(work: Callable[[], int], device: torch.device) -> float:
        def counted() -> int:
            counts.append(work())
            return counts[-1]

        return measure_rate(counted, device)

    monkeypatch.setattr(loading, "_rate", rate)
    path = tmp_path / "loading.json"
    # Six of ten are to train on, which are fewer than a batch.
    command = ["loading", "--images", "10", "--batch-size", "8", "--rounds", "1"]
    main([*command, "--out", str(path)])
    assert counts == 2 * [6, 6, loading.STEPS * 6]
    record = json.loads(path.read_text())
    assert [len(rates) for rates in record["rates"].values()] == [1, 1, 1]
    assert 0 < record["learned"] == record["rates"]["learned"][0]
    assert f"{record['learned']} learned from" in capsys.readouterr().out


def test_loading_compares_rates_within_each_round() -> None:
    rates = {"decoded": [9.0, 9.0, 9.0], "delivered": [8.0, 2.0, 6.0], "learned": [4.0, 1.0, 2.0]}
    found = loading.summary(rates)
    assert (found["delivered"], found["learned"], found["delivered_by_learned"]) == (6, 2, 2)
