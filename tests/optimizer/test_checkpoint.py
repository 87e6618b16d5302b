"""Checkpoints: a run that is saved and resumed is the run that was not interrupted."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from balanced_sam import BalancedSAM, LambdaRho, frozen_running_stats, weighted_mean

pytestmark = pytest.mark.works_with("checkpoints")

BASES = {
    "sgd": partial(torch.optim.SGD, lr=0.05),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=1e-2),
}
bases = pytest.mark.parametrize("make_base", BASES.values(), ids=BASES.keys())


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def make_optimizer(model: nn.Sequential, make_base: Callable[..., Optimizer]) -> BalancedSAM:
    """Two groups with a rho each; the last bias is trained but never perturbed."""
    groups = [
        {"params": list(model[0].parameters()) + list(model[1].parameters()), "rho": 0.2},
        {"params": list(model[3].parameters())},
    ]
    perturbed = [p for p in model.parameters() if p is not model[3].bias]
    return BalancedSAM(perturbed, make_base(groups), rho=0.1)


def train(model: nn.Module, optimizer: BalancedSAM, steps: range, *schedulers: LRScheduler) -> None:
    """Take the steps of these numbers, each on its own batch."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y, q = (torch.rand(6, size, generator=generator) for size in (3, 1, 1))

        def closure(x: torch.Tensor = x, y: torch.Tensor = y, q: torch.Tensor = q) -> torch.Tensor:
            loss = weighted_mean((model(x) - y).square(), q + 0.1)
            loss.backward()
            return loss

        optimizer.step(closure)
        for scheduler in schedulers:
            scheduler.step()


def through_file(value: object) -> Any:
    """Return what torch.load reads of what torch.save writes, tensors and plain values only."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(left: Any, right: Any) -> None:
    """Assert that two nested containers are equal, tensors bit for bit."""
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def tensors_in(value: object) -> list[torch.Tensor]:
    """Return all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = list(value.values()) if isinstance(value, dict) else value
    return [t for v in values for t in tensors_in(v)] if isinstance(values, list) else []


@bases
def test_resumed_run_equals_the_uninterrupted_one(make_base: Callable[..., Optimizer]) -> None:
    def start(seed: int) -> tuple[nn.Module, BalancedSAM, LRScheduler, LRScheduler]:
        model = make_model(seed)
        optimizer = make_optimizer(model, make_base)
        schedule = CosineAnnealingLR(optimizer, T_max=12)
        return model, optimizer, schedule, LambdaRho(optimizer, lambda t: min(1.0, (t + 1) / 9))

    whole = start(0)
    train(whole[0], whole[1], range(12), *whole[2:])
    first = start(0)
    train(first[0], first[1], range(5), *first[2:])
    saved = through_file([part.state_dict() for part in first])
    second = start(1)
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    train(second[0], second[1], range(5, 12), *second[2:])
    for left, right in zip(whole, second, strict=True):
        assert_same(left.state_dict(), right.state_dict())


@bases
def test_state_dict_is_that_of_the_base_and_rho(make_base: Callable[..., Optimizer]) -> None:
    model = make_model()
    optimizer = make_optimizer(model, make_base)
    train(model, optimizer, range(3))
    plain = make_base([{"params": list(model[i].parameters())} for i in (0, 1, 3)]).state_dict()
    state = optimizer.state_dict()
    assert_same(state, optimizer.base_optimizer.state_dict())
    assert [group["rho"] for group in state["param_groups"]] == [0.2, 0.1]
    for group in state["param_groups"]:
        assert group.keys() - {"rho"} == plain["param_groups"][0].keys()


@bases
def test_state_dict_holds_no_tensor_but_the_bases(make_base: Callable[..., Optimizer]) -> None:
    model, plain_model = make_model(), make_model()
    optimizer, plain = make_optimizer(model, make_base), make_base(plain_model.parameters())
    train(model, optimizer, range(2))
    plain_model(torch.rand(6, 3)).sum().backward()
    plain.step()
    model(torch.rand(6, 3)).sum().backward()
    with optimizer.perturbed():
        inside = optimizer.state_dict()
    expected = sorted(tuple(t.shape) for t in tensors_in(plain.state_dict()))
    assert sorted(tuple(t.shape) for t in tensors_in(inside)) == expected
    assert sorted(tuple(t.shape) for t in tensors_in(optimizer.state_dict())) == expected


@bases
def test_checkpoint_of_the_bare_base_loads_and_keeps_each_rho(
    make_base: Callable[..., Optimizer],
) -> None:
    model = make_model()
    base = make_base([{"params": list(model[:3].parameters())}, {"params": model[3].parameters()}])
    model(torch.rand(6, 3)).sum().backward()
    base.step()
    saved = through_file(base.state_dict())
    optimizer = make_optimizer(make_model(1), make_base)
    optimizer.param_groups[0]["rho"] = 0.3
    optimizer.load_state_dict(saved)
    assert [group["rho"] for group in optimizer.param_groups] == [0.3, 0.1]
    assert_same(optimizer.state_dict()["state"], base.state_dict()["state"])


