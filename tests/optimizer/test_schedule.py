"""LambdaRho: a schedule of rho with the semantics of torch's LambdaLR."""

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from balanced_sam import BalancedSAM, LambdaRho

ONE_LINERS: dict[str, Callable[[int], float]] = {
    "warm_up": lambda t: min(1, (t + 1) / 5),
    "late_start": lambda t: float(t >= 4),
    "every_third_step": lambda t: float(t % 3 == 0),
}
LR_SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, T_max=10),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=0.3, total_steps=12),
}
every_one_liner = pytest.mark.parametrize("rho_lambda", ONE_LINERS.values(), ids=ONE_LINERS)
every_lr_scheduler = pytest.mark.parametrize(
    "lr_scheduler", LR_SCHEDULERS.values(), ids=LR_SCHEDULERS
)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def make_base(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def make_optimizer(model: nn.Module, *, rho: float = 0.4) -> BalancedSAM:
    return BalancedSAM(model.parameters(), make_base(model), rho=rho)


def two_groups(rhos: tuple[float, float] = (0.4, 0.2)) -> BalancedSAM:
    first, second = make_model()[0], make_model()[2]
    groups = [
        {"params": list(layer.parameters()), "rho": rho}
        for layer, rho in zip((first, second), rhos, strict=True)
    ]
    return BalancedSAM(groups, lambda params: SGD(params, lr=0.1))


class Closure:
    """A closure on the batch of the given step that counts its calls."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls = 0
        self.seed = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        generator = torch.Generator().manual_seed(self.seed)
        loss = self.model(torch.randn(5, 3, generator=generator)).square().mean()
        loss.backward()
        return loss


def half_of_the_norm(optimizer: Optimizer) -> Callable[[], Tensor]:
    """Return a closure on the parameters themselves."""

    def closure() -> Tensor:
        groups = optimizer.param_groups
        loss = sum(p.square().sum() / 2 for group in groups for p in group["params"])
        loss.backward()
        return loss

    return closure


def rhos(optimizer: Optimizer) -> list[float]:
    return [group["rho"] for group in optimizer.param_groups]


def take_step(optimizer: BalancedSAM, closure: Closure, *schedulers: LRScheduler) -> None:
    optimizer.step(closure)
    for scheduler in schedulers:
        scheduler.step()
    closure.seed += 1


def through_disk(state: dict[str, Any]) -> dict[str, Any]:
    """Save and load as a checkpoint file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@settings(max_examples=50, deadline=None)
@given(
    rho=st.floats(0, 1e3),
    factors=st.lists(st.floats(0, 1e3), min_size=1, max_size=12),
)
def test_rho_follows_its_function_as_lr_follows_that_of_lambda_lr(
    rho: float, factors: list[float]
) -> None:
    model = make_model()
    optimizer = make_optimizer(model, rho=rho)
    twin = SGD(make_model().parameters(), lr=rho)
    schedule = LambdaRho(optimizer, lambda t: factors[t])
    twin_schedule = LambdaLR(twin, lambda t: factors[t])
    closure = Closure(model)
    for i in range(len(factors)):
        assert rhos(optimizer) == [twin.param_groups[0]["lr"]] == [rho * factors[i]]
        if i + 1 < len(factors):
            optimizer.param_groups[0]["lr"] = 0.0
            take_step(optimizer, closure, schedule)
            twin.step()
            twin_schedule.step()


@every_one_liner
def test_factor_multiplies_the_initial_rho_not_the_present_one(
    rho_lambda: Callable[[int], float],
) -> None:
    model = make_model()
    optimizer = make_optimizer(model, rho=0.4)
    schedule = LambdaRho(optimizer, rho_lambda)
    closure = Closure(model)
    for t in range(8):
        assert rhos(optimizer) == [0.4 * rho_lambda(t)]
        take_step(optimizer, closure, schedule)


@every_one_liner
def test_step_whose_rho_is_zero_calls_the_closure_once(
    rho_lambda: Callable[[int], float],
) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    schedule = LambdaRho(optimizer, rho_lambda)
    closure = Closure(model)
    for t in range(8):
        closure.calls = 0
        take_step(optimizer, closure, schedule)
        assert closure.calls == (2 if rho_lambda(t) else 1)


def test_steps_before_a_late_start_are_those_of_the_base_optimizer() -> None:
    model, twin = make_model(), make_model()
    optimizer, base = make_optimizer(model), make_base(twin)
    schedule = LambdaRho(optimizer, lambda t: float(t >= 3))
    closure, twin_closure = Closure(model), Closure(twin)
    equal = []
    for _ in range(4):
        take_step(optimizer, closure, schedule)
        base.zero_grad()
        base.step(twin_closure)
        twin_closure.seed += 1
        pairs = zip(model.parameters(), twin.parameters(), strict=True)
        equal.append(all(torch.equal(mine, bare) for mine, bare in pairs))
    assert equal == [True, True, True, False]


def test_constant_factor_of_one_changes_nothing() -> None:
    model, twin = make_model(), make_model()
    optimizer, without = make_optimizer(model), make_optimizer(twin)
    schedule = LambdaRho(optimizer, lambda t: 1.0)
    closure, twin_closure = Closure(model), Closure(twin)
    for _ in range(4):
        take_step(optimizer, closure, schedule)
        take_step(without, twin_closure)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_one_function_serves_every_group_from_its_own_rho() -> None:
    optimizer = two_groups((0.4, 0.2))
    LambdaRho(optimizer, lambda t: 0.5)
    assert rhos(optimizer) == [0.2, 0.1]


@pytest.mark.parametrize("container", [list, tuple])
def test_one_function_a_group_serves_its_group(container: type) -> None:
    optimizer = two_groups((0.4, 0.2))
    schedule = LambdaRho(optimizer, container([lambda t: 1 / (t + 1), lambda t: float(t)]))
    assert rhos(optimizer) == [0.4, 0.0]
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.0
    optimizer.step()
    schedule.step()
    assert rhos(optimizer) == [0.2, 0.2]


def test_group_without_perturbation_stays_without() -> None:
    optimizer = two_groups((0.4, 0.0))
    LambdaRho(optimizer, lambda t: 3.0)
    assert rhos(optimizer) == [pytest.approx(1.2), 0.0]


def test_initial_rhos_are_kept_as_an_attribute() -> None:
    optimizer = two_groups((0.4, 0.2))
    assert LambdaRho(optimizer, lambda t: 0.0).base_rhos == [0.4, 0.2]


def test_factor_may_be_an_integer_or_a_tensor() -> None:
    optimizer = two_groups((0.4, 0.2))
    LambdaRho(optimizer, [lambda t: 2, lambda t: torch.tensor(2.0)])
    assert rhos(optimizer) == [0.8, 0.4]
    assert {type(rho) for rho in rhos(optimizer)} == {float}


def test_rho_changed_by_hand_holds_until_the_next_step_of_the_schedule() -> None:
    model = make_model()
    optimizer = make_optimizer(model, rho=0.4)
    schedule = LambdaRho(optimizer, lambda t: 0.5)
    optimizer.param_groups[0]["rho"] = 7.0
    optimizer.step(Closure(model))
    assert rhos(optimizer) == [7.0]
    schedule.step()
    assert rhos(optimizer) == [0.2]


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_learning_rate_stays_as_it_is(lr: float | Tensor) -> None:
    model = make_model()
    base = AdamW(model.parameters(), lr=lr, foreach=False)
    optimizer = BalancedSAM(model.parameters(), base)
    schedule = LambdaRho(optimizer, lambda t: 1 / (t + 1))
    closure = Closure(model)
    for _ in range(3):
        take_step(optimizer, closure, schedule)
        assert base.param_groups[0]["lr"] is lr
        assert schedule.get_last_lr() == [lr]


def test_learning_rate_changed_by_hand_is_left_alone() -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    schedule = LambdaRho(optimizer, lambda t: 1.0)
    closure = Closure(model)
    take_step(optimizer, closure, schedule)
    optimizer.param_groups[0]["lr"] = 0.025
    take_step(optimizer, closure, schedule)
    assert optimizer.param_groups[0]["lr"] == 0.025


@every_lr_scheduler
@pytest.mark.parametrize("rho_first", [True, False], ids=["rho_first", "lr_first"])
@pytest.mark.parametrize("step_rho_first", [True, False], ids=["step_rho_first", "step_lr_first"])
def test_learning_rate_schedule_runs_beside_it_in_either_order(
    lr_scheduler: Callable[[Optimizer], LRScheduler], rho_first: bool, step_rho_first: bool
) -> None:
    model = make_model()
    optimizer, alone = make_optimizer(model), make_base(make_model())
    if rho_first:
        schedule = LambdaRho(optimizer, ONE_LINERS["warm_up"])
        scheduler = lr_scheduler(optimizer)
    else:
        scheduler = lr_scheduler(optimizer)
        schedule = LambdaRho(optimizer, ONE_LINERS["warm_up"])
    expected = lr_scheduler(alone)
    closure = Closure(model)
    pair = (schedule, scheduler) if step_rho_first else (scheduler, schedule)
    for t in range(10):
        group, bare = optimizer.param_groups[0], alone.param_groups[0]
        assert (group["lr"], group["momentum"]) == (bare["lr"], bare["momentum"])
        assert group["rho"] == 0.4 * ONE_LINERS["warm_up"](t)
        take_step(optimizer, closure, *pair)
        alone.step()
        expected.step()
    assert scheduler.get_last_lr() == expected.get_last_lr()


def test_schedule_of_the_base_optimizer_serves_the_wrapper() -> None:
    model = make_model()
    base = make_base(model)
    optimizer = BalancedSAM(model.parameters(), base, rho=0.4)
    schedule = LambdaRho(base, lambda t: float(t % 2))
    closure = Closure(model)
    calls = []
    for _ in range(4):
        closure.calls = 0
        take_step(optimizer, closure, schedule)
        calls.append(closure.calls)
    assert calls == [1, 2, 1, 2]


def test_normal_order_of_calls_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    schedule = LambdaRho(optimizer, ONE_LINERS["every_third_step"])
    closure = Closure(model)
    for _ in range(4):
        take_step(optimizer, closure, schedule)
    assert schedule.last_epoch == 4
    assert list(recwarn) == []


def test_schedule_that_steps_before_the_optimizer_warns_as_torch_does() -> None:
    schedule = LambdaRho(make_optimizer(make_model()), lambda t: 1.0)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        schedule.step()


def test_group_added_later_starts_from_its_own_rho() -> None:
    model = make_model()
    optimizer = make_optimizer(model, rho=0.4)
    schedule = LambdaRho(optimizer, lambda t: 1 / (t + 1))
    closure = Closure(model)
    take_step(optimizer, closure, schedule)
    extra = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [extra], "rho": 0.3})
    assert rhos(optimizer) == [0.2, 0.3]
    take_step(optimizer, closure, schedule)
    assert rhos(optimizer) == [0.4 / 3, pytest.approx(0.1)]
    assert schedule.base_rhos == [0.4, 0.3]
    assert len(schedule.get_last_lr()) == 2


