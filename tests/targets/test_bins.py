"""Target bins: which bin a target lies in, in every dtype and shape, and how many lie in each."""

import copy
import io
import pickle
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from balanced_sam import (
    ShotRegions,
    TargetBins,
    TargetWeights,
    balanced_mean_absolute_error,
    region_report,
)
from support import strategies


def searchsorted(bins: TargetBins, targets: Tensor) -> np.ndarray:
    """Return the bins by numpy, the edges rounded to the targets' dtype as documented."""
    edges = bins.edges.to(targets.dtype) if targets.is_floating_point() else bins.edges
    interior = edges[1:-1].to(torch.float64).numpy()
    return np.searchsorted(interior, targets.to(torch.float64).numpy(), side="right")


def merged(bins: TargetBins, dtype: torch.dtype) -> int:
    """Return how many edges torch converts to the same value as the edge before."""
    edges = bins.edges.to(dtype)
    return int((edges[1:] == edges[:-1]).sum())


FLOATS = (torch.float32, torch.float64)


@pytest.fixture
def warn_always() -> Iterator[None]:
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.parametrize("dtype", strategies.FLOAT_DTYPES + strategies.INT_DTYPES, ids=str)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_index_equals_numpy_searchsorted(dtype: torch.dtype, data: st.DataObject) -> None:
    bins = data.draw(strategies.bins())
    targets = data.draw(strategies.targets_for(bins, dtype=dtype))
    index = bins.index(targets)
    assert index.dtype is torch.int64
    assert index.shape == targets.shape
    np.testing.assert_array_equal(index.numpy(), searchsorted(bins, targets))


@pytest.mark.parametrize("dtype", strategies.FLOAT_DTYPES, ids=str)
def test_index_of_every_left_edge_is_its_own_bin(dtype: torch.dtype) -> None:
    bins = TargetBins.uniform(0, 121, width=1)
    assert bins.index(bins.edges[:-1].to(dtype)).tolist() == list(range(121))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@settings(max_examples=100, deadline=None)
@given(low=st.integers(-2000, 2000), width=st.integers(1, 300), size=st.integers(1, 60))
def test_index_of_a_decimal_edge_is_the_bin_that_starts_there(
    dtype: torch.dtype, low: int, width: int, size: int
) -> None:
    bins = TargetBins.uniform(low / 100, (low + size * width) / 100, width=width / 100)
    decimals = [float(Fraction(low + k * width, 100)) for k in range(size)]
    assert bins.index(torch.tensor(decimals, dtype=dtype)).tolist() == list(range(size))


@pytest.mark.parametrize("dtype", strategies.FLOAT_DTYPES, ids=str)
def test_index_of_the_value_before_an_edge_is_the_bin_on_the_left(dtype: torch.dtype) -> None:
    bins = TargetBins([0.0, 0.7, 1.3, 2.0])
    edges = bins.edges[1:-1].to(dtype)
    before = torch.nextafter(edges, torch.zeros_like(edges))
    assert bins.index(before).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", strategies.FLOAT_DTYPES, ids=str)
def test_index_puts_outside_values_into_the_end_bins(dtype: torch.dtype) -> None:
    targets = torch.tensor([-float("inf"), -1e4, -0.1, 3.0, 1e4, float("inf")], dtype=dtype)
    assert TargetBins([0, 1, 2, 3]).index(targets).tolist() == [0, 0, 0, 2, 2, 2]


# Near a tie between two float16 or bfloat16 numbers, which torch rounds twice; then beyond float16.
CLOSE_EDGES = [1 + j * 2.0**-11 + k * 2.0**-30 for j in range(-9, 10) for k in (-1, 0, 1)]
CLOSE_EDGES += [0.0, 5e-324, 1e-45, 2e-45, 6e-8, 9e-8, 65_504, 65_519, 65_521, 1e5, 1e39, 1e40]


@pytest.mark.parametrize("dtype", strategies.FLOAT_DTYPES, ids=str)
@settings(max_examples=200, deadline=None)
@given(edges=st.lists(st.sampled_from(CLOSE_EDGES), min_size=2, unique=True).map(sorted))
def test_index_is_refused_exactly_where_the_dtype_merges_edges(
    dtype: torch.dtype, edges: list[float]
) -> None:
    bins, targets = TargetBins(edges), torch.ones(1, dtype=dtype)
    if count := merged(bins, dtype):
        with pytest.raises(ValueError, match=f"{dtype}, in which {count} of {len(edges)} edges"):
            bins.index(targets)
    else:
        assert bins.index(bins.edges[:-1].to(dtype)).tolist() == list(range(len(bins)))


MINUTES = TargetBins.uniform(1_700_000_040, 1_700_086_440, width=60)
WHOLE = TargetBins.uniform(0, 2000, width=1)


@pytest.mark.parametrize(
    ("bins", "dtype", "count"),
    [
        (MINUTES, torch.float32, 765),
        (WHOLE, torch.bfloat16, 1366),
        (TargetBins.uniform(0, 100_000, width=1000), torch.float16, 34),
        # Targets of the first bin would all be counted in the second.
        (TargetBins([1, 1 + 1e-9, 2]), torch.float32, 1),
    ],
    ids=["minutes", "0 to 2000", "beyond float16", "the first bin"],
)
def test_index_by_edges_that_the_dtype_merges_is_refused_each_time(
    bins: TargetBins, dtype: torch.dtype, count: int
) -> None:
    message = re.escape(
        f"Expected `targets` in a dtype that tells the edges of {bins} apart, but got {dtype}, in "
        f"which {count} of {len(bins) + 1} edges equal the one before. Keep the targets in "
        "torch.float64, or take wider bins."
    )
    bins.index(torch.ones(1, dtype=torch.float64))
    for device in ("cpu", "cpu", "meta"):  # A meta tensor has no values: nothing is read.
        with pytest.raises(ValueError, match=message):
            bins.index(torch.ones(1, dtype=dtype, device=device))


@pytest.mark.parametrize(
    "use",
    [
        WHOLE.counts,
        lambda targets: TargetWeights.from_targets(targets, WHOLE, scheme="none"),
        TargetWeights.from_counts(WHOLE, torch.ones(2000)),
        lambda targets: ShotRegions(WHOLE, ["few"] * 2000).mask(targets, "few"),
        lambda targets: region_report(targets, targets, ShotRegions(WHOLE, ["few"] * 2000)),
        lambda targets: balanced_mean_absolute_error(targets, targets, bins=WHOLE),
    ],
    ids=["counts", "fit", "weights", "mask", "report", "bMAE"],
)
def test_whatever_takes_targets_refuses_a_dtype_that_merges_edges(
    use: Callable[[Tensor], object],
) -> None:
    with pytest.raises(ValueError, match=r"but got torch.bfloat16, in which 1366 of 2001 edges"):
        use(torch.ones(2, dtype=torch.bfloat16))
    use(torch.tensor([1.0, 5.0, 5.0]))


def test_compiled_index_tells_edges_apart_as_the_eager_one_does() -> None:
    def index(targets: Tensor) -> Tensor:
        return bins.index(targets)

    compiled = torch.compile(index, backend="eager", fullgraph=True)
    bins = TargetBins.uniform(0, 300, width=1)
    assert compiled(torch.tensor([0.5, 299.0])).tolist() == [0, 299]
    with pytest.raises(ValueError, match=r"torch\.bfloat16, in which 22 of 301 edges"):
        torch.compile(index, backend="eager")(torch.ones(1, dtype=torch.bfloat16))


def test_integer_targets_are_compared_exactly() -> None:
    # float64 does not hold every whole number of this size, float32 not those beside 2**24.
    edge = 2**60
    bins = TargetBins([0, 2**24, 2**24 + 1.5, edge, 2.0**62, 1e300])
    targets = torch.tensor([2**24 - 1, 2**24, 2**24 + 1, 2**24 + 2, edge - 1, edge, 2**63 - 2])
    assert bins.index(targets).tolist() == [0, 1, 1, 2, 2, 3, 4]


def test_index_of_one_bin_is_always_zero() -> None:
    assert TargetBins([0, 1]).index(torch.tensor([-1.0, 0.5, 9.0])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor(1.5),
        lambda: torch.zeros(0, 3),
        lambda: torch.tensor(1.5).expand(2, 3),
        lambda: torch.arange(6.0).reshape(2, 3).T,
        lambda: torch.arange(6.0).reshape(2, 3)[:, 1],
        lambda: torch.arange(24.0).reshape(1, 2, 3, 4).permute(0, 2, 3, 1),
    ],
    ids=["0-dim", "empty", "expanded", "transposed", "column", "channels last"],
)
def test_index_takes_any_shape_and_layout_without_a_warning(
    make: Callable[[], Tensor], warn_always: None
) -> None:
    bins, targets = TargetBins.uniform(0, 20, width=2), make()
    index = bins.index(targets)
    assert index.shape == targets.shape
    np.testing.assert_array_equal(index.numpy(), searchsorted(bins, targets))


def test_index_detaches_and_keeps_the_targets() -> None:
    targets = torch.tensor([0.5, 1.5], requires_grad=True)
    index = TargetBins([0, 1, 2]).index(targets * 1)
    assert not index.requires_grad
    assert targets.tolist() == [0.5, 1.5]


# Torch's own, before 2.10: the trace of a constant.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.filterwarnings("ignore:Node lifted_tensor_")
def test_index_is_right_after_a_trace_and_after_inference_mode() -> None:
    class Index(torch.nn.Module):
        def forward(self, targets: Tensor) -> Tensor:
            return bins.index(targets)

    bins, targets = TargetBins([0, 1, 2, 3]), torch.tensor([0.5, 2.5])
    exported = torch.export.export(Index(), (targets,), strict=False)
    with torch.inference_mode():
        bins.index(targets.double())
    assert exported.module()(targets).tolist() == [0, 2]
    assert bins.index(targets).tolist() == [0, 2]
    assert bins.index(targets.double()).tolist() == [0, 2]
    assert torch.export.export(Index(), (targets,), strict=False).module()(targets).tolist() == [
        0,
        2,
    ]


def test_index_does_not_depend_on_the_default_device() -> None:
    # As on a machine whose default device is a GPU.
    with torch.device("meta"):
        bins = TargetBins([0, 1, 2, 3])
        assert bins.edges.device.type == "cpu"
        assert bins.index(torch.tensor([0.5, 2.5], device="cpu")).tolist() == [0, 2]


@pytest.mark.parametrize(
    "depth",
    [
        torch.arange(256, dtype=torch.float32) / 255 * 10,
        torch.arange(10_000, dtype=torch.float32) / 1000,
    ],
    ids=["8-bit training png", "16-bit test png"],
)
def test_index_equals_the_buckets_of_nyud2_dir(depth: Tensor) -> None:
    buckets = (depth * 10).int().clamp(max=99)
    assert torch.equal(TargetBins.uniform(0, 10, width=0.1).index(depth), buckets.long())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_counts_are_the_number_of_targets_in_each_bin(data: st.DataObject) -> None:
    bins = data.draw(strategies.bins())
    targets = data.draw(strategies.targets_for(bins))
    counts = bins.counts(targets)
    index = searchsorted(bins, targets).ravel()
    assert counts.tolist() == [int((index == k).sum()) for k in range(len(bins))]
    assert counts.sum() == targets.numel()
    assert torch.equal(counts, bins.counts(targets.flatten().flip(0)))


@settings(max_examples=60, deadline=None)
@given(low=st.integers(-50, 50), bins=st.integers(1, 200), width=st.sampled_from([0.1, 0.25, 3]))
def test_uniform_bins_cover_the_range_in_equal_widths(low: int, bins: int, width: float) -> None:
    high = low + bins * width
    edges = TargetBins.uniform(low, high, width=width).edges
    assert len(edges) == bins + 1
    assert (edges[0], edges[-1]) == (low, high)
    torch.testing.assert_close(edges.diff(), torch.full((bins,), width, dtype=torch.float64))


def test_uniform_width_need_not_be_a_decimal() -> None:
    assert len(TargetBins.uniform(0, 1, width=1 / 3)) == 3


@pytest.mark.parametrize(
    "edges",
    [(0, 1.5, 3), np.array([0, 1.5, 3]), torch.tensor([0, 1.5, 3]), [0, torch.tensor(1.5), 3]],
    ids=["tuple", "numpy", "tensor", "with a tensor in it"],
)
def test_edges_may_come_from_any_sequence(edges: tuple[float, ...]) -> None:
    assert TargetBins(edges) == TargetBins([0.0, 1.5, 3.0])


def test_edges_cannot_be_changed_from_outside() -> None:
    bins = TargetBins([0, 1, 2])
    bins.edges.zero_()
    assert bins.edges.tolist() == [0.0, 1.0, 2.0]


def test_bins_are_values() -> None:
    bins = TargetBins([0, 1, 2])
    assert bins == TargetBins.uniform(0, 2, width=1)
    assert hash(bins) == hash(TargetBins.uniform(0, 2, width=1))
    assert bins != TargetBins([0, 1, 3])
    assert bins != [0, 1, 2]
    assert len(bins) == 2
    assert repr(bins) == "TargetBins(2 bins from 0.0 to 2.0)"


def reload(bins: TargetBins) -> TargetBins:
    buffer = io.BytesIO()
    torch.save(bins, buffer)
    buffer.seek(0)
    loaded: TargetBins = torch.load(buffer, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, copy.copy, lambda bins: pickle.loads(pickle.dumps(bins)), reload],
    ids=["deepcopy", "copy", "pickle", "torch.save"],
)
def test_bins_survive_being_copied_and_saved(clone: Callable[[TargetBins], TargetBins]) -> None:
    bins, targets = TargetBins([0, 0.7, 2]), torch.tensor([0.5, 0.7])
    bins.index(targets)
    copied = clone(bins)
    assert copied == bins
    assert copied.index(targets).tolist() == [0, 1]


