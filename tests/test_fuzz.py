"""Bad input: any argument is answered rightly or by an error that names it."""

import copy
import inspect
import math
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import balanced_sam
import balanced_sam.torchmetrics
from balanced_sam import (
    BalancedSAM,
    LambdaRho,
    RegionReport,
    ShotRegions,
    TargetBins,
    TargetWeights,
    balanced_mean_absolute_error,
    frozen_running_stats,
    geometric_mean_error,
    inverse_weights,
    mean_absolute_error,
    region_report,
    root_mean_squared_error,
    smooth_counts,
    sqrt_inverse_weights,
    threshold_accuracy,
    weighted_mean,
)
from balanced_sam.torchmetrics import RegionMetrics

# What an argument is replaced with

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
]
SHAPES = [(), (0,), (1,), (2,), (3,), (2, 1), (1, 2), (3, 1), (1, 3), (2, 0), (2, 2), (3, 2)]
NUMBERS = [0.0, -1.0, 0.5, 1.5, 1e-320, 1e-50, 3e38, 1e308, -1e308, math.nan, math.inf, -math.inf]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 10**9 + 1, 10**400, -(10**400), 1j, *NUMBERS),
    *("", "text", "many", b"ab", Decimal(1), Fraction(1, 2), object(), torch.float32),
    *([], [1.0, 2.0], (2, 1), (1, 2), (0, 1), ("1", "2"), (1, 10**400), [None], ["a", "b"], [()]),
    *([[1.0], [2.0]], [True, False], {}, {"a": 1}, {0.0: 1, 1.0: 2}, {0.0, 1.0}, range(3)),
    *(np.float64(0.5), np.float32("nan"), np.int64(3), np.bool_(True), np.str_("sqinv")),
    *(np.array(1.0), np.array([1.0, 2.0]), np.array([True, False]), np.array(["many", "few"])),
    *(torch.ones(2).to(dtype) for dtype in DTYPES),
    *(torch.ones(shape) for shape in SHAPES),
    *(torch.full((size,), number, dtype=torch.float64) for number in NUMBERS for size in (2, 3)),
    *(torch.tensor([1.0, number]) for number in NUMBERS if abs(number) != 1e308),
    *(torch.ones(2).to_sparse(), torch.ones(3).to_sparse()),
    *(torch.ones(1).expand(2), torch.ones(2, 3).T, torch.ones(2, requires_grad=True)),
]


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Tensors of every dtype and kind of value."""
    size = math.prod(shape)
    numbers = draw(st.lists(st.sampled_from(NUMBERS), min_size=size, max_size=size))
    dtype = draw(st.sampled_from(DTYPES))
    # What becomes of a number that an integer type does not hold depends on the machine.
    holds_all = dtype.is_floating_point or dtype.is_complex
    values = numbers if holds_all else [x if 0 <= x < 100 else 7.0 for x in numbers]
    return torch.tensor(values, dtype=torch.float64).reshape(shape).to(dtype)


def returning(value: Any) -> Callable[..., Any]:
    """Return a function of anything that returns ``value``."""
    return lambda *_: value


VALID = "right closure"
"""Stands for a closure of the optimizer's own parameters."""

FUNCTIONS = [returning(value) for value in VALUES]

# A valid call of each public name, and what is right for any call that succeeds

BINS = TargetBins([0, 1, 2])
COUNTS, TARGETS = torch.tensor([4, 1]), torch.tensor([0.5, 1.5, 0.25])
PREDICTIONS = torch.tensor([1.0, 1.5, 0.75])
REGIONS = ShotRegions(BINS, ["many", "few"])
REPORT = region_report(PREDICTIONS, TARGETS, REGIONS)
WEIGHTS = TargetWeights(BINS, COUNTS, torch.tensor([0.5, 2.0]))


@dataclass(frozen=True)
class Entry:
    """A public name: how it is called, and whether a result is right.

    ``check`` takes the result and the arguments; ``functions`` are the arguments that are called
    themselves; ``also`` are the names that an error may use beside those of the arguments.
    """

    call: Callable[..., Any]
    valid: dict[str, Any]
    check: Callable[..., None]
    functions: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


def array(values: Tensor) -> np.ndarray:
    """Return the values in float64."""
    assert isinstance(values, Tensor)
    return values.detach().to(torch.float64).numpy()


def assert_equal(actual: Any, expected: Any, **tolerance: float) -> None:
    assert torch.is_tensor(actual)
    np.testing.assert_allclose(array(actual), expected, **({"rtol": 1e-12} | tolerance))


def bin_of(targets: Tensor) -> np.ndarray:
    return np.searchsorted([1.0], array(targets), side="right")


def raw_weights(counts: Tensor, power: float, clip: Any = None) -> list[float]:
    """Return n to the power of each bin, of an empty one the mean over the nearest."""
    low, high = map(number, (0, math.inf) if clip is None else clip)
    raw = {k: min(max(n, low), high) ** power for k, n in enumerate(array(counts)) if n > 0}
    weights = []
    for k in range(len(counts)):
        distance = min(abs(j - k) for j in raw)
        weights.append(np.mean([w for j, w in raw.items() if abs(j - k) == distance]))
    return weights


def number(value: Any) -> float:
    """Return the value as a float; 10**400 is infinite as 1e400 is."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_bins(bins: TargetBins, edges: Any) -> None:
    assert not isinstance(edges, (str, bytes, dict, set))
    expected = [float(edge) for edge in edges]
    assert bins.edges.tolist() == expected == sorted(set(expected))
    assert all(map(math.isfinite, expected))


def check_uniform(bins: TargetBins, low: float, high: float, width: float) -> None:
    assert (bins.edges[0], bins.edges[-1]) == (float(low), float(high))
    np.testing.assert_allclose(bins.edges.diff(), float(width), rtol=1e-6)


def check_index(index: Tensor, targets: Tensor) -> None:
    assert index.dtype is torch.int64
    assert np.array_equal(index.numpy(), bin_of(targets))


def check_counts(counts: Tensor, targets: Tensor) -> None:
    assert np.isfinite(array(targets)).all()
    assert counts.tolist() == np.bincount(bin_of(targets).ravel(), minlength=2).tolist()


def check_smoothed(
    smoothed: Tensor, counts: Tensor, kernel: str, size: int, sigma: float, boundary: str
) -> None:
    assert kernel in ("gaussian", "triangular", "laplace")
    assert boundary in ("zeros", "reflect")
    assert (smoothed.dtype, smoothed.shape) == (torch.float64, counts.shape)
    assert smoothed.isfinite().all()
    # The maximum of the kernel is 1.
    assert (array(smoothed) >= array(counts)).all()
    assert (array(smoothed) <= array(counts).sum() * size * (1 + 1e-12)).all()
    assert 0 < sigma < math.inf


def check_target_weights(
    weights: TargetWeights, bins: TargetBins, counts: Tensor, bin_weights: Tensor
) -> None:
    assert weights.bins is bins
    assert torch.equal(weights.counts, counts)
    assert_equal(weights.bin_weights, array(bin_weights.to(torch.float32)))
    assert ((weights.bin_weights >= 0) & weights.bin_weights.isfinite()).all()


def check_fitted(
    weights: TargetWeights,
    bins: TargetBins,
    counts: Tensor,
    scheme: str,
    smoothing: Any,
    clip: Any,
    normalize: bool,
) -> None:
    assert weights.bins is bins
    power = {"inv": -1.0, "sqinv": -0.5, "none": 0.0}[scheme]
    if smoothing is None:
        expected = np.array(raw_weights(counts, power, clip))
    else:
        values = counts.double().sqrt() if scheme == "sqinv" else counts.double()
        held = values if clip is None else values.clamp(*map(number, clip))
        expected = np.array(raw_weights(smoothing(held), -1.0))
    if normalize is True:
        expected = expected / np.average(expected, weights=array(counts))
    assert isinstance(normalize, bool)
    assert_equal(weights.bin_weights, expected, rtol=1e-6, atol=1e-44)


def check_fitted_to_targets(
    weights: TargetWeights, targets: Tensor, bins: TargetBins, **options: Any
) -> None:
    check_counts(weights.counts, targets)
    check_fitted(weights, bins, weights.counts, **options)


def check_weighted_mean(mean: Tensor, losses: Tensor, weights: Tensor) -> None:
    assert mean.shape == ()
    assert mean.dtype is torch.promote_types(losses.dtype, weights.dtype)
    assert weights.shape in (losses.shape, losses.shape[:1])
    with np.errstate(over="ignore", invalid="ignore"):
        product = (array(losses).T * array(weights).T).T
    limit = torch.finfo(mean.dtype).max
    # A product beyond the dtype is infinite in it.
    if not np.abs(product).sum() > limit:
        tolerance = 10 * torch.finfo(mean.dtype).eps * np.abs(product).mean()
        assert_equal(mean, product.mean(), atol=tolerance)


def check_labels(regions: ShotRegions, bins: TargetBins, labels: Any) -> None:
    assert regions.bins is bins
    assert not isinstance(labels, (str, dict, set))
    assert regions.labels == tuple(labels)
    assert set(regions.labels) <= {"many", "medium", "few"}


def check_shots(
    regions: ShotRegions, bins: TargetBins, counts: Tensor, many_above: float, few_below: float
) -> None:
    assert regions.bins is bins
    for label, count in zip(regions.labels, array(counts), strict=True):
        is_many, is_few = count > number(many_above), count < number(few_below)
        assert label == ("many" if is_many else "few" if is_few else "medium")


def check_mask(mask: Tensor, targets: Tensor, region: str) -> None:
    expected = bin_of(targets) == {"many": 0, "few": 1, "medium": -1}[region]
    assert np.array_equal(mask.numpy(), expected)


def check_error(
    of: Callable[..., Any], result: Tensor, predictions: Tensor, targets: Tensor
) -> None:
    assert (result.dtype, result.shape) == (torch.float64, ())
    assert predictions.shape == targets.shape
    with np.errstate(all="ignore"):
        assert_equal(result, of(array(predictions), array(targets)))


def mae(p: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.abs(p - y)))


def rmse(p: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(p - y))))


def gm(p: np.ndarray, y: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(np.abs(p - y)))))


def mean_over_bins(errors: np.ndarray, index: np.ndarray) -> float:
    return float(np.mean([np.mean(errors[index == k]) for k in np.unique(index, equal_nan=False)]))


def check_bmae(result: Tensor, predictions: Tensor, targets: Tensor, bins: Any) -> None:
    assert bins is None or isinstance(bins, TargetBins)

    def error(p: np.ndarray, y: np.ndarray) -> float:
        index = y if bins is None else bins.index(targets).numpy()
        return math.nan if np.isnan(p - y).any() else mean_over_bins(np.abs(p - y), index)

    check_error(error, result, predictions, targets)


def share_within(threshold: float, p: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((p > 0) & (y > 0) & (np.maximum(p / y, y / p) < threshold)))


def check_report(
    report: RegionReport, predictions: Tensor, targets: Tensor, regions: ShotRegions
) -> None:
    assert isinstance(regions, ShotRegions)
    overall = report.rows["All"]
    assert overall["count"] == targets.numel()
    assert sum(report.rows[title]["count"] for title in ("Many", "Med.", "Few")) == targets.numel()
    check_error(mae, torch.tensor(overall["MAE"], dtype=torch.float64), predictions, targets)
    assert len(str(report).splitlines()) == 5


def check_regions(regions: ShotRegions, expected: Any) -> None:
    assert regions is expected
    assert isinstance(regions, ShotRegions)


def check_table(report: RegionReport, rows: Any) -> None:
    assert report.to_dict() == rows
    assert len(report.to_markdown().splitlines()) == 6
    assert len(str(report).splitlines()) == 5


def check_frozen(_: None, module: Any) -> None:
    assert isinstance(module, nn.Module)


def enter(module: Any) -> None:
    with frozen_running_stats(module):
        pass


def updated(predictions: Any, targets: Any) -> RegionReport:
    """Return the report of metrics that were updated once."""
    metrics = RegionMetrics(REGIONS)
    metrics.update(predictions, targets)
    return metrics.report()


def make_optimizer() -> BalancedSAM:
    parameter = nn.Parameter(torch.ones(2))
    return BalancedSAM([parameter], torch.optim.SGD([parameter], lr=0.1), rho=0.5)


def take_step(
    optimizer: BalancedSAM, closure: Any = VALID, ascent_closure: Any = VALID, scaler: Any = None
) -> Any:
    """Return the loss of a step; however it ends the parameters are not perturbed."""
    parameter = optimizer.param_groups[0]["params"][0]

    def right_closure() -> Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss

    closure, ascent_closure = (
        right_closure if value is VALID else value for value in (closure, ascent_closure)
    )
    if closure is None:
        # Not a wrong argument but a call at the wrong time.
        with pytest.raises(RuntimeError, match=r"Expected `step\(closure\)`"):
            optimizer.step()
        return right_closure()
    try:
        return optimizer.step(closure, ascent_closure=ascent_closure, scaler=scaler)
    finally:
        assert not optimizer.is_perturbed


def check_constructed(optimizer: BalancedSAM, rho: Any, **_: Any) -> None:
    assert 0 <= optimizer.param_groups[0]["rho"] == float(rho) < math.inf
    assert take_step(optimizer).isfinite()


def check_schedule(schedule: LambdaRho, optimizer: BalancedSAM, rho_lambda: Any) -> None:
    functions = [rho_lambda] if callable(rho_lambda) else rho_lambda
    assert len(functions) == len(optimizer.param_groups)
    factor = functions[0](0)
    assert isinstance(factor, (int, float, Fraction, np.number, Tensor))
    assert schedule.base_rhos == [0.5]
    assert 0 <= optimizer.param_groups[0]["rho"] == 0.5 * float(factor) < math.inf


def one(step: int) -> float:
    return 1.0


def loaded_schedule(state_dict: Any) -> LambdaRho:
    schedule = LambdaRho(make_optimizer(), one)
    schedule.load_state_dict(state_dict)
    return schedule


def check_loaded(schedule: LambdaRho, base_rhos: list[float], last_epoch: int, **_: Any) -> None:
    assert (schedule.base_rhos, schedule.last_epoch) == (base_rhos, last_epoch)


PAIR = {"predictions": PREDICTIONS, "targets": TARGETS}
FIT = {"scheme": "inv", "smoothing": None, "clip": None, "normalize": True}
PARAMETER = nn.Parameter(torch.ones(2))

ENTRIES: dict[str, Entry] = {
    "BalancedSAM": Entry(
        BalancedSAM,
        {
            "params": [PARAMETER],
            "base_optimizer": torch.optim.SGD([PARAMETER], lr=0.1),
            "rho": 0.05,
            "ascent_context": nullcontext,
            "descent_context": nullcontext,
        },
        check_constructed,
    ),
    "BalancedSAM.step": Entry(
        lambda **arguments: take_step(make_optimizer(), **arguments),
        {"closure": VALID, "ascent_closure": VALID, "scaler": None},
        lambda loss, **_: assert_equal(loss, 2.0),
        functions=("closure", "ascent_closure"),
        also=("Expected a closure that", "Expected gradients after the closure"),
    ),
    "LambdaRho": Entry(
        LambdaRho,
        {"optimizer": make_optimizer(), "rho_lambda": one},
        check_schedule,
        functions=("rho_lambda",),
    ),
    "LambdaRho.load_state_dict": Entry(
        loaded_schedule,
        {"state_dict": LambdaRho(make_optimizer(), one).state_dict()},
        lambda schedule, state_dict: check_loaded(schedule, **state_dict),
    ),
    "RegionReport": Entry(RegionReport, {"rows": REPORT.to_dict()}, check_table),
    "ShotRegions": Entry(ShotRegions, {"bins": BINS, "labels": ["many", "few"]}, check_labels),
    "ShotRegions.from_counts": Entry(
        ShotRegions.from_counts,
        {"bins": BINS, "counts": COUNTS, "many_above": 3, "few_below": 2},
        check_shots,
    ),
    "ShotRegions.mask": Entry(REGIONS.mask, {"targets": TARGETS, "region": "few"}, check_mask),
    "ShotRegions.bin_mask": Entry(
        REGIONS.bin_mask,
        {"region": "few"},
        lambda mask, region: check_mask(mask, torch.tensor([0.5, 1.5]), region),
    ),
    "TargetBins": Entry(TargetBins, {"edges": [0.0, 1.0, 2.0]}, check_bins),
    "TargetBins.uniform": Entry(
        TargetBins.uniform, {"low": 0.0, "high": 3.0, "width": 0.5}, check_uniform
    ),
    "TargetBins.index": Entry(BINS.index, {"targets": TARGETS}, check_index),
    "TargetBins.counts": Entry(BINS.counts, {"targets": TARGETS}, check_counts),
    "TargetWeights": Entry(
        TargetWeights,
        {"bins": BINS, "counts": COUNTS, "bin_weights": torch.tensor([0.5, 2.0])},
        check_target_weights,
    ),
    "TargetWeights.from_targets": Entry(
        TargetWeights.from_targets,
        {"targets": TARGETS, "bins": BINS, **FIT},
        check_fitted_to_targets,
        functions=("smoothing",),
        # The counts are right, but a weight that they come to is not.
        also=("`bin_weights",),
    ),
    "TargetWeights.from_counts": Entry(
        TargetWeights.from_counts,
        {"bins": BINS, "counts": COUNTS, **FIT},
        check_fitted,
        functions=("smoothing",),
        also=("`bin_weights",),
    ),
    "TargetWeights.forward": Entry(
        WEIGHTS.forward,
        {"targets": TARGETS},
        lambda weights, targets: assert_equal(weights, np.array([0.5, 2.0])[bin_of(targets)]),
    ),
    "TargetWeights.set_extra_state": Entry(
        WEIGHTS.set_extra_state,
        {"state": WEIGHTS.get_extra_state()},
        lambda _, state: assert_equal(torch.as_tensor(state), [0.0, 1.0, 2.0]),
    ),
    "balanced_mean_absolute_error": Entry(
        balanced_mean_absolute_error, {**PAIR, "bins": BINS}, check_bmae
    ),
    "frozen_running_stats": Entry(enter, {"module": nn.BatchNorm1d(2)}, check_frozen),
    "geometric_mean_error": Entry(geometric_mean_error, PAIR, partial(check_error, gm)),
    "inverse_weights": Entry(
        inverse_weights,
        {"counts": COUNTS, "clip": (2, 3)},
        lambda weights, counts, clip: assert_equal(weights, raw_weights(counts, -1.0, clip)),
    ),
    "mean_absolute_error": Entry(mean_absolute_error, PAIR, partial(check_error, mae)),
    "region_report": Entry(region_report, {**PAIR, "regions": REGIONS}, check_report),
    "root_mean_squared_error": Entry(root_mean_squared_error, PAIR, partial(check_error, rmse)),
    "smooth_counts": Entry(
        smooth_counts,
        {"counts": COUNTS, "kernel": "gaussian", "size": 5, "sigma": 2.0, "boundary": "zeros"},
        check_smoothed,
    ),
    "sqrt_inverse_weights": Entry(
        sqrt_inverse_weights,
        {"counts": COUNTS},
        lambda weights, counts: assert_equal(weights, raw_weights(counts, -0.5)),
    ),
    "threshold_accuracy": Entry(
        threshold_accuracy,
        {**PAIR, "threshold": 1.25},
        lambda share, predictions, targets, threshold: check_error(
            partial(share_within, number(threshold)), share, predictions, targets
        ),
    ),
    "torchmetrics.RegionMetrics": Entry(
        RegionMetrics,
        {"regions": REGIONS},
        lambda metrics, regions: check_regions(metrics.regions, regions),
    ),
    "torchmetrics.RegionMetrics.update": Entry(
        updated, PAIR, partial(check_report, regions=REGIONS)
    ),
    "weighted_mean": Entry(
        weighted_mean,
        {"losses": torch.tensor([1.0, 2.0, 3.0]), "weights": torch.tensor([1.0, 0.5, 2.0])},
        check_weighted_mean,
    ),
}

# What torch itself checks
PASSED_ON = ("add_param_group", "load_state_dict", "zero_grad")


def public_callables() -> Iterator[str]:
    """Yield the name of each public function, class and method that takes an argument."""
    extra = {"torchmetrics.RegionMetrics": balanced_sam.torchmetrics.RegionMetrics}
    public = {name: getattr(balanced_sam, name) for name in balanced_sam.__all__} | extra
    for name, value in public.items():
        yield name
        for member in vars(value) if inspect.isclass(value) else []:
            function = getattr(value, member)
            if not member.startswith("_") and callable(function):
                parameters = inspect.signature(function).parameters
                if set(parameters) - {"self"}:
                    yield f"{name}.{member}"


def test_every_public_name_has_an_entry() -> None:
    assert set(public_callables()) == ENTRIES.keys() | {
        f"BalancedSAM.{method}" for method in PASSED_ON
    }


def outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Return the result of a call and its error, one of them None."""
    try:
        return call(), None
    except Exception as error:
        return None, error


