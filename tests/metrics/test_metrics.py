"""Metrics against numpy in float64, and the report that takes them per region."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balanced_sam import (
    RegionReport,
    ShotRegions,
    TargetBins,
    balanced_mean_absolute_error,
    geometric_mean_error,
    mean_absolute_error,
    region_report,
    root_mean_squared_error,
    threshold_accuracy,
)
from support import strategies

Arrays = Callable[[np.ndarray, np.ndarray], float]


def mae(p: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.abs(p - y)))


def rmse(p: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(p - y))))


def gm(p: np.ndarray, y: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(np.abs(p - y)))))


def delta(p: np.ndarray, y: np.ndarray, threshold: float = 1.25) -> float:
    return float(np.mean((p > 0) & (y > 0) & (np.maximum(p / y, y / p) < threshold)))


def bmae(p: np.ndarray, y: np.ndarray, index: np.ndarray | None = None) -> float:
    labels = y if index is None else index
    return float(np.mean([np.mean(np.abs(p - y)[labels == k]) for k in np.unique(labels)]))


def arrays(*values: Tensor) -> list[np.ndarray]:
    return [value.double().numpy().ravel() for value in values]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (mean_absolute_error, mae),
        (root_mean_squared_error, rmse),
        (geometric_mean_error, gm),
        (threshold_accuracy, delta),
        (balanced_mean_absolute_error, bmae),
    ],
)
@settings(max_examples=50, deadline=None)
@given(pair=strategies.prediction_pairs(extreme=True))
def test_metric_equals_numpy_in_float64(
    metric: Callable[[Tensor, Tensor], Tensor], expected: Arrays, pair: tuple[Tensor, Tensor]
) -> None:
    actual = metric(*pair)
    with np.errstate(all="ignore"):
        oracle = expected(*arrays(*pair))
    assert actual.dtype is torch.float64
    assert actual.dim() == 0
    np.testing.assert_allclose(actual.item(), oracle, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(pair=strategies.prediction_pairs(), threshold=st.floats(1.01, 10))
def test_threshold_accuracy_equals_numpy_for_any_threshold(
    pair: tuple[Tensor, Tensor], threshold: float
) -> None:
    with np.errstate(all="ignore"):
        oracle = delta(*arrays(*pair), threshold=threshold)
    assert threshold_accuracy(*pair, threshold=threshold).item() == pytest.approx(oracle)


@settings(max_examples=30, deadline=None)
@given(pair=strategies.prediction_pairs(), bins=strategies.bins())
def test_balanced_error_over_bins_equals_numpy(
    pair: tuple[Tensor, Tensor], bins: TargetBins
) -> None:
    index = bins.index(pair[1]).numpy().ravel()
    oracle = bmae(*arrays(*pair), index=index)
    assert balanced_mean_absolute_error(*pair, bins=bins).item() == pytest.approx(oracle)


def test_balanced_error_weighs_each_target_value_alike() -> None:
    targets = torch.tensor([1, 1, 1, 5])
    predictions = torch.tensor([2.0, 2.0, 2.0, 8.0])
    assert balanced_mean_absolute_error(predictions, targets).item() == 2
    assert mean_absolute_error(predictions, targets).item() == 1.5


def test_geometric_mean_of_one_exact_prediction_is_zero() -> None:
    assert geometric_mean_error(torch.tensor([1.0, 9.0]), torch.tensor([1.0, 2.0])).item() == 0


def test_geometric_mean_does_not_overflow_where_the_product_does() -> None:
    predictions = torch.full((1000,), 1e3)
    assert geometric_mean_error(predictions, torch.zeros(1000)).item() == pytest.approx(1e3)


def test_threshold_accuracy_counts_neither_the_threshold_itself_nor_non_positive_values() -> None:
    predictions = torch.tensor([1.25, 1.0, 1.2, 1.0, -1.0, 0.0, 1.0, 0.0])
    targets = torch.tensor([1.0, 1.25, 1.0, 1.2, -1.0, 0.0, 0.0, 1.0])
    assert threshold_accuracy(predictions, targets).item() == 2 / 8


def test_metrics_accumulate_in_float64() -> None:
    predictions = torch.full((3,), 2.0**24)
    predictions[1:] = 1
    assert mean_absolute_error(predictions, torch.zeros(3)).item() == (2.0**24 + 2) / 3


def test_metrics_carry_no_gradient() -> None:
    predictions = torch.ones(2, requires_grad=True)
    assert not mean_absolute_error(predictions, torch.zeros(2)).requires_grad


def oracle_row(p: np.ndarray, y: np.ndarray, index: np.ndarray) -> dict[str, float]:
    if not len(y):
        return {"count": 0} | dict.fromkeys(("MAE", "GM", "RMSE", "delta_1", "bMAE"), math.nan)
    return {
        "count": len(y),
        "MAE": mae(p, y),
        "GM": gm(p, y),
        "RMSE": rmse(p, y),
        "delta_1": delta(p, y),
        "bMAE": bmae(p, y, index),
    }


@settings(max_examples=50, deadline=None)
@given(pair=strategies.prediction_pairs(), regions=strategies.regions())
def test_report_equals_numpy_region_by_region(
    pair: tuple[Tensor, Tensor], regions: ShotRegions
) -> None:
    report = region_report(*pair, regions)
    p, y = arrays(*pair)
    index = regions.bins.index(pair[1]).numpy().ravel()
    labels = np.array(regions.labels)[index]
    assert list(report.rows) == ["all", "many", "medium", "few"]
    for title, chosen in {
        "all": labels == labels,
        "many": labels == "many",
        "medium": labels == "medium",
        "few": labels == "few",
    }.items():
        with np.errstate(all="ignore"):
            oracle = oracle_row(p[chosen], y[chosen], index[chosen])
        assert list(report.rows[title]) == list(oracle)
        assert report.rows[title] == pytest.approx(oracle, rel=1e-9, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(pair=strategies.prediction_pairs(), regions=strategies.regions())
def test_report_equals_numpy_bin_by_bin(pair: tuple[Tensor, Tensor], regions: ShotRegions) -> None:
    report = region_report(*pair, regions)
    assert report.regions is regions
    assert list(report.by_bin) == ["count", "MAE", "GM", "RMSE", "delta_1"]
    assert {len(values) for values in report.by_bin.values()} == {len(regions.bins)}
    p, y = arrays(*pair)
    index = regions.bins.index(pair[1]).numpy().ravel()
    for k in range(len(regions.bins)):
        with np.errstate(all="ignore"):
            oracle = oracle_row(p[index == k], y[index == k], index[index == k])
        del oracle["bMAE"]  # the MAE, where there is but one bin
        actual = {name: values[k] for name, values in report.by_bin.items()}
        assert actual == pytest.approx(oracle, rel=1e-9, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(pair=strategies.prediction_pairs(), regions=strategies.regions())
def test_report_on_all_samples_equals_the_metrics(
    pair: tuple[Tensor, Tensor], regions: ShotRegions
) -> None:
    row = region_report(*pair, regions).rows["all"]
    bmae_over_bins = balanced_mean_absolute_error(*pair, bins=regions.bins).item()
    assert row == pytest.approx(
        {
            "count": pair[1].numel(),
            "MAE": mean_absolute_error(*pair).item(),
            "GM": geometric_mean_error(*pair).item(),
            "RMSE": root_mean_squared_error(*pair).item(),
            "delta_1": threshold_accuracy(*pair).item(),
            "bMAE": bmae_over_bins,
        },
        rel=1e-9,
    )


@settings(max_examples=20, deadline=None)
@given(pair=strategies.prediction_pairs(), regions=strategies.regions(), data=st.data())
def test_report_does_not_depend_on_order_or_shape(
    pair: tuple[Tensor, Tensor], regions: ShotRegions, data: st.DataObject
) -> None:
    order = torch.tensor(data.draw(st.permutations(range(pair[1].numel()))))
    shuffled = region_report(pair[0].flatten()[order], pair[1].flatten()[order], regions)
    for title, row in region_report(*pair, regions).rows.items():
        assert shuffled.rows[title] == pytest.approx(row, rel=1e-9, nan_ok=True)


@pytest.fixture
def report() -> RegionReport:
    regions = ShotRegions(TargetBins([0, 10, 20, 30]), ["many", "medium", "few"])
    predictions = torch.tensor([4.0, 9.0, 25.0])
    targets = torch.tensor([5.0, 5.0, 21.0])
    return region_report(predictions, targets, regions)


def test_empty_region_has_count_zero_and_nan(report: RegionReport) -> None:
    row = report.rows["medium"]
    assert row.pop("count") == 0
    assert len(row) == 5
    assert all(math.isnan(value) for value in row.values())


def test_report_of_a_whole_empty_of_two_regions_is_that_of_the_third() -> None:
    regions = ShotRegions(TargetBins([0, 1]), ["medium"])
    rows = region_report(torch.tensor([2.0]), torch.tensor([0.5]), regions).rows
    assert rows["medium"] == rows["all"]
    assert (rows["many"]["count"], rows["few"]["count"]) == (0, 0)


def test_report_as_text_is_an_aligned_table(report: RegionReport) -> None:
    assert str(report).splitlines() == [
        "region  count    MAE     GM   RMSE  delta_1   bMAE",
        "all         3  3.000  2.520  3.317    0.333  3.250",
        "many        2  2.500  2.000  2.915    0.000  2.500",
        "medium      0    nan    nan    nan      nan    nan",
        "few         1  4.000  4.000  4.000    1.000  4.000",
    ]


def test_report_as_markdown_is_a_table(report: RegionReport) -> None:
    assert report.to_markdown().splitlines() == [
        "| region | count | MAE | GM | RMSE | delta_1 | bMAE |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| all | 3 | 3.000 | 2.520 | 3.317 | 0.333 | 3.250 |",
        "| many | 2 | 2.500 | 2.000 | 2.915 | 0.000 | 2.500 |",
        "| medium | 0 | nan | nan | nan | nan | nan |",
        "| few | 1 | 4.000 | 4.000 | 4.000 | 1.000 | 4.000 |",
    ]


def test_report_as_dict_is_a_copy_that_json_holds(report: RegionReport) -> None:
    copied = report.to_dict()
    assert json.loads(json.dumps(copied))["few"] == report.rows["few"]
    assert {type(value) for row in copied.values() for value in row.values()} == {int, float}
    assert json.loads(json.dumps(report.by_bin))["count"] == [2, 0, 1]
    copied["few"]["MAE"] = 0.0
    assert report.rows["few"]["MAE"] == 4.0


ONES = torch.ones(2)
SHOT = ShotRegions(TargetBins([0, 1, 2]), ["many", "few"])
METRICS: list[Callable[..., Any]] = [
    mean_absolute_error,
    root_mean_squared_error,
    geometric_mean_error,
    threshold_accuracy,
    balanced_mean_absolute_error,
    lambda predictions, targets: region_report(predictions, targets, SHOT),
]


@pytest.mark.parametrize(
    "metric", METRICS, ids=["MAE", "RMSE", "GM", "delta", "bMAE", "region_report"]
)
@pytest.mark.parametrize(
    ("predictions", "targets", "error", "message"),
    [
        (torch.ones(2, 1), ONES, ValueError, r"same shape, but got \(2, 1\) and \(2,\)"),
        (ONES, torch.ones(3), ValueError, r"same shape, but got \(2,\) and \(3,\)"),
        (torch.tensor(1.0), ONES, ValueError, r"same shape, but got \(\) and \(2,\)"),
        (ONES[:0], ONES[:1], ValueError, r"same shape, but got \(0,\) and \(1,\)"),
        (ONES.to("meta"), ONES, ValueError, "on one device, but got meta and cpu"),
        ([1.0, 1.0], ONES, TypeError, "`predictions` to be a torch.Tensor, but got list"),
        (ONES, np.ones(2), TypeError, "`targets` to be a torch.Tensor, but got ndarray"),
        (ONES > 0, ONES, TypeError, "`predictions` to hold floats .* torch.bool"),
        (ONES, ONES * 1j, TypeError, "`targets` to hold floats .* torch.complex64"),
    ],
)
def test_error_names_the_argument_of_every_metric(
    metric: Callable[..., object],
    predictions: object,
    targets: object,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        metric(predictions, targets)


@pytest.mark.parametrize("shape", [(0,), (0, 4, 5), (3, 0)], ids=str)
def test_no_sample_at_all_is_an_empty_region(shape: tuple[int, ...]) -> None:
    nothing = torch.empty(shape)
    report = region_report(nothing, nothing, SHOT)
    assert [row.pop("count") for row in report.rows.values()] == [0, 0, 0, 0]
    assert all(math.isnan(value) for row in report.rows.values() for value in row.values())
    for metric in METRICS[:-1]:
        value = metric(nothing, nothing)
        assert value.dtype is torch.float64
        assert math.isnan(value)
    assert math.isnan(balanced_mean_absolute_error(nothing, nothing, bins=SHOT.bins))


@pytest.mark.parametrize("threshold", [1, 0.8, -2, float("nan")])
def test_threshold_of_at_most_one_is_an_error(threshold: float) -> None:
    message = f"`threshold` to be above 1, but got threshold={threshold}"
    with pytest.raises(ValueError, match=message):
        threshold_accuracy(ONES, ONES, threshold=threshold)


def test_balanced_error_over_edges_in_place_of_bins_is_refused() -> None:
    with pytest.raises(TypeError, match="`bins` to be TargetBins or TargetGrid, but got list"):
        balanced_mean_absolute_error(ONES, ONES, bins=[0.0, 1.0])  # type: ignore[arg-type]


def test_report_over_bins_in_place_of_regions_is_refused() -> None:
    bins = TargetBins([0.0, 1.0])
    with pytest.raises(TypeError, match="Expected `regions` to be ShotRegions, but got TargetBins"):
        region_report(torch.ones(2), torch.ones(2), bins)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "metric",
    [
        mean_absolute_error,
        root_mean_squared_error,
        geometric_mean_error,
        threshold_accuracy,
    ],
)
def test_several_outputs_are_averaged_or_given_each_as_in_scikit_learn(metric: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(30, 3, generator=generator) * torch.tensor([1.0, 10.0, 100.0])
    predictions = targets * (1 + 0.3 * torch.randn(30, 3, generator=generator))
    each = metric(predictions, targets, multioutput="raw_values")
    columns = zip(predictions.T, targets.T, strict=True)
    torch.testing.assert_close(each, torch.stack([metric(*column) for column in columns]))
    mean = metric(predictions, targets, multioutput="uniform_average")
    torch.testing.assert_close(mean, each.mean())
    torch.testing.assert_close(
        metric(predictions, targets), metric(predictions.flatten(), targets.flatten())
    )
    for vector in (targets[:, 0], targets[:, :1]):
        torch.testing.assert_close(
            metric(2 * vector, vector, multioutput="raw_values").squeeze(),
            metric(2 * vector, vector),
        )
    with pytest.raises(ValueError, match=r"`multioutput` to be one of .* but got 'variance'"):
        metric(predictions, targets, multioutput="variance")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_report_refuses_targets_that_are_not_finite(value: float) -> None:
    regions = ShotRegions(TargetBins([0.0, 10.0]), ["many"])
    with pytest.raises(ValueError, match="Expected `targets` to be finite, but got 1 NaN"):
        region_report(torch.tensor([4.0, 5.0]), torch.tensor([4.0, value]), regions)


def test_a_target_that_is_nan_is_no_miss() -> None:
    targets = torch.tensor([4.0, math.nan])
    assert threshold_accuracy(torch.tensor([4.0, 5.0]), targets).isnan()
    # A prediction that is NaN is one.
    assert threshold_accuracy(targets, torch.tensor([4.0, 5.0])) == 0.5
