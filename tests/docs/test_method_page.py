"""The page on the method: each block computes the equation above it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD

from balanced_sam import BalancedSAM, TargetWeights, weighted_mean
from tests.support.pages import OpenPage, Page


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page("method").run("TargetWeights")


def gradient(page: Page, w: Tensor) -> Tensor:
    """Return the gradient of the page's loss at the parameters w."""
    model = copy.deepcopy(page["model"])
    vector_to_parameters(w, model.parameters())
    gradients = torch.autograd.grad(page["balanced_loss"](model), list(model.parameters()))
    return torch.cat([g.flatten() for g in gradients])


def test_balanced_loss_is_the_mean_of_losses_by_the_root_of_the_count(page: Page) -> None:
    targets, model = page["targets"], page["model"]
    n = torch.bincount(targets.long(), minlength=10)[targets.long()]
    assert torch.allclose(page["weights"](targets), 1 / n.sqrt())
    expected = ((model(page["inputs"]) - targets).abs() / n.sqrt()).mean()
    assert torch.allclose(page["balanced_loss"](model), expected)


def test_perturbation_and_descent_are_those_of_the_equations(page: Page) -> None:
    model = page["model"]
    w = parameters_to_vector(model.parameters()).detach()
    page.run("optimizer.perturbed()")
    assert torch.equal(parameters_to_vector(model.parameters()), w)
    g = gradient(page, w)
    h = gradient(page, w + page["rho"] * g / g.norm())
    assert torch.allclose(torch.cat([p.grad.flatten() for p in model.parameters()]), h)
    page.run("optimizer.step()")
    assert torch.allclose(parameters_to_vector(model.parameters()), w - page["lr"] * h)


def test_step_with_a_closure_does_the_same(page: Page) -> None:
    model = copy.deepcopy(page["model"])
    page.run("optimizer.perturbed()", "optimizer.step()")
    base = SGD(model.parameters(), lr=page["lr"])

    def closure() -> Tensor:
        loss = page["balanced_loss"](model)
        loss.backward()
        return loss

    BalancedSAM(model.parameters(), base, rho=page["rho"]).step(closure)
    for ours, theirs in zip(model.parameters(), page["model"].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def trained(page: Page, weights: TargetWeights, lr: float, weight_decay: float) -> Tensor:
    """Return the parameters after ten steps of SGD with momentum."""
    torch.manual_seed(1)
    inputs, targets = page["inputs"].double(), page["targets"]
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double()
    base = SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    optimizer = BalancedSAM(model.parameters(), base, rho=0.2)

    def closure() -> Tensor:
        errors = (model(inputs) - targets.double()).square()
        loss = weighted_mean(errors, weights(targets).double())
        loss.backward()
        return loss

    for _ in range(10):
        optimizer.step(closure)
    return parameters_to_vector(model.parameters())


def test_raw_weights_train_as_weights_of_mean_one_with_another_rate_and_decay(page: Page) -> None:
    weights, targets = page["weights"], page["targets"]
    raw = trained(page, weights, lr=0.02, weight_decay=0.01)
    s = weights(targets).mean().item()
    unit = TargetWeights.from_targets(targets, weights.bins, scheme="sqinv")
    assert abs(unit(targets).mean().item() - 1) < 1e-6
    scaled = trained(page, unit, lr=0.02 * s, weight_decay=0.01 / s)
    assert torch.allclose(raw, scaled, rtol=1e-5)
    assert not torch.allclose(raw, trained(page, unit, lr=0.02, weight_decay=0.01), rtol=1e-3)
