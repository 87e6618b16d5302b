import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Generator, Tensor, nn

from benchmarks.datasets import rooms
from benchmarks.datasets._depths import BINS, COUNTS, REGIONS
from benchmarks.datasets._memory import Pair
from benchmarks.datasets._raycast import Rooms, cast_depth, draw_paint, draw_rooms, render
from benchmarks.networks.small_depth import SmallDepthNetwork

SIZES = (64, 24, 32)
PIXEL = 2 * math.tan(math.radians(30)) / 64
"""Width of a pixel 1 m before the camera, of 64 in a row."""


@pytest.fixture(scope="module")
def parts() -> tuple[Pair, Pair, Pair]:
    return rooms.render_parts(SIZES, pool=500)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rooms")
    rooms.write_miniature(root)
    return root


def one_room(yaw: float = 0.0, pitch: float = 0.0, box: Tensor | None = None) -> Rooms:
    """Return a room of 8 x 6 x 4 m, seen from x = 3, y = 3, z = 2; a box is centre and halves."""
    centres, halves = torch.tensor([[4.0, 3.0, 2.0]]), torch.tensor([[4.0, 3.0, 2.0]])
    if box is not None:
        centres, halves = torch.cat([centres, box[:1]]), torch.cat([halves, box[1:]])
    return Rooms(
        centres=centres[None],
        halves=halves[None],
        turns=torch.zeros(1, len(centres)),
        camera=torch.tensor([[3.0, 3.0, 2.0]]),
        yaw=torch.tensor([yaw]),
        pitch=torch.tensor([pitch]),
    )


def test_depth_of_a_wall_that_faces_the_camera_is_constant() -> None:
    depth = cast_depth(one_room(), 16, 64)[0]
    wall = depth[:, 24:40]
    torch.testing.assert_close(wall, torch.full_like(wall, 5.0))


def test_depth_of_side_wall_floor_and_ceiling_is_their_distance_over_the_slope_of_the_ray() -> None:
    depth = cast_depth(one_room(), 48, 64)[0]
    right = (torch.arange(64) + 0.5 - 32) * PIXEL
    down = (torch.arange(48) + 0.5 - 24) * PIXEL
    # The wall ahead is 5 m away, those beside 3 m, floor and ceiling 2 m.
    beside, above = 3 / right.abs()[None, :], 2 / down.abs()[:, None]
    torch.testing.assert_close(depth, torch.minimum(beside, above).clamp(max=5.0))


