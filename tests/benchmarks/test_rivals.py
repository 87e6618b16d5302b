"""What BSAM is compared with beside the baselines of the paper."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balanced_sam import BalancedSAM, TargetWeights
from benchmarks.experiment.dataset import Splits
from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.registry import get_dataset
from benchmarks.methods import (
    averaged,
    bsam_balanced_head,
    bsam_loss_units,
    log_target,
    random_perturbation,
    weighted_balanced_head,
    weighted_capped,
)
from benchmarks.methods._balanced_mse import BMC

DATASET = get_dataset("rotated_digits")
TARGETS = torch.cat([torch.full((n,), 10.5 * k) for k, n in enumerate((40, 20, 10, 4, 1))])
COUNTS = DATASET.bins.counts(TARGETS)
UNUSED: Any = None


def stages_of(method: Method, **changes: Any) -> list[Stage]:
    return method.stages(DATASET.recipe, **{**method.constants, **changes})


def make(stage: Stage) -> Any:
    """Return the loss of a stage."""
    return stage.objective(
        DATASET, DATASET.recipe, Splits(UNUSED, UNUSED, UNUSED, TARGETS, COUNTS, "")
    )


def a_network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(1, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1), nn.Flatten(0))
    return nn.Sequential(*layers)


def inputs_of(targets: Tensor) -> Tensor:
    return (targets[:, None] - 20) / 10


def gradients(network: nn.Module, loss: Any) -> list[Tensor]:
    value = loss(network, inputs_of(TARGETS), TARGETS)
    return list(torch.autograd.grad(value, list(network.parameters())))


def test_below_the_least_count_all_weigh_the_same() -> None:
    (stage,) = stages_of(weighted_capped.METHOD, exponent=1.0, least_count=10.0)
    weights = make(stage).weights(TARGETS)
    expected = TargetWeights.from_counts(DATASET.bins, COUNTS.clamp(min=10), scheme="inv")
    of_bins = [weights[target == TARGETS].unique().item() for target in TARGETS.unique()]
    assert of_bins[2] == of_bins[3] == of_bins[4]
    assert of_bins[0] < of_bins[1] < of_bins[2]
    ratio = weights / expected(TARGETS)
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))
    assert weights.mean() == pytest.approx(1)


def test_the_noise_is_of_each_filter_and_its_gradient_goes_to_the_weights() -> None:
    (stage,) = stages_of(random_perturbation.METHOD, noise_scale=0.3)
    network, loss = a_network(), make(stage)
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    found = gradients(network, loss)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
    moved = a_network()
    torch.manual_seed(5)
    with torch.no_grad():
        for layer in (moved[0], moved[3]):
            norms = layer.weight.norm(dim=1, keepdim=True)
            layer.weight += 0.3 * norms * torch.randn_like(layer.weight)
    loss.noise_scale = 0.0
    torch.testing.assert_close(found, gradients(moved, loss))
    assert network[1].num_batches_tracked == 1


def test_without_noise_it_is_the_weighted_loss() -> None:
    (noisy,) = stages_of(random_perturbation.METHOD, noise_scale=0.0)
    (plain,) = stages_of(weighted_capped.METHOD, least_count=1.0)
    torch.testing.assert_close(
        gradients(a_network(), make(noisy)), gradients(a_network(), make(plain))
    )


@pytest.mark.parametrize(("rise", "is_bound"), [(1e-3, False), (1e3, True)])
def test_the_radius_is_the_rise_over_the_norm_of_the_gradient(rise: float, is_bound: bool) -> None:
    rho_max = 0.5
    (stage,) = stages_of(bsam_loss_units.METHOD, rise=rise, rho_max=rho_max)
    loss, network = make(stage), a_network()
    norm = torch.cat([g.flatten() for g in gradients(a_network(), loss)]).norm().item()
    expected = rho_max if is_bound else rise / norm
    optimizer, _ = stage.optimizers(network, DATASET.recipe, loss)
    step(optimizer, network, loss)
    assert optimizer.param_groups[0]["rho"] == pytest.approx(expected)
    # The same step as with that radius from the start.
    other = a_network()
    base = torch.optim.SGD(other.parameters(), DATASET.recipe.lr, DATASET.recipe.momentum)
    base.param_groups[0]["weight_decay"] = DATASET.recipe.weight_decay
    step(BalancedSAM(other.parameters(), base, rho=expected), other, loss)
    torch.testing.assert_close(list(network.parameters()), list(other.parameters()))


def test_the_radius_where_nothing_rises_is_the_largest() -> None:
    (stage,) = stages_of(bsam_loss_units.METHOD, rho_max=0.5)
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0))
    optimizer, _ = stage.optimizers(network, DATASET.recipe, make(stage))

    def closure() -> Tensor:
        optimizer.zero_grad()
        error: Tensor = (0 * network(torch.ones(2, 1))).sum()
        error.backward()
        return error

    optimizer.step(closure)
    assert optimizer.param_groups[0]["rho"] == 0.5


def step(optimizer: Any, network: nn.Module, loss: Any) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        error: Tensor = loss(network, inputs_of(TARGETS), TARGETS)
        error.backward()
        return error

    optimizer.step(closure)


@pytest.mark.parametrize(
    ("method", "exponent"),
    [*itertools.product((weighted_balanced_head.METHOD, bsam_balanced_head.METHOD), (0.0, 1.0))],
)
def test_a_balanced_head_comes_after_a_weighted_network(method: Method, exponent: float) -> None:
    network, head = stages_of(method, exponent=exponent, balanced_mse_epochs=3)
    assert (network.part, network.epochs) == ("network", DATASET.recipe.epochs)
    assert (head.part, head.epochs) == ("head", 3)
    expected = TargetWeights.from_counts(DATASET.bins, COUNTS, scheme=exponent)
    torch.testing.assert_close(make(network).weights(TARGETS), expected(TARGETS))
    assert type(make(head)) is BMC
    optimizer, _ = network.optimizers(a_network(), DATASET.recipe, make(network))
    assert isinstance(optimizer, BalancedSAM) == (method is bsam_balanced_head.METHOD)


def splits_of(targets: Tensor) -> Splits:
    return Splits(UNUSED, UNUSED, UNUSED, targets, DATASET.bins.counts(targets), "")


def test_the_average_predicts_with_statistics_of_its_own() -> None:
    (stage,) = stages_of(averaged.METHOD, decay=0.15)
    network, loss = stage.network(a_network(), splits_of(TARGETS)), make(stage)
    optimizer, _ = stage.optimizers(network, DATASET.recipe, loss)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in trained] == [id(p) for p in network.network.parameters()]
    expected = copy.deepcopy(network.network)
    for number in range(3):
        now = copy.deepcopy(network.network)
        with torch.no_grad():
            for average, parameter in zip(expected.parameters(), now.parameters(), strict=True):
                decay = min(0.15, (1 + number) / (10 + number))
                average.copy_(decay * average + (1 - decay) * parameter)
            expected(inputs_of(TARGETS))
        step(optimizer, network, loss)
    expected.eval(), network.eval()
    inputs = inputs_of(torch.arange(30.0))
    torch.testing.assert_close(network(inputs), expected(inputs))
    assert not torch.allclose(network(inputs), network.network(inputs))
    assert network.network[1].num_batches_tracked == 3


def test_the_logarithm_is_learned_and_its_inverse_predicted() -> None:
    (stage,) = stages_of(log_target.METHOD, exponent=0.0)
    targets = TARGETS[TARGETS > 0]
    plain = a_network()
    network, loss = stage.network(plain, splits_of(targets)), make(stage)
    mean = targets.mean()
    inputs = inputs_of(targets)
    predictions = network(inputs)
    assert (predictions > 0).all()
    torch.testing.assert_close(predictions, mean * (plain(inputs) / mean - 1).exp())
    expected = mean * (predictions.log() - targets.log()).abs().mean()
    torch.testing.assert_close(loss(network, inputs, targets), expected)


def test_near_the_mean_the_logarithm_changes_nothing() -> None:
    constant = nn.Sequential(nn.Linear(1, 1), nn.Flatten(0))
    nn.init.zeros_(constant[0].weight)
    nn.init.constant_(constant[0].bias, 30.3)
    network = log_target.exponential(constant, splits_of(torch.tensor([20.0, 40.0])))
    assert network(torch.zeros(1, 1)).item() == pytest.approx(30.3, abs=0.002)


def test_a_batch_may_have_targets_without_a_logarithm_which_do_not_count() -> None:
    (stage,) = stages_of(log_target.METHOD)
    network, loss = stage.network(a_network(), splits_of(torch.tensor([20.0, 30.0]))), make(stage)
    inputs, targets = inputs_of(torch.arange(5.0)), torch.tensor([21.0, 0.0, 10.5, -1.0, 42.0])
    values = []
    for kept in (torch.arange(5), torch.tensor([0, 2, 4])):
        # Without the statistics of the other samples.
        network.eval()
        value = loss(network, inputs[kept], targets[kept])
        values.append([value, *torch.autograd.grad(value, list(network.parameters()))])
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("least", [0.0, -2.0])
def test_a_target_that_is_not_positive_has_no_logarithm(least: float) -> None:
    with pytest.raises(ValueError, match=f"positive training targets .* but got {least:g}"):
        log_target.exponential(a_network(), splits_of(torch.tensor([1.0, least])))