UNIT = TargetBins([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TargetBins([]), ValueError, "`edges` to hold at least two numbers, but got 0"),
        (lambda: TargetBins([1.0]), ValueError, "`edges` to hold at least two numbers, but got 1"),
        (lambda: TargetBins([0, 2, 1]), ValueError, "strictly increasing, but got 2.0 before 1.0"),
        (lambda: TargetBins([0, 1, 1]), ValueError, "strictly increasing, but got 1.0 before 1.0"),
        (lambda: TargetBins([0, float("nan")]), ValueError, "finite and strictly .* 0.0 before na"),
        (lambda: TargetBins([0, float("inf")]), ValueError, "finite and strictly .* 0.0 before in"),
        (lambda: TargetBins([-float("inf"), 0]), ValueError, "finite and strictly .*-inf before 0"),
        (lambda: TargetBins(torch.ones(2, 2)), ValueError, "`edges` to be a flat sequence"),
        (lambda: TargetBins(5), ValueError, "`edges` to be a flat sequence .* but got 5"),
        (lambda: TargetBins([0, None, 2]), ValueError, "`edges` to be a flat .*, None, 2"),
        (lambda: TargetBins(torch.tensor(5.0)), ValueError, "a flat sequence .* but got tensor"),
        (lambda: TargetBins.uniform(1, 1, width=1), ValueError, "low < high, but got 1.0 and 1.0"),
        (lambda: TargetBins.uniform(2, 1, width=1), ValueError, "low < high, but got 2.0 and 1.0"),
        (lambda: TargetBins.uniform(0, float("inf"), width=1), ValueError, "to be finite with low"),
        (lambda: TargetBins.uniform(0, 1, width=0), ValueError, "`width` to be positive and fin"),
        (lambda: TargetBins.uniform(0, 1, width=-1), ValueError, "positive and .* but got -1"),
        (lambda: TargetBins.uniform(0, 1, width=float("nan")), ValueError, "but got nan"),
        (
            lambda: TargetBins.uniform(0, 1, width=0.3),
            ValueError,
            "divide the range .*width=0.3",
        ),
        (lambda: TargetBins.uniform(0, 1, width=2), ValueError, "divide the range .*, .*width=2.0"),
        (lambda: TargetBins.uniform(0, 100_001, width=1), ValueError, "at most 100000 bins, .*h=1"),
        (lambda: TargetBins.uniform(-1e308, 1e308, width=1), ValueError, "at most 100000 bins"),
        (lambda: TargetBins.uniform("0", 1, width=1), TypeError, "`low` to be a number, .* str"),
        (lambda: TargetBins.uniform(0, None, width=1), TypeError, "`high` to be a number, .* Non"),
        (lambda: TargetBins.uniform(0, 1, width=True), TypeError, "`width` to be a number, .* bo"),
        (lambda: UNIT.index([0.5]), TypeError, "`targets` to be a torch.Tensor, but got list"),
        (lambda: UNIT.index(torch.tensor([True])), TypeError, "`targets` to hold .* torch.bool"),
        (lambda: UNIT.index(torch.tensor([1j])), TypeError, "`targets` to hold .* torch.complex64"),
        (lambda: UNIT.counts(np.ones(2)), TypeError, "`targets` to be a torch.Tensor, .* ndarray"),
        (lambda: UNIT.counts(torch.tensor([])), ValueError, "`targets` to hold at least one value"),
        (
            lambda: UNIT.counts(torch.tensor([1, float("nan"), float("inf")])),
            ValueError,
            "`targets` to be finite, but got 2 NaN or infinite values among 3",
        ),
    ],
)
def test_error_names_the_argument(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


RULES = ["auto", "doane", "fd", "rice", "scott", "sqrt", "stone", "sturges"]


# So numpy warns where its search for "stone" ends at its own bound.
@pytest.mark.filterwarnings("ignore:The number of bins estimated may be suboptimal:RuntimeWarning")
@pytest.mark.parametrize("rule", [*RULES, 1, 7, 100])
@settings(max_examples=20, deadline=None)
@example(seed=0, size=123, dtype=torch.float32)
@given(seed=st.integers(0, 1000), size=st.integers(2, 300), dtype=st.sampled_from(FLOATS))
def test_bins_from_targets_are_those_of_numpy_and_cover_all(
    rule: Any, seed: int, size: int, dtype: torch.dtype
) -> None:
    targets = torch.from_numpy(np.random.default_rng(seed).lognormal(size=size)).to(dtype)
    bins = TargetBins.from_targets(targets, rule)
    expected = np.histogram_bin_edges(targets.double().numpy(), rule)
    np.testing.assert_allclose(bins.edges.numpy(), expected, rtol=1e-12)
    assert bins.edges[0] <= targets.min()
    assert targets.max() <= bins.edges[-1]
    assert bins.counts(targets).sum() == size


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.integers(-500, 500), min_size=1, max_size=60),
    bins=st.sampled_from(["auto", "fd", 1, 5, 1000]),
    dtype=st.sampled_from([*strategies.FLOAT_DTYPES[2:], torch.int16, torch.int64]),
    step=st.integers(1, 10),
)
def test_whole_numbers_get_bins_of_as_many_each_and_edges_between_them(
    values: list[int], bins: Any, dtype: torch.dtype, step: int
) -> None:
    targets = (torch.tensor(values) * step).to(dtype)
    made = TargetBins.from_targets(targets, bins)
    widths = made.edges.diff()
    assert (widths[:-1] == widths[0]).all()
    assert 0 < widths[-1] <= widths[0]
    # It ends half a step past the largest target.
    assert made.edges[-1] - targets.max() == targets.min() - made.edges[0]
    assert widths[0] % step == 0 or len(set(values)) == 1
    assert made.edges[0] < targets.min()
    assert targets.max() < made.edges[-1]
    if isinstance(bins, int):
        assert len(made) <= bins
    # No target lies on an edge: each has one whole step between two.
    assert not np.isin(targets.double().numpy(), made.edges.numpy()).any()
    assert made.index(targets.to(torch.float64)).equal(made.index(targets))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_edges_between_whole_numbers_that_half_precision_lacks_are_whole(
    dtype: torch.dtype,
) -> None:
    targets = torch.arange(200, 256).to(dtype) * (16 if dtype is torch.float16 else 1)
    bins = TargetBins.from_targets(targets, 56)
    assert bins.counts(targets).tolist() == [1] * 56
    assert bins.index(targets.long()).equal(bins.index(targets))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *((value, torch.float32) for value in (0.0, 3.3, -2.5, 7.0, 1e6, 2e7)),
        *((4096, torch.float16), (300, torch.bfloat16), (1e17, torch.float64)),
        *((2**60, torch.int64), (-128, torch.int8), (255, torch.uint8)),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_one_value_gets_one_bin(value: float, dtype: torch.dtype, size: int) -> None:
    targets = torch.full((size,), value, dtype=dtype)
    bins = TargetBins.from_targets(targets, 10)
    assert bins.counts(targets).tolist() == [size]


