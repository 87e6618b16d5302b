"""Every learning-rate scheduler of torch drives BalancedSAM as it drives the bare base."""

import contextlib
import copy
import inspect
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler, swa_utils
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from balanced_sam import BalancedSAM, frozen_running_stats

pytestmark = pytest.mark.works_with("scheduler")

STEPS = 8
METRICS = [3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0]
Scheduler = lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau
Build = Callable[[Optimizer], Scheduler]


def sequential(optimizer: Optimizer) -> Scheduler:
    first = lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=3)
    second = lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    return lr_scheduler.SequentialLR(optimizer, [first, second], milestones=[3])


def chained(optimizer: Optimizer) -> Scheduler:
    first = lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=3)
    second = lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    return lr_scheduler.ChainedScheduler([first, second], optimizer)


SCHEDULERS: dict[str, Build] = {
    "ChainedScheduler": chained,
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.8),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 5], gamma=0.3),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=STEPS + 1),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=6, power=2.0),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "SequentialLR": sequential,
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.4),
    "SWALR": lambda o: SWALR(o, swa_lr=0.02, anneal_epochs=4),
}
BASES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "AdamW": partial(AdamW, lr=0.01),
}
every_scheduler = pytest.mark.parametrize("build", SCHEDULERS.values(), ids=SCHEDULERS)
every_base = pytest.mark.parametrize("make_base", BASES.values(), ids=BASES)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def make_normalised_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def make_batches(count: int = STEPS) -> Tensor:
    return torch.randn(count, 6, 3, generator=torch.Generator().manual_seed(1))


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups, the second with a learning rate of its own."""
    return [
        {"params": list(model[0].parameters())},
        {"params": [*model[1].parameters(), *model[2].parameters()], "lr": 0.05},
    ]


def make_closure(model: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    return closure


def advance(scheduler: Scheduler, step: int) -> None:
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(METRICS[step])
    else:
        scheduler.step()


def options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return what schedulers set, and all else but the parameters and rho."""
    return [
        {name: value for name, value in group.items() if name not in ("params", "rho")}
        for group in optimizer.param_groups
    ]


def run(
    model: nn.Module, optimizer: Optimizer, scheduler: Scheduler, start: int = 0
) -> list[list[dict[str, Any]]]:
    """Train from batch ``start`` on; return the options of every step."""
    history = [options(optimizer)]
    for step, inputs in enumerate(make_batches()[start:], start):
        optimizer.step(make_closure(model, inputs))
        advance(scheduler, step)
        history.append(options(optimizer))
    return history


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_table_holds_every_scheduler_of_torch() -> None:
    modules = (lr_scheduler, swa_utils)
    classes = {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau))
        and not name.startswith("_")
    }
    assert set(SCHEDULERS) == classes - {"LRScheduler"}


@every_scheduler
def test_table_entry_makes_a_scheduler_that_changes_the_learning_rate(build: Build) -> None:
    model = make_model()
    optimizer = BASES["SGD"](groups_of(model))
    scheduler = build(optimizer)
    name = next(name for name, entry in SCHEDULERS.items() if entry is build)
    assert type(scheduler).__name__ == name
    rates = {options[0]["lr"] for options in run(model, optimizer, scheduler)}
    assert len(rates) > 1


@every_scheduler
@every_base
@pytest.mark.parametrize("on_base", [False, True], ids=["on_wrapper", "on_base"])
def test_options_are_those_of_the_bare_base_at_every_step(
    build: Build, make_base: Callable[[Any], Optimizer], on_base: bool
) -> None:
    model, twin = make_model(), make_model()
    optimizer = BalancedSAM(groups_of(model), make_base, rho=0.3)
    bare = make_base(groups_of(twin))
    scheduler = build(optimizer.base_optimizer if on_base else optimizer)
    expected = run(twin, bare, build(bare))
    assert run(model, optimizer, scheduler) == expected
    assert [group["rho"] for group in optimizer.param_groups] == [0.3, 0.3]
    assert not torch.equal(model[0].weight, twin[0].weight)


@every_scheduler
@pytest.mark.parametrize("on_base", [False, True], ids=["on_wrapper", "on_base"])
def test_steps_with_zero_rho_are_bit_equal_to_those_of_the_bare_base(
    build: Build, on_base: bool
) -> None:
    model, twin = make_model(), make_model()
    optimizer = BalancedSAM(groups_of(model), BASES["SGD"], rho=0.0)
    bare = BASES["SGD"](groups_of(twin))
    scheduler = build(optimizer.base_optimizer if on_base else optimizer)
    assert run(model, optimizer, scheduler) == run(twin, bare, build(bare))
    assert_same_weights(model, twin)


