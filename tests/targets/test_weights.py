"""Target weights: INV, SQINV and LDS per bin, the lookup from targets, and the weighted mean."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve1d, gaussian_filter1d
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from balanced_sam import (
    ShotRegions,
    TargetBins,
    TargetGrid,
    TargetWeights,
    inverse_weights,
    smooth_counts,
    sqrt_inverse_weights,
    weighted_mean,
)
from support import strategies

# Toy targets may be all alike.
pytestmark = pytest.mark.filterwarnings(
    "ignore:All target weights are the same", "ignore:.*so the weights rest on few samples"
)

schemes = st.sampled_from(["inv", "sqinv", "none"]) | st.floats(0, 2)


def unit_bins(counts: Tensor) -> TargetBins:
    return TargetBins.uniform(0, len(counts), width=1)


class CallRecorder(TorchDispatchMode):
    """Record the name of every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts())
def test_occupied_bin_has_the_weight_of_the_formula(counts: Tensor) -> None:
    n = counts.double().numpy()
    occupied = n > 0
    inv, sqinv = inverse_weights(counts), sqrt_inverse_weights(counts)
    assert inv.dtype is torch.float64
    assert sqinv.dtype is torch.float64
    np.testing.assert_allclose(inv.numpy()[occupied], 1 / n[occupied], rtol=1e-14)
    np.testing.assert_allclose(sqinv.numpy()[occupied], 1 / np.sqrt(n[occupied]), rtol=1e-14)


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts())
def test_inv_is_the_square_of_sqinv(counts: Tensor) -> None:
    occupied = counts > 0
    squared = sqrt_inverse_weights(counts)[occupied].square()
    torch.testing.assert_close(inverse_weights(counts)[occupied], squared)


@pytest.mark.parametrize("weigh", [inverse_weights, sqrt_inverse_weights])
@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts())
def test_weights_fall_as_counts_rise(weigh: Callable[[Tensor], Tensor], counts: Tensor) -> None:
    occupied = counts > 0
    order = counts[occupied].argsort()
    weights, sorted_counts = weigh(counts)[occupied][order], counts[occupied][order]
    assert ((weights.diff() < 0) == (sorted_counts.diff() > 0)).all()


@pytest.mark.parametrize("weigh", [inverse_weights, sqrt_inverse_weights])
@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts())
def test_empty_bin_takes_the_weight_of_the_nearest_occupied_bin_and_in_a_grid_of_the_rarest(
    weigh: Callable[[Tensor], Tensor], counts: Tensor
) -> None:
    weights = weigh(counts)
    occupied = counts.nonzero().flatten().tolist()
    assert torch.isfinite(weights).all()
    for k in range(len(counts)):
        distance = min(abs(j - k) for j in occupied)
        nearest = [weights[j].item() for j in occupied if abs(j - k) == distance]
        assert weights[k].item() == pytest.approx(sum(nearest) / len(nearest), rel=1e-14)
    of_grid = weigh(counts[None])[0]
    assert torch.equal(of_grid[counts > 0], weights[counts > 0])
    assert (of_grid[counts == 0] == weights[counts > 0].max()).all()


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts(), low=st.integers(1, 50), ratio=st.integers(1, 50))
def test_inverse_weights_clip_the_counts(counts: Tensor, low: int, ratio: int) -> None:
    occupied = counts > 0
    clipped = inverse_weights(counts, clip_counts=(low, low * ratio))[occupied].numpy()
    n = counts[occupied].double().numpy()
    np.testing.assert_allclose(clipped, 1 / np.clip(n, low, low * ratio), rtol=1e-14)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), scheme=schemes)
def test_normalized_weights_have_mean_one_over_the_training_samples(
    data: st.DataObject, scheme: Any
) -> None:
    bins = data.draw(strategies.bins())
    targets = data.draw(strategies.targets_for(bins))
    weights = TargetWeights.from_targets(targets, bins, scheme=scheme)
    assert weights(targets).double().mean().item() == pytest.approx(1, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts(), scheme=st.sampled_from(["inv", "sqinv"]))