def test_group_added_later_without_a_rho_starts_from_the_default() -> None:
    model = make_model()
    optimizer = make_optimizer(model, rho=0.4)
    schedule = LambdaRho(optimizer, lambda t: 0.5)
    optimizer.base_optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    take_step(optimizer, Closure(model), schedule)
    assert rhos(optimizer) == [0.2, 0.2]


def test_group_added_later_is_served_by_the_last_of_several_functions() -> None:
    optimizer = two_groups((0.4, 0.2))
    schedule = LambdaRho(optimizer, [lambda t: 1.0, lambda t: 0.5])
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": 0.6, "lr": 0.0})
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    schedule.step()
    assert rhos(optimizer) == [0.4, 0.1, 0.3]


def test_state_dict_holds_no_function_and_loads_with_weights_only() -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    schedule = LambdaRho(optimizer, lambda t: 1 / (t + 1))
    take_step(optimizer, Closure(model), schedule)
    state = schedule.state_dict()
    assert not any(callable(value) for value in state.values())
    assert "optimizer" not in state
    loaded = through_disk(state)
    assert loaded == state
    assert (loaded["last_epoch"], loaded["base_rhos"]) == (1, [0.4])


def test_state_dict_leaves_the_schedule_able_to_step() -> None:
    model = make_model()
    optimizer = make_optimizer(model, rho=0.4)
    schedule = LambdaRho(optimizer, lambda t: 1 / (t + 1))
    schedule.state_dict()
    take_step(optimizer, Closure(model), schedule)
    assert rhos(optimizer) == [0.2]