@bases
def test_checkpoint_loads_into_the_bare_base(make_base: Callable[..., Optimizer]) -> None:
    model = make_model()
    optimizer = make_optimizer(model, make_base)
    train(model, optimizer, range(3))
    twin = make_model(1)
    base = make_base([{"params": list(twin[:3].parameters())}, {"params": twin[3].parameters()}])
    base.load_state_dict(through_file(optimizer.state_dict()))
    assert_same(base.state_dict(), optimizer.state_dict())
    twin(torch.rand(6, 3)).sum().backward()
    base.step()


def test_checkpoint_brings_its_own_rho() -> None:
    optimizer = make_optimizer(make_model(), BASES["sgd"])
    other = make_optimizer(make_model(1), BASES["sgd"])
    optimizer.param_groups[1]["rho"] = 0.7
    other.load_state_dict(through_file(optimizer.state_dict()))
    assert [group["rho"] for group in other.param_groups] == [0.2, 0.7]


def test_checkpoint_of_a_bare_base_loaded_on_the_base_leaves_the_default_rho() -> None:
    model = make_model()
    optimizer = BalancedSAM(model.parameters(), torch.optim.SGD(model.parameters()), rho=0.3)
    plain = torch.optim.SGD(make_model().parameters())
    optimizer.base_optimizer.load_state_dict(plain.state_dict())
    train(model, optimizer, range(1))
    assert optimizer.param_groups[0]["rho"] == 0.3


def test_checkpoint_with_another_number_of_groups_raises() -> None:
    optimizer = make_optimizer(make_model(), BASES["sgd"])
    plain = torch.optim.SGD(make_model().parameters())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(plain.state_dict())


def pickled(value: Any) -> Any:
    """Return what pickle reads of what it writes."""
    return pickle.loads(pickle.dumps(value))


@bases
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_copied_optimizer_goes_on_as_the_original(
    copied: Callable[[Any], Any], make_base: Callable[..., Optimizer]
) -> None:
    model = make_model()
    optimizer = make_optimizer(model, make_base)
    train(model, optimizer, range(3))
    twin, twin_optimizer = copied((model, optimizer))
    assert type(twin_optimizer) is BalancedSAM
    assert_same(twin_optimizer.state_dict(), optimizer.state_dict())
    assert twin_optimizer.defaults == optimizer.defaults
    train(model, optimizer, range(3, 8))
    before = [p.detach().clone() for p in twin.parameters()]
    train(twin, twin_optimizer, range(3, 8))
    assert not any(map(torch.equal, before, twin.parameters()))
    assert_same(twin.state_dict(), model.state_dict())
    assert_same(twin_optimizer.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_copied_optimizer_perturbs_what_the_original_perturbs(
    copied: Callable[[Any], Any],
) -> None:
    original = make_model()
    model, optimizer = copied((original, make_optimizer(original, BASES["sgd"])))
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.rand(6, 3)).sum().backward()
    # The bias before a batch norm has a gradient of 0 up to rounding: it may move or not.
    with optimizer.perturbed():
        moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert [moved[i] for i in (3, 4, 5)] == [True, True, False]


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_copied_optimizer_keeps_its_contexts(copied: Callable[[Any], Any]) -> None:
    model = make_model()
    make_context = partial(frozen_running_stats, model)
    optimizer = BalancedSAM(
        model.parameters(), torch.optim.SGD(model.parameters()), descent_context=make_context
    )
    twin, twin_optimizer = copied((model, optimizer))
    train(twin, twin_optimizer, range(3))
    assert twin[1].num_batches_tracked.item() == 3
    assert model[1].num_batches_tracked.item() == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_copied_optimizer_shares_hooks_with_its_own_base(copied: Callable[[Any], Any]) -> None:
    original = make_model()
    model, optimizer = copied((original, make_optimizer(original, BASES["sgd"])))
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("wrapper"))
    optimizer.base_optimizer.register_step_post_hook(lambda *_: calls.append("base"))
    train(model, optimizer, range(1))
    assert calls == ["wrapper", "base"]


@pytest.mark.parametrize("on", ["wrapper", "base"])
def test_reload_at_prepare_time_leaves_schedulers_attached(on: str) -> None:
    model = make_model()
    optimizer = make_optimizer(model, BASES["momentum"])
    target = optimizer if on == "wrapper" else optimizer.base_optimizer
    learning_rate = OneCycleLR(target, max_lr=0.1, total_steps=10)
    rho = LambdaRho(target, lambda t: 1 / (t + 1))
    target.load_state_dict(target.state_dict())
    start = [group["lr"] for group in optimizer.param_groups]
    train(model, optimizer, range(3), learning_rate, rho)
    assert [group["lr"] for group in optimizer.param_groups] == learning_rate.get_last_lr()
    assert all(group["lr"] > lr for group, lr in zip(optimizer.param_groups, start, strict=True))
    assert [group["rho"] for group in optimizer.param_groups] == [0.2 / 4, 0.1 / 4]
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups
