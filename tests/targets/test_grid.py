"""Target grids: the bins of several targets together, in all that takes bins."""

import copy
import itertools
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balanced_sam import (
    ShotRegions,
    TargetBins,
    TargetGrid,
    TargetWeights,
    balanced_mean_absolute_error,
    inverse_weights,
    region_report,
    smooth_counts,
)
from support import strategies

# Toy targets may be all alike.
pytestmark = pytest.mark.filterwarnings(
    "ignore:All target weights are the same", "ignore:.*so the weights rest on few samples"
)

GRID = TargetGrid(TargetBins([0.0, 1.0, 2.0, 4.0]), TargetBins([0.0, 10.0, 30.0]))


@st.composite
def grids(draw: st.DrawFn, *, axes: tuple[int, int] = (1, 3)) -> TargetGrid:
    return TargetGrid(
        *draw(st.lists(strategies.bins(max_bins=4), min_size=axes[0], max_size=axes[1]))
    )


@st.composite
def targets_of(draw: st.DrawFn, grid: TargetGrid, *, size: int | None = None) -> Tensor:
    number = draw(st.integers(1, 20)) if size is None else size
    columns = [
        draw(
            st.lists(
                st.sampled_from(bins.edges.tolist()) | st.floats(-150, 150),
                min_size=number,
                max_size=number,
            )
        )
        for bins in grid.axes
    ]
    return torch.tensor(columns, dtype=torch.float64).T


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_index_and_counts_equal_numpy(data: st.DataObject) -> None:
    grid = data.draw(grids())
    targets = data.draw(targets_of(grid))
    each = [bins.index(column) for bins, column in zip(grid.axes, targets.T, strict=True)]
    expected = np.ravel_multi_index([index.numpy() for index in each], grid.shape)
    np.testing.assert_array_equal(grid.index(targets).numpy(), expected)
    assert grid.index(targets[:, None].expand(-1, 2, -1)).shape == (len(targets), 2)
    counts = grid.counts(targets)
    assert counts.shape == grid.shape
    for index in itertools.product(*map(range, grid.shape)):
        inside = torch.stack([e == i for e, i in zip(each, index, strict=True)]).all(0)
        assert counts[index] == inside.sum()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_grid_of_one_axis_equals_the_bins(data: st.DataObject) -> None:
    bins = data.draw(strategies.bins())
    grid = TargetGrid(bins)
    targets = data.draw(targets_of(grid))
    flat = targets[:, 0]
    assert grid.index(targets).equal(bins.index(flat))
    assert grid.counts(targets).equal(bins.counts(flat))
    for scheme in ("inv", 0.3):
        for smoothing in (None, smooth_counts):
            of_bins = TargetWeights.from_targets(flat, bins, scheme=scheme, smoothing=smoothing)
            of_grid = TargetWeights.from_targets(targets, grid, scheme=scheme, smoothing=smoothing)
            assert of_grid(targets).equal(of_bins(flat))
    regions = [ShotRegions.from_weights(w, many_above=3, few_below=2) for w in (of_bins, of_grid)]
    assert regions[0].labels == regions[1].labels
    reports = [region_report(t + 1, t, r) for t, r in zip((flat, targets), regions, strict=True)]
    assert str(reports[0]) == str(reports[1])
    np.testing.assert_equal(reports[0].by_bin, reports[1].by_bin)
    assert len(TargetGrid.from_targets(flat[:, None]).axes[0]) == len(TargetBins.from_targets(flat))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_order_of_the_targets_changes_nothing(data: st.DataObject) -> None:
    grid = data.draw(grids(axes=(2, 3)))
    targets = data.draw(targets_of(grid))
    predictions = data.draw(targets_of(grid, size=len(targets)))
    order = data.draw(st.permutations(range(len(grid.axes))))
    other = TargetGrid(*(grid.axes[axis] for axis in order))
    reports = []
    for bins, axes in ((grid, range(len(order))), (other, order)):
        mine = targets[:, list(axes)]
        weights = TargetWeights.from_targets(mine, bins, smoothing=smooth_counts)
        regions = ShotRegions.from_weights(weights, many_above=2, few_below=1)
        reports.append((weights(mine), region_report(predictions[:, list(axes)], mine, regions)))
    torch.testing.assert_close(reports[0][0], reports[1][0])
    for region, row in reports[0][1].rows.items():
        assert row == pytest.approx(reports[1][1].rows[region], nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), scheme=st.floats(0, 2))
def test_mean_weight_over_the_training_samples_is_one(data: st.DataObject, scheme: float) -> None:
    grid = data.draw(grids())
    targets = data.draw(targets_of(grid))
    weights = TargetWeights.from_targets(targets, grid, scheme=scheme)
    assert weights(targets).double().mean().item() == pytest.approx(1, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(first=strategies.counts(max_bins=5), second=strategies.counts(max_bins=5))
def test_inv_weights_of_a_product_are_the_product_of_the_inv_weights(
    first: Tensor, second: Tensor
) -> None:
    is_occupied = (first[:, None] > 0) & (second > 0)
    joint = inverse_weights(first[:, None] * second.double())
    product = inverse_weights(first)[:, None] * inverse_weights(second)
    torch.testing.assert_close(joint[is_occupied], product[is_occupied])
    assert (joint[~is_occupied] == joint[is_occupied].max()).all()


def test_rare_combinations_of_frequent_values_weigh_most() -> None:
    targets = torch.tensor([[0.5, 5.0]] * 50 + [[1.5, 20.0]] * 50 + [[0.5, 20.0]] * 2)
    weights = TargetWeights.from_targets(targets, GRID)
    common, rare = weights(torch.tensor([[0.5, 5.0], [0.5, 20.0]]))
    assert rare > 3 * common
    # The narrower bin of the second target holds as many per unit in half the width.
    assert weights.bin_weights.shape == weights.counts.shape == GRID.shape


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_report_is_the_mean_over_the_outputs_or_each(data: st.DataObject) -> None:
    targets = data.draw(targets_of(GRID))
    predictions = data.draw(targets_of(GRID, size=len(targets)))
    regions = ShotRegions(GRID, ["many", "medium", "few"] * 2)
    mean = region_report(predictions, targets, regions)
    each = region_report(predictions, targets, regions, multioutput="raw_values")
    errors = (predictions - targets).abs().numpy()
    index = GRID.index(targets).numpy()
    for region, inside in {
        "all": index >= 0,
        **{name: regions.mask(targets, name).numpy() for name in ("many", "medium", "few")},
    }.items():
        row = each.rows[region]
        assert row["count"] == mean.rows[region]["count"] == inside.sum()
        for name in ("MAE", "GM", "RMSE", "delta_1", "bMAE"):
            of_outputs = [row[f"{name}_{j}"] for j in range(2)]
            assert mean.rows[region][name] == pytest.approx(np.mean(of_outputs), nan_ok=True)
        if inside.any():
            for j in range(2):
                assert row[f"MAE_{j}"] == pytest.approx(errors[inside, j].mean())
                rmse = np.sqrt(np.square(errors[inside, j]).mean())
                assert row[f"RMSE_{j}"] == pytest.approx(rmse)
                bmae = np.mean([errors[index == k, j].mean() for k in set(index[inside])])
                assert row[f"bMAE_{j}"] == pytest.approx(bmae)
    bmae = balanced_mean_absolute_error(predictions, targets, bins=GRID, multioutput="raw_values")
    assert bmae.tolist() == pytest.approx([each.rows["all"][f"bMAE_{j}"] for j in range(2)])
    assert np.shape(mean.by_bin["MAE"]) == np.shape(mean.by_bin["count"]) == GRID.shape


def test_grid_from_targets_cuts_each_target_and_the_coarser_the_more_there_are() -> None:
    targets = torch.rand(10_000, 3, generator=torch.Generator().manual_seed(0))
    for seven in (7, np.int64(7)):
        assert TargetGrid.from_targets(targets, seven).shape == (7, 7, 7)
    alone = len(TargetBins.from_targets(targets[:, 0]))
    sizes = [TargetGrid.from_targets(targets[:, :d]).shape[0] for d in (1, 2, 3)]
    assert sizes == [
        alone,
        *(int(np.ceil(alone / 10_000 ** (1 / 3 - 1 / (d + 2)))) for d in (2, 3)),
    ]
    assert TargetGrid.from_targets(torch.tensor([[1, 7], [2, 9]]), 9).axes[1].edges.tolist() == [
        6.0,
        8.0,
        10.0,
    ]


def test_weights_move_and_are_saved_with_their_grid() -> None:
    targets = torch.tensor([[0.5, 5.0], [1.5, 20.0], [0.5, 5.0]])
    weights = TargetWeights.from_targets(targets, GRID)
    state = weights.state_dict()
    fresh = TargetWeights(GRID, torch.ones(GRID.shape), torch.ones(GRID.shape))
    fresh.load_state_dict(state)
    assert fresh(targets).equal(weights(targets))
    for wrong in (TargetGrid(*reversed(GRID.axes)), TargetGrid(GRID.axes[0], GRID.axes[0])):
        other = TargetWeights(wrong, torch.ones(wrong.shape), torch.ones(wrong.shape))
        with pytest.raises((RuntimeError, ValueError)):
            other.load_state_dict(state)
    assert weights.to("meta")(targets.to("meta")).shape == (3,)
    for copied in (copy.deepcopy(GRID), pickle.loads(pickle.dumps(GRID))):
        assert copied == GRID
        assert hash(copied) == hash(GRID)
    assert TargetGrid(GRID.axes[0]) != GRID.axes[0]
    assert repr(GRID) == "TargetGrid(3 x 2 bins)"
    assert len(GRID) == 6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TargetGrid(), ValueError, "`bins` of one target or more"),
        (lambda: TargetGrid([0, 1]), TypeError, "`bins` to be TargetBins, but got list"),
        (
            lambda: TargetGrid(*[TargetBins.uniform(0, 1000, width=1)] * 3),
            ValueError,
            r"at most 4000000 combinations, but got TargetGrid\(1000 x 1000 x 1000 bins\)",
        ),
        (lambda: GRID.index(torch.ones(3)), ValueError, r"shape \(\.\.\., 2\), .* got \(3,\)"),
        (lambda: GRID.index(torch.tensor(1.0)), ValueError, r"\(\.\.\., 2\), .* got \(\)"),
        (lambda: GRID.counts(torch.ones(0, 2)), ValueError, "`targets` to hold at least one"),
        (lambda: GRID.counts(torch.ones(1, 2) / 0), ValueError, "`targets` to be finite"),
        (lambda: TargetGrid.from_targets(torch.rand(5)), ValueError, r"\(N, d\), but got \(5,\)"),
        (
            lambda: TargetWeights.from_counts(GRID, torch.ones(6)),
            ValueError,
            r"`counts` to have shape \(3, 2\), one a bin, but got \(6,\)",
        ),
        (
            lambda: region_report(
                torch.ones(3, 2), torch.ones(3, 2), ShotRegions(GRID.axes[0], ["few"] * 3)
            ),
            ValueError,
            r"\(3, 2\)\. Several targets a sample need a TargetGrid",
        ),
        (
            lambda: region_report(
                torch.ones(3, 2),
                torch.ones(3, 2),
                ShotRegions(GRID, ["few"] * 6),
                multioutput="all",
            ),
            ValueError,
            "`multioutput` to be one of 'uniform_average', 'raw_values', but got 'all'",
        ),
        (
            lambda: balanced_mean_absolute_error(torch.ones(3, 2), torch.ones(3, 2)),
            ValueError,
            "need a TargetGrid",
        ),
        (
            lambda: TargetWeights.from_targets(torch.ones(3, 2)),
            ValueError,
            "need a TargetGrid",
        ),
    ],
)
def test_error_names_the_argument(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
