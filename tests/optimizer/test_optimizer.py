"""The optimizer: against the oracle, and fact by fact of its contract."""

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from balanced_sam import BalancedSAM, LambdaRho, frozen_running_stats, weighted_mean
from support import reference

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW
MomentumSGD = partial(SGD, momentum=0.9, weight_decay=0.02, nesterov=True)

BASES = {
    "sgd": (SGD, reference.SGD, {}),
    "weight decay": (SGD, reference.SGD, {"weight_decay": 0.1}),
    "momentum": (SGD, reference.SGD, {"momentum": 0.9, "weight_decay": 0.02}),
    "dampening": (SGD, reference.SGD, {"momentum": 0.9, "dampening": 0.3}),
    "nesterov": (SGD, reference.SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.02}),
    "adam": (torch.optim.Adam, reference.Adam, {"weight_decay": 0.02}),
    "adamw": (AdamW, partial(reference.Adam, decoupled=True), {"weight_decay": 0.1}),
}


class RegressionNet(nn.Module):
    """The oracle's model."""

    def __init__(self, start: reference.Arrays, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.W, self.b, self.v, self.c = (nn.Parameter(torch.tensor(w, dtype=dtype)) for w in start)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.W.T + self.b) @ self.v + self.c

    def closure(self, samples: reference.Regression) -> Callable[[], Tensor]:
        """Return the closure of the balanced loss on these samples."""
        x, y, q = (torch.tensor(a, dtype=self.c.dtype) for a in (samples.x, samples.y, samples.q))

        def closure() -> Tensor:
            loss = weighted_mean((self(x) - y).square(), q)
            loss.backward()
            return loss

        return closure


def assert_close(parameters: Iterable[Tensor], expected: reference.Arrays) -> None:
    for parameter, array in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), array, rtol=1e-9, atol=1e-10)


def bits(tensors: Iterable[Tensor]) -> list[bytes]:
    """Return the values of tensors, bit for bit."""
    flat = [tensor.detach().contiguous().reshape(-1) for tensor in tensors]
    return [tensor.view(torch.uint8).numpy().tobytes() for tensor in flat]


def problem(dtype: torch.dtype = torch.float64) -> tuple[RegressionNet, Callable[[], Tensor]]:
    """Return a fresh model and its closure, the same at every call."""
    samples, start = reference.regression()
    model = RegressionNet(start, dtype)
    return model, model.closure(samples)


def counted(closure: Callable[[], Tensor], calls: list[bool], at: Callable[[], bool]) -> Any:
    """Return the closure, each call noting what ``at`` says."""

    def wrapper() -> Tensor:
        calls.append(at())
        return closure()

    return wrapper


# Against the oracle


@pytest.mark.works_with("optimizers")
@pytest.mark.parametrize(
    ("base", "balanced"),
    [*((base, True) for base in BASES), pytest.param("momentum", False, id="weights all one")],
)
def test_trajectory_equals_reference(base: str, balanced: bool) -> None:
    make_base, rule, options = BASES[base]
    samples, start = reference.regression()
    samples = samples if balanced else samples.weighted(np.ones(len(samples.q)))
    rules = [rule(lr=0.02, **options) for _ in start]
    run = reference.train(samples, start, rules, [0.1] * 4, steps=100)
    model = RegressionNet(start)
    optimizer = BalancedSAM(model.parameters(), partial(make_base, lr=0.02, **options), rho=0.1)
    closure = model.closure(samples)
    losses, sharpnesses = [], []
    for _ in range(100):
        losses.append(optimizer.step(closure).item())
        sharpnesses.append(optimizer.sharpness.item())
    assert_close(model.parameters(), run.weights)
    np.testing.assert_allclose(losses, run.losses, rtol=1e-9)
    np.testing.assert_allclose(sharpnesses, run.sharpnesses, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("base", ["sgd", "nesterov", "adamw"])
def test_groups_with_their_own_options_equal_reference(base: str) -> None:
    make_base, rule, options = BASES[base]
    samples, start = reference.regression(1)
    rhos, lrs = [0.3, 0.3, 0.0, 0.05], [0.01, 0.01, 0.03, 0.02]
    run = reference.train(samples, start, [rule(lr=lr, **options) for lr in lrs], rhos, steps=30)
    model = RegressionNet(start)
    groups = [
        {"params": [model.W, model.b], "rho": 0.3, "lr": 0.01},
        {"params": [model.v], "rho": 0.0, "lr": 0.03},
        {"params": [model.c]},
    ]
    optimizer = BalancedSAM(groups, partial(make_base, lr=0.02, **options), rho=0.05)
    closure = model.closure(samples)
    for _ in range(30):
        optimizer.step(closure)
    assert_close(model.parameters(), run.weights)


@pytest.mark.parametrize("base", ["sgd", "nesterov", "adamw"])
def test_left_out_tensors_are_trained_but_never_perturbed(base: str) -> None:
    make_base, rule, options = BASES[base]
    samples, start = reference.regression(2)
    rules = [rule(lr=0.02, **options) for _ in start]
    run = reference.train(samples, start, rules, [0.2, 0, 0.2, 0], steps=30)
    model = RegressionNet(start)
    base_optimizer = make_base(model.parameters(), lr=0.02, **options)
    optimizer = BalancedSAM([model.W, model.v], base_optimizer, rho=0.2)
    closure = model.closure(samples)
    for _ in range(30):
        optimizer.step(closure)
    assert_close(model.parameters(), run.weights)


def test_weights_in_neither_one_or_both_passes_equal_reference() -> None:
    samples, start = reference.regression(3)
    plain = samples.weighted(np.ones(len(samples.q)))
    results = []
    for ascent in (plain, samples):
        for descent in (plain, samples):
            rules = [reference.SGD(lr=0.05, momentum=0.9) for _ in start]
            run = reference.train(descent, start, rules, [0.3] * 4, steps=20, ascent=ascent)
            model = RegressionNet(start)
            optimizer = BalancedSAM(
                model.parameters(), partial(SGD, lr=0.05, momentum=0.9), rho=0.3
            )
            losses, sharpnesses = [], []
            for _ in range(20):
                loss = optimizer.step(model.closure(descent), ascent_closure=model.closure(ascent))
                losses.append(loss.item())
                sharpnesses.append(optimizer.sharpness.item())
            assert_close(model.parameters(), run.weights)
            np.testing.assert_allclose(losses, run.losses, rtol=1e-9)
            np.testing.assert_allclose(sharpnesses, run.sharpnesses, rtol=1e-8, atol=1e-12)
            results.append(model.W.detach().clone())
    assert all(
        not torch.allclose(left, right, rtol=1e-3)
        for i, left in enumerate(results)
        for right in results[:i]
    )


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 100))
def test_perturbation_ignores_the_scale_of_the_weights(scale: float, seed: int) -> None:
    samples, start = reference.regression(seed)
    seen: reference.Arrays = []
    rules = [reference.SGD(lr=0.02) for _ in start]
    run = reference.train(samples, start, rules, [0.2] * 4, steps=3, on_ascent=seen.extend)
    model = RegressionNet(start)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.02 / scale), rho=0.2)
    closure = model.closure(samples.weighted(samples.q * scale))
    passes: list[Tensor] = []

    def recording() -> Tensor:
        if optimizer.is_perturbed:
            passes.extend(p.detach().clone() for p in model.parameters())
        return closure()

    for _ in range(3):
        optimizer.step(recording)
    assert_close(passes, seen)
    assert_close(model.parameters(), run.weights)


def test_rho_changed_between_steps_equals_reference() -> None:
    samples, start = reference.regression(4)
    rules = [reference.SGD(lr=0.02, momentum=0.9) for _ in start]
    model = RegressionNet(start)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.02, momentum=0.9))
    weights = start
    for rho in (0.1, 0.5, 0.0, 0.25):
        weights = reference.train(samples, weights, rules, [rho] * 4, steps=3).weights
        optimizer.param_groups[0]["rho"] = rho
        for _ in range(3):
            optimizer.step(model.closure(samples))
        assert_close(model.parameters(), weights)


# The perturbation that the second call sees

gradients = st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=6), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(gradients=gradients, rho=st.floats(1e-3, 10), seed=st.integers(0, 1000))
def test_perturbation_has_length_rho_along_the_gradient(
    gradients: list[list[float]], rho: float, seed: int
) -> None:
    grads = [torch.tensor(gradient, dtype=torch.float64) for gradient in gradients]
    norm = torch.cat(grads).norm()
    assume(norm > 1e-6)
    torch.manual_seed(seed)
    parameters = [nn.Parameter(torch.randn_like(grad)) for grad in grads]
    before = [p.detach().clone() for p in parameters]
    optimizer = BalancedSAM(parameters, SGD, rho=rho)
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    with optimizer.perturbed():
        moves = [p.detach() - b for p, b in zip(parameters, before, strict=True)]
    assert torch.cat(moves).norm().item() == pytest.approx(rho, rel=1e-9)
    for move, grad in zip(moves, grads, strict=True):
        torch.testing.assert_close(move, rho * grad / norm, rtol=1e-9, atol=1e-12)
    assert bits(parameters) == bits(before)


def test_group_with_zero_rho_is_not_perturbed_and_not_in_the_norm() -> None:
    perturbed, still = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [perturbed], "rho": 5.0}, {"params": [still], "rho": 0.0}]
    optimizer = BalancedSAM(groups, SGD)
    perturbed.grad, still.grad = torch.tensor([3.0, 4.0]), torch.full((2,), 1e6)
    with optimizer.perturbed():
        assert perturbed.tolist() == [3.0, 4.0]
        assert still.tolist() == [1.0, 1.0]


def test_group_with_zero_rho_may_have_a_broken_gradient() -> None:
    perturbed, still = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [perturbed], "rho": 5.0}, {"params": [still], "rho": 0.0}]
    optimizer = BalancedSAM(groups, SGD)
    perturbed.grad, still.grad = torch.tensor([3.0, 4.0]), torch.full((2,), math.nan)
    with optimizer.perturbed():
        assert perturbed.tolist() == [3.0, 4.0]


# The weights come back bit for bit


@pytest.mark.filterwarnings("ignore:BalancedSAM perturbs weights stored in 16 bits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_are_bit_identical_after_1000_steps_with_zero_lr(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vector = nn.Parameter(torch.randn(7, dtype=dtype))
    image = nn.Parameter(torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last))
    parameters = [vector, image]
    before, addresses = bits(parameters), [p.data_ptr() for p in parameters]
    strides, seen = image.stride(), set()
    optimizer = BalancedSAM(parameters, partial(SGD, lr=0.0), rho=0.3)
    noise, calls = torch.randn(2120, dtype=dtype), itertools.count()

    def closure() -> float:
        if optimizer.is_perturbed:
            seen.add(bits([image])[0])
        start = next(calls)
        vector.grad = noise[start : start + 7].clone()
        image.grad = noise[start : start + 120].reshape(2, 3, 4, 5).clone()
        return 0.0

    for _ in range(1000):
        optimizer.step(closure)
    assert bits(parameters) == before
    assert [p.data_ptr() for p in parameters] == addresses
    assert image.stride() == strides
    assert len(seen) > 100
    assert before[1] not in seen


def test_negative_zeros_and_denormals_are_restored() -> None:
    values = [-0.0, 0.0, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38, 1.0]
    parameter = nn.Parameter(torch.tensor(values))
    before = bits([parameter])
    optimizer = BalancedSAM([parameter], partial(SGD, lr=0.0), rho=2.0)

    def closure() -> float:
        assert (bits([parameter]) != before) is optimizer.is_perturbed
        parameter.grad = torch.ones(8)
        return 0.0

    optimizer.step(closure)
    assert bits([parameter]) == before


PLACES = (
    "pass 1 before backward",
    "pass 1 after backward",
    "pass 2 before backward",
    "pass 2 after backward",
    "base step",
    "ascent context enter",
    "ascent context exit",
    "descent context enter",
    "descent context exit",
)


class Trap:
    """Raises once, at the place where it is set."""

    def __init__(self, place: str, error: type[BaseException]) -> None:
        self.place, self.error = place, error

    def __call__(self, place: str) -> None:
        if place == self.place:
            self.place = ""
            raise self.error(place)

    @contextlib.contextmanager
    def context(self, name: str) -> Iterator[None]:
        self(f"{name} enter")
        yield
        self(f"{name} exit")


@pytest.mark.filterwarnings("ignore:BalancedSAM.step.closure. clears the gradients")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("place", PLACES)
def test_exception_leaves_the_weights_and_a_working_optimizer(
    place: str, error: type[BaseException]
) -> None:
    trap = Trap(place, error)
    model, closure = problem()
    twin, twin_closure = problem()
    optimizer = BalancedSAM(
        model.parameters(),
        partial(MomentumSGD, lr=0.1),
        rho=0.2,
        ascent_context=partial(trap.context, "ascent context"),
        descent_context=partial(trap.context, "descent context"),
    )
    optimizer.register_step_pre_hook(lambda *_: trap("base step"))
    before = bits(model.parameters())

    def trapped() -> Tensor:
        number = "pass 2" if optimizer.is_perturbed else "pass 1"
        trap(f"{number} before backward")
        loss = closure()
        trap(f"{number} after backward")
        return loss

    with pytest.raises(error, match=place):
        optimizer.step(trapped)
    assert bits(model.parameters()) == before
    assert not optimizer.is_perturbed
    optimizer.step(trapped)
    BalancedSAM(twin.parameters(), partial(MomentumSGD, lr=0.1), rho=0.2).step(twin_closure)
    assert bits(model.parameters()) == bits(twin.parameters())


@pytest.mark.parametrize("place", ["pass 1", "pass 2", "base step"])
def test_gradients_left_by_an_exception_are_not_warned_of(place: str) -> None:
    trap = Trap(place, torch.OutOfMemoryError)
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    optimizer.register_step_pre_hook(lambda *_: trap("base step"))

    def trapped() -> Tensor:
        loss = closure()
        trap("pass 2" if optimizer.is_perturbed else "pass 1")
        return loss

    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step(trapped)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(trapped)
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_inside_perturbed_leaves_the_weights(error: type[BaseException]) -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.2)
    before = bits(model.parameters())
    closure()
    inside = []

    def fail() -> None:
        with optimizer.perturbed():
            inside.extend(bits(model.parameters()))
            raise error

    with pytest.raises(error):
        fail()
    assert inside != before
    assert bits(model.parameters()) == before
    assert not optimizer.is_perturbed
    with pytest.raises(RuntimeError, match="but got `step\\(\\)` alone"):
        optimizer.step()


# The closure


@pytest.mark.parametrize("rho", [0.1, 0.0])
def test_closure_is_called_twice_and_once_where_rho_is_zero(rho: float) -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=rho)
    calls: list[bool] = []
    optimizer.step(counted(closure, calls, lambda: optimizer.is_perturbed))
    assert calls == ([False, True] if rho else [False])


@pytest.mark.parametrize("make_base", [SGD, MomentumSGD, AdamW], ids=["sgd", "momentum", "adamw"])
def test_step_with_zero_rho_equals_base_optimizer(make_base: Callable[..., Optimizer]) -> None:
    model, closure = problem()
    twin, twin_closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(make_base, lr=0.1), rho=0)
    base = make_base(twin.parameters(), lr=0.1)
    for _ in range(10):
        loss = optimizer.step(closure)
        assert optimizer.sharpness.item() == 0
        base.zero_grad()
        assert bits([loss]) == bits([base.step(twin_closure)])
        assert bits(model.parameters()) == bits(twin.parameters())


def test_closure_may_clear_the_gradients_or_not() -> None:
    results = []
    for set_to_none in (None, True, False):
        model, closure = problem()
        optimizer = BalancedSAM(model.parameters(), partial(MomentumSGD, lr=0.1), rho=0.2)

        def clearing(
            closure: Callable[[], Tensor] = closure,
            optimizer: BalancedSAM = optimizer,
            set_to_none: bool | None = set_to_none,
        ) -> Tensor:
            if set_to_none is not None:
                optimizer.zero_grad(set_to_none=set_to_none)
            return closure()

        for _ in range(5):
            optimizer.step(clearing)
        results.append(bits(model.parameters()))
    assert results[0] == results[1] == results[2]


def test_sharpness_of_losses_that_are_floats_is_not_rounded() -> None:
    w = parameter(1)
    optimizer = BalancedSAM([w], SGD([w], lr=0.0))
    losses = [1.0, 1.0 + 1e-12]

    def closure() -> float:
        w.sum().backward()
        return losses[optimizer.is_perturbed]

    torch.set_default_dtype(torch.bfloat16)
    try:
        optimizer.step(closure)
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.sharpness.item() == losses[1] - losses[0]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_there_is_no_sharpness_after_an_exception(fails_at: int) -> None:
    w = parameter(1)
    optimizer = BalancedSAM([w], SGD([w], lr=0.1))
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2 + fails_at:
            raise MemoryError
        loss = w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.sharpness > 0
    with pytest.raises(MemoryError):
        optimizer.step(closure)
    assert optimizer.sharpness is None