@every_scheduler
def test_scheduler_on_the_wrapper_and_on_the_base_take_the_same_steps(build: Build) -> None:
    models = [make_model(), make_model()]
    optimizers = [BalancedSAM(groups_of(model), BASES["SGD"], rho=0.3) for model in models]
    run(models[0], optimizers[0], build(optimizers[0]))
    run(models[1], optimizers[1], build(optimizers[1].base_optimizer))
    assert_same_weights(*models)


@every_scheduler
def test_manual_cycles_are_scheduled_as_steps_with_a_closure(build: Build) -> None:
    model, twin = make_model(), make_model()
    optimizer, other = (
        BalancedSAM(groups_of(each), BASES["SGD"], rho=0.3) for each in (model, twin)
    )
    scheduler, expected = build(optimizer), build(other)
    for step, inputs in enumerate(make_batches()):
        closure = make_closure(model, inputs)
        closure()
        with optimizer.perturbed():
            closure()
        optimizer.step()
        other.step(make_closure(twin, inputs))
        advance(scheduler, step)
        advance(expected, step)
    assert options(optimizer) == options(other)
    assert_same_weights(model, twin)


@every_scheduler
def test_run_resumed_from_a_checkpoint_equals_the_uninterrupted_one(build: Build) -> None:
    model = make_model()
    optimizer = BalancedSAM(groups_of(model), BASES["SGD"], rho=0.3)
    scheduler = build(optimizer)
    half = STEPS // 2
    for step, inputs in enumerate(make_batches()[:half]):
        optimizer.step(make_closure(model, inputs))
        advance(scheduler, step)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved_model, saved_optimizer = torch.load(file, weights_only=True)
    # The scheduler's own state stays in memory: torch's does not always load with weights_only.
    saved_scheduler = copy.deepcopy(scheduler.state_dict())
    expected = run(model, optimizer, scheduler, half)

    resumed_model = make_model()
    resumed = BalancedSAM(groups_of(resumed_model), BASES["SGD"], rho=0.9)
    resumed_scheduler = build(resumed)
    resumed_model.load_state_dict(saved_model)
    resumed.load_state_dict(saved_optimizer)
    resumed_scheduler.load_state_dict(saved_scheduler)
    assert run(resumed_model, resumed, resumed_scheduler, half) == expected
    assert_same_weights(resumed_model, model)


@every_scheduler
@pytest.mark.parametrize("on_base", [False, True], ids=["on_wrapper", "on_base"])
def test_step_hooks_of_either_optimizer_fire_once_a_scheduled_step(
    build: Build, on_base: bool
) -> None:
    model = make_model()
    optimizer = BalancedSAM(groups_of(model), BASES["SGD"], rho=0.3)
    fired: list[str] = []
    for name, each in (("wrapper", optimizer), ("base", optimizer.base_optimizer)):
        each.register_step_pre_hook(lambda *_, name=name: fired.append(f"before, {name}"))
        each.register_step_post_hook(lambda *_, name=name: fired.append(f"after, {name}"))
    run(model, optimizer, build(optimizer.base_optimizer if on_base else optimizer))
    once = ["before, wrapper", "before, base", "after, wrapper", "after, base"]
    assert fired == once * STEPS


@pytest.mark.parametrize("on_base", [False, True], ids=["on_wrapper", "on_base"])
def test_scheduler_that_steps_before_the_optimizer_warns_as_torch_does(on_base: bool) -> None:
    optimizer = BalancedSAM(groups_of(make_model()), BASES["SGD"])
    scheduler = SCHEDULERS["StepLR"](optimizer.base_optimizer if on_base else optimizer)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        advance(scheduler, 0)


def test_deepcopy_of_a_scheduled_optimizer_steps_its_own_parameters() -> None:
    model = make_model()
    optimizer = BalancedSAM(groups_of(model), BASES["SGD"], rho=0.3)
    scheduler = SCHEDULERS["StepLR"](optimizer)
    run(model, optimizer, scheduler)
    before = copy.deepcopy(model)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    twin_optimizer.step(make_closure(twin, make_batches()[0]))
    assert_same_weights(model, before)
    assert not torch.equal(twin[0].weight, model[0].weight)