def test_loading_leaves_the_given_state_as_it_is() -> None:
    schedule = LambdaRho(make_optimizer(make_model()), lambda t: 0.5)
    state = schedule.state_dict()
    before = copy.deepcopy(state)
    LambdaRho(make_optimizer(make_model(), rho=1.0), lambda t: 0.5).load_state_dict(state)
    assert state == before


def test_state_dict_is_not_changed_by_a_group_added_after_it() -> None:
    model = make_model()
    optimizer = make_optimizer(model, rho=0.4)
    schedule = LambdaRho(optimizer, lambda t: 0.5)
    state = schedule.state_dict()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    take_step(optimizer, Closure(model), schedule)
    assert state["base_rhos"] == [0.4]


def test_schedules_that_loaded_one_state_dict_are_independent() -> None:
    models = [make_model(), make_model()]
    optimizers = [make_optimizer(model, rho=0.4) for model in models]
    schedules = [LambdaRho(optimizer, lambda t: 0.5) for optimizer in optimizers]
    schedules[1].load_state_dict(schedules[0].state_dict())
    optimizers[0].add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    for model, optimizer, schedule in zip(models, optimizers, schedules, strict=True):
        take_step(optimizer, Closure(model), schedule)
    assert [rhos(optimizer) for optimizer in optimizers] == [[0.2, 0.2], [0.2]]