def test_there_is_no_sharpness_after_a_manual_cycle() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.5)
    optimizer.step(closure)
    optimizer.zero_grad()
    closure()
    with optimizer.perturbed():
        closure()
    optimizer.step()
    assert optimizer.sharpness is None


def test_loss_and_sharpness_are_detached_scalars() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.2)
    assert optimizer.sharpness is None
    loss = optimizer.step(lambda: closure().reshape(1))
    assert not loss.requires_grad
    assert not optimizer.sharpness.requires_grad
    assert optimizer.sharpness.shape == ()


def test_loss_is_kept_when_the_closure_writes_over_it() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.2)
    buffer = torch.zeros((), dtype=torch.float64)
    values: list[float] = []

    def closure_with_buffer() -> Tensor:
        buffer.copy_(closure().detach())
        values.append(buffer.item())
        return buffer

    loss = optimizer.step(closure_with_buffer)
    assert loss.item() == values[0]
    assert optimizer.sharpness.item() == values[1] - values[0]
    assert values[0] != values[1]


def test_closure_may_return_a_number() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.2)
    values: list[float] = []

    def numeric() -> float:
        values.append(closure().item())
        return values[-1]

    assert optimizer.step(numeric) == values[0]
    assert optimizer.sharpness.item() == pytest.approx(values[1] - values[0], rel=1e-4)


@pytest.mark.works_with("micro-batches")
def test_micro_batches_in_the_closure_equal_one_batch() -> None:
    samples, start = reference.regression(5)
    model, twin = RegressionNet(start), RegressionNet(start)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.2)
    halves = [
        model.closure(reference.Regression(samples.x[part], samples.y[part], samples.q[part] / 2))
        for part in (slice(0, 6), slice(6, 12))
    ]
    for _ in range(5):
        optimizer.step(lambda: sum(half().detach() for half in halves))
    twin_optimizer = BalancedSAM(twin.parameters(), partial(SGD, lr=0.1), rho=0.2)
    for _ in range(5):
        twin_optimizer.step(twin.closure(samples))
    assert_close(model.parameters(), [p.detach().numpy() for p in twin.parameters()])


def test_step_works_under_no_grad() -> None:
    model, closure = problem()
    twin, twin_closure = problem()
    with torch.no_grad():
        BalancedSAM(model.parameters(), partial(SGD, lr=0.1)).step(closure)
    BalancedSAM(twin.parameters(), partial(SGD, lr=0.1)).step(twin_closure)
    assert bits(model.parameters()) == bits(twin.parameters())


# Contexts


@pytest.mark.parametrize("rho", [0.1, 0.0])
def test_contexts_wrap_one_call_each_and_none_in_a_step_of_one_pass(rho: float) -> None:
    model, closure = problem()
    events: list[str] = []

    @contextlib.contextmanager
    def context(name: str) -> Iterator[None]:
        events.append(f"enter {name}")
        yield
        events.append(f"exit {name}")

    optimizer = BalancedSAM(
        model.parameters(),
        partial(SGD, lr=0.1),
        rho=rho,
        ascent_context=partial(context, "ascent"),
        descent_context=partial(context, "descent"),
    )

    def recording() -> Tensor:
        events.append("perturbed" if optimizer.is_perturbed else "clean")
        return closure()

    optimizer.step(recording)
    two = "enter ascent, clean, exit ascent, enter descent, perturbed, exit descent"
    assert ", ".join(events) == (two if rho else "clean")


# Manual loops


@pytest.mark.parametrize("make_base", [SGD, MomentumSGD, AdamW], ids=["sgd", "momentum", "adamw"])
def test_manual_loop_equals_step_with_closure(make_base: Callable[..., Optimizer]) -> None:
    model, closure = problem()
    twin, twin_closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(make_base, lr=0.1), rho=0.2)
    twin_optimizer = BalancedSAM(twin.parameters(), partial(make_base, lr=0.1), rho=0.2)
    for _ in range(5):
        closure()
        assert not optimizer.is_perturbed
        with optimizer.perturbed():
            assert optimizer.is_perturbed
            assert all(p.grad is None for p in model.parameters())
            closure()
        assert not optimizer.is_perturbed
        assert optimizer.step() is None
        optimizer.zero_grad()
        twin_optimizer.step(twin_closure)
        assert bits(model.parameters()) == bits(twin.parameters())


def test_bare_step_needs_a_manual_cycle_each_time() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    closure()
    with optimizer.perturbed():
        closure()
    optimizer.step()
    with pytest.raises(RuntimeError, match="but got `step\\(\\)` alone"):
        optimizer.step()


def test_step_with_closure_in_place_of_the_end_of_a_manual_cycle_raises() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    closure()
    with optimizer.perturbed():
        closure()
    with pytest.raises(RuntimeError, match="without a closure after a `perturbed\\(\\)` block"):
        optimizer.step(closure)
    optimizer.zero_grad()
    optimizer.step(closure)
    with pytest.raises(RuntimeError, match="but got `step\\(\\)` alone"):
        optimizer.step()


def test_step_with_closure_after_a_manual_cycle_is_not_warned_of() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    closure()
    with optimizer.perturbed():
        closure()
    optimizer.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(closure)
    assert caught == []


def test_second_optimizer_over_the_same_parameters_is_not_warned_of() -> None:
    model, closure = problem()
    BalancedSAM(model.parameters(), partial(SGD, lr=0.1)).step(closure)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        BalancedSAM(model.parameters(), partial(SGD, lr=0.1)).step(closure)
    assert caught == []


def test_step_hook_under_a_scaler_clips_unscaled_gradients_for_a_fused_base() -> None:
    weights = []
    for fused in (False, True):
        model, closure = problem()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1, fused=fused), rho=0.1)

        def clip(optimizer: Any, args: Any, kwargs: Any) -> None:
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.01)

        def scaled(closure: Any = closure, model: Any = model, scaler: Any = scaler) -> Tensor:
            loss = closure()
            for parameter in model.parameters():
                parameter.grad *= scaler.get_scale()
            scaler.scale(loss.detach())
            return loss.detach()

        optimizer.register_step_pre_hook(clip)
        optimizer.step(scaled, scaler=scaler)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])


def test_a_cycle_whose_end_failed_has_ended() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    closure()
    with optimizer.perturbed():
        closure()

    def fail() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(fail)
    with pytest.raises(RuntimeError, match="but got `step\\(\\)` alone"):
        optimizer.step()


def test_sharpness_of_half_precision_losses_is_a_float32_difference() -> None:
    weight = torch.nn.Parameter(torch.tensor([100.0]))
    optimizer = BalancedSAM([weight], partial(SGD, lr=0.1), rho=0.5)

    def closure() -> Tensor:
        loss = weight.bfloat16().square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.sharpness is not None
    assert optimizer.sharpness.dtype is torch.float32


def test_bare_step_is_allowed_where_every_lr_is_zero() -> None:
    model, _ = problem()
    optimizer = BalancedSAM(model.parameters(), partial(AdamW, lr=torch.tensor(0.0)))
    before = bits(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert len(optimizer.state) == 4
    assert bits(model.parameters()) == before


def test_calls_inside_perturbed_raise_and_leave_the_block_intact() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    before = bits(model.parameters())
    closure()
    with optimizer.perturbed():
        inside = bits(model.parameters())
        with pytest.raises(RuntimeError, match="after both passes, but got it inside a closure"):
            optimizer.step(closure)
        with (
            pytest.raises(RuntimeError, match="after both passes, but got it inside a closure"),
            optimizer.perturbed(),
        ):
            pass
        with pytest.raises(RuntimeError, match="but got it inside"):
            optimizer.step()
        assert optimizer.is_perturbed
        assert bits(model.parameters()) == inside
        closure()
    assert bits(model.parameters()) == before
    optimizer.step()


# Construction


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


w = parameter(2)
frozen = nn.Parameter(torch.ones(2), requires_grad=False)
built = partial(SGD, [w], lr=0.1)

CONSTRUCTIONS: dict[str, Callable[[], BalancedSAM]] = {
    "built": lambda: BalancedSAM([w], built(), rho=0.3),
    "class": lambda: BalancedSAM([w], SGD, rho=0.3),
    "partial": lambda: BalancedSAM([w], partial(SGD, lr=0.1), rho=0.3),
    "function": lambda: BalancedSAM([w], lambda params: SGD(params, lr=0.1), rho=0.3),
    "generator beside built": lambda: BalancedSAM((p for p in [w]), built(), rho=0.3),
    "generator to class": lambda: BalancedSAM((p for p in [w]), SGD, rho=0.3),
    "named beside built": lambda: BalancedSAM(iter([("w", w)]), built(), rho=0.3),
    "named to class": lambda: BalancedSAM([("w", w)], SGD, rho=0.3),
    "group dict": lambda: BalancedSAM([{"params": [w], "rho": 0.3}], SGD),
    "named group dict": lambda: BalancedSAM([{"params": [("w", w)], "rho": 0.3}], SGD),
    "group of built": lambda: BalancedSAM([w], SGD([{"params": [w], "rho": 0.3}])),
    "frozen not trained": lambda: BalancedSAM([frozen, w], built(), rho=0.3),
    "frozen trained": lambda: BalancedSAM([frozen, w], SGD([w, frozen]), rho=0.3),
    "frozen to class": lambda: BalancedSAM([w, frozen], SGD, rho=0.3),
}


@pytest.mark.parametrize("construct", CONSTRUCTIONS.values(), ids=CONSTRUCTIONS.keys())
def test_every_construction_perturbs_by_its_rho(construct: Callable[[], BalancedSAM]) -> None:
    optimizer = construct()
    assert optimizer.param_groups[0]["rho"] == 0.3
    w.grad = torch.tensor([3.0, 4.0])
    with optimizer.perturbed():
        torch.testing.assert_close(w.data, torch.tensor([1.18, 1.24]))
        w.grad = torch.ones(2)
    assert w.tolist() == [1.0, 1.0]
    w.grad = None


class ClosureOnly(SGD):
    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]
        return closure()


many = [parameter(i) for i in range(1, 8)]

ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "negative rho": (
        lambda: BalancedSAM([w], SGD, rho=-1),
        ValueError,
        r"^Expected `rho` to be non-negative and finite, but got rho=-1\.$",
    ),
    "rho NaN": (
        lambda: BalancedSAM([w], SGD, rho=math.nan),
        ValueError,
        r"non-negative and finite, but got rho=nan",
    ),
    "rho infinite": (
        lambda: BalancedSAM([w], SGD, rho=math.inf),
        ValueError,
        r"non-negative and finite, but got rho=inf",
    ),
    "rho a string": (
        lambda: BalancedSAM([w], SGD, rho="0.1"),  # type: ignore[arg-type]
        TypeError,
        r"Expected `rho` to be a number, but got str",
    ),
    "negative rho in a group": (
        lambda: BalancedSAM([{"params": [w], "rho": -0.5}], SGD),
        ValueError,
        r"but got rho=-0\.5",
    ),
    "NaN rho in a group of a built base": (
        lambda: BalancedSAM([w], SGD([{"params": [w], "rho": math.nan}])),
        ValueError,
        r"but got rho=nan",
    ),
    "list for a later group": (
        lambda: BalancedSAM([w], SGD).add_param_group([parameter(1)]),  # type: ignore[arg-type]
        TypeError,
        r"Expected `param_group` to be dict, but got list",
    ),
    "negative rho in an added group": (
        lambda: BalancedSAM([w], SGD).add_param_group({"params": [parameter(1)], "rho": -2.0}),
        ValueError,
        r"but got rho=-2\.0",
    ),
    "NaN rho in an added group": (
        lambda: BalancedSAM([w], SGD).add_param_group({"params": [parameter(1)], "rho": math.nan}),
        ValueError,
        r"but got rho=nan",
    ),
    "one tensor": (
        lambda: BalancedSAM(w, SGD),
        TypeError,
        r"should be an iterable of Tensors or dicts, but got torch\.FloatTensor",
    ),
    "one tensor beside a built base": (
        lambda: BalancedSAM(w, built()),
        TypeError,
        r"Expected `params` to be an iterable of tensors, but got a tensor",
    ),
    "base with a rho of its own": (
        lambda: BalancedSAM([w], torch.optim.Adadelta),
        ValueError,
        r"to have no option `rho` yet, but got Adadelta with rho=0\.9",
    ),
    "base that is wrapped already": (
        lambda: BalancedSAM([w], BalancedSAM([w], SGD([w], lr=0.1)).base_optimizer),
        ValueError,
        r"to have no option `rho` yet, but got SGD with rho=0\.05",
    ),
    "only frozen tensors that the base does not hold": (
        lambda: BalancedSAM([torch.zeros(2)], SGD([w], lr=0.1)),
        ValueError,
        r"to hold tensors that the base optimizer trains, but got 1 it does not, of shapes \(2,\)",
    ),
    "no tensor": (
        lambda: BalancedSAM([], built()),
        ValueError,
        r"to hold tensors that the base optimizer trains, but got none at all",
    ),
    "a generator that the base has read": (
        lambda: BalancedSAM(params := iter([w]), SGD(params, lr=0.1)),
        ValueError,
        r"but got none at all \(a generator can be read once: call `model\.parameters\(\)` again",
    ),
    "a number among the tensors": (
        lambda: BalancedSAM([w, 3], built()),  # type: ignore[list-item]
        TypeError,
        r"Expected `params` to hold tensors, but got int",
    ),
    "group dict beside a built base": (
        lambda: BalancedSAM([{"params": [w], "rho": 0.1}], built()),
        ValueError,
        r"but got a group dict: options such as `rho` belong in the base's own groups",
    ),
    "tensor that the base does not train": (
        lambda: BalancedSAM([w, parameter(3, 4), parameter()], built()),
        ValueError,
        r"but got 2 it does not, of shapes \(3, 4\), \(\)\.",
    ),
    "seven tensors that the base does not train": (
        lambda: BalancedSAM([w, *many], built()),
        ValueError,
        r"but got 7 it does not, of shapes \(1,\), .*, \(5,\)\.",
    ),
    "base neither optimizer nor callable": (
        lambda: BalancedSAM([w], "SGD"),  # type: ignore[arg-type]
        TypeError,
        r"to be a torch\.optim\.Optimizer with .*, or a callable that makes one.*but got str",
    ),
    "callable that returns no optimizer": (
        lambda: BalancedSAM([w], lambda params: list(params)),  # type: ignore[arg-type,return-value]
        TypeError,
        r"or a callable that makes one of `params`, but got list",
    ),
    "options of the base": (
        lambda: BalancedSAM([w], SGD, lr=0.1, momentum=0.9),  # type: ignore[arg-type]
        TypeError,
        r"but got lr, momentum: give the base optimizer its own, as in .*partial\(AdamW, lr=0\.001",
    ),
    "LBFGS": (
        lambda: BalancedSAM([w], torch.optim.LBFGS),
        TypeError,
        r"to step without a closure, but LBFGS\.step requires one",
    ),
    "base that wants a closure": (
        lambda: BalancedSAM([w], ClosureOnly([w])),
        TypeError,
        r"to step without a closure, but ClosureOnly\.step requires one",
    ),
    "BalancedSAM in BalancedSAM": (
        lambda: BalancedSAM([w], BalancedSAM([w], SGD)),
        ValueError,
        r"to have no option `rho` yet, but got BalancedSAM with rho=0\.05",
    ),
    "class of BalancedSAM in BalancedSAM": (
        lambda: BalancedSAM([w], partial(BalancedSAM, base_optimizer=SGD)),
        ValueError,
        r"to have no option `rho` yet, but got BalancedSAM with rho=0\.05",
    ),
    "closure that returns nothing": (
        lambda: BalancedSAM([w], SGD).step(lambda: w.sum().backward()),
        TypeError,
        r"returns the loss, one number, but it returned NoneType",
    ),
    "closure that returns a vector": (
        lambda: BalancedSAM([w], SGD).step(lambda: torch.ones(2, 3)),
        TypeError,
        r"returns the loss, one number, but it returned shape \(2, 3\)",
    ),
    "perturbed without gradients": (
        lambda: BalancedSAM([w], SGD).perturbed().__enter__(),
        ValueError,
        r"Expected gradients before a `perturbed\(\)` block, but no parameter has one",
    ),
    "bare step": (
        lambda: BalancedSAM([w], SGD).step(),
        RuntimeError,
        r"but got `step\(\)` alone: a step with a rho above 0 evaluates the loss twice",
    ),
    "bare step where one lr is not 0": (
        lambda: BalancedSAM(
            [{"params": [w], "lr": 0.0}, {"params": [parameter(1)], "lr": 0.1}], SGD
        ).step(),
        RuntimeError,
        r"but got `step\(\)` alone",
    ),
}