def test_smoothed_normalized_weights_have_mean_one_over_the_training_samples(
    counts: Tensor, scheme: Any
) -> None:
    weights = TargetWeights.from_counts(
        unit_bins(counts), counts, scheme=scheme, smoothing=smooth_counts
    )
    share = counts.double() / counts.sum()
    assert (share * weights.bin_weights).sum().item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int32, torch.float64])
def test_normalized_weights_do_not_depend_on_the_dtype_of_the_counts(dtype: torch.dtype) -> None:
    counts = torch.tensor([60_000, 60_000, 4])
    expected = TargetWeights.from_counts(unit_bins(counts), counts).bin_weights
    weights = TargetWeights.from_counts(unit_bins(counts), counts.to(dtype)).bin_weights
    torch.testing.assert_close(weights, expected)


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts())
def test_raw_scale_is_that_of_the_formulas(counts: Tensor) -> None:
    make = partial(TargetWeights.from_counts, unit_bins(counts), counts, normalize=False)
    assert torch.equal(make().bin_weights, sqrt_inverse_weights(counts).float())
    assert torch.equal(make(scheme="inv").bin_weights, inverse_weights(counts).float())
    clipped = inverse_weights(counts, clip_counts=(5, 1000)).float()
    assert torch.equal(make(scheme="inv", clip_counts=(5, 1000)).bin_weights, clipped)
    assert torch.equal(make(scheme="none").bin_weights, torch.ones(len(counts)))


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts(), a=st.floats(0, 2))
def test_scheme_is_the_exponent_that_its_name_stands_for(counts: Tensor, a: float) -> None:
    make = partial(TargetWeights.from_counts, unit_bins(counts), counts, normalize=False)
    for name, exponent in {"none": 0, "sqinv": 0.5, "inv": 1}.items():
        for smoothing in (None, smooth_counts):
            named = make(scheme=name, smoothing=smoothing).bin_weights
            assert torch.equal(make(scheme=exponent, smoothing=smoothing).bin_weights, named)
    occupied = counts > 0
    expected = counts[occupied].double().numpy() ** -a
    actual = make(scheme=a).bin_weights[occupied].numpy()
    np.testing.assert_allclose(actual, expected.astype(np.float32), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts(min_bins=2), factor=st.sampled_from([0.5, 3.0]), data=st.data())
def test_between_unequal_widths_the_count_per_median_width_decides(
    counts: Tensor, factor: float, data: st.DataObject
) -> None:
    widths = data.draw(
        st.lists(st.sampled_from([1, 2, 8]), min_size=len(counts), max_size=len(counts))
    )
    bins = TargetBins(np.cumsum([0, *widths]).tolist())
    density = counts.double() / torch.tensor(widths) * torch.tensor(widths).median()
    weights = TargetWeights.from_counts(bins, counts, normalize=False)
    torch.testing.assert_close(weights.bin_weights, sqrt_inverse_weights(density).float())
    regions = ShotRegions.from_counts(bins, counts)
    assert regions.labels == ShotRegions.from_counts(unit_bins(counts), density).labels
    assert ShotRegions.from_weights(weights) == regions
    # The unit of the target changes nothing.
    scaled = TargetBins((bins.edges * factor).tolist())
    other = TargetWeights.from_counts(scaled, counts, normalize=False)
    torch.testing.assert_close(other.bin_weights, weights.bin_weights)


def test_quantile_bins_call_the_tail_rare_and_log_bins_do_not_call_the_lowest_rare() -> None:
    torch.manual_seed(0)
    targets = torch.distributions.Exponential(1 / 200).sample((20_000,)).double()
    quantiles = TargetBins(torch.quantile(targets, torch.linspace(0, 1, 21).double()))
    logarithmic = TargetBins(torch.logspace(0, 4.3, 30, dtype=torch.float64))
    for bins in (quantiles, logarithmic):
        weights = TargetWeights.from_targets(targets, bins)(targets)
        assert weights[targets > 1000].min() > weights[targets < 300].max()


def test_a_bin_of_another_width_leaves_the_counts_of_the_others_alone() -> None:
    bins = TargetBins([*(round(0.1 * k, 1) for k in range(31)), 50.0])
    regions = ShotRegions.from_counts(bins, torch.full((31,), 100))
    assert regions.labels == ("medium",) * 30 + ("few",)


