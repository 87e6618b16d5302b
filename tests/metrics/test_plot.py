"""The picture of a report: what it draws, in its own axes and in given ones."""

import math
import sys
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from balanced_sam import RegionReport, ShotRegions, TargetBins, TargetGrid, region_report
from balanced_sam.torchmetrics import RegionMetrics

matplotlib.use("Agg")

EDGES = [0.0, 10.0, 20.0, 30.0, 50.0, 60.0]
LABELS = ("few", "many", "many", "medium", "few")
REGIONS = ShotRegions(TargetBins(EDGES), LABELS)
# One target in the first bin, three in the second, none in the third, one in the fourth.
TARGETS = torch.tensor([5.0, 12.0, 14.0, 16.0, 40.0])
PREDICTIONS = torch.tensor([9.0, 13.0, 12.0, 19.0, 43.5])
COUNTS, ERRORS = [1, 3, 0, 1, 0], [4.0, 2.0, math.nan, 3.5, math.nan]


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def report() -> RegionReport:
    return region_report(PREDICTIONS, TARGETS, REGIONS)


def metrics(**options: Any) -> RegionMetrics:
    filled = RegionMetrics(REGIONS, **options)
    filled.update(PREDICTIONS, TARGETS)
    return filled


def bars(axes: Axes) -> dict[tuple[float, float], tuple[float, tuple[float, ...]]]:
    """Return height and color of each bar, by its place on the axis, from left to right."""
    patches = [patch for container in axes.containers for patch in container]
    drawn = {
        (p.get_x(), p.get_width()): (p.get_height(), to_rgb(p.get_facecolor())) for p in patches
    }
    assert len(drawn) == len(patches)
    return dict(sorted(drawn.items()))


def assert_draws_the_report(axes: Axes) -> None:
    """Assert that the axes hold the errors over the target, and those above them the counts."""
    (above,) = (other for other in axes.figure.axes if other.get_ylabel() == "count")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("target", "MAE")
    places = list(zip(EDGES, np.diff(EDGES), strict=False))
    for drawn, heights in ((bars(axes), ERRORS), (bars(above), COUNTS)):
        assert list(drawn) == places
        np.testing.assert_allclose([height for height, _ in drawn.values()], heights)
    (few,), (many,), (medium,) = (
        {color for label, (_, color) in zip(LABELS, bars(axes).values(), strict=True) if label == r}
        for r in ("few", "many", "medium")
    )
    assert len({few, many, medium}) == 3
    in_bars = [patch for container in axes.containers for patch in container]
    shades = [patch for patch in axes.patches if patch not in in_bars]
    assert all(isinstance(shade, Rectangle) for shade in shades)
    # One for each run of bins of one region.
    assert [(s.get_x(), s.get_width(), to_rgb(s.get_facecolor())) for s in shades] == [
        (0, 10, few),
        (10, 20, many),
        (30, 20, medium),
        (50, 10, few),
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "many-shot, MAE 2",
        "medium-shot, MAE 3.5",
        "few-shot, MAE 4",
    ]
    # From the first bin with a target to the last one.
    assert axes.get_xlim() == above.get_xlim() == (0, 50)
    assert above.get_yscale() == "log"
    axes.figure.canvas.draw()
    top = axes.get_window_extent().y1
    assert axes.get_legend().get_window_extent().y0 > axes.transData.transform((0, 4))[1]
    assert top < above.get_window_extent().y0
    assert above.get_tightbbox().y1 < axes.figure.bbox.y1


def test_report_draws_the_error_of_each_bin_and_shades_the_regions() -> None:
    figure, axes = report().plot()
    assert figure is axes.figure
    assert len(figure.axes) == 2
    assert_draws_the_report(axes)


def test_report_draws_in_given_axes_and_in_no_others() -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert report().plot(ax=right) == (figure, right)
    assert_draws_the_report(right)
    assert not left.has_data()
    assert plt.get_fignums() == [figure.number]


def test_region_metrics_draw_what_their_report_draws() -> None:
    figure, axes = metrics().plot()
    assert figure is axes.figure
    assert_draws_the_report(axes)
    (given,) = plt.figure().subplots(1, 1, squeeze=False).flat
    assert metrics().plot(ax=given) == (given.figure, given)
    assert_draws_the_report(given)


def test_region_metrics_draw_the_samples_of_all_processes_and_keep_their_own() -> None:
    half = RegionMetrics(
        REGIONS,
        dist_sync_fn=lambda state, group: [state, state],
        distributed_available_fn=bool_true,
    )
    half.update(PREDICTIONS, TARGETS)
    _, axes = half.plot()
    above = next(other for other in axes.figure.axes if other is not axes)
    assert [height for height, _ in bars(above).values()] == [2 * count for count in COUNTS]
    assert half.report().by_bin["count"] == COUNTS


def bool_true() -> bool:
    return True


@pytest.mark.parametrize("is_list", [False, True])
def test_region_metrics_draw_given_results_as_the_error_of_each_region(is_list: bool) -> None:
    first = metrics().compute()
    second = {name: value + 1 for name, value in first.items()}
    _, axes = metrics().plot([first, second] if is_list else first)
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert list(lines) == ["all/MAE", "many/MAE", "medium/MAE", "few/MAE"]
    assert lines["medium/MAE"] == ([3.5, 4.5] if is_list else [3.5])


def test_report_of_nothing_is_drawn_over_the_whole_range() -> None:
    axes = region_report(TARGETS[:0], TARGETS[:0], REGIONS).plot()[1]
    axes.figure.canvas.draw()
    assert axes.get_xlim() == (0, 60)
    assert all(math.isnan(height) for height, _ in bars(axes).values())


def test_colors_follow_the_style_of_the_user() -> None:
    with plt.style.context("dark_background"):
        figure, axes = report().plot()
    assert to_rgb(figure.get_facecolor()) == (0, 0, 0)
    assert to_rgb(axes.xaxis.label.get_color()) == (1, 1, 1)


@pytest.mark.parametrize("draw", [lambda: report().plot(), lambda: metrics().plot()])
def test_missing_matplotlib_is_said(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"Expected matplotlib, .* `pip install matplotlib`"
    ):
        draw()


GRID = TargetGrid(TargetBins([0.0, 1.0, 3.0]), TargetBins([0.0, 10.0, 20.0, 40.0]))
# A many-shot bin with two samples, a few-shot one with one, and a few-shot one with none.
PAIRS = torch.tensor([[0.5, 5.0], [0.6, 6.0], [2.0, 30.0]])
OFF = torch.tensor([[0.1, 1.0], [0.3, 3.0], [1.0, 6.0]])
OF_GRID = ShotRegions(GRID, ["many", "few", "medium", "medium", "medium", "few"])


@pytest.mark.parametrize(
    ("multioutput", "metric", "name", "errors"),
    [
        ("uniform_average", None, "MAE", [1.1, 3.5]),
        ("raw_values", None, "MAE_0", [0.2, 1.0]),
        ("raw_values", "MAE_1", "MAE_1", [2.0, 6.0]),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_plot_of_a_grid_is_a_heat_map(
    multioutput: Any, metric: str | None, name: str, errors: list[float], is_streamed: bool
) -> None:
    metrics = RegionMetrics(OF_GRID, multioutput=multioutput)
    metrics.update(PAIRS + OFF, PAIRS)
    if is_streamed and metric is None:
        figure, axes = metrics.plot()
    else:
        figure, axes = metrics.report().plot(metric=metric)
    (mesh,) = axes.collections
    expected = np.full((3, 2), np.nan)  # the first target runs to the right
    expected[0, 0], expected[2, 1] = errors
    np.testing.assert_allclose(np.ma.filled(mesh.get_array(), np.nan), expected)
    assert mesh.get_coordinates()[0, :, 0].tolist() == [0, 1, 3]
    assert mesh.get_coordinates()[:, 0, 1].tolist() == [0, 10, 20, 40]
    (dots,) = axes.lines
    assert dots.get_xydata().tolist() == [[2.0, 30.0]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("target 0", "target 1")
    assert axes.get_title().splitlines() == [
        f"many-shot, {name} {errors[0]:.3g}",
        f"medium-shot, {name} nan",
        f"few-shot, {name} {errors[1]:.3g} (dots)",
    ]
    assert figure.axes[1].get_ylabel() == name
    figure.canvas.draw()


def test_plot_of_another_metric_is_of_that() -> None:
    _, axes = report().plot(metric="RMSE")
    assert axes.get_ylabel() == "RMSE"
    heights = [height for height, _ in bars(axes).values()]
    np.testing.assert_allclose(heights[:2], report().by_bin["RMSE"][:2])
    with pytest.raises(ValueError, match=r"`metric` to be one of 'MAE', .* but got 'count'"):
        report().plot(metric="count")


def test_plot_of_three_targets_is_refused() -> None:
    grid = TargetGrid(*[TargetBins([0, 1])] * 3)
    of_three = region_report(torch.ones(2, 3), torch.ones(2, 3), ShotRegions(grid, ["few"]))
    with pytest.raises(ValueError, match="one or two targets to draw, but got 3"):
        of_three.plot()