@pytest.mark.works_with("optimizers")
@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_misuse_raises(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf, "0.1"])
def test_step_rejects_a_rho_set_in_a_group_before_anything_moves(rho: object) -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), SGD)
    before, calls = bits(model.parameters()), []
    optimizer.param_groups[0]["rho"] = rho
    with pytest.raises((ValueError, TypeError), match="Expected `rho` to be"):
        optimizer.step(counted(closure, calls, lambda: optimizer.is_perturbed))
    assert calls == []
    assert bits(model.parameters()) == before


def test_rejected_group_is_not_added() -> None:
    optimizer = BalancedSAM([parameter(2)], SGD)
    with pytest.raises(ValueError, match="but got rho=-1"):
        optimizer.add_param_group({"params": [parameter(1)], "rho": -1})
    assert len(optimizer.param_groups) == 1


# Groups, state and options are the base's own


@pytest.mark.parametrize("on", ["wrapper", "base"])
def test_group_added_later_has_its_own_rho_or_the_default(on: str) -> None:
    first, second, third = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    left_out = nn.Parameter(torch.zeros(1))
    optimizer = BalancedSAM([first], SGD([first, left_out]), rho=0.4)
    target = optimizer if on == "wrapper" else optimizer.base_optimizer
    target.add_param_group({"params": [second]})
    target.add_param_group({"params": [third], "rho": 0.6})
    assert [group["rho"] for group in optimizer.param_groups] == [0.4, 0.4, 0.6]
    parameters = (first, second, third, left_out)
    for added in parameters:
        added.grad = torch.ones(1)
    with optimizer.perturbed():
        moves = torch.cat([p.detach() for p in parameters])
    expected = torch.tensor([0.4, 0.4, 0.6, 0]) / math.sqrt(3)
    torch.testing.assert_close(moves, expected)


def test_groups_state_and_defaults_are_the_bases_own() -> None:
    model, closure = problem()
    base = AdamW(model.parameters(), lr=0.1)
    optimizer = BalancedSAM(model.parameters(), base, rho=0.2)
    assert optimizer.base_optimizer is base
    for _ in range(2):
        optimizer.step(closure)
        assert optimizer.param_groups is base.param_groups
        assert optimizer.state is base.state
        assert optimizer.defaults is base.defaults
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.defaults == {**AdamW(model.parameters(), lr=0.1).defaults, "rho": 0.2}
    assert len(optimizer.state) == 4


def test_assigned_groups_state_and_defaults_reach_the_base() -> None:
    base = SGD([parameter(2)], lr=0.1)
    optimizer = BalancedSAM(base.param_groups[0]["params"], base)
    groups, state = [*base.param_groups], base.state.copy()
    optimizer.param_groups, optimizer.state, optimizer.defaults = groups, state, {"lr": 1}
    assert base.param_groups is groups
    assert base.state is state
    assert base.defaults == {"lr": 1}


def test_repr_names_the_class_and_rho() -> None:
    text = repr(BalancedSAM([parameter(2)], partial(SGD, lr=0.125), rho=0.375))
    assert text.startswith("BalancedSAM")
    assert "rho: 0.375" in text
    assert "lr: 0.125" in text


def test_optimizer_is_an_optimizer() -> None:
    assert isinstance(BalancedSAM([parameter(2)], SGD), Optimizer)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_clears_every_gradient(set_to_none: bool) -> None:
    perturbed, left_out = parameter(2), parameter(1)
    optimizer = BalancedSAM([perturbed], SGD([perturbed, left_out]))
    (perturbed.sum() + left_out.sum()).backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    cleared = [perturbed.grad, left_out.grad]
    assert all(g is None if set_to_none else not g.any() for g in cleared)


# Hooks


@pytest.mark.parametrize("on", ["wrapper", "base"])
@pytest.mark.parametrize("rho", [0.1, 0.0])
def test_step_hooks_fire_once_a_step_with_the_descent_gradient(on: str, rho: float) -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=rho)
    target = optimizer if on == "wrapper" else optimizer.base_optimizer
    events: list[str] = []
    seen: list[bytes] = []
    returned: list[bytes] = []

    def pre(*_: object) -> None:
        assert not optimizer.is_perturbed
        events.append("pre")
        seen.extend(bits([model.W.grad]))

    def recording() -> Tensor:
        loss = closure()
        returned[:] = bits([model.W.grad])
        return loss

    target.register_step_pre_hook(pre)
    target.register_step_post_hook(lambda *_: events.append("post"))
    for _ in range(2):
        optimizer.step(recording)
        assert seen[-1:] == returned
    assert events == ["pre", "post"] * 2


def test_global_step_hooks_fire_once_a_step() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    events: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: events.append("pre")),
        register_optimizer_step_post_hook(lambda *_: events.append("post")),
    ]
    try:
        optimizer.step(closure)
        closure()
        with optimizer.perturbed():
            closure()
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert events == ["pre", "post"] * 2


@pytest.mark.parametrize("on", ["wrapper", "base"])
def test_state_dict_hooks_fire_once(on: str) -> None:
    optimizer = BalancedSAM([parameter(2)], SGD)
    target = optimizer if on == "wrapper" else optimizer.base_optimizer
    events: list[str] = []
    target.register_state_dict_pre_hook(lambda *_: events.append("save pre"))
    target.register_state_dict_post_hook(lambda *_: events.append("save post"))
    target.register_load_state_dict_pre_hook(lambda *_: events.append("load pre"))
    target.register_load_state_dict_post_hook(lambda *_: events.append("load post"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert events == ["save pre", "save post", "load pre", "load post"]


def test_removed_hook_does_not_fire() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    events: list[str] = []
    kept = optimizer.register_step_pre_hook(lambda *_: events.append("kept"))
    optimizer.register_step_pre_hook(lambda *_: events.append("removed")).remove()
    optimizer.step(closure)
    kept.remove()
    optimizer.step(closure)
    assert events == ["kept"]


# Warnings


def test_gradients_computed_before_step_are_warned_of_once_and_do_not_count() -> None:
    model, closure = problem()
    twin, twin_closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    twin_optimizer = BalancedSAM(twin.parameters(), partial(SGD, lr=0.1))
    closure()
    with pytest.warns(UserWarning, match="clears the gradients that were computed before it"):
        optimizer.step(closure)
    closure()
    optimizer.step(closure)
    for _ in range(2):
        twin_optimizer.step(twin_closure)
    assert bits(model.parameters()) == bits(twin.parameters())


@pytest.mark.parametrize("clears", [True, False])
def test_gradients_accumulated_between_steps_are_warned_of(clears: bool) -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    optimizer.step(closure)
    if clears:
        optimizer.zero_grad()
    closure()
    with pytest.warns(UserWarning, match="clears the gradients that were computed before it"):
        optimizer.step(closure)


LOOPS: dict[str, Callable[[BalancedSAM, Callable[[], Tensor]], object]] = {
    "step": lambda optimizer, closure: optimizer.step(closure),
    "clear, step": lambda optimizer, closure: (optimizer.zero_grad(), optimizer.step(closure)),
    "zero, step": lambda optimizer, closure: (
        optimizer.zero_grad(set_to_none=False),
        optimizer.step(closure),
    ),
    "step, clear": lambda optimizer, closure: (optimizer.step(closure), optimizer.zero_grad()),
    "step, zero": lambda optimizer, closure: (
        optimizer.step(closure),
        optimizer.zero_grad(set_to_none=False),
    ),
    "base clears": lambda optimizer, closure: (
        optimizer.base_optimizer.zero_grad(),
        optimizer.step(closure),
    ),
}


@pytest.mark.parametrize("rho", [0.1, 0.0])
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS.keys())
def test_ordinary_loops_are_not_warned_of(
    loop: Callable[[BalancedSAM, Callable[[], Tensor]], object], rho: float
) -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(MomentumSGD, lr=0.1), rho=rho)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            loop(optimizer, closure)
    assert [str(warning.message) for warning in caught] == []


# Loss scaling