def resume(state: dict[str, Any], order: str, rho_lambda: Callable[[int], float]) -> list[Any]:
    """Build model, optimizer and schedules anew and load the checkpoint in the given order."""
    model = make_model()
    model.load_state_dict(state["model"])
    # Another rho and lr than the run's: the checkpoint must win.
    base = SGD(model.parameters(), lr=0.7, momentum=0.5)
    optimizer = BalancedSAM(model.parameters(), base, rho=0.9)
    if order == "created_after_the_optimizer_is_loaded":
        optimizer.load_state_dict(state["optimizer"])
    schedule = LambdaRho(optimizer, rho_lambda)
    if order == "loaded_before_the_optimizer":
        schedule.load_state_dict(state["schedule"])
        optimizer.load_state_dict(state["optimizer"])
    elif order == "loaded_after_the_optimizer":
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    else:
        schedule.load_state_dict(state["schedule"])
    return [model, optimizer, schedule]


@every_one_liner
@pytest.mark.parametrize("steps", [0, 1, 3, 6])
@pytest.mark.parametrize(
    "order",
    [
        "loaded_before_the_optimizer",
        "loaded_after_the_optimizer",
        "created_after_the_optimizer_is_loaded",
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(
    rho_lambda: Callable[[int], float], steps: int, order: str
) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    schedule = LambdaRho(optimizer, rho_lambda)
    closure = Closure(model)
    for _ in range(steps):
        take_step(optimizer, closure, schedule)
    state = through_disk(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
    )
    resumed, resumed_optimizer, resumed_schedule = resume(state, order, rho_lambda)
    resumed_closure = Closure(resumed)
    resumed_closure.seed = closure.seed
    for _ in range(4):
        assert rhos(resumed_optimizer) == rhos(optimizer)
        assert resumed_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        take_step(optimizer, closure, schedule)
        take_step(resumed_optimizer, resumed_closure, resumed_schedule)
    assert resumed_closure.calls > 0
    for mine, other in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, other)


@every_lr_scheduler
def test_resumed_run_with_a_learning_rate_schedule_equals_the_uninterrupted_one(
    lr_scheduler: Callable[[Optimizer], LRScheduler],
) -> None:
    rho_lambda = ONE_LINERS["warm_up"]
    model = make_model()
    optimizer = make_optimizer(model)
    schedulers = [lr_scheduler(optimizer), LambdaRho(optimizer, rho_lambda)]
    closure = Closure(model)
    for _ in range(3):
        take_step(optimizer, closure, *schedulers)
    state = through_disk(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in schedulers],
        }
    )
    resumed = make_model()
    resumed.load_state_dict(state["model"])
    resumed_optimizer = make_optimizer(resumed)
    resumed_schedulers = [lr_scheduler(resumed_optimizer), LambdaRho(resumed_optimizer, rho_lambda)]
    resumed_optimizer.load_state_dict(state["optimizer"])
    for scheduler, saved in zip(resumed_schedulers, state["schedulers"], strict=True):
        scheduler.load_state_dict(saved)
    resumed_closure = Closure(resumed)
    resumed_closure.seed = closure.seed
    for _ in range(4):
        assert (
            resumed_optimizer.state_dict()["param_groups"]
            == (optimizer.state_dict()["param_groups"])
        )
        take_step(optimizer, closure, *schedulers)
        take_step(resumed_optimizer, resumed_closure, *resumed_schedulers)
    for mine, other in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_loading_sets_rho_at_once() -> None:
    model = make_model()
    optimizer = make_optimizer(model, rho=0.4)
    schedule = LambdaRho(optimizer, lambda t: 1 / (t + 1))
    take_step(optimizer, Closure(model), schedule)
    other = make_optimizer(make_model(), rho=5.0)
    resumed = LambdaRho(other, lambda t: 1 / (t + 1))
    resumed.load_state_dict(schedule.state_dict())
    assert rhos(other) == [0.2]
    assert resumed.base_rhos == [0.4]