def test_no_scheme_is_no_weights_with_smoothing_too() -> None:
    counts = torch.tensor([100, 100, 100, 0])
    for scheme in ("none", 0, np.float32(0)):
        weights = TargetWeights.from_counts(
            unit_bins(counts), counts, scheme=scheme, smoothing=smooth_counts
        )
        assert weights.bin_weights.tolist() == [1.0] * 4


def test_uniform_bins_whose_edges_are_rounded_weigh_by_the_counts_themselves() -> None:
    bins, counts = TargetBins.uniform(0, 10, width=0.1), torch.arange(1, 101)
    weights = TargetWeights.from_counts(bins, counts, normalize=False)
    assert torch.equal(weights.bin_weights, sqrt_inverse_weights(counts).float())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("targets", "bins", "message"),
    [
        (torch.full((9,), 3.0), "auto", "All target weights are the same over TargetBins.1 bins"),
        (torch.arange(6.0), TargetBins([0, 2, 4, 6]), "All target weights are the same"),
        (torch.tensor([0.5, 0.5, 9.5]), TargetBins.uniform(0, 10, width=1), "8 bins of .* empty"),
        (
            torch.tensor([[0.5, 0.5], [0.5, 0.5], [9.5, 0.5]]),
            TargetGrid(TargetBins([0, 1, 10]), TargetBins([0, 1, 2])),
            r"TargetGrid\(2 x 2 bins\) has more bins than there are samples",
        ),
    ],
)
def test_bins_that_say_nothing_of_what_is_rare_are_warned_of(
    targets: Tensor, bins: Any, message: str
) -> None:
    with pytest.warns(UserWarning, match=message) as warned:
        TargetWeights.from_targets(targets, bins)
    assert warned[0].filename == __file__
    TargetWeights.from_targets(targets, bins, smoothing=smooth_counts)
    if "All" in message:
        TargetWeights.from_targets(targets, bins, scheme="none")


@pytest.mark.filterwarnings("error")
def test_targets_alone_give_weights_over_bins_from_the_data() -> None:
    targets = torch.cat([torch.rand(900), 1 + torch.rand(100)])
    weights = TargetWeights.from_targets(targets)
    assert weights.bins == TargetBins.from_targets(targets)
    for bins in (20, np.int64(20), "fd"):
        weights = TargetWeights.from_targets(targets, bins)
        assert weights.bins == TargetBins.from_targets(targets, bins)
    assert weights(torch.tensor(1.5)) > 2 * weights(torch.tensor(0.5))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), scheme=schemes)
def test_order_and_shape_of_the_training_samples_change_nothing(
    data: st.DataObject, scheme: Any
) -> None:
    bins = data.draw(strategies.bins())
    targets = data.draw(strategies.targets_for(bins))
    shuffled = torch.tensor(data.draw(st.permutations(targets.flatten().tolist())))
    weights = TargetWeights.from_targets(targets, bins, scheme=scheme)
    other = TargetWeights.from_targets(shuffled, bins, scheme=scheme)
    assert torch.equal(weights.bin_weights, other.bin_weights)
    assert torch.equal(weights.counts, other.counts)


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts(min_bins=3))
def test_sqinv_with_lds_is_one_over_the_smoothed_root(counts: Tensor) -> None:
    window = gaussian_filter1d([0.0, 0.0, 1.0, 0.0, 0.0], sigma=2)
    root = np.sqrt(counts.double().numpy())
    effective = convolve1d(root, window / window.max(), mode="constant")
    weights = TargetWeights.from_counts(
        unit_bins(counts), counts, smoothing=smooth_counts, normalize=False
    )
    reached = effective > 1e-9
    actual = weights.bin_weights.numpy()
    np.testing.assert_allclose(actual[reached], 1 / effective[reached], rtol=1e-6)
    assert np.isfinite(actual).all()


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts(min_bins=3))
def test_inv_with_lds_is_one_over_the_smoothed_clipped_counts(counts: Tensor) -> None:
    window = gaussian_filter1d([0.0, 0.0, 1.0, 0.0, 0.0], sigma=2)
    clipped = np.clip(counts.double().numpy(), 5, 1000)
    effective = convolve1d(clipped, window / window.max(), mode="reflect")
    weights = TargetWeights.from_counts(
        unit_bins(counts),
        counts,
        scheme="inv",
        clip_counts=(5, 1000),
        smoothing=partial(smooth_counts, boundary="reflect"),
        normalize=False,
    )
    np.testing.assert_allclose(weights.bin_weights.numpy(), 1 / effective, rtol=1e-6)


@pytest.mark.parametrize("dtype", strategies.FLOAT_DTYPES + strategies.INT_DTYPES, ids=str)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_call_gathers_the_weight_of_each_bin(dtype: torch.dtype, data: st.DataObject) -> None:
    bins = data.draw(strategies.bins())
    targets = data.draw(strategies.targets_for(bins, dtype=dtype))
    weights = TargetWeights.from_targets(targets, bins)
    called = weights(targets)
    assert called.shape == targets.shape
    assert called.dtype is torch.float32
    index = bins.index(targets).numpy()
    np.testing.assert_array_equal(called.numpy(), weights.bin_weights.numpy()[index])


def test_pixel_maps_are_weighted_as_their_pixels_are() -> None:
    depth = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(0)) * 10
    bins = TargetBins.uniform(0, 10, width=0.1)
    weights = TargetWeights.from_targets(depth, bins)
    assert torch.equal(weights(depth).flatten(), weights(depth.flatten()))
    assert torch.equal(weights(depth.mT), weights(depth).mT)


def test_no_gradient_flows_through_the_weights() -> None:
    source = torch.ones(2, requires_grad=True)
    bins = TargetBins([0, 1, 2])
    weights = TargetWeights(bins, torch.ones(2), source * 2)
    targets = torch.tensor([0.5, 1.5], requires_grad=True)
    predictions = torch.tensor([2.0, 2.0], requires_grad=True)
    weighted_mean((predictions - targets.detach()).abs(), weights(targets)).backward()
    assert not weights(targets).requires_grad
    assert predictions.grad is not None
    assert targets.grad is None
    assert source.grad is None
    assert not TargetWeights.from_targets(targets, bins).bin_weights.requires_grad


def test_module_has_two_buffers_and_no_parameters() -> None:
    weights = TargetWeights.from_targets(torch.tensor([0.5, 1.5]), TargetBins([0, 1, 2]))
    assert list(weights.parameters()) == []
    assert sorted(name for name, _ in weights.named_buffers()) == ["bin_weights", "counts"]
    assert repr(weights) == "TargetWeights(TargetBins(2 bins from 0.0 to 2.0))"


def test_module_keeps_no_reference_to_what_it_was_given() -> None:
    counts, bin_weights = torch.ones(2), torch.ones(2)
    weights = TargetWeights(TargetBins([0, 1, 2]), counts, bin_weights)
    counts.zero_()
    bin_weights.zero_()
    assert weights.counts.tolist() == [1, 1]
    assert weights.bin_weights.tolist() == [1, 1]


@settings(max_examples=15, deadline=None)
@given(counts=strategies.counts(), scheme=schemes)
def test_state_dict_restores_the_weights(counts: Tensor, scheme: Any) -> None:
    saved = TargetWeights.from_counts(unit_bins(counts), counts, scheme=scheme)
    ones = torch.ones(len(counts))
    restored = TargetWeights(unit_bins(counts), ones.long(), ones)
    buffer = io.BytesIO()
    torch.save(saved.state_dict(), buffer)
    buffer.seek(0)
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(restored.counts, saved.counts)
    assert torch.equal(restored.bin_weights, saved.bin_weights)


def reload(weights: TargetWeights) -> TargetWeights:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    buffer.seek(0)
    loaded: TargetWeights = torch.load(buffer, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda weights: pickle.loads(pickle.dumps(weights)), reload],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_module_survives_being_copied_and_saved(
    clone: Callable[[TargetWeights], TargetWeights],
) -> None:
    targets = torch.tensor([0.5, 0.6, 1.5])
    weights = TargetWeights.from_targets(targets, TargetBins([0, 1, 2]))
    expected = weights(targets)
    copied = clone(weights)
    weights.bin_weights.zero_()
    assert copied.bins == weights.bins
    assert torch.equal(copied(targets), expected)


@pytest.mark.parametrize("dtype", strategies.FLOAT_DTYPES, ids=str)
def test_converted_module_returns_the_converted_dtype(dtype: torch.dtype) -> None:
    targets = torch.tensor([0.5, 0.6, 1.5])
    weights = TargetWeights.from_targets(targets, TargetBins([0, 1, 2]))
    expected = weights(targets).to(dtype)
    assert torch.equal(weights.to(dtype)(targets), expected)
    assert weights.counts.tolist() == [2, 1]
    assert weights.counts.dtype is torch.int64


# Pixels: the raw INV weight of the first bin is 2.5e-8, below what float16 holds.
PIXELS = torch.tensor([40_000_000, 200])


@pytest.mark.parametrize(
    "convert",
    [
        lambda module: module.half(),
        lambda module: module.to(torch.float16),
        lambda module: torch.nn.Sequential(module).half(),
    ],
    ids=["half", "to", "in a model"],
)
@pytest.mark.parametrize(
    ("bin_weights", "message"),
    [
        (inverse_weights(PIXELS), "from 2.5e-08 to 0.005"),
        (torch.tensor([1.0, 70_000.0]), "from 1 to 70000"),
    ],
    ids=["would be 0", "would be infinite"],
)
def test_conversion_that_loses_a_weight_is_refused(
    bin_weights: Tensor, message: str, convert: Callable[[torch.nn.Module], object]
) -> None:
    weights = TargetWeights(unit_bins(PIXELS), PIXELS, bin_weights)
    before = weights.bin_weights
    with pytest.raises(
        ValueError, match=rf"`bin_weights` to stay .* in torch\.float16, but got values {message}"
    ):
        convert(weights)
    assert torch.equal(weights.bin_weights, before)
    assert weights.bfloat16().bin_weights.tolist() == before.bfloat16().tolist()


def test_conversion_keeps_normalized_weights_and_those_that_are_zero() -> None:
    bins = unit_bins(PIXELS)
    halved = TargetWeights.from_counts(bins, PIXELS, scheme="sqinv").half().bin_weights
    assert (halved > 0).all()
    assert TargetWeights(bins, PIXELS, torch.tensor([0.0, 1.0])).half().bin_weights.tolist() == [
        0,
        1,
    ]


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_conversion_keeps_counts_that_are_floats(convert: str) -> None:
    counts = torch.tensor([1e5, 100.4, 19.95])
    weights = TargetWeights.from_counts(unit_bins(counts), counts)
    labels = ShotRegions.from_weights(weights).labels
    getattr(torch.nn.Sequential(weights), convert)()
    assert torch.equal(weights.counts, counts)
    assert weights.counts.dtype is counts.dtype
    assert ShotRegions.from_weights(weights).labels == labels == ("many", "many", "few")


def test_bins_that_are_none_are_those_from_the_targets() -> None:
    targets = torch.rand(200)
    assert TargetWeights.from_targets(targets, None).bins == TargetBins.from_targets(targets)
    assert TargetWeights.from_targets(targets, bins=None).bins == TargetBins.from_targets(targets)


def test_conversion_without_values_is_not_checked() -> None:
    weights = TargetWeights(unit_bins(PIXELS), PIXELS, inverse_weights(PIXELS))
    assert weights.to("meta").half().to_empty(device="cpu").bin_weights.dtype is torch.float16


def test_targets_on_another_device_say_what_to_move() -> None:
    weights = TargetWeights.from_targets(torch.arange(9.0))
    with pytest.raises(ValueError, match="on cpu, where the weights are, but got meta: move the"):
        weights(torch.empty(3, 5, device="meta"))


def test_call_reads_no_value_on_the_host() -> None:
    # A meta tensor has no values: whatever asks for one raises.
    weights = TargetWeights.from_targets(torch.arange(9.0), TargetBins.uniform(0, 9, width=3))
    called = weights.to("meta")(torch.empty(3, 5, device="meta"))
    assert called.device.type == "meta"
    assert called.shape == (3, 5)
    assert called.dtype is torch.float32