def scaled_problem(
    scaler: GradScaler, factors: list[float] | None = None
) -> tuple[RegressionNet, Callable[[], Tensor], list[float]]:
    """Return model, closure and the factors its calls have not yet multiplied the loss with."""
    samples, start = reference.regression()
    model = RegressionNet(start, torch.float32)
    x, y, q = (torch.tensor(a, dtype=torch.float32) for a in (samples.x, samples.y, samples.q))
    left = factors if factors is not None else []

    def closure() -> Tensor:
        loss = weighted_mean((model(x) - y).square(), q) * (left.pop(0) if left else 1.0)
        scaler.scale(loss).backward()
        return loss

    return model, closure, left


SCALED_BASES = {
    "sgd": partial(SGD, lr=0.05),
    "momentum": partial(MomentumSGD, lr=0.05),
    "adamw": partial(AdamW, lr=0.01),
    "fused adamw": partial(AdamW, lr=0.01, fused=True),
}


@pytest.mark.works_with("autocast")
@pytest.mark.parametrize("make_base", SCALED_BASES.values(), ids=SCALED_BASES.keys())
def test_scaled_trajectory_equals_the_unscaled_one(make_base: Callable[..., Optimizer]) -> None:
    results = []
    for scaler in (
        GradScaler("cpu", init_scale=2.0**12, growth_interval=4),
        GradScaler("cpu", enabled=False),
        None,
    ):
        model, closure, _ = scaled_problem(scaler or GradScaler("cpu", enabled=False))
        optimizer = BalancedSAM(model.parameters(), make_base, rho=0.2)
        for _ in range(10):
            loss = optimizer.step(closure, scaler=scaler)
            if scaler is not None:
                scaler.update()
        results.append((bits(model.parameters()), bits([loss, optimizer.sharpness])))
    assert results[1] == results[2]
    # A power of two scales exactly; only the fused base unscales in another order.
    assert results[0] == results[1]


OVERFLOWS = {
    "pass 1": ([math.inf], 1),
    "pass 2": ([1.0, math.inf], 2),
    "both": ([math.inf, math.inf], 1),
    "NaN in pass 1": ([math.nan], 1),
}


@pytest.mark.works_with("autocast")
@pytest.mark.parametrize(("factors", "calls"), OVERFLOWS.values(), ids=OVERFLOWS.keys())
@pytest.mark.parametrize("make_base", SCALED_BASES.values(), ids=SCALED_BASES.keys())
def test_overflow_moves_nothing_and_halves_the_scale(
    factors: list[float], calls: int, make_base: Callable[..., Optimizer]
) -> None:
    scaler = GradScaler("cpu", init_scale=1024.0)
    model, closure, left = scaled_problem(scaler, [*factors])
    optimizer = BalancedSAM(model.parameters(), make_base, rho=0.2)
    before, called = bits(model.parameters()), []
    step = partial(optimizer.step, counted(closure, called, lambda: optimizer.is_perturbed))
    step(scaler=scaler)
    scaler.update()
    assert len(called) == calls
    assert bits(model.parameters()) == before
    assert math.isnan(optimizer.sharpness.item()) or calls == 2
    assert scaler.get_scale() == 512.0
    left.clear()
    twin, twin_closure, _ = scaled_problem(GradScaler("cpu", enabled=False))
    step(scaler=scaler)
    scaler.update()
    assert called[calls:] == [False, True]
    assert scaler.get_scale() == 512.0
    BalancedSAM(twin.parameters(), make_base, rho=0.2).step(twin_closure)
    assert bits(model.parameters()) == bits(twin.parameters())


def test_overflow_in_a_step_of_one_pass_moves_nothing() -> None:
    scaler = GradScaler("cpu", init_scale=1024.0)
    model, closure, _ = scaled_problem(scaler, [math.inf])
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0)
    before = bits(model.parameters())
    optimizer.step(closure, scaler=scaler)
    scaler.update()
    assert bits(model.parameters()) == before
    assert scaler.get_scale() == 512.0


def test_overflow_in_pass_1_with_a_disabled_scaler_does_not_skip_pass_2() -> None:
    scaler = GradScaler("cpu", enabled=False)
    model, closure, _ = scaled_problem(scaler, [math.inf])
    twin, twin_closure, _ = scaled_problem(scaler)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    optimizer.step(closure, scaler=scaler)
    SGD(twin.parameters(), lr=0.1).step(twin_closure)
    assert bits(model.parameters()) == bits(twin.parameters())


def test_overflow_under_an_ascent_context_does_not_skip_pass_2() -> None:
    # Other processes, whose gradients are their own there, may not have overflowed and wait.
    scaler = GradScaler("cpu", init_scale=1024.0)
    model, closure, _ = scaled_problem(scaler, [math.inf])
    twin, twin_closure, _ = scaled_problem(GradScaler("cpu", enabled=False))
    optimizer = BalancedSAM(
        model.parameters(), partial(SGD, lr=0.1), ascent_context=contextlib.ExitStack
    )
    optimizer.step(closure, scaler=scaler)
    SGD(twin.parameters(), lr=0.1).step(twin_closure)
    assert bits(model.parameters()) == bits(twin.parameters())


@pytest.mark.works_with("gradient clipping")
def test_clipping_in_a_step_hook_sees_unscaled_gradients() -> None:
    results = []
    for scaler in (GradScaler("cpu", init_scale=4096.0), GradScaler("cpu", enabled=False)):
        model, closure, _ = scaled_problem(scaler)
        optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.2)
        norms: list[float] = []

        def clip(*_: object, model: nn.Module = model, norms: list[float] = norms) -> None:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())

        optimizer.register_step_pre_hook(clip)
        for _ in range(4):
            optimizer.step(closure, scaler=scaler)
            scaler.update()
        assert max(norms) > 0.5
        results.append((bits(model.parameters()), norms))
    assert results[0] == results[1]


@pytest.mark.parametrize("clips", [False, True])
def test_manual_loop_with_a_scaler_equals_step_with_closure(clips: bool) -> None:
    scaler = GradScaler("cpu", init_scale=4096.0)
    model, closure, _ = scaled_problem(scaler)
    optimizer = BalancedSAM(model.parameters(), partial(MomentumSGD, lr=0.05), rho=0.2)
    for _ in range(5):
        closure()
        with optimizer.perturbed():
            closure()
        if clips:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() == 4096.0
    twin, twin_closure, _ = scaled_problem(GradScaler("cpu", enabled=False))
    twin_optimizer = BalancedSAM(twin.parameters(), partial(MomentumSGD, lr=0.05), rho=0.2)
    if clips:
        twin_optimizer.register_step_pre_hook(
            lambda *_: nn.utils.clip_grad_norm_(twin.parameters(), 0.5) and None
        )
    for _ in range(5):
        twin_optimizer.step(twin_closure)
    assert bits(model.parameters()) == bits(twin.parameters())


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("owner", ["wrapper", "base", "hook"])
def test_manual_loop_that_clips_and_ends_with_step_and_scaler_unscales_once(
    owner: str, fused: bool
) -> None:
    results = []
    for scaler in (GradScaler("cpu", init_scale=4096.0), GradScaler("cpu", enabled=False)):
        model, closure, _ = scaled_problem(scaler)
        base = SGD(model.parameters(), lr=0.05, fused=fused)
        optimizer = BalancedSAM(model.parameters(), base, rho=0.2)
        norms: list[float] = []

        def clip(*_: object, model: nn.Module = model, norms: list[float] = norms) -> None:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())

        if owner == "hook":
            optimizer.register_step_pre_hook(clip)
        for _ in range(3):
            closure()
            with optimizer.perturbed():
                closure()
            if owner != "hook":
                scaler.unscale_(optimizer if owner == "wrapper" else base)
                clip()
            optimizer.step(scaler=scaler)
            scaler.update()
            optimizer.zero_grad()
        assert max(norms) > 0.5
        results.append((bits(model.parameters()), norms))
    assert results[0] == results[1]


@pytest.mark.parametrize("is_wrapper", [True, False], ids=["wrapper", "base"])
def test_a_closure_that_unscales_is_not_unscaled_again(is_wrapper: bool) -> None:
    results = []
    for scaler in (GradScaler("cpu", init_scale=4096.0), GradScaler("cpu", enabled=False)):
        model, closure, _ = scaled_problem(scaler)
        base = SGD(model.parameters(), lr=0.05)
        optimizer = BalancedSAM(model.parameters(), base, rho=0)

        def clipped(
            closure: Any = closure, scaler: Any = scaler, model: Any = model
        ) -> Tensor | float:
            loss = closure()
            scaler.unscale_(optimizer if is_wrapper else base)  # noqa: B023  # called at once
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            return loss

        for _ in range(3):
            optimizer.step(clipped, scaler=scaler)
            scaler.update()
        results.append(bits(model.parameters()))
    assert results[0] == results[1]