def test_bins_hold_out_against_zero_inflation_and_a_heavy_tail() -> None:
    generator = torch.Generator().manual_seed(0)
    zeros = torch.rand(10_000, generator=generator).sub(0.8).clamp(min=0)
    assert len(TargetBins.from_targets(zeros)) > 10
    cauchy = torch.tan(torch.pi * (torch.rand(1_000_000, generator=generator) - 0.5))
    assert len(TargetBins.from_targets(cauchy)) <= 2000
    with pytest.raises(ValueError, match=r"1 to 100000 bins .* which gives \d+\. .* logarithm"):
        TargetBins.from_targets(cauchy, "fd")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TargetBins.from_targets(torch.ones(0)), ValueError, "`targets` to hold at least"),
        (lambda: TargetBins.from_targets(torch.ones(2) / 0), ValueError, "`targets` to be finite"),
        (
            lambda: TargetBins.from_targets(torch.ones(3, 2)),
            ValueError,
            r"\(3, 2\)\. .* TargetGrid",
        ),
        (lambda: WHOLE.counts(torch.ones(3, 2)), ValueError, r"\(3, 2\)\. .* flatten"),
        (lambda: TargetBins.from_targets(torch.rand(9), "knuth"), ValueError, "but got 'knuth'"),
        (lambda: TargetBins.from_targets(torch.rand(9), 0), ValueError, "1 to 100000 .* got 0"),
        (
            lambda: TargetBins.from_targets(1_700_000_000_000_000_000 + 3 * torch.arange(1000), 50),
            ValueError,
            r"torch.float64 can tell apart in 50 bins, .* Subtract an offset",
        ),
        (lambda: TargetBins.from_targets(torch.rand(9), 1.5), TypeError, "`bins` .* got float"),
        (lambda: TargetBins.from_targets(torch.rand(9), True), TypeError, "`bins` .* got bool"),
        (
            lambda: TargetBins.from_targets(torch.linspace(1, 1.1, 50).bfloat16() + 0.0, 99),
            ValueError,
            "dtype that tells the edges .* apart, but got torch.bfloat16",
        ),
    ],
)
def test_bins_from_targets_that_cannot_be_had_are_refused(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_column_and_maps_are_of_one_kind() -> None:
    targets = torch.rand(24)
    flat = TargetBins.from_targets(targets, 5)
    for shape in ((24, 1), (2, 3, 4), (24,)):
        assert TargetBins.from_targets(targets.reshape(shape), 5) == flat
        assert flat.counts(targets.reshape(shape)).equal(flat.counts(targets))


@settings(max_examples=100, deadline=None)
@given(low=st.integers(-1000, 1000), span=st.integers(1, 10_000), width=st.integers(1, 3000))
def test_uniform_says_what_to_type_where_the_width_does_not_divide(
    low: int, span: int, width: int
) -> None:
    try:
        TargetBins.uniform(low / 100, (low + span) / 100, width=width / 100)
    except ValueError as error:
        high, fitting = re.search(r"take high=(\S+) or width=(\S+)\.$", str(error)).groups()
        extended = TargetBins.uniform(low / 100, float(high), width=width / 100)
        assert extended.edges[-1] >= (low + span) / 100
        divided = TargetBins.uniform(low / 100, (low + span) / 100, width=float(fitting))
        assert abs(len(extended) - len(divided)) <= 1