def test_resume_in_a_chain_of_schedules_keeps_the_rho_of_the_active_one() -> None:
    def chain(optimizer: BalancedSAM) -> SequentialLR:
        factors = (0.0, 5.0, 7.0)
        each = [LambdaRho(optimizer, lambda t, factor=factor: factor) for factor in factors]
        return SequentialLR(optimizer, each, milestones=[3, 5])

    for steps in range(7):
        model = make_model()
        optimizer = make_optimizer(model, rho=0.4)
        schedule = chain(optimizer)
        for _ in range(steps):
            take_step(optimizer, Closure(model), schedule)
        other = make_optimizer(make_model(), rho=0.4)
        resumed = chain(other)
        other.load_state_dict(through_disk(optimizer.state_dict()))
        resumed.load_state_dict(through_disk(schedule.state_dict()))
        assert rhos(other) == rhos(optimizer)


def test_resume_with_a_group_that_was_added_later_equals_the_uninterrupted_run() -> None:
    model, extra = make_model(), nn.Linear(3, 1)
    optimizer = make_optimizer(model, rho=0.4)
    schedule = LambdaRho(optimizer, lambda t: 1 / (t + 1))
    optimizer.add_param_group({"params": list(extra.parameters()), "rho": 0.3})
    closure = Closure(model)
    for _ in range(2):
        take_step(optimizer, closure, schedule)
    resumed = make_optimizer(make_model(), rho=0.9)
    resumed_schedule = LambdaRho(resumed, lambda t: 1 / (t + 1))
    resumed.add_param_group({"params": list(nn.Linear(3, 1).parameters())})
    resumed.load_state_dict(through_disk(optimizer.state_dict()))
    resumed_schedule.load_state_dict(through_disk(schedule.state_dict()))
    assert rhos(resumed) == rhos(optimizer) == [0.4 / 3, pytest.approx(0.1)]
    assert resumed_schedule.base_rhos == [0.4, 0.3]


def test_resume_between_adding_a_group_and_the_next_step_of_the_schedule_is_exact() -> None:
    model, extra = make_model(), nn.Linear(3, 1)
    optimizer = make_optimizer(model, rho=0.4)
    schedule = LambdaRho(optimizer, lambda t: 1 / (t + 1))
    closure = Closure(model)
    take_step(optimizer, closure, schedule)
    optimizer.add_param_group({"params": list(extra.parameters()), "rho": 0.3})
    resumed_model = make_model()
    resumed = make_optimizer(resumed_model, rho=0.9)
    resumed.add_param_group({"params": list(nn.Linear(3, 1).parameters())})
    resumed_schedule = LambdaRho(resumed, lambda t: 1 / (t + 1))
    resumed.load_state_dict(through_disk(optimizer.state_dict()))
    resumed_schedule.load_state_dict(through_disk(schedule.state_dict()))
    assert rhos(resumed) == rhos(optimizer)
    take_step(optimizer, closure, schedule)
    take_step(resumed, Closure(resumed_model), resumed_schedule)
    assert rhos(resumed) == rhos(optimizer)


def bare_optimizer() -> Optimizer:
    return make_base(make_model())


ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no_rho": (
        lambda: LambdaRho(bare_optimizer(), lambda t: 1.0),
        ValueError,
        r"Expected `optimizer` to have a `rho` in every parameter group, .*but got SGD\.",
    ),
    "no_optimizer": (
        lambda: LambdaRho(make_model(), lambda t: 1.0),
        TypeError,
        r"optimizer",
    ),
    "number_in_place_of_a_function": (
        lambda: LambdaRho(two_groups(), 0.5),
        TypeError,
        r"Expected `rho_lambda` to be callable, but got float",
    ),
    "number_among_the_functions": (
        lambda: LambdaRho(two_groups(), [lambda t: 1.0, 0.5]),
        TypeError,
        r"Expected `rho_lambda` to be callable, but got float",
    ),
    "too_few_functions": (
        lambda: LambdaRho(two_groups(), [lambda t: 1.0]),
        ValueError,
        r"Expected 2 lr_lambdas, but got 1",
    ),
    "no_functions": (
        lambda: LambdaRho(two_groups(), []),
        ValueError,
        r"Expected 2 lr_lambdas, but got 0",
    ),
    "negative_factor": (
        lambda: LambdaRho(two_groups(), lambda t: -1.0),
        ValueError,
        r"Expected `rho_lambda` to return a non-negative, finite factor, but got -1\.0",
    ),
    "infinite_factor": (
        lambda: LambdaRho(two_groups(), lambda t: float("inf")),
        ValueError,
        r"Expected `rho_lambda` to return a non-negative, finite factor, but got inf",
    ),
    "state_of_something_else": (
        lambda: LambdaRho(two_groups(), lambda t: 1.0).load_state_dict({"last_epoch": 3}),
        ValueError,
        r"Expected `state_dict` to be what `state_dict\(\)` of a LambdaRho returned",
    ),
    "nan_factor": (
        lambda: LambdaRho(two_groups(), lambda t: float("nan")),
        ValueError,
        r"Expected `rho_lambda` to return a non-negative, finite factor, but got nan",
    ),
}


@pytest.mark.parametrize(("build", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_input_is_an_error_that_names_it(
    build: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build()


def test_factor_that_turns_negative_later_is_an_error_at_that_step() -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    schedule = LambdaRho(optimizer, lambda t: 1.0 - t)
    closure = Closure(model)
    take_step(optimizer, closure, schedule)
    with pytest.raises(
        ValueError, match=r"Expected `rho_lambda` to return .* but got -1\.0 at step 2"
    ):
        take_step(optimizer, closure, schedule)


# Composed and restarted, as LambdaLR is


def test_schedules_in_sequence_start_from_the_same_initial_rho() -> None:
    optimizer = make_optimizer(make_model())
    schedules = [LambdaRho(optimizer, lambda t: 0.1), LambdaRho(optimizer, lambda t: 0.5 * (t + 1))]
    sequence = SequentialLR(optimizer, schedules, milestones=[3])
    seen = []
    for _ in range(5):
        seen.append(rhos(optimizer)[0])
        optimizer.step(half_of_the_norm(optimizer))
        sequence.step()
    assert seen == pytest.approx([0.04, 0.04, 0.04, 0.2, 0.4])


def test_schedules_in_a_chain_and_made_anew_start_from_the_initial_rho() -> None:
    optimizer = make_optimizer(make_model())
    for factor in (0.5, 0.1, 0.25):
        LambdaRho(optimizer, lambda t, factor=factor: factor)
        assert rhos(optimizer) == pytest.approx([0.4 * factor])


@pytest.mark.parametrize("fast_forward", ["last_epoch", "load_state_dict", "steps"])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_schedule_made_after_a_resume_goes_on(fast_forward: str) -> None:
    optimizer = make_optimizer(make_model())
    halving = LambdaRho(optimizer, lambda t: 0.5**t)
    for _ in range(3):
        optimizer.step(half_of_the_norm(optimizer))
        halving.step()
    assert rhos(optimizer) == [0.05]
    resumed = make_optimizer(make_model(), rho=0.9)
    resumed.load_state_dict(optimizer.state_dict())
    if fast_forward == "last_epoch":
        schedule = LambdaRho(resumed, lambda t: 0.5**t, last_epoch=2)
    else:
        schedule = LambdaRho(resumed, lambda t: 0.5**t)
        if fast_forward == "load_state_dict":
            schedule.load_state_dict(halving.state_dict())
        else:
            for _ in range(3):
                schedule.step()
    assert rhos(resumed) == [0.05]
    resumed.step(half_of_the_norm(resumed))
    schedule.step()
    assert rhos(resumed) == [0.025]


def test_popped_group_leaves_the_others_their_initial_rho() -> None:
    optimizer = two_groups()
    schedule = LambdaRho(optimizer, lambda t: 0.5**t)
    optimizer.param_groups.pop(0)
    optimizer.step(half_of_the_norm(optimizer))
    schedule.step()
    assert rhos(optimizer) == [0.1]


def test_checkpoint_of_the_bare_base_keeps_the_initial_rho() -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    schedule = LambdaRho(optimizer, lambda t: 0.5 ** (t + 1))
    bare = make_base(make_model()).state_dict()
    for loads in (optimizer, optimizer.base_optimizer):
        loads.load_state_dict(bare)
        take_step(optimizer, Closure(model), schedule)
    assert rhos(optimizer) == [0.05]


def square(w: Tensor) -> Tensor:
    loss = w.square().sum()
    loss.backward()
    return loss


def warm_up(optimizer: Optimizer) -> LRScheduler:
    """Return a schedule of lr that writes it down from ``initial_lr`` when it is made."""
    parts = [LinearLR(optimizer, 0.1, total_iters=3), ExponentialLR(optimizer, 0.9)]
    return SequentialLR(optimizer, parts, [3])


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["number", "tensor"])
def test_a_schedule_of_lr_made_later_starts_from_the_lr_that_there_was(kind: Any) -> None:
    seen, starts = [], []
    for has_rho in (False, True):
        w = nn.Parameter(torch.ones(2))
        optimizer = BalancedSAM([w], AdamW([w], lr=kind(0.1)))
        schedules = [LambdaRho(optimizer, lambda step: 0.5)] if has_rho else []
        schedules.append(warm_up(optimizer))
        for _ in range(6):
            seen.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step(partial(square, w))
            for schedule in schedules:
                schedule.step()
        starts.append(float(optimizer.param_groups[0]["initial_lr"]))
    assert seen[:6] == pytest.approx(seen[6:])
    # Not always 0.1: where it is a tensor, SequentialLR of torch 2.6 writes to it.
    assert starts[0] == pytest.approx(starts[1])


def test_rho_in_a_sequence_made_before_the_schedule_of_lr_leaves_lr_alone() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = BalancedSAM([w], SGD([w], lr=0.1))
    parts = [LambdaRho(optimizer, lambda step: 0.5), LambdaRho(optimizer, lambda step: 1.0)]
    schedules: list[LRScheduler] = [SequentialLR(optimizer, parts, [3])]
    schedules.append(LinearLR(optimizer, 0.1, total_iters=5))
    seen = []
    for _ in range(7):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step(partial(square, w))
        for schedule in schedules:
            schedule.step()
    assert seen == pytest.approx([0.01, 0.028, 0.046, 0.064, 0.082, 0.1, 0.1])