@pytest.mark.parametrize("where", ["both passes", "pass 1", "pass 2", "an ascent closure"])
@pytest.mark.parametrize("is_wrapper", [True, False], ids=["wrapper", "base"])
def test_a_closure_may_unscale_and_clip_in_either_pass(is_wrapper: bool, where: str) -> None:
    results = []
    for scaler in (GradScaler("cpu", init_scale=4096.0), GradScaler("cpu", enabled=False)):
        model, closure, _ = scaled_problem(scaler)
        base = SGD(model.parameters(), lr=0.05)
        optimizer = BalancedSAM(model.parameters(), base, rho=0.2)

        def clipped(closure: Any = closure, scaler: Any = scaler, model: Any = model) -> Any:
            loss = closure()
            is_second = optimizer.is_perturbed  # noqa: B023  # called at once
            if where in ("both passes", "pass 2" if is_second else "pass 1") or (
                where == "an ascent closure" and not is_second
            ):
                scaler.unscale_(optimizer if is_wrapper else base)  # noqa: B023
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            return loss

        is_ascent = where == "an ascent closure"
        for _ in range(3):
            optimizer.step(
                closure if is_ascent else clipped,
                ascent_closure=clipped if is_ascent else None,
                scaler=scaler,
            )
            scaler.update()
        results.append(bits(model.parameters()))
    assert results[0] == results[1]


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_a_second_step_without_an_update_of_the_scaler_raises(rho: float) -> None:
    scaler = GradScaler("cpu", init_scale=4096.0)
    model, closure, _ = scaled_problem(scaler)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.05), rho=rho)
    optimizer.step(closure, scaler=scaler)
    before = bits(model.parameters())
    with pytest.raises(RuntimeError, match="since the last update"):
        optimizer.step(closure, scaler=scaler)
    assert bits(model.parameters()) == before


def test_a_skipped_batch_under_a_scaler_needs_no_update() -> None:
    scaler = GradScaler("cpu", init_scale=4096.0)
    model, closure, _ = scaled_problem(scaler)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.05), rho=0.2)
    for one in (closure, lambda: None, closure):
        if optimizer.step(one, scaler=scaler) is not None:
            scaler.update()
    assert scaler.get_scale() == 4096.0


def test_a_skip_on_gradients_of_another_loss_says_what_to_do() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    closure()
    with pytest.raises(RuntimeError, match=r"before a closure that returned None") as raised:
        optimizer.step(lambda: None)
    assert "To skip a batch, first call `optimizer.zero_grad()`" in str(raised.value)
    # Lightning makes such a closure of a `step()` without one.
    assert "If the trainer called `step()` without a closure, pass one" in str(raised.value)
    closure()
    optimizer.zero_grad()
    assert optimizer.step(lambda: None) is None
    assert optimizer.step(closure) is not None


def test_manual_loop_may_end_with_step_and_scaler() -> None:
    scaler = GradScaler("cpu", init_scale=4096.0)
    model, closure, _ = scaled_problem(scaler)
    twin, twin_closure, _ = scaled_problem(GradScaler("cpu", enabled=False))
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.05), rho=0.2)
    closure()
    with optimizer.perturbed():
        closure()
    optimizer.step(scaler=scaler)
    scaler.update()
    BalancedSAM(twin.parameters(), partial(SGD, lr=0.05), rho=0.2).step(twin_closure)
    assert bits(model.parameters()) == bits(twin.parameters())


@pytest.mark.parametrize(
    "factors", [[math.inf, math.inf], [1.0, math.inf]], ids=["both passes", "pass 2"]
)
def test_overflow_in_a_manual_loop_moves_nothing_and_halves_the_scale(
    factors: list[float],
) -> None:
    scaler = GradScaler("cpu", init_scale=1024.0)
    model, closure, _ = scaled_problem(scaler, [*factors])
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.05), rho=0.2)
    before = bits(model.parameters())
    closure()
    with optimizer.perturbed():
        closure()
    scaler.step(optimizer)
    scaler.update()
    assert bits(model.parameters()) == before
    assert scaler.get_scale() == 512.0


# What a closure may do


def test_closure_is_called_twice_and_sees_the_model_as_it_was_left() -> None:
    """Also where some are not perturbed, whatever the closure does with gradients."""
    model, closure = problem()
    model.b.requires_grad_(False)
    calls: list[list[bool]] = []
    groups = [
        {"params": [model.W, model.b], "rho": 0.0},
        {"params": [model.v, model.c], "rho": 0.3},
    ]
    optimizer = BalancedSAM(groups, partial(SGD, lr=0.1))
    handle = model.W.register_hook(lambda gradient: 2 * gradient)

    def busy() -> Tensor:
        calls.append([p.requires_grad for p in model.parameters()])
        loss = closure()
        model.W.grad.clamp_(-1, 1)
        nn.utils.get_total_norm([p.grad for p in model.parameters() if p.requires_grad])
        return loss

    optimizer.step(busy)
    handle.remove()
    assert calls == [[True, False, True, True]] * 2
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]


def test_parameter_that_the_closure_freezes_stays_frozen() -> None:
    model, closure = problem()
    base = SGD(model.parameters(), lr=0.1)
    optimizer = BalancedSAM([model.W], base, rho=0.3)

    def freezing() -> Tensor:
        model.c.requires_grad_(False)
        return closure()

    optimizer.step(freezing)
    assert not model.c.requires_grad


@pytest.mark.parametrize("perturbed", ["all", "last", "first"])
def test_reentrant_checkpointing_changes_nothing(perturbed: str) -> None:
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        first, last = nn.Linear(2, 3), nn.Linear(3, 1)
        model = nn.Sequential(first, block, last)
        chosen = {"all": model, "last": nn.Sequential(block, last), "first": block[0]}[perturbed]
        base = SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = BalancedSAM(chosen.parameters(), base, rho=0.5)
        x = torch.linspace(-1, 1, 12).reshape(6, 2)

        def closure() -> Tensor:
            hidden = first(x)  # noqa: B023
            run = partial(torch.utils.checkpoint.checkpoint, block, use_reentrant=True)  # noqa: B023
            hidden = run(hidden) if checkpointed else block(hidden)  # noqa: B023
            loss = (last(hidden) - 1).square().mean()  # noqa: B023
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("number", [np.float32, np.float64, float, int])
def test_loss_may_be_any_real_number(number: Callable[[float], Any]) -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1))
    values: list[float] = []

    def closure_of_number() -> Any:
        values.append(number(closure().item()))
        return values[-1]

    assert optimizer.step(closure_of_number) == values[0]


def test_closure_that_returns_the_same_tensor_twice_is_warned_of() -> None:
    """Its forward pass lies outside: this is the base optimizer's step at twice the price."""
    w = nn.Parameter(torch.ones(2))
    optimizer = BalancedSAM([w], partial(SGD, lr=0.1))
    loss = (3 * w).sum()

    def closure() -> Tensor:
        loss.backward(retain_graph=True)
        return loss

    with pytest.warns(UserWarning, match="returned the same tensor twice"):
        optimizer.step(closure)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(closure)
    assert caught == []


# Steps without gradients


def test_closure_that_returns_none_without_a_gradient_skips_the_batch() -> None:
    model, closure = problem()
    twin, twin_closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(MomentumSGD, lr=0.1), rho=0.2)
    twin_optimizer = BalancedSAM(twin.parameters(), partial(MomentumSGD, lr=0.1), rho=0.2)
    calls: list[bool] = []
    for _ in range(2):
        optimizer.step(closure)
        assert optimizer.step(lambda: calls.append(optimizer.is_perturbed)) is None
        assert optimizer.sharpness is None
        twin_optimizer.step(twin_closure)
    assert calls == [False, False]
    assert bits(model.parameters()) == bits(twin.parameters())


def test_closure_without_backward_moves_nothing_and_is_warned_of_once() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(MomentumSGD, lr=0.1), rho=0.2)
    optimizer.step(closure)
    before, calls = bits(model.parameters()), []

    def forward() -> Tensor:
        calls.append(optimizer.is_perturbed)
        return model.W.sum()

    with pytest.warns(UserWarning, match="does nothing where the closure leaves no gradient"):
        loss = optimizer.step(forward)
    assert optimizer.step(forward) == loss == model.W.sum()
    assert calls == [False, False]
    assert bits(model.parameters()) == before