def test_averaged_model_is_the_mean_of_the_weights_stepped_through() -> None:
    model = make_model()
    optimizer = BalancedSAM(groups_of(model), BASES["SGD"], rho=0.3)
    averaged = AveragedModel(model)
    swa = SCHEDULERS["SWALR"](optimizer)
    seen = []
    for inputs in make_batches():
        optimizer.step(make_closure(model, inputs))
        averaged.update_parameters(model)
        advance(swa, 0)
        seen.append(model[0].weight.detach().clone())
    assert averaged.n_averaged == STEPS
    torch.testing.assert_close(averaged.module[0].weight, torch.stack(seen).mean(0))


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.5)], ids=["swa", "ema"])
def test_averaging_with_zero_rho_is_bit_equal_to_that_of_the_bare_base(
    average: Callable[..., None] | None,
) -> None:
    averages = []
    for wrap in (True, False):
        model = make_normalised_model()
        groups, make_base = groups_of(model), BASES["SGD"]
        optimizer = BalancedSAM(groups, make_base, rho=0.0) if wrap else make_base(groups)
        averaged = AveragedModel(model, multi_avg_fn=average)
        swa = SCHEDULERS["SWALR"](optimizer)
        for step, inputs in enumerate(make_batches(3)):
            optimizer.step(make_closure(model, inputs))
            averaged.update_parameters(model)
            advance(swa, step)
        update_bn(make_batches(3), averaged)
        averages.append(averaged.state_dict())
    assert averages[0].keys() == averages[1].keys()
    for name, value in averages[0].items():
        assert torch.equal(value, averages[1][name]), name


AVERAGES: dict[str, Callable[..., None] | None] = {"swa": None, "ema": get_ema_multi_avg_fn(0.5)}


@pytest.mark.parametrize("fails_in", ["pass 1", "pass 2", "neither"])
@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_average_is_of_restored_weights_also_where_a_closure_fails(
    average: Callable[..., None] | None, fails_in: str
) -> None:
    model = make_model()
    optimizer = BalancedSAM(groups_of(model), BASES["SGD"], rho=0.3)
    averaged = AveragedModel(model, multi_avg_fn=average)
    # The base's hooks fire where the weights are restored: before its step, and after.
    restored: list[Tensor] = [model[0].weight.detach().clone()]
    optimizer.register_step_post_hook(lambda *_: restored.append(model[0].weight.detach().clone()))
    seen, perturbed = [], []
    for step, inputs in enumerate(make_batches()):
        closure = make_closure(model, inputs)

        def failing(step: int = step, closure: Callable[[], Tensor] = closure) -> Tensor:
            loss = closure()
            if optimizer.is_perturbed:
                perturbed.append(model[0].weight.detach().clone())
            if step % 3 == 1 and fails_in == ("pass 2" if optimizer.is_perturbed else "pass 1"):
                raise FloatingPointError
            return loss

        with contextlib.suppress(FloatingPointError):
            optimizer.step(failing)
        averaged.update_parameters(model)
        seen.append(restored[-1])
    assert len(restored) == 1 + STEPS - (0 if fails_in == "neither" else 3)
    expected = torch.stack(seen).mean(0)
    if average is not None:
        expected = seen[0]
        for weight in seen[1:]:
            expected = expected.lerp(weight, 0.5)
    torch.testing.assert_close(averaged.module[0].weight, expected)
    assert all(not torch.equal(weight, other) for weight in perturbed for other in seen)


def test_update_bn_after_frozen_steps_gives_the_statistics_of_the_averaged_model() -> None:
    model = make_normalised_model()
    optimizer = BalancedSAM(
        groups_of(model),
        BASES["SGD"],
        rho=0.3,
        descent_context=partial(frozen_running_stats, model),
    )
    averaged = AveragedModel(model)
    for inputs in make_batches(3):
        optimizer.step(make_closure(model, inputs))
        averaged.update_parameters(model)
    update_bn(make_batches(3), averaged)
    outputs = torch.stack([averaged.module[0](inputs) for inputs in make_batches(3)])
    layer = averaged.module[1]
    assert layer.num_batches_tracked == 3
    assert layer.momentum == 0.1
    torch.testing.assert_close(layer.running_mean, outputs.mean((0, 1)))
    assert model[1].num_batches_tracked == 3
