"""Streaming region metrics: equal to the functional report on the whole, however it is cut."""

import copy
import importlib
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MetricCollection

from balanced_sam import RegionReport, ShotRegions, TargetBins, TargetGrid, region_report
from balanced_sam.torchmetrics import RegionMetrics
from support import strategies

REGIONS = ShotRegions(TargetBins([0, 10, 20, 30]), ["many", "medium", "few"])
PREDICTIONS = torch.tensor([4.0, 9.0, 25.0, 12.0])
TARGETS = torch.tensor([5.0, 5.0, 21.0, 14.0])


def flatten(report: RegionReport) -> dict[str, float]:
    return {
        f"{region}/{name}": value
        for region, row in report.rows.items()
        for name, value in row.items()
    }


def computed(metrics: RegionMetrics) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.compute().items()}


def filled(**kwargs: object) -> RegionMetrics:
    metrics = RegionMetrics(REGIONS, **kwargs)
    metrics.update(PREDICTIONS, TARGETS)
    return metrics


EXPECTED = flatten(region_report(PREDICTIONS, TARGETS, REGIONS))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), regions=strategies.regions(), size=st.integers(1, 20))
def test_streaming_over_any_batches_equals_the_report_on_the_whole(
    data: st.DataObject, regions: ShotRegions, size: int
) -> None:
    predictions = data.draw(strategies.tensors((size,)))
    targets = data.draw(strategies.tensors((size,)))
    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1)))) if size > 1 else []
    metrics = RegionMetrics(regions)
    for batch in zip(predictions.tensor_split(cuts), targets.tensor_split(cuts), strict=True):
        metrics.update(*batch)
    expected = flatten(region_report(predictions, targets, regions))
    assert computed(metrics) == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert flatten(metrics.report()) == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_missing_torchmetrics_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "balanced_sam.torchmetrics")
    with pytest.raises(
        ModuleNotFoundError, match=r"Expected torchmetrics, .* `pip install torchmetrics`"
    ):
        importlib.import_module("balanced_sam.torchmetrics")


def test_state_does_not_grow_with_the_samples() -> None:
    metrics = filled()
    metrics.update(torch.rand(1000), torch.rand(1000))
    shapes = {name: tuple(state.shape) for name, state in metrics.metric_state.items()}
    assert shapes == {"sums": (5, 3, 1), "edges": (5,)}


def test_pixel_maps_stream_as_their_pixels_do() -> None:
    metrics = RegionMetrics(REGIONS)
    metrics.update(PREDICTIONS.reshape(2, 1, 2), TARGETS.reshape(2, 1, 2))
    assert computed(metrics) == EXPECTED


@pytest.mark.parametrize("shape", [(0,), (0, 2, 2), (2, 0)], ids=str)
def test_empty_batch_adds_nothing(shape: tuple[int, ...]) -> None:
    # Such as the valid pixels of a depth map that has none.
    metrics, nothing = filled(), torch.empty(shape)
    metrics.update(nothing, nothing)
    assert computed(metrics) == EXPECTED
    assert metrics(nothing, nothing)["all/count"] == 0
    assert math.isnan(metrics(nothing, nothing)["all/MAE"])
    assert computed(metrics) == EXPECTED


def test_epoch_of_empty_batches_is_an_empty_report() -> None:
    metrics = RegionMetrics(REGIONS)
    metrics.update(torch.empty(0), torch.empty(0))
    values = computed(metrics)
    assert values["all/count"] == 0
    assert math.isnan(values["few/MAE"])


def test_forward_returns_the_batch_and_accumulates_the_whole() -> None:
    metrics = RegionMetrics(REGIONS)
    batch = metrics(PREDICTIONS[:2], TARGETS[:2])
    metrics(PREDICTIONS[2:], TARGETS[2:])
    assert batch["all/count"] == 2
    assert computed(metrics) == pytest.approx(EXPECTED, nan_ok=True)


def test_reset_forgets_the_samples() -> None:
    metrics = filled()
    metrics.update(torch.tensor([1e6]), torch.tensor([0.0]))
    metrics.reset()
    metrics.update(PREDICTIONS, TARGETS)
    assert computed(metrics) == EXPECTED


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda metrics: pickle.loads(pickle.dumps(metrics))],
    ids=["deepcopy", "pickle"],
)
def test_metrics_survive_being_copied(clone: Callable[[RegionMetrics], RegionMetrics]) -> None:
    metrics = filled()
    copied = clone(metrics)
    metrics.update(PREDICTIONS, TARGETS)
    assert copied.regions == REGIONS
    assert computed(copied) == EXPECTED


def test_state_dict_restores_a_persistent_state() -> None:
    metrics, restored = filled(), RegionMetrics(REGIONS)
    metrics.persistent(True)
    restored.persistent(True)
    restored.load_state_dict(metrics.state_dict())
    assert flatten(restored.report()) == EXPECTED


def test_ranks_add_up() -> None:
    second = RegionMetrics(REGIONS)
    second.update(PREDICTIONS[1:], TARGETS[1:])

    def gather(state: Tensor, group: object) -> list[Tensor]:
        return [state, second.sums if state.shape == second.sums.shape else second.edges]

    first = RegionMetrics(REGIONS, dist_sync_fn=gather, distributed_available_fn=lambda: True)
    first.update(PREDICTIONS[:1], TARGETS[:1])
    assert computed(first) == pytest.approx(EXPECTED, nan_ok=True)
    assert first.report().rows["all"]["count"] == 1


def test_merged_states_add_up() -> None:
    first, second = RegionMetrics(REGIONS), RegionMetrics(REGIONS)
    first.update(PREDICTIONS[:3], TARGETS[:3])
    second.update(PREDICTIONS[3:], TARGETS[3:])
    first.merge_state(second)
    assert computed(first) == pytest.approx(EXPECTED, nan_ok=True)


def test_metrics_work_in_a_collection_with_others() -> None:
    collection = MetricCollection(
        {"regions": RegionMetrics(REGIONS), "mae": MeanAbsoluteError()}, prefix="test/"
    )
    for half in (slice(0, 2), slice(2, 4)):
        collection.update(PREDICTIONS[half], TARGETS[half])
    values = collection.compute()
    assert values["test/few/MAE"].item() == 4
    assert values["test/mae"].item() == pytest.approx(values["test/all/MAE"].item())


def test_collection_keeps_metrics_over_other_bins_apart() -> None:
    # Metrics whose states agree after the first batch share one state from then on.
    other = ShotRegions(TargetBins([0, 8, 20, 30]), ["many", "medium", "few"])
    collection = MetricCollection(
        {"here": RegionMetrics(REGIONS), "there": RegionMetrics(other)}, compute_groups=True
    )
    collection.update(torch.tensor([1.0]), torch.tensor([1.0]))
    collection.update(torch.tensor([1.0]), torch.tensor([9.0]))
    collection.compute()
    assert collection["here"].report().rows["many"]["count"] == 2
    assert collection["there"].report().rows["many"]["count"] == 1


def test_computed_values_are_ready_to_be_logged() -> None:
    values = filled().compute()
    assert list(values) == [
        f"{region}/{name}"
        for region in ("all", "many", "medium", "few")
        for name in ("count", "MAE", "GM", "RMSE", "delta_1", "bMAE")
    ]
    assert {(value.dim(), value.dtype) for value in values.values()} == {(0, torch.float64)}


@pytest.mark.parametrize("convert", ["half", "float", "double"])
def test_module_conversions_leave_the_sums_in_float64(convert: str) -> None:
    metrics = RegionMetrics(REGIONS)
    getattr(torch.nn.ModuleList([metrics]), convert)()
    metrics.update(PREDICTIONS, TARGETS)
    assert metrics.sums.dtype is torch.float64
    assert computed(metrics) == EXPECTED


def test_set_dtype_converts_the_sums() -> None:
    metrics = filled().set_dtype(torch.float32)
    metrics.update(PREDICTIONS, TARGETS)
    assert metrics.sums.dtype is torch.float32
    assert computed(metrics)["all/MAE"] == pytest.approx(EXPECTED["all/MAE"])


@pytest.mark.parametrize("dtype", [*strategies.FLOAT_DTYPES, torch.int64], ids=str)
def test_updates_take_any_dtype(dtype: torch.dtype) -> None:
    metrics = RegionMetrics(REGIONS)
    metrics.update(PREDICTIONS.to(dtype), TARGETS.to(dtype))
    assert computed(metrics) == EXPECTED


@pytest.mark.parametrize(
    ("predictions", "targets", "error", "message"),
    [
        (torch.ones(2, 1), torch.ones(2), ValueError, r"shape, but got \(2, 1\) and \(2,\)"),
        (torch.ones(0), torch.ones(1), ValueError, r"shape, but got \(0,\) and \(1,\)"),
        ([1.0], torch.ones(1), TypeError, "`predictions` to be a torch.Tensor, but got list"),
        (torch.ones(1), [1.0], TypeError, "`targets` to be a torch.Tensor, but got list"),
    ],
)
def test_error_names_the_argument(
    predictions: Tensor, targets: Tensor, error: type[Exception], message: str
) -> None:
    metrics = RegionMetrics(REGIONS)
    with pytest.raises(error, match=message):
        metrics.update(predictions, targets)


def test_bins_in_place_of_regions_are_refused() -> None:
    with pytest.raises(TypeError, match="Expected `regions` to be ShotRegions, but got TargetBins"):
        RegionMetrics(REGIONS.bins)  # type: ignore[arg-type]


@pytest.mark.parametrize("multioutput", ["uniform_average", "raw_values"])
def test_streaming_over_several_targets_equals_the_report_on_the_whole(multioutput: Any) -> None:
    torch.manual_seed(0)
    targets = torch.rand(50, 2)
    predictions = targets + 0.1 * torch.randn(50, 2)
    grid = TargetGrid(TargetBins.uniform(0, 1, width=0.25), TargetBins([0, 0.7, 1]))
    regions = ShotRegions.from_counts(grid, grid.counts(targets), many_above=10, few_below=5)
    metrics = RegionMetrics(regions, multioutput=multioutput)
    for batch in zip(predictions.split(17), targets.split(17), strict=True):
        metrics.update(*batch)
    metrics.update(predictions[:0], targets[:0])
    expected = flatten(region_report(predictions, targets, regions, multioutput=multioutput))
    assert computed(metrics) == pytest.approx(expected, nan_ok=True)
    assert ("few/MAE_1" in expected) == (multioutput == "raw_values")
    restored = pickle.loads(pickle.dumps(metrics))
    assert computed(restored) == pytest.approx(expected, nan_ok=True)


def test_a_state_of_other_bins_is_refused() -> None:
    metrics = filled()
    metrics.persistent(True)
    same, other = RegionMetrics(REGIONS), RegionMetrics(ShotRegions(TargetBins([0, 1]), ["few"]))
    same.load_state_dict(metrics.state_dict())
    same.update(PREDICTIONS[:0], TARGETS[:0])
    assert computed(same) == pytest.approx(EXPECTED, nan_ok=True)
    with pytest.raises(
        ValueError, match=r"metrics over TargetBins\(1 bins .*, but got one over ot"
    ):
        other.load_state_dict(metrics.state_dict())


def test_metrics_over_other_grids_do_not_share_their_state() -> None:
    grids = {
        "a": TargetGrid(TargetBins([0, 1, 2]), TargetBins([3, 4])),
        "b": TargetGrid(TargetBins([0, 1]), TargetBins([2, 3, 4])),
    }
    regions = {name: ShotRegions(grid, ["many", "few"]) for name, grid in grids.items()}
    metrics = {name: RegionMetrics(of_grid) for name, of_grid in regions.items()}
    collection = MetricCollection({name: metric.clone() for name, metric in metrics.items()})
    for first in (0.5, 1.5, 1.5):
        batch = torch.tensor([[first, 2.5]])
        collection.update(batch, batch)
        for metric in metrics.values():
            metric.update(batch, batch)
    for name, metric in metrics.items():
        assert collection[name].report().by_bin["count"] == metric.report().by_bin["count"]


def test_sums_stay_on_the_cpu_where_a_device_has_no_float64() -> None:
    class OnAppleGPU:
        device, dtype = torch.device("mps"), torch.float32

    def to_mps(tensor: torch.Tensor) -> object:
        if tensor.dtype is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64")
        return OnAppleGPU()

    metrics = RegionMetrics(REGIONS)
    metrics._apply(to_mps)
    targets = torch.arange(3000.0) % 30
    metrics.update(targets + 1, targets)
    assert metrics.compute()["all/MAE"] == 1


@pytest.mark.parametrize(
    "convert",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.bfloat16(),
        lambda module: module.half(),
        lambda module: module.to(torch.float32),
        lambda module: module.to("cpu", torch.float16),
    ],
    ids=["to bfloat16", "bfloat16", "half", "to float32", "to cpu and float16"],
)
def test_sums_stay_in_float64_where_the_module_is_converted(
    convert: Callable[[torch.nn.Module], torch.nn.Module],
) -> None:
    targets = torch.arange(3000.0) % 30
    module = torch.nn.Module()
    module.metrics = RegionMetrics(REGIONS)
    convert(module)
    metrics = module.metrics
    assert isinstance(metrics, RegionMetrics)
    metrics.update(targets + 1, targets)
    assert metrics.sums.dtype == torch.float64
    assert computed(metrics) == flatten(region_report(targets + 1, targets, REGIONS))
    metrics.reset()
    assert metrics.sums.dtype == torch.float64


def test_metrics_can_be_made_under_another_default_device() -> None:
    with torch.device("meta"):
        metrics = RegionMetrics(REGIONS)
    assert metrics.edges.device.type == "cpu"


def test_a_target_that_is_nan_shows_in_every_metric_of_its_region() -> None:
    metrics = RegionMetrics(REGIONS)
    metrics.update(torch.tensor([4.0, 25.0]), torch.tensor([5.0, math.nan]))
    found = computed(metrics)
    assert all(math.isnan(found[f"few/{name}"]) for name in ("MAE", "GM", "RMSE", "delta_1"))
    assert found["many/MAE"] == 1
