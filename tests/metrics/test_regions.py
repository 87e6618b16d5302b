"""Shot regions: which bins are many-, medium- and few-shot, and which targets lie in them."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balanced_sam import ShotRegions, TargetBins
from support import strategies

REGIONS = ("many", "medium", "few")
# NYUD2-DIR names its regions by bucket; counts of pixels do not give them.
NYUD2_MANY = {*range(9, 46), 47, 49}
NYUD2_MEDIUM = {7, 8, 46, 48, *range(50, 57), 58, 60, 61, 63}


@settings(max_examples=60, deadline=None)
@given(
    counts=strategies.counts(), few_below=st.integers(0, 100), more=st.sampled_from([0, 1, 80, 999])
)
def test_labels_follow_from_the_counts(counts: Tensor, few_below: int, more: int) -> None:
    bins = TargetBins.uniform(0, len(counts), width=1)
    many_above = few_below + more
    regions = ShotRegions.from_counts(bins, counts, many_above=many_above, few_below=few_below)
    for count, label in zip(counts.tolist(), regions.labels, strict=True):
        assert (label == "many") == (count > many_above)
        assert (label == "few") == (count < few_below and count <= many_above)


def test_default_thresholds_make_100_and_20_medium_shot() -> None:
    bins = TargetBins.uniform(0, 6, width=1)
    regions = ShotRegions.from_counts(bins, torch.tensor([101, 100, 50, 20, 19, 0]))
    assert regions.labels == ("many", "medium", "medium", "medium", "few", "few")


@pytest.mark.parametrize(
    "edges",
    [
        torch.linspace(0, 100, 1001),
        torch.arange(0, 10.05, 0.1),
        torch.linspace(-5, 5, 101),
        torch.linspace(1900, 2000, 1001),
        torch.linspace(0, 100, 1001, dtype=torch.float64),
        # One wide bin at the end.
        torch.cat([torch.linspace(0, 10, 101), torch.tensor([100.0])]),
    ],
    ids=["0 to 100", "0 to 10", "around 0", "years", "float64", "wide end"],
)
@pytest.mark.parametrize("count", [20, 100])
def test_rounded_edges_are_of_one_width(edges: Tensor, count: int) -> None:
    bins = TargetBins(edges)
    counts = torch.full((len(bins),), count)
    labels = ShotRegions.from_counts(bins, counts).labels
    is_wide = bool(edges.diff()[-1] > 1)
    assert set(labels[: len(bins) - is_wide]) == {"medium"}
    assert labels[-1] == ("few" if is_wide else "medium")


def test_bins_of_two_widths_are_told_apart_far_from_zero() -> None:
    # Seconds since 1970, which float32 holds exactly, in bins of 1024 s and one of 2048 s.
    edges = [2.0**30 + 1024 * k for k in (0, 1, 2, 3, 5)]
    counts = torch.full((4,), 30)
    assert ShotRegions.from_counts(TargetBins(edges), counts).labels == ("medium",) * 3 + ("few",)


def test_narrow_bins_of_a_wide_range_are_not_taken_for_equal() -> None:
    edges = torch.logspace(-3, 6, 10)
    counts = torch.full((9,), 50)
    labels = ShotRegions.from_counts(TargetBins(edges), counts).labels
    assert labels == ("many",) * 4 + ("medium",) + ("few",) * 4


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_masks_partition_the_samples(data: st.DataObject) -> None:
    regions = data.draw(strategies.regions())
    targets = data.draw(strategies.targets_for(regions.bins))
    masks = torch.stack([regions.mask(targets, region) for region in REGIONS])
    assert masks.dtype is torch.bool
    assert masks.shape[1:] == targets.shape
    assert (masks.sum(dim=0) == 1).all()
    assert (torch.stack([regions.bin_mask(region) for region in REGIONS]).sum(dim=0) == 1).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), region=st.sampled_from(REGIONS))
def test_mask_is_the_label_of_each_bin(data: st.DataObject, region: str) -> None:
    regions = data.draw(strategies.regions())
    targets = data.draw(strategies.targets_for(regions.bins))
    mask = regions.mask(targets, region).flatten().tolist()
    index = regions.bins.index(targets).flatten().tolist()
    assert mask == [regions.labels[k] == region for k in index]


def test_explicit_labels_give_the_regions_of_nyud2_dir() -> None:
    bins = TargetBins.uniform(0, 10, width=0.1)
    regions = ShotRegions(
        bins,
        [
            "many" if k in NYUD2_MANY else "medium" if k in NYUD2_MEDIUM else "few"
            for k in range(100)
        ],
    )
    depth = (torch.arange(10_000) / 1000).reshape(100, 100)
    in_many, in_medium, in_few = (regions.mask(depth, region) for region in REGIONS)
    assert repr(regions) == "ShotRegions(many=39, medium=15, few=46 bins)"
    assert (in_many.int() + in_medium.int() + in_few.int() == 1).all()
    bucket = bins.index(depth)
    assert set(bucket[in_many].tolist()) == NYUD2_MANY
    assert set(bucket[in_medium].tolist()) == NYUD2_MEDIUM
    assert set(bucket[in_few].tolist()) == set(range(100)) - NYUD2_MANY - NYUD2_MEDIUM


def test_bin_mask_is_on_the_cpu_whatever_the_default_device() -> None:
    # As on a machine whose default device is a GPU.
    with torch.device("meta"):
        regions = ShotRegions(TargetBins([0, 1, 2]), ["many", "few"])
        assert regions.bin_mask("few").tolist() == [False, True]
        assert regions.mask(torch.tensor([0.5], device="cpu"), "many").tolist() == [True]


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda regions: pickle.loads(pickle.dumps(regions))],
    ids=["deepcopy", "pickle"],
)
def test_regions_are_values(clone: Callable[[ShotRegions], ShotRegions]) -> None:
    regions = ShotRegions(TargetBins([0, 1, 2]), ["many", "few"])
    assert clone(regions) == regions
    assert hash(clone(regions)) == hash(regions)
    assert regions != ShotRegions(TargetBins([0, 1, 2]), ["many", "many"])
    assert regions != ShotRegions(TargetBins([0, 1, 3]), ["many", "few"])
    assert regions != ("many", "few")


BINS = TargetBins([0, 1, 2])
SHOT = ShotRegions(BINS, ["many", "few"])
ONES = torch.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ShotRegions(BINS, ["many"]), ValueError, "one label a bin, 2, but got 1"),
        (lambda: ShotRegions(BINS, ["many", "low"]), ValueError, "`labels` to hold .* got 'low'"),
        (
            lambda: ShotRegions.from_counts(BINS, ONES, many_above=5, few_below=6),
            ValueError,
            "`few_below` to be at most `many_above`, but got few_below=6 and many_above=5",
        ),
        (
            lambda: ShotRegions.from_counts(BINS, ONES, many_above=float("nan")),
            ValueError,
            "few_below=20 and many_above=nan",
        ),
        (
            lambda: ShotRegions.from_counts(BINS, torch.ones(3)),
            ValueError,
            r"`counts` to have shape \(2,\), one a bin, but got \(3,\)",
        ),
        (lambda: ShotRegions.from_counts(BINS, ONES * 0), ValueError, "at least one sample"),
        (lambda: ShotRegions.from_counts(BINS, [1, 1]), TypeError, "`counts` to be a torch.Tensor"),
        (lambda: ShotRegions([0, 1, 2], ["many"]), TypeError, "`bins` to be TargetBins or .* list"),
        (lambda: ShotRegions(BINS, [["many"], "few"]), ValueError, r"`labels` .* got \['many'\]"),
        (lambda: ShotRegions.from_counts(None, ONES), TypeError, "`bins` to be TargetBins"),
        (lambda: SHOT.mask(ONES, "median"), ValueError, "`region` to be .* but got 'median'"),
        (lambda: SHOT.bin_mask("Few"), ValueError, "`region` to be .* but got 'Few'"),
        (lambda: SHOT.mask([1.0], "few"), TypeError, "`targets` to be a torch.Tensor"),
    ],
)
def test_error_names_the_argument(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