@settings(deadline=None, max_examples=30)
@given(yaw=st.floats(-0.5, 0.5))
def test_depth_of_an_oblique_wall_follows_the_plane(yaw: float) -> None:
    depth = cast_depth(one_room(yaw), 2, 64)[0, 0]
    right = (torch.arange(64) + 0.5 - 32) * PIXEL
    # Along x, a ray advances by cos(yaw) + sin(yaw) * right a metre of depth; yaw is to the left.
    ahead = 5 / (math.cos(yaw) + math.sin(yaw) * right)
    aside = 3 / (math.sin(yaw) - math.cos(yaw) * right).abs()
    torch.testing.assert_close(depth, torch.minimum(ahead, aside), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(pitch=st.floats(0.5, 0.9))
def test_depth_of_the_floor_follows_the_pitch(pitch: float) -> None:
    depth = cast_depth(one_room(pitch=pitch), 48, 2)[0, 40:, 0]
    down = (torch.arange(40, 48) + 0.5 - 24) * 2 * math.tan(math.radians(30)) / 2
    assert (depth < 2 / math.sin(pitch)).all()
    expected = 2 / (math.sin(pitch) + math.cos(pitch) * down)
    torch.testing.assert_close(depth, expected.clamp(max=5.0), rtol=1e-4, atol=1e-4)


def test_depth_of_a_box_is_that_of_its_face() -> None:
    # Its face is 2 m ahead, from 0.5 m to the right to 0.5 m to the left and 1 m below to above.
    box = torch.tensor([[5.5, 3.0, 2.0], [0.5, 0.5, 1.0]])
    depth = cast_depth(one_room(box=box), 48, 64)[0]
    right = (torch.arange(64) + 0.5 - 32) * PIXEL
    down = (torch.arange(48) + 0.5 - 24) * PIXEL
    on_face = (right.abs() < 0.25)[None, :] & (down.abs() < 0.5)[:, None]
    torch.testing.assert_close(depth[on_face], torch.full_like(depth[on_face], 2.0))
    assert (depth[~on_face] > 2.0).all()


def test_a_turned_box_is_nearest_at_its_edge() -> None:
    box = torch.tensor([[6.0, 3.0, 2.0], [0.5, 0.5, 2.0]])
    room = one_room(box=box)
    room.turns[0, 1] = math.pi / 4
    depth = cast_depth(room, 2, 2000)[0, 0]
    assert depth.argmin() in (999, 1000)
    torch.testing.assert_close(depth.min(), torch.tensor(3 - math.sqrt(0.5)), rtol=0, atol=1e-3)


def test_a_box_behind_the_camera_or_below_the_floor_is_not_seen() -> None:
    for centre in ([1.0, 3.0, 2.0], [5.0, 3.0, -50.0]):
        box = torch.tensor([centre, [0.5, 0.5, 0.5]])
        assert torch.equal(cast_depth(one_room(box=box), 12, 16), cast_depth(one_room(), 12, 16))


def test_edges_of_a_box_are_at_the_same_place_in_image_and_depth() -> None:
    box = torch.tensor([[5.5, 3.4, 1.7], [0.5, 0.4, 0.6]])
    room = one_room(box=box)
    paint = draw_paint(draw_rooms(1, Generator().manual_seed(0)), Generator().manual_seed(0))
    colours = torch.full_like(paint.colours, 0.9)
    colours[:, 6:12] = 0.1
    paint = paint._replace(
        colours=colours, light=torch.tensor([[3.0, 3.0, 3.9]]), ambient=torch.ones(1)
    )
    # Under ambient light alone, brightness says what is box.
    image = render(room, paint, 48, 64)[0, 0]
    depth = cast_depth(room, 48, 64)[0]
    without = cast_depth(one_room(), 48, 64)[0]
    is_box = depth < without - 1e-4
    assert is_box.any()
    assert torch.equal(image < image.mean(), is_box)


def test_noise_free_images_have_the_mean_of_automatic_exposure() -> None:
    generator = Generator().manual_seed(0)
    some = draw_rooms(20, generator)
    images = render(some, draw_paint(some, generator), 12, 16)
    assert images.shape == (20, 3, 12, 16)
    assert (images >= 0).all()
    torch.testing.assert_close(images.mean((1, 2, 3)), torch.full((20,), 0.45))


def test_parts_have_the_sizes_types_and_range_that_the_contract_says(
    parts: tuple[Pair, Pair, Pair],
) -> None:
    for size, (images, depths) in zip(SIZES, parts, strict=True):
        assert images.shape == (size, 3, 48, 64)
        assert images.dtype == torch.uint8
        assert depths.shape == (size, 24, 32)
        assert depths.dtype == torch.float32
        counted = depths[~depths.isnan()]
        assert counted.min() >= 0.7
        assert counted.max() < 10


def test_parts_are_the_same_bytes_each_time_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = rooms.render_parts((6, 3, 3), pool=50)
    torch.rand(5)
    second = rooms.render_parts((6, 3, 3), pool=50)
    for (images, depths), (images_again, depths_again) in zip(first, second, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(depths.nan_to_num(-1), depths_again.nan_to_num(-1))
    torch.manual_seed(3)
    rooms.render_parts((6, 3, 3), pool=50)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_checksum_of_rendered_rooms_is_the_same_on_every_processor(
    parts: tuple[Pair, Pair, Pair], miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "_embedded", lambda: parts)
    before = rooms.load(None).checksum
    # Another processor rounds some pixels the other way.
    darker = tuple((images // 2, depths) for images, depths in parts)
    monkeypatch.setattr(rooms, "_embedded", lambda: darker)
    assert rooms.load(None).checksum == before
    assert rooms.load(miniature).checksum != before


def test_training_depths_have_the_histogram_of_nyud2() -> None:
    chosen = rooms.choose_rooms(
        rooms.SIZES[0], draw_rooms(rooms.POOL, Generator().manual_seed(0)), COUNTS
    )
    depths = cast_depth(chosen, rooms.HEIGHT // 2, rooms.WIDTH // 2)
    ours = BINS.counts(depths.clamp(rooms.NEAREST, rooms.FARTHEST))
    distance = (ours / ours.sum() - COUNTS / COUNTS.sum()).abs().sum() / 2
    assert distance < 0.12
    # About as many few-shot pixels as NYUD2-DIR has, 4.7 %.
    assert 0.03 < ours[REGIONS.bin_mask("few")].sum() / ours.sum() < 0.07
    assert len(chosen.yaw.unique()) > 0.9 * rooms.SIZES[0]


def test_mixture_weights_find_the_mixture_that_there_is() -> None:
    histograms = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6]])
    shares = torch.tensor([0.3, 0.35, 0.35], dtype=torch.float64)
    weights = rooms.mixture_weights(histograms, shares, torch.tensor([1.0, 1.0, 0.0]).double())
    expected = torch.tensor([0.3, 0.7, 0.0], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(7, 99), min_size=4, max_size=80), st.integers(0, 9))
def test_mask_counts_every_occupied_bin_equally_often(bins: list[int], seed: int) -> None:
    depths = torch.tensor(bins)[None].float() / 10 + 0.05
    targets = rooms.equally_often(depths, Generator().manual_seed(seed))
    kept = ~targets.isnan()
    assert torch.equal(targets[kept], depths[kept])
    counts, before = BINS.counts(targets[kept]), BINS.counts(depths.flatten())
    assert torch.equal(counts, before[before > 0].min() * (before > 0))


def test_held_out_depths_are_masked_and_training_depths_are_not(
    parts: tuple[Pair, Pair, Pair],
) -> None:
    assert not parts[0][1].isnan().any()
    for _, depths in parts[1:]:
        assert depths.isnan().any()
        counts = BINS.counts(depths[~depths.isnan()])
        assert len(counts[counts > 0].unique()) == 1
        for region in ("many", "medium", "few"):
            assert counts[REGIONS.bin_mask(region)].sum() > 0


def test_parts_share_no_room(parts: tuple[Pair, Pair, Pair]) -> None:
    images = torch.cat([images for images, _ in parts])
    assert len(images.flatten(1).unique(dim=0)) == sum(SIZES)


def test_flips_turn_image_and_depth_together() -> None:
    torch.manual_seed(0)
    images = torch.arange(64.0).expand(40, 3, 48, 64)
    depths = images[:, 0, ::2, ::2]
    flipped, turned = rooms.RandomFlip()(images, depths)
    is_flipped = flipped[:, 0, 0, 0] == 63
    assert 5 < is_flipped.sum() < 35
    assert torch.equal(flipped[is_flipped], images[is_flipped].flip(-1))
    assert torch.equal(turned[is_flipped], depths[is_flipped].flip(-1))
    assert torch.equal(flipped[~is_flipped], images[~is_flipped])
    assert torch.equal(turned[~is_flipped], depths[~is_flipped])


def test_miniature_is_read_as_it_was_rendered(miniature: Path) -> None:
    splits = rooms.load(miniature)
    written = rooms.render_parts(rooms.MINIATURE, pool=200)
    for split, (images, depths) in zip(
        (splits.train, splits.validation, splits.test), written, strict=True
    ):
        assert len(split) == len(images)
        for k in range(len(images)):
            image, depth = split[k]
            assert torch.equal(image, images[k])
            torch.testing.assert_close(depth, depths[k], rtol=0, atol=0, equal_nan=True)
    assert splits.train_counts.sum() == 8 * 24 * 32


def _remove(root: Path) -> None:
    (root / "test" / "2_depth.png").unlink()


def _empty(root: Path) -> None:
    for path in (root / "validation").iterdir():
        path.unlink()


def _truncate(root: Path) -> None:
    path = root / "train" / "3_colors.png"
    path.write_bytes(path.read_bytes()[:300])


def _replace_by_text(root: Path) -> None:
    (root / "train" / "3_depth.png").write_text("1.5 m")


def _shrink(root: Path) -> None:
    Image.new("RGB", (32, 24)).save(root / "test" / "1_colors.png")


def _make_eight_bits(root: Path) -> None:
    Image.new("L", (32, 24)).save(root / "test" / "1_depth.png")


def _lose_a_depth(root: Path) -> None:
    depth = np.full((24, 32), 2000, np.uint16)
    depth[3, 4] = 0
    Image.fromarray(depth).save(root / "train" / "5_depth.png")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_remove, FileNotFoundError, "Expected the file .*test.2_depth.png, but there is none"),
        (_empty, FileNotFoundError, r"Expected files \*_colors.png in .*validation, but"),
        (_truncate, ValueError, "Expected a readable image at .*train.3_colors.png, but got"),
        (_replace_by_text, ValueError, "Expected a readable image at .*train.3_depth.png, but got"),
        (_shrink, ValueError, "1_colors.png to have 64 x 48 pixels of mode RGB, but got 32 x 24"),
        (_make_eight_bits, ValueError, "1_depth.png to have .* mode I, but got 32 x 24 of mode L"),
        (_lose_a_depth, ValueError, "every pixel of training, but .*5_colors.png lacks some"),
    ],
)
def test_spoiled_files_are_named(
    miniature: Path, tmp_path: Path, spoil: object, error: type[Exception], message: str
) -> None:
    root = tmp_path / "copy"
    for path in miniature.glob("*/*.png"):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        (root / path.parent.name / path.name).write_bytes(path.read_bytes())
    rooms.load(root)
    spoil(root)
    with pytest.raises(error, match=message):
        rooms.load(root)


def test_network_gives_a_map_of_half_the_size_from_its_head() -> None:
    network = SmallDepthNetwork(offset=3.0, scale=2.0)
    assert network(torch.rand(2, 3, 48, 64)).shape == (2, 24, 32)
    assert list(network.children())[-1] is network.head
    assert isinstance(network.head, nn.Conv2d)
    nn.init.zeros_(network.head.weight)
    nn.init.constant_(network.head.bias, 0.5)
    assert torch.equal(network(torch.rand(2, 3, 48, 64)), torch.full((2, 24, 32), 4.0))


def test_every_weight_of_the_network_is_learned() -> None:
    network = rooms.DATASET.network(rooms.DATASET.recipe)
    network(torch.rand(4, 3, 48, 64)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