def assert_right_or_refused(name: str, replaced: dict[str, Any]) -> None:
    """Assert that a call is right, or that its error names an argument of it."""
    entry = ENTRIES[name]
    arguments = copy.deepcopy(entry.valid) | replaced
    result, error = outcome(lambda: entry.call(**arguments))
    if error is None:
        entry.check(result, **arguments)
        return
    assert isinstance(error, (TypeError, ValueError)), repr(error)
    # A value may be wrong for another argument's sake, a type is wrong in itself.
    names = replaced if isinstance(error, TypeError) else arguments
    words = [*entry.also, *(f"`{argument}" for argument in names)]
    assert re.match(r"Expected .*\bbut .*\.$", str(error), re.DOTALL), repr(error)
    assert any(re.search(rf"{re.escape(word)}\b", str(error)) for word in words), repr(error)


CASES = [
    pytest.param(name, argument, id=f"{name}-{argument}")
    for name, entry in ENTRIES.items()
    for argument in entry.valid
]


@pytest.mark.parametrize("name", ENTRIES)
def test_valid_call_is_right(name: str) -> None:
    entry = ENTRIES[name]
    arguments = copy.deepcopy(entry.valid)
    entry.check(entry.call(**arguments), **arguments)


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_any_value_of_one_argument_is_right_or_refused(name: str, argument: str) -> None:
    failed = []
    for value in VALUES + (FUNCTIONS if argument in ENTRIES[name].functions else []):
        try:
            assert_right_or_refused(name, {argument: value})
        except Exception as error:
            failed.append(f"{value!r:.200}: {type(error).__name__}: {str(error)[:300]}")
    assert not failed, "\n".join([f"{len(failed)} values, such as", *failed[:5]])


@pytest.mark.parametrize("name", ENTRIES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_values_of_several_arguments_are_right_or_refused(
    name: str, data: st.DataObject
) -> None:
    arguments = st.sampled_from(list(ENTRIES[name].valid))
    # Of one shape, so that the shapes are not all that is ever wrong.
    drawn = tensors(data.draw(st.sampled_from(SHAPES), label="shape"))
    replaced = {}
    for argument in data.draw(st.lists(arguments, min_size=1, max_size=3, unique=True)):
        functions = FUNCTIONS if argument in ENTRIES[name].functions else VALUES
        replaced[argument] = data.draw(drawn | drawn | st.sampled_from(functions), label=argument)
    assert_right_or_refused(name, replaced)


@pytest.mark.parametrize("method", PASSED_ON)
def test_what_torch_checks_is_answered_as_the_bare_base_answers(method: str) -> None:
    for value in VALUES:
        optimizers = (make_optimizer(), make_optimizer().base_optimizer)
        ours, expected = (
            outcome(partial(getattr(optimizer, method), value)) for optimizer in optimizers
        )
        assert repr(ours) == repr(expected)