def test_second_call_without_a_gradient_moves_nothing() -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(MomentumSGD, lr=0.1), rho=0.2)
    optimizer.step(closure)
    before = bits(model.parameters())
    optimizer.step(lambda: None if optimizer.is_perturbed else closure())
    assert bits(model.parameters()) == before


# Calls inside a pass


@pytest.mark.parametrize("is_second", [False, True], ids=["pass 1", "pass 2"])
@pytest.mark.parametrize("call", ["step", "step()", "base step", "perturbed"])
def test_step_inside_a_pass_raises_and_nothing_moves(call: str, is_second: bool) -> None:
    model, closure = problem()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.2)
    before = bits(model.parameters())
    inner = {
        "step": lambda: optimizer.step(closure),
        "step()": optimizer.step,
        "base step": optimizer.base_optimizer.step,
        "perturbed": lambda: optimizer.perturbed().__enter__(),
    }[call]

    def nested() -> Tensor:
        loss = closure()
        if optimizer.is_perturbed is is_second:
            inner()
        return loss

    with pytest.raises(RuntimeError, match="after both passes, but got it inside"):
        optimizer.step(nested)
    assert bits(model.parameters()) == before
    assert not optimizer.is_perturbed
    optimizer.base_optimizer.step()
    assert bits(model.parameters()) != before


# Manual cycles that lose gradients


def manual() -> tuple[BalancedSAM, RegressionNet, Callable[[], Tensor]]:
    model, closure = problem()
    return BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.2), model, closure


def test_block_without_a_second_backward_is_warned_of() -> None:
    optimizer, model, closure = manual()
    before = bits(model.parameters())
    closure()
    with optimizer.perturbed():
        pass
    with pytest.warns(UserWarning, match="block leaves no gradient"):
        optimizer.step()
    assert bits(model.parameters()) == before


def test_gradients_that_the_optimizer_cleared_after_the_block_raise() -> None:
    optimizer, _, closure = manual()
    closure()
    with optimizer.perturbed():
        closure()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="whose gradients are still there"):
        optimizer.step()


def test_gradients_that_the_model_cleared_after_the_block_are_warned_of() -> None:
    optimizer, model, closure = manual()
    closure()
    with optimizer.perturbed():
        closure()
    model.zero_grad()
    with pytest.warns(UserWarning, match="leaves no gradient"):
        optimizer.step()


def test_second_block_before_a_step_raises() -> None:
    optimizer, model, closure = manual()
    before = bits(model.parameters())
    closure()
    with optimizer.perturbed():
        closure()
    closure()
    with (
        pytest.raises(RuntimeError, match="but got a second block"),
        optimizer.perturbed(),
    ):
        pass
    assert bits(model.parameters()) == before


@pytest.mark.parametrize("clear", ["optimizer", "model"])
def test_block_may_be_dropped_by_clearing_its_gradients(clear: str) -> None:
    optimizer, model, closure = manual()
    twin, twin_closure = problem()
    closure()
    with optimizer.perturbed():
        closure()
    {"optimizer": optimizer, "model": model}[clear].zero_grad()
    closure()
    with optimizer.perturbed():
        closure()
    optimizer.step()
    BalancedSAM(twin.parameters(), partial(SGD, lr=0.1), rho=0.2).step(twin_closure)
    assert bits(model.parameters()) == bits(twin.parameters())


def test_micro_batches_nest_in_a_manual_cycle() -> None:
    samples, start = reference.regression(5)
    model, twin = RegressionNet(start), RegressionNet(start)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.2)
    halves = [
        model.closure(reference.Regression(samples.x[part], samples.y[part], samples.q[part] / 2))
        for part in (slice(0, 6), slice(6, 12))
    ]
    for _ in range(3):
        optimizer.zero_grad()
        for half in halves:
            half()
        with optimizer.perturbed():
            for half in halves:
                half()
        optimizer.step()
    twin_optimizer = BalancedSAM(twin.parameters(), partial(SGD, lr=0.1), rho=0.2)
    for _ in range(3):
        twin_optimizer.step(twin.closure(samples))
    assert_close(model.parameters(), [p.detach().numpy() for p in twin.parameters()])


def test_popping_a_group_is_not_taken_for_other_gradients() -> None:
    model, closure = problem()
    optimizer = BalancedSAM([{"params": [p]} for p in model.parameters()], partial(SGD, lr=0.1))
    optimizer.step(closure)
    optimizer.param_groups.pop(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(closure)
    assert caught == []


# Any optimizer at all


@st.composite
def setups(draw: st.DrawFn) -> dict[str, Any]:
    """Which parameters are frozen, perturbed, in which group, with which rho, in which contexts."""
    return {
        "frozen": draw(st.sets(st.integers(0, 3), max_size=2)),
        "groups": draw(st.lists(st.integers(0, 1), min_size=4, max_size=4)),
        "rhos": draw(st.tuples(*[st.sampled_from([0.0, 0.1, 0.6])] * 2)),
        "left_out": draw(st.sets(st.integers(0, 3), max_size=3)),
        "contexts": draw(st.booleans()),
        "ascent": draw(st.booleans()),
        "steps": draw(st.integers(1, 5)),
        "saved_at": draw(st.integers(0, 4)),
    }


def build(
    setup: dict[str, Any],
) -> tuple[nn.Module, BalancedSAM, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1, bias=False)).double()
    parameters = list(model.parameters())[:4]
    for i in setup["frozen"]:
        parameters[i].requires_grad_(False)
    groups = [
        {
            "params": [p for p, g in zip(parameters, setup["groups"], strict=True) if g == group],
            "rho": rho,
        }
        for group, rho in enumerate(setup["rhos"])
    ]
    groups[0]["params"].append(model[2].weight)
    base = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.01)
    chosen = [p for i, p in enumerate(model.parameters()) if i not in setup["left_out"]]
    context = partial(frozen_running_stats, model) if setup["contexts"] else contextlib.nullcontext
    optimizer = BalancedSAM(chosen, base, ascent_context=context)
    return model, optimizer, LambdaRho(optimizer, lambda step: float(step % 3 != 1))


@settings(max_examples=40, deadline=None)
@given(setup=setups())
def test_step_calls_twice_leaves_requires_grad_and_resumes_exactly(setup: dict[str, Any]) -> None:
    inputs = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(5, 4, 3)
    model, optimizer, schedule = build(setup)
    trainable = [p.requires_grad for p in model.parameters()]
    file = None

    for step in range(setup["steps"]):
        if step == min(setup["saved_at"], setup["steps"] - 1):
            file = io.BytesIO()
            torch.save([part.state_dict() for part in (model, optimizer, schedule)], file)
        calls: list[bool] = []

        def closure(step: int = step, calls: list[bool] = calls) -> Tensor:
            assert [p.requires_grad for p in model.parameters()] == trainable
            calls.append(optimizer.is_perturbed)
            loss = (model(inputs[step]) - 1).square().mean()
            loss.backward()
            return loss

        ascent = partial(closure) if setup["ascent"] else None
        is_one = not any(group["rho"] for group in optimizer.param_groups)
        optimizer.step(closure, ascent_closure=ascent)
        schedule.step()
        assert calls == ([False] if is_one else [False, True])
        assert [p.requires_grad for p in model.parameters()] == trainable

    whole = bits([*model.parameters(), *model.buffers()])
    model, optimizer, schedule = build(setup)
    assert file is not None
    file.seek(0)
    states = torch.load(file, weights_only=True)
    for part, state in zip((model, optimizer, schedule), states, strict=True):
        part.load_state_dict(state)
    for step in range(min(setup["saved_at"], setup["steps"] - 1), setup["steps"]):

        def resumed(step: int = step, model: nn.Module = model) -> Tensor:
            loss = (model(inputs[step]) - 1).square().mean()
            loss.backward()
            return loss

        optimizer.step(resumed)
        schedule.step()
    assert bits([*model.parameters(), *model.buffers()]) == whole


@pytest.mark.parametrize("name", ["ascent_context", "descent_context"])
@pytest.mark.parametrize(
    "make",
    [lambda: frozen_running_stats(nn.Linear(1, 1)), torch.enable_grad, contextlib.nullcontext],
)
def test_a_context_in_place_of_its_factory_is_refused(name: str, make: Callable[[], Any]) -> None:
    model, _ = problem()
    base = SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=rf"Expected `{name}` to be a function .* `partial\("):
        BalancedSAM(model.parameters(), base, **{name: make()})
    BalancedSAM(model.parameters(), base, **{name: contextlib.nullcontext})
