"""The training losses of the benchmarks: weighted, Focal-R, TERM, Balanced MSE."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch import Tensor, nn
from torch.nn import functional

from balanced_sam import (
    ShotRegions,
    TargetBins,
    TargetGrid,
    TargetWeights,
    smooth_counts,
)
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.element_losses import absolute_error, squared_error
from benchmarks.experiment.method import Method, Objective, Stage
from benchmarks.experiment.plan import plan
from benchmarks.experiment.recipe import Recipe
from benchmarks.experiment.registry import get_dataset
from benchmarks.methods import (
    _balanced_mse,
    balanced_mse_bmc,
    balanced_mse_gai,
    bsam_quarter,
    focal_r,
    lds,
    rrt,
    term,
    weighted_per_output,
)
from benchmarks.methods import weighted as weighted_alone
from benchmarks.methods._balanced_mse import BMC
from benchmarks.methods._losses import unweighted, weighted
from benchmarks.methods.balanced_mse_gai import GAI, fit_mixture
from benchmarks.methods.bsam_quarter import DrawnLoss, quarter
from benchmarks.methods.focal_r import FocalR
from benchmarks.methods.term import TERM

BINS = TargetBins.uniform(0, 100, width=1)
TARGETS = torch.tensor([20.0] * 30 + [21.0] * 20 + [35.0] * 10 + [60.0] * 3 + [61.0])
RECIPE = Recipe(epochs=7, batch_size=4, lr=0.1, weight_decay=0.0)
CONSTANTS = {
    "rho": 0.1,
    "rho_quarter": 0.07,
    "term_t": 0.1,
    "mixture_components": 3,
    "retrain_epochs": 5,
    "retrain_lr": 3e-3,
    "balanced_mse_epochs": 2,
    "balanced_mse_lr": 1e-3,
    "noise_sigma": 3.0,
    "noise_sigma_lr": 0.05,
}
"""Of all methods; those that are not here are as the method has them."""
SIGMA = 3.0
UNUSED: Any = None
DATASET = Dataset(
    title="",
    source="",
    target="",
    unit="",
    bins=BINS,
    regions=ShotRegions.from_counts(BINS, BINS.counts(TARGETS)),
    counts={},
    metrics=("MAE",),
    criterion=absolute_error,
    recipe=RECIPE,
    network=UNUSED,
    load=UNUSED,
    write_miniature=UNUSED,
    published="",
)
TILTED = partial(TERM, t=0.1)
OF_BATCH = partial(BMC, noise_sigma=SIGMA, noise_sigma_lr=0.05)
OF_MIXTURE = partial(GAI, noise_sigma=SIGMA, noise_sigma_lr=0.05, mixture_components=3)
LOSSES = [weighted("sqinv"), FocalR, TILTED, OF_MIXTURE, OF_BATCH]
BALANCED = [(OF_MIXTURE, balanced_mse_gai.METHOD), (OF_BATCH, balanced_mse_bmc.METHOD)]
criteria = st.sampled_from([absolute_error, squared_error])
arrays = st.integers(1, 12).flatmap(
    lambda size: st.lists(st.floats(20, 70, width=32), min_size=2 * size, max_size=2 * size)
)


def splits_of(targets: Tensor, bins: TargetBins = BINS) -> Splits:
    return Splits(UNUSED, UNUSED, UNUSED, targets, bins.counts(targets), "")


def make(
    objective: Objective,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = absolute_error,
    targets: Tensor = TARGETS,
    **constants: Any,
) -> Any:
    """Return an objective of the data set above, with other criterion, targets or constants."""
    dataset = dataclasses.replace(DATASET, criterion=criterion)
    return partial(objective, **constants)(dataset, RECIPE, splits_of(targets))


def stages_of(method: Method, *, recipe: Recipe = RECIPE, **changes: Any) -> list[Stage]:
    """Return the parts of training with the constants above, changed."""
    constants = {**method.constants, **CONSTANTS, **changes}
    return method.stages(recipe, **{name: constants[name] for name in method.constants})


def halves(values: list[float]) -> tuple[Tensor, Tensor]:
    """Return predictions and targets."""
    predictions, targets = torch.tensor(values, dtype=torch.float64).chunk(2)
    return predictions, targets


def batch(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = [20 + 40 * torch.rand(shape, generator=generator, dtype=torch.float64) for _ in "pt"]
    return draw[0].to(dtype), draw[1].to(dtype)


def gradient(
    objective: Callable[[Tensor, Tensor], Tensor], predictions: Tensor, targets: Tensor
) -> Tensor:
    predictions = predictions.clone().requires_grad_()
    (result,) = torch.autograd.grad(objective(predictions, targets), predictions)
    return result


# All of them


@pytest.mark.parametrize("objective", LOSSES)
def test_loss_of_maps_is_the_loss_of_their_elements(objective: Objective) -> None:
    loss = make(objective)
    predictions, targets = batch(3, 4, 5)
    whole = loss.of(predictions, targets)
    assert whole.shape == ()
    torch.testing.assert_close(whole, loss.of(predictions.flatten(), targets.flatten()))


@pytest.mark.parametrize("objective", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_has_the_dtype_of_the_predictions(objective: Objective, dtype: torch.dtype) -> None:
    loss = make(objective)
    result = loss.of(*batch(6, dtype=dtype))
    assert result.dtype is dtype
    torch.testing.assert_close(result.double(), loss.of(*batch(6)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("objective", LOSSES)
def test_loss_of_bfloat16_predictions_is_computed_in_the_targets_precision(
    objective: Objective,
) -> None:
    loss = make(objective)
    predictions, targets = batch(6, dtype=torch.float32)
    rounded = predictions.bfloat16()
    result = loss.of(rounded, targets)
    assert result.dtype is torch.float32
    torch.testing.assert_close(result, loss.of(rounded.float(), targets))


@pytest.mark.parametrize("objective", LOSSES)
def test_loss_changes_neither_predictions_nor_targets(objective: Objective) -> None:
    predictions, targets = batch(6)
    make(objective).of(predictions, targets)
    torch.testing.assert_close((predictions, targets), batch(6), rtol=0, atol=0)


@pytest.mark.parametrize("objective", LOSSES)
def test_loss_of_a_network_is_that_of_its_predictions(objective: Objective) -> None:
    loss = make(objective)
    inputs, targets = batch(6)
    torch.testing.assert_close(loss(torch.sqrt, inputs, targets), loss.of(inputs.sqrt(), targets))


# Weighted


def weights_of(objective: nn.Module) -> Tensor:
    """Return the weight of each bin, read off the gradient of one prediction at a time."""
    targets = torch.arange(len(BINS), dtype=torch.float64)
    return len(targets) * gradient(objective.of, targets + 0.5, targets)


@pytest.mark.parametrize("scheme", ["none", "inv", "sqinv"])
@pytest.mark.parametrize("normalized", [True, False])
def test_weighted_loss_takes_the_weights_of_the_training_counts(
    scheme: Any, normalized: bool
) -> None:
    clip = (5.0, 25.0)
    dataset = dataclasses.replace(DATASET, clip_counts=clip)
    recipe = dataclasses.replace(RECIPE, normalized=normalized)
    expected = TargetWeights.from_counts(
        BINS,
        BINS.counts(TARGETS),
        scheme=scheme,
        clip_counts=clip if scheme == "inv" else None,
        # On the raw scale INV has the mean of SQINV, which the data set names: here 1.
        normalize=normalized or scheme == "inv",
    )
    exponent = {"none": 0, "sqinv": 0.5, "inv": 1}[scheme]
    for same in (scheme, exponent):
        found = weights_of(weighted(same)(dataset, recipe, splits_of(TARGETS)))
        torch.testing.assert_close(found, expected.bin_weights.double())


def test_each_output_is_weighted_by_the_counts_of_its_own_target() -> None:
    grid = TargetGrid(TargetBins([0, 1, 2]), TargetBins([0, 10, 20, 30]))
    targets = torch.tensor([[0.5, 5.0]] * 6 + [[0.5, 15.0]] * 2 + [[1.5, 25.0]])
    dataset = dataclasses.replace(DATASET, bins=grid, criterion=absolute_error)
    splits = Splits(UNUSED, UNUSED, UNUSED, targets, grid.counts(targets), "")
    (stage,) = weighted_per_output.METHOD.stages(RECIPE, exponent=0.3)
    loss = stage.objective(dataset, RECIPE, splits)
    for axis, bins in enumerate(grid.axes):
        alone = TargetWeights.from_targets(targets[:, axis], bins, scheme=0.3)
        torch.testing.assert_close(loss.weights(targets)[:, axis], alone(targets[:, axis]))
    predictions = targets + torch.tensor([1.0, -2.0])
    expected = (torch.tensor([1.0, 2.0]) * loss.weights(targets)).mean()
    torch.testing.assert_close(loss.of(predictions, targets), expected)


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("normalized", [True, False])
def test_a_single_output_is_weighted_as_without_weights_per_output(
    exponent: float, normalized: bool
) -> None:
    dataset = dataclasses.replace(DATASET, clip_counts=(5.0, 25.0), mean_weight=0.2)
    recipe = dataclasses.replace(RECIPE, normalized=normalized)
    found, expected = (
        weights_of(stage.objective(dataset, recipe, splits_of(TARGETS)))
        for method in (weighted_per_output, weighted_alone)
        for stage in method.METHOD.stages(recipe, exponent=exponent)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("criterion", [absolute_error, squared_error])
def test_weighted_loss_left_unweighted_is_the_mean_of_the_criterion(
    criterion: Callable[[Tensor, Tensor], Tensor],
) -> None:
    predictions, targets = batch(5)
    plain = criterion(predictions, targets).mean()
    torch.testing.assert_close(
        make(weighted("none"), criterion=criterion).of(predictions, targets), plain
    )
    loss = make(weighted("inv"), criterion=criterion)
    with unweighted(nn.Module(), loss):
        torch.testing.assert_close(loss.of(predictions, targets), plain)
    assert not torch.isclose(loss.of(predictions, targets), plain)


@pytest.mark.parametrize("scheme", ["inv", "sqinv"])
@pytest.mark.parametrize("boundary", ["zeros", "reflect"])
def test_lds_takes_the_data_sets_scheme_and_boundary(scheme: Any, boundary: Any) -> None:
    targets = torch.cat([torch.arange(100.0).repeat(9), torch.zeros(30), torch.full((5,), 99.0)])
    dataset = dataclasses.replace(DATASET, lds_scheme=scheme, lds_boundary=boundary)
    (stage,) = stages_of(lds.METHOD)
    expected = TargetWeights.from_targets(
        targets, BINS, scheme=scheme, smoothing=lambda n: smooth_counts(n, boundary=boundary)
    )
    found = weights_of(stage.objective(dataset, RECIPE, splits_of(targets)))
    torch.testing.assert_close(found, expected.bin_weights.double())


# Focal-R


@settings(max_examples=60, deadline=None)
@given(values=arrays, criterion=criteria)
def test_focal_r_is_the_mean_of_the_scaled_losses(
    values: list[float], criterion: Callable[[Tensor, Tensor], Tensor]
) -> None:
    predictions, targets = halves(values)
    errors = np.abs(predictions.numpy() - targets.numpy())
    losses = errors if criterion is absolute_error else errors**2
    expected = np.mean((2 * special.expit(0.2 * errors) - 1) * losses)
    found = make(FocalR, criterion=criterion).of(predictions, targets)
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("error", "factor"), [(0, 0), (1, 0.0997), (5, 0.462), (10, 0.762), (20, 0.964)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_focal_r_scales_an_error_by_the_factor(error: float, factor: float, sign: int) -> None:
    target = torch.tensor([40.0])
    loss = make(FocalR).of(target + sign * error, target)
    assert loss.item() == pytest.approx(factor * error, rel=1e-3)


# TERM


def of_losses(predictions: Tensor, targets: Tensor) -> Tensor:
    """A criterion for which the predictions are the losses."""
    return predictions


tilts = st.floats(1e-3, 10)


@settings(max_examples=60, deadline=None)
@given(values=arrays, criterion=criteria, t=tilts)
def test_term_is_the_log_of_the_mean_exponential(
    values: list[float], criterion: Callable[[Tensor, Tensor], Tensor], t: float
) -> None:
    predictions, targets = halves(values)
    errors = np.abs(predictions.numpy() - targets.numpy())
    losses = errors if criterion is absolute_error else errors**2
    expected = special.logsumexp(t * losses, b=1 / len(losses)) / t
    found = make(TILTED, criterion=criterion, t=t).of(predictions, targets)
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-12 / t)


@settings(max_examples=60, deadline=None)
@given(values=arrays, t=st.floats(1e-5, 10))
def test_term_exceeds_the_mean_by_no_more_than_hoeffdings_bound(
    values: list[float], t: float
) -> None:
    losses, _ = halves(values)
    excess = make(TILTED, criterion=of_losses, t=t).of(losses, losses) - losses.mean()
    rounding = 1e-14 / t + 1e-12
    # So that the limit for t near 0 is the mean.
    assert -rounding <= excess <= t * (losses.max() - losses.min()) ** 2 / 8 + rounding


@settings(max_examples=60, deadline=None)
@given(values=arrays, t=tilts)
def test_term_weights_the_gradients_of_the_losses_by_softmax(values: list[float], t: float) -> None:
    losses, _ = halves(values)
    found = gradient(make(TILTED, criterion=of_losses, t=t).of, losses, losses)
    np.testing.assert_allclose(found.numpy(), special.softmax(t * losses.numpy()), atol=1e-14)


def test_term_of_losses_whose_exponentials_overflow_is_near_the_largest() -> None:
    losses = torch.tensor([1e30, 0.0, 5.0])
    loss = make(TILTED, criterion=of_losses, t=10.0)
    assert loss.of(losses, losses).item() == pytest.approx(1e30)
    assert gradient(loss.of, losses, losses).tolist() == [1, 0, 0]


@pytest.mark.parametrize("t", [0.0, -0.1, math.nan, math.inf])
def test_term_with_a_tilt_that_is_not_positive_raises(t: float) -> None:
    with pytest.raises(ValueError, match="Expected `term_t` to be positive and finite, but got"):
        make(TILTED, t=t)


# Balanced MSE, BMC


def bmc_in_loops(predictions: Tensor, targets: Tensor, sigma: float, groups: int = 1) -> Tensor:
    """Return the loss from the definition, group by group."""
    total = predictions.new_zeros(())
    for group in range(groups):
        p, y = predictions[group::groups], targets[group::groups]
        logits = torch.stack([-((p_i - y) ** 2) / (2 * sigma**2) for p_i in p])
        total = total + functional.cross_entropy(logits, torch.arange(len(p)), reduction="sum")
    return 2 * sigma**2 * total / len(predictions)


@settings(max_examples=60, deadline=None)
@given(values=arrays, sigma=st.floats(0.5, 50, width=32))
def test_bmc_is_the_cross_entropy_of_the_right_target(values: list[float], sigma: float) -> None:
    predictions, targets = halves(values)
    p, y = predictions.numpy(), targets.numpy()
    logits = stats.norm.logpdf(p[:, None], loc=y, scale=sigma)
    nats = special.logsumexp(logits, axis=1) - np.diag(logits)
    found = make(OF_BATCH, noise_sigma=sigma).double().of(predictions, targets)
    assert found.item() == pytest.approx(2 * sigma**2 * nats.mean(), rel=1e-9, abs=1e-9 * sigma**2)


@pytest.mark.parametrize("limit", [1, 2, 5, 256])
@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40))
def test_bmc_compares_each_element_with_its_group(limit: int, size: int) -> None:
    predictions, targets = batch(size)
    loss = make(OF_BATCH)
    groups = math.ceil(size / limit)

    def expected(predictions: Tensor, targets: Tensor) -> Tensor:
        return bmc_in_loops(predictions, targets, SIGMA, groups)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_balanced_mse, "GROUP_SIZE", limit)
        torch.testing.assert_close(loss.of(predictions, targets), expected(predictions, targets))
        found = gradient(loss.of, predictions, targets)
    torch.testing.assert_close(found, gradient(expected, predictions, targets))


def test_bmc_of_maps_has_groups_of_at_most_256_of_the_whole_batch() -> None:
    predictions, targets = batch(3, 16, 16)
    expected = bmc_in_loops(predictions.flatten(), targets.flatten(), SIGMA, groups=3)
    torch.testing.assert_close(make(OF_BATCH).of(predictions, targets), expected)


def test_bmc_of_one_target_is_zero() -> None:
    predictions, targets = batch(1)
    assert make(OF_BATCH).of(predictions, targets) == 0
    assert gradient(make(OF_BATCH).of, predictions, targets) == 0


def test_bmc_with_much_noise_tells_nothing_of_the_predictions() -> None:
    predictions, targets = batch(9)
    sigma = 1e5
    loss = make(OF_BATCH, noise_sigma=sigma)
    assert loss.of(predictions, targets).item() / (2 * sigma**2) == pytest.approx(math.log(9))
    # The scaled loss is (p - y)^2 minus the mean of (p - y_j)^2, up to a constant.
    limit = 2 * (targets.mean() - targets) / 9
    torch.testing.assert_close(gradient(loss.of, predictions, targets), limit, rtol=1e-4, atol=1e-4)


# Balanced MSE, GAI


def normal(y: float, mean: float, variance: float) -> float:
    return math.exp(-((y - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


@settings(deadline=None, max_examples=40)
@given(
    prediction=st.floats(0, 80),
    target=st.floats(20, 61),
    sigma=st.floats(3, 20, width=32),
    components=st.integers(1, 5),
)
def test_gai_normalises_by_the_integral_over_the_mixture(
    prediction: float, target: float, sigma: float, components: int
) -> None:
    loss = make(OF_MIXTURE, noise_sigma=sigma, mixture_components=components).double()
    mixture = zip(loss.weights.tolist(), loss.means.tolist(), loss.variances.tolist(), strict=True)
    density = 0.0
    # Each Gaussian by itself, from end to end, so that no narrow one is overlooked.
    for weight, mean, variance in mixture:
        reach = 10 * math.sqrt(variance)
        density += (
            weight
            * integrate.quad(
                lambda y, m=mean, v=variance: normal(y, prediction, sigma**2) * normal(y, m, v),
                mean - reach,
                mean + reach,
                epsabs=0,
                epsrel=1e-9,
                limit=200,
            )[0]
        )
    expected = math.log(density) - math.log(normal(target, prediction, sigma**2))
    found = loss.of(*halves([prediction, target])).item()
    assert found / (2 * sigma**2) == pytest.approx(expected, rel=1e-8, abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(values=arrays)
def test_gai_is_the_mean_over_the_elements(values: list[float]) -> None:
    predictions, targets = halves(values)
    loss = make(OF_MIXTURE)
    single = [
        loss.of(p, y).item() for p, y in zip(predictions[:, None], targets[:, None], strict=True)
    ]
    assert loss.of(predictions, targets).item() == pytest.approx(
        np.mean(single), rel=1e-9, abs=1e-9
    )


def test_gai_of_a_wide_mixture_pulls_to_the_target_alone() -> None:
    wide = torch.tensor([-1e6, 1e6])
    loss = make(OF_MIXTURE, targets=wide, mixture_components=1)
    predictions, targets = batch(5)
    squared = 2 * (predictions - targets) / 5
    torch.testing.assert_close(gradient(loss.of, predictions, targets), squared)


def test_gai_pulls_a_prediction_away_from_where_targets_are_frequent() -> None:
    loss = make(OF_MIXTURE, mixture_components=1)
    target = torch.tensor([40.0])
    assert gradient(loss.of, target, target) < 0 < target - TARGETS.mean()


def test_mixture_fit_recovers_a_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(8000, generator=generator)
    targets = torch.cat([20 + 3 * draws[:6000], 60 + 5 * draws[6000:]])
    weights, means, variances = (values.numpy() for values in fit_mixture(targets, 2))
    order = np.argsort(means)
    np.testing.assert_allclose(weights[order], [0.75, 0.25], atol=0.002)
    np.testing.assert_allclose(means[order], [20, 60], atol=0.3)
    np.testing.assert_allclose(np.sqrt(variances[order]), [3, 5], rtol=0.03)


def test_mixture_fit_does_not_depend_on_the_order_of_the_targets() -> None:
    shuffled = TARGETS[torch.randperm(len(TARGETS), generator=torch.Generator().manual_seed(0))]
    expected = fit_mixture(TARGETS, 3)
    for maps in (shuffled, shuffled.view(8, 2, 4)):
        torch.testing.assert_close(fit_mixture(maps, 3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("values", [[1.0, 2.0, 2.0, 5.0], [7.0, 7.0]])
def test_mixture_of_few_distinct_targets_has_one_gaussian_for_each(values: list[float]) -> None:
    weights, means, variances = fit_mixture(torch.tensor(values), 8)
    distinct, counts = np.unique(values, return_counts=True)
    order = means.argsort()
    np.testing.assert_allclose(means[order], distinct, atol=1e-6)
    np.testing.assert_allclose(weights[order], counts / len(values), atol=1e-6)
    assert (variances < 1e-5).all()


def test_mixture_of_many_targets_is_fitted_to_evenly_spaced_quantiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(balanced_mse_gai, "FIT_SIZE", 4)
    targets = torch.arange(10.0).flip(0)
    expected = fit_mixture(torch.tensor([0.0, 3.0, 6.0, 9.0]), 1)
    torch.testing.assert_close(fit_mixture(targets, 1), expected, rtol=0, atol=0)


# Balanced MSE, the noise scale


@pytest.mark.parametrize(("objective", "method"), BALANCED)
def test_learned_noise_scale_receives_the_gradient_of_the_likelihood(
    objective: Objective, method: Method
) -> None:
    predictions, targets = batch(6)
    loss = make(objective, noise_sigma=3.0).double()

    def likelihood(sigma: float) -> float:
        other = make(objective, noise_sigma=sigma).double()
        return float(other.of(predictions, targets).detach()) / (2 * sigma**2)

    loss.of(predictions, targets).backward()
    slope = (likelihood(3.0 + 1e-3) - likelihood(3.0 - 1e-3)) / 2e-3
    # The factor 2 sigma^2 is a constant of the gradient.
    assert loss.sigma.grad.item() == pytest.approx(2 * 3.0**2 * slope, rel=1e-3)


@pytest.mark.parametrize(("objective", "method"), BALANCED)
@pytest.mark.parametrize("epochs", [0, 2])
def test_learned_noise_scale_moves_at_its_own_rate(
    objective: Objective, method: Method, epochs: int
) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer="adam")
    stage = stages_of(method, recipe=recipe, balanced_mse_epochs=epochs)[-1]
    loss: Any = stage.objective(DATASET, recipe, splits_of(TARGETS))
    predictions, targets = batch(6, dtype=torch.float32)
    network = nn.Parameter(predictions)
    before = network.detach().clone()
    optimizer, schedules = stage.optimizers(nn.ParameterList([network]), recipe, loss)
    loss.of(network, targets).backward()
    optimizer.step()
    # The first step of Adam is its rate.
    rate = CONSTANTS["balanced_mse_lr"] if epochs else recipe.lr
    steps = (network - before).detach().abs()
    torch.testing.assert_close(steps, torch.full_like(steps, rate), rtol=1e-2, atol=0)
    assert abs(loss.sigma.item() - 3.0) == pytest.approx(0.05, rel=1e-3)
    for _ in range(3):
        for schedule in schedules:
            schedule.step()
    assert optimizer.param_groups[1]["lr"] == 0.05
    assert (optimizer.param_groups[0]["lr"] < rate) is (epochs == 0)


@pytest.mark.parametrize(("objective", "method"), BALANCED)
def test_fixed_noise_scale_is_no_parameter(objective: Objective, method: Method) -> None:
    loss = make(objective, noise_sigma=3.0, noise_sigma_lr=0.0)
    assert list(loss.parameters()) == []
    assert loss.state_dict()["sigma"] == 3
    predictions, targets = batch(6)
    torch.testing.assert_close(
        loss.of(predictions, targets),
        make(objective, noise_sigma=3.0).of(predictions, targets).detach(),
    )


@pytest.mark.parametrize(("objective", "method"), BALANCED)
@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_noise_scale_that_is_not_positive_raises(
    objective: Objective, method: Method, sigma: float
) -> None:
    with pytest.raises(ValueError, match="Expected `noise_sigma` to be positive and finite, but"):
        make(objective, noise_sigma=sigma)


@pytest.mark.parametrize(("objective", "method"), BALANCED)
def test_targets_below_all_training_targets_do_not_count(
    objective: Objective, method: Method
) -> None:
    loss = make(objective)
    predictions = torch.tensor([[25.0, 50.0], [31.0, 62.0]])
    targets = torch.tensor([[19.99, 20.0], [0.0, 40.0]])
    counted = loss.of(torch.tensor([50.0, 62.0]), torch.tensor([20.0, 40.0]))
    torch.testing.assert_close(loss.of(predictions, targets), counted)
    slopes = gradient(loss.of, predictions, targets)
    assert (slopes == 0).tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize(("objective", "method"), BALANCED)
def test_batch_in_which_nothing_counts_has_loss_zero(objective: Objective, method: Method) -> None:
    predictions, targets = torch.full((2, 3), 30.0), torch.zeros(2, 3)
    assert make(objective).of(predictions, targets) == 0
    assert not gradient(make(objective).of, predictions, targets).any()


# The parts of training


def parts(stages: list[Stage]) -> list[tuple[str, int]]:
    return [(stage.part, stage.epochs) for stage in stages]


def assert_same(found: Any, expected: Any) -> None:
    """Raise unless both make the same loss, with the same constants."""
    assert (found.func, found.keywords) == (expected.func, expected.keywords)


@pytest.mark.parametrize(("objective", "method"), BALANCED)
def test_balanced_mse_trains_the_head_after_a_vanilla_stage_or_all_from_the_start(
    objective: Objective, method: Method
) -> None:
    stages = stages_of(method)
    assert parts(stages) == [("network", 7), ("head", 2)]
    assert_same(stages[1].objective, objective)
    predictions, targets = batch(5)
    vanilla = make(stages[0].objective).of(predictions, targets)
    torch.testing.assert_close(vanilla, (predictions - targets).abs().mean())
    whole = stages_of(method, balanced_mse_epochs=0)
    assert parts(whole) == [("network", 7)]
    assert_same(whole[0].objective, objective)


def test_rrt_trains_a_head_with_sqinv_weights() -> None:
    stages = stages_of(rrt.METHOD)
    assert parts(stages) == [("network", 7), ("head", 5)]
    torch.testing.assert_close(
        weights_of(make(stages[1].objective)), weights_of(make(weighted("sqinv")))
    )


@pytest.mark.parametrize(
    ("dataset", "decay", "rates"),
    [
        ("agedb_dir", 0.0, [1e-3] * 60 + [1e-4] * 20 + [1e-5] * 10),
        ("imdb_wiki_dir", 0.0, [1e-3] * 60 + [1e-4] * 20 + [1e-5] * 10),
        ("nyud2_dir", 1e-4, [1e-4] * 5 + [1e-5] * 5),
    ],
)
def test_rrt_trains_the_head_as_published(dataset: str, decay: float, rates: list[float]) -> None:
    done = plan(dataset, "rrt")
    stage = done.stages[-1]
    of_stage = dataclasses.replace(done.recipe, epochs=stage.epochs)
    loss = make(stage.objective)
    optimizer, schedules = stage.optimizers(nn.Linear(1, 1), of_stage, loss)
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == decay
    found = []
    for _ in range(stage.epochs):
        found.append(group["lr"])
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert found == pytest.approx(rates)


def test_balanced_mse_on_ages_takes_as_many_steps_on_both_data_sets() -> None:
    steps = {
        name: plan(name, "balanced_mse_gai").stages[-1].epochs
        * -(-int(get_dataset(name).counts["train"].sum()) // get_dataset(name).recipe.batch_size)
        for name in ("agedb_dir", "imdb_wiki_dir")
    }
    assert steps["imdb_wiki_dir"] == 7490
    assert steps["agedb_dir"] == pytest.approx(7490, rel=0.01)


def maps(sizes: tuple[int, ...]) -> Tensor:
    """Return targets like those of ``TARGETS``, a map of them for each of eight samples."""
    picked = torch.arange(8 * math.prod(sizes)) % len(TARGETS)
    return TARGETS[picked].reshape(8, *sizes)


@pytest.mark.parametrize("sizes", [(), (3, 2)], ids=["numbers", "maps"])
def test_drawn_part_is_a_quarter_in_which_each_sample_weighs_the_same(
    sizes: tuple[int, ...],
) -> None:
    loss = make(weighted("sqinv", kind=DrawnLoss))
    targets = maps(sizes)
    network = Zeros(sizes)
    with quarter(network, loss):
        found = loss(network, torch.arange(8), targets)
    (drawn,) = network.seen
    assert drawn.shape == (2,)
    errors, weights = targets[drawn].abs(), loss.weights(targets[drawn])
    per_sample = (errors * weights).flatten(1 if sizes else 0)
    relative = (per_sample.mean(1) / weights.flatten(1).mean(1)).mean() if sizes else errors.mean()
    torch.testing.assert_close(found, relative)
    torch.testing.assert_close(loss(network, drawn, targets[drawn]), per_sample.mean())


class Zeros(nn.Module):
    """Predicts 0 and keeps what it saw."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs)
        return torch.zeros(len(inputs), *self.sizes)


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1), nn.Flatten(0))