def test_call_runs_as_many_operators_for_one_sample_as_for_many() -> None:
    weights = TargetWeights.from_targets(torch.arange(9.0), TargetBins.uniform(0, 9, width=3))
    weights(torch.zeros(1))
    runs = []
    for shape in [(1,), (10,), (10_000,), (4, 1, 30, 30)]:
        with CallRecorder() as recorder:
            weights(torch.zeros(shape).sub_(1))
        runs.append(recorder.calls[2:])
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert sorted(set(runs[0]) - {"aten.detach.default"}) == [
        "aten.bucketize.Tensor",
        "aten.index.Tensor",
    ]


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shape=strategies.shapes)
def test_weighted_mean_of_one_shape_equals_numpy(
    data: st.DataObject, shape: tuple[int, ...]
) -> None:
    losses, weights = data.draw(strategies.tensors(shape)), data.draw(strategies.tensors(shape))
    expected = (losses.double().numpy() * weights.double().numpy()).mean()
    actual = weighted_mean(losses.double(), weights.double())
    assert actual.dim() == 0
    assert actual.item() == pytest.approx(expected, rel=1e-12, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shape=strategies.shapes.filter(len))
def test_weighted_mean_takes_one_weight_a_sample(
    data: st.DataObject, shape: tuple[int, ...]
) -> None:
    losses = data.draw(strategies.tensors(shape)).double()
    weights = data.draw(strategies.tensors(shape[:1])).double()
    per_sample = losses.reshape(shape[0], -1).mean(1).numpy() * weights.numpy()
    actual = weighted_mean(losses, weights).item()
    assert actual == pytest.approx(per_sample.mean(), rel=1e-12, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(losses=strategies.shapes, weights=strategies.shapes)
def test_weighted_mean_raises_unless_shapes_are_equal_or_one_weight_a_sample(
    losses: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    if weights in (losses, losses[:1] or losses):
        assert weighted_mean(torch.ones(losses), torch.ones(weights)).item() == 1
    else:
        with pytest.raises(ValueError, match="`weights` to have the shape of `losses`"):
            weighted_mean(torch.ones(losses), torch.ones(weights))


def test_weighted_mean_passes_each_loss_its_weight_as_gradient() -> None:
    losses = torch.zeros(2, 3, requires_grad=True)
    weighted_mean(losses, torch.tensor([3.0, 6.0])).backward()
    assert losses.grad is not None
    torch.testing.assert_close(losses.grad, torch.tensor([[0.5] * 3, [1.0] * 3]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weighted_mean_of_half_losses_is_taken_in_the_dtype_of_the_weights(
    dtype: torch.dtype,
) -> None:
    mean = weighted_mean(torch.full((4,), 60_000.0, dtype=dtype), torch.full((4,), 10.0))
    assert mean.dtype is torch.float32
    assert mean.item() == pytest.approx(600_000, rel=1e-2)


BINS = TargetBins([0, 1, 2])
ONES = torch.ones(2)
NAN = float("nan")
from_counts = partial(TargetWeights.from_counts, BINS, ONES)
# Leaves an effective count of e^-100 in the empty bin: its weight is finite in float64 only.
sharp = partial(smooth_counts, kernel="laplace", sigma=0.01)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: inverse_weights([1]), TypeError, "`counts` to be a torch.Tensor, but got list"),
        (lambda: inverse_weights(ONES * 0), ValueError, "at least one sample, but got all zeros"),
        (lambda: inverse_weights(-ONES), ValueError, "`counts` to be non-negative, .* -1.0 in bin"),
        (lambda: inverse_weights(ONES * NAN), ValueError, "`counts` to be finite"),
        (lambda: inverse_weights(ONES[:0]), ValueError, "`counts` to hold at least one value"),
        (lambda: inverse_weights(ONES, clip_counts=5), ValueError, "`clip_counts` .* but got 5"),
        (
            lambda: inverse_weights(ONES, clip_counts=(1, 2, 3)),
            ValueError,
            "`clip_counts` .* but got ",
        ),
        (
            lambda: inverse_weights(ONES, clip_counts=(0, 1)),
            ValueError,
            r"`clip_counts` .* but got \(0, 1\)",
        ),
        (
            lambda: inverse_weights(ONES, clip_counts=(None, 100)),
            ValueError,
            r"`clip_counts` .* `math.inf`, but got \(None, 100\)",
        ),
        (
            lambda: inverse_weights(ONES, clip_counts=(3, 2)),
            ValueError,
            r"`clip_counts` .* but got \(3, 2\)",
        ),
        (
            lambda: inverse_weights(ONES, clip_counts=(NAN, 2)),
            ValueError,
            r"`clip_counts` .* but got \(nan, 2\)",
        ),
        (lambda: sqrt_inverse_weights(ONES * 0), ValueError, "at least one sample, but got all ze"),
        (lambda: sqrt_inverse_weights(-ONES), ValueError, "`counts` to be non-negative"),
        (lambda: TargetWeights(BINS, torch.ones(3), ONES), ValueError, r"`counts` .*\(2,\), one a"),
        (lambda: TargetWeights(BINS, ONES * 0, ONES), ValueError, "at least one sample"),
        (lambda: TargetWeights(BINS, ONES, [1, 1]), TypeError, "`bin_weights` to be a torch.Tens"),
        (
            lambda: TargetWeights(BINS, ONES, torch.ones(2, 1)),
            ValueError,
            r"`bin_weights` to have shape \(2,\), one a bin, but got \(2, 1\)",
        ),
        (
            lambda: TargetWeights(BINS, ONES, torch.tensor([-1.0, 2.0])),
            ValueError,
            "`bin_weights` to be finite and non-negative, but got values from -1.0 to 2.0",
        ),
        (lambda: TargetWeights(BINS, ONES, ONES * NAN), ValueError, "`bin_weights` to be finite"),
        (lambda: TargetWeights(BINS, ONES, ONES / 0), ValueError, "`bin_weights` to be finite"),
        (
            lambda: TargetWeights(BINS, ONES, ONES.double() * 1e40),
            ValueError,
            r"`bin_weights` to stay .* in torch\.float32, but got values from 1e\+40 to 1e\+40",
        ),
        (
            lambda: TargetWeights(BINS, ONES, torch.tensor([1.0, 1e-50], dtype=torch.float64)),
            ValueError,
            r"`bin_weights` to stay .* in torch\.float32, but got values from 1e-50 to 1",
        ),
        (
            lambda: TargetWeights.from_counts(BINS, torch.tensor([0, 1]), smoothing=sharp),
            ValueError,
            r"`bin_weights` to stay .* in torch\.float32",
        ),
        (
            lambda: TargetWeights([0, 1, 2], ONES, ONES),
            TypeError,
            "`bins` to be TargetBins",
        ),
        (
            lambda: TargetWeights.from_targets(ONES, [0, 1, 2]),
            TypeError,
            "`bins` to be a whole number of bins, .* but got list: edges go into `TargetBins",
        ),
        (
            lambda: TargetWeights.from_targets(ONES, True),
            TypeError,
            "`bins` to be a number of bins or the name of a rule, but got bool",
        ),
        (
            lambda: TargetWeights.from_targets(ONES, 0),
            ValueError,
            "`bins` to give 1 to .* but got 0",
        ),
        (
            lambda: TargetWeights.from_targets(torch.rand(9, 2), 5),
            ValueError,
            r"one target",
        ),
        (
            lambda: TargetWeights.from_counts(None, ONES),
            TypeError,
            "`bins` to be TargetBins",
        ),
        (lambda: from_counts(smoothing=3), TypeError, "`smoothing` to be callable, but got int"),
        (
            lambda: from_counts(smoothing=lambda counts: None),
            TypeError,
            r"`smoothing\(counts\)` to be a torch.Tensor, but got NoneType",
        ),
        (
            lambda: from_counts(smoothing=lambda counts: -counts),
            ValueError,
            r"`smoothing\(counts\)` to be non-negative, but got -1.0 in bin 0",
        ),
        (lambda: from_counts(scheme=[1]), ValueError, r"an exponent or one of .* but got \[1\]"),
        (lambda: from_counts(scheme="lds"), ValueError, "an exponent or one of .* but got 'lds'"),
        (
            lambda: from_counts(scheme=-0.5),
            ValueError,
            "an exponent of 0 or more, but got scheme=-",
        ),
        (
            lambda: from_counts(scheme=NAN),
            ValueError,
            "an exponent of 0 or more, but got scheme=nan",
        ),
        (
            lambda: from_counts(scheme=True),
            ValueError,
            "`scheme` to be an exponent or .* but got T",
        ),
        (
            lambda: from_counts(scheme="inv", clip_counts=(2, 1)),
            ValueError,
            r"`clip_counts` .* but got \(2, 1\)",
        ),
        (
            lambda: from_counts(smoothing=lambda counts: counts[:1]),
            ValueError,
            r"`smoothing\(counts\)` to have shape \(2,\), one a bin, but got \(1,\)",
        ),
        (
            lambda: TargetWeights.from_counts(BINS, torch.ones(3)),
            ValueError,
            r"`counts` to have shape \(2,\), one a bin, but got \(3,\)",
        ),
        (
            lambda: TargetWeights.from_targets(ONES[:0], BINS),
            ValueError,
            "`targets` to hold at least one value, but got an empty tensor",
        ),
        (
            lambda: TargetWeights.from_targets(ONES * NAN, BINS),
            ValueError,
            "`targets` to be finite, but got 2 NaN or infinite values among 2",
        ),
        (lambda: from_counts()([0.5]), TypeError, "`targets` to be a torch.Tensor, but got list"),
        (lambda: from_counts()(ONES > 0), TypeError, "`targets` to hold floats or integers"),
        (
            lambda: weighted_mean(torch.ones(3), torch.ones(3, 1)),
            ValueError,
            r"but got weights \(3, 1\) and losses \(3,\)",
        ),
        (
            lambda: weighted_mean(torch.ones(3, 1), torch.ones(1, 3)),
            ValueError,
            r"but got weights \(1, 3\) and losses \(3, 1\)",
        ),
        (
            lambda: weighted_mean(torch.ones(3), torch.ones(2)),
            ValueError,
            r"but got weights \(2,\) and losses \(3,\)",
        ),
        (
            lambda: weighted_mean(torch.ones(2, 3), torch.ones(3)),
            ValueError,
            r"but got weights \(3,\) and losses \(2, 3\)",
        ),
        (lambda: weighted_mean(torch.ones(3), torch.ones(1)), ValueError, r"weights \(1,\) and"),
        (lambda: weighted_mean(torch.ones(3), torch.tensor(1)), ValueError, r"weights \(\) and"),
        (lambda: weighted_mean(torch.tensor(1.0), torch.ones(1)), ValueError, r"and losses \(\)"),
        (lambda: weighted_mean(ONES[:0], ONES[:0]), ValueError, "`losses` to hold at least one"),
        (lambda: weighted_mean([1.0], ONES[:1]), TypeError, "`losses` to be a torch.Tensor"),
        (lambda: weighted_mean(ONES, [1.0, 1.0]), TypeError, "`weights` to be a torch.Tensor"),
        (lambda: weighted_mean(ONES, ONES > 0), TypeError, "`weights` to hold floats or integers"),
    ],
)
def test_error_names_the_argument(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "bins",
    [TargetBins([0.0, 1.0, 3.0]), TargetGrid(*[TargetBins([0.0, 1.0, 3.0])] * 2)],
    ids=["bins", "grid"],
)
def test_a_state_dict_holds_nothing_but_tensors(bins: TargetBins | TargetGrid) -> None:
    weights = TargetWeights.from_counts(bins, torch.ones(bins.shape))
    state = weights.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    weights.load_state_dict({name: value.float() for name, value in state.items()})


def test_state_dict_of_other_bins_is_refused() -> None:
    counts = torch.tensor([1, 2])
    saved = TargetWeights.from_counts(TargetBins([0.0, 1.0, 2.0]), counts).state_dict()
    other = TargetWeights.from_counts(TargetBins([0.0, 1.0, 3.0]), counts)
    with pytest.raises(ValueError, match="Expected a state_dict of weights over TargetBins"):
        other.load_state_dict(saved)