@pytest.mark.parametrize(
    ("size", "quarter"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2), (53, 14), (64, 16)]
)
def test_bsam_quarter_takes_a_quarter_of_any_batch_in_its_first_pass(
    size: int, quarter: int
) -> None:
    torch.manual_seed(0)
    (stage,) = stages_of(bsam_quarter.METHOD)
    network, loss, batch = small_network(), make(stage.objective), TARGETS[-size:]
    if size == 1:
        # BatchNorm itself refuses a single sample.
        del network[1]
    optimizer, _ = stage.optimizers(network, RECIPE, loss)
    assert optimizer.param_groups[0]["rho"] == CONSTANTS["rho_quarter"]
    sizes: list[int] = []
    network.register_forward_hook(lambda layer, inputs, output: sizes.append(len(output)))

    def closure() -> Tensor:
        error: Tensor = loss(network, batch[:, None].float(), batch)
        error.backward()
        return error

    optimizer.step(closure)
    assert sizes == [quarter, size]
    # The small batch stays out of the running statistics.
    assert size == 1 or network[1].num_batches_tracked == 1


@pytest.mark.parametrize("method", [focal_r.METHOD, term.METHOD, lds.METHOD])
def test_one_pass_methods_train_the_whole_network_by_the_base_optimizer(method: Method) -> None:
    (stage,) = stages_of(method)
    assert parts([stage]) == [("network", 7)]
    optimizer, _ = stage.optimizers(nn.Linear(1, 1), RECIPE, make(stage.objective))
    assert type(optimizer) is torch.optim.SGD
