"""Loss scaling, autocast, clipping and micro-batches, held against two passes written by hand."""

import contextlib
import copy
import io
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW, Optimizer

from balanced_sam import BalancedSAM, weighted_mean

STEPS = 40
RHO = 1.0
Loss = Callable[[nn.Module], Tensor]
Context = Callable[[], AbstractContextManager[Any]]
BASES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(SGD, lr=0.02, momentum=0.9),
    "AdamW": partial(AdamW, lr=0.01),
    "fused SGD": partial(SGD, lr=0.02, momentum=0.9, fused=True),
    "fused AdamW": partial(AdamW, lr=0.01, fused=True),
}
every_base = pytest.mark.parametrize("make_base", BASES.values(), ids=BASES)
float16 = partial(torch.autocast, "cpu", dtype=torch.float16)
bfloat16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def make_losses(count: int = STEPS, autocast: Context = nullcontext) -> list[Loss]:
    """Return the loss of each batch, its forward pass under ``autocast``."""
    generator = torch.Generator().manual_seed(1)

    def make_loss() -> Loss:
        inputs, targets, weights = (
            torch.randn(16, size, generator=generator) for size in (3, 1, 1)
        )

        def loss_of(network: nn.Module) -> Tensor:
            with autocast():
                losses = (network(inputs) - 3 * targets).square()
                return weighted_mean(losses.float(), weights.exp())

        return loss_of

    return [make_loss() for _ in range(count)]


def weights_of(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def descend_by_hand(
    network: nn.Module,
    base: Optimizer,
    loss_of: Loss,
    *,
    scale: float = 1.0,
    clip: Callable[[Any], object] = lambda parameters: None,
) -> None:
    """Take one step of SAM: the equations, on gradients of the loss times ``scale``."""
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss_of(network) * scale, parameters)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    before = weights_of(network)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.add_(RHO * gradient / norm)
    gradients = torch.autograd.grad(loss_of(network) * scale, parameters)
    with torch.no_grad():
        for parameter, weight, gradient in zip(parameters, before, gradients, strict=True):
            parameter.copy_(weight)
            parameter.grad = gradient / scale
    clip(parameters)
    base.step()


class ScaledRun:
    """Training in float16 with a scaler that grows until gradients overflow."""

    def __init__(self, way: str, make_base: Callable[[Any], Optimizer]) -> None:
        self.network = make_network()
        self.scaler = GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
        self.optimizer = BalancedSAM(
            self.network.parameters(),
            make_base,
            rho=RHO,
            # Any context but the default: as in DDP each process then has a gradient of its own.
            ascent_context=contextlib.ExitStack if way == "with an ascent context" else nullcontext,
        )
        self.finish = getattr(self, WAYS[way])
        self.are_finite: list[bool] = []

    def closure(self, loss_of: Loss) -> Tensor:
        loss = loss_of(self.network)
        self.scaler.scale(loss).backward()
        self.are_finite.append(all(p.grad.isfinite().all() for p in self.network.parameters()))
        return loss

    def step(self, loss_of: Loss) -> list[bool]:
        """Train on a batch; return of each pass whether its gradient was finite."""
        self.are_finite = []
        self.finish(partial(self.closure, loss_of))
        self.scaler.update()
        return self.are_finite

    def by_closure(self, closure: Callable[[], Tensor]) -> None:
        self.optimizer.step(closure, scaler=self.scaler)

    def by_block(self, closure: Callable[[], Tensor]) -> None:
        self.optimizer.zero_grad()
        closure()
        with self.optimizer.perturbed():
            closure()
        self.scaler.step(self.optimizer)

    def by_block_and_step(self, closure: Callable[[], Tensor]) -> None:
        self.optimizer.zero_grad()
        closure()
        with self.optimizer.perturbed():
            closure()
        self.optimizer.step(scaler=self.scaler)


WAYS = {
    "step": "by_closure",
    "with an ascent context": "by_closure",
    "perturbed, scaler.step": "by_block",
    "perturbed, step": "by_block_and_step",
}


# Loss scaling


@pytest.mark.works_with("autocast")
@pytest.mark.parametrize("base", ["SGD", "fused AdamW"])
@pytest.mark.parametrize("way", WAYS)
def test_overflow_in_either_pass_skips_the_step_and_backs_off_as_for_the_bare_base(
    way: str, base: str
) -> None:
    make_base = BASES[base]
    run = ScaledRun(way, make_base)
    bare = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    bare_scaler = GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    bare_scaler.scale(torch.zeros(1))  # makes the scale
    kinds, scales = [], []
    for loss_of in make_losses(autocast=float16):
        twin, scale = make_network(), run.scaler.get_scale()
        twin.load_state_dict(run.network.state_dict())
        twin_base = make_base(twin.parameters())
        # The tensors of a state that is loaded are shared.
        twin_base.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
        before = weights_of(run.network), copy.deepcopy(run.optimizer.state_dict())
        are_finite = run.step(loss_of)
        kinds.append(tuple(are_finite))
        scales.append(run.scaler.get_scale())
        if all(are_finite):
            descend_by_hand(twin, twin_base, loss_of, scale=scale)
            torch.testing.assert_close(weights_of(run.network), weights_of(twin), rtol=0, atol=1e-4)
            assert not torch.equal(run.network[0].weight, before[0][0])
        else:
            assert_same((weights_of(run.network), run.optimizer.state_dict()), before)
        bare.param_groups[0]["params"][0].grad = torch.tensor(
            [1.0 if all(are_finite) else torch.inf]
        )
        bare_scaler.step(bare)
        bare_scaler.update()
        assert run.scaler.state_dict() == bare_scaler.state_dict()
    in_pass_1 = (False,) if way == "step" else (False, False)
    assert set(kinds) == {(True, True), (True, False), in_pass_1}
    assert any(later > earlier for earlier, later in itertools.pairwise(scales))


@pytest.mark.works_with("autocast")
def test_every_way_to_step_with_a_scaler_takes_the_same_steps() -> None:
    results = []
    for way in WAYS:
        run = ScaledRun(way, BASES["SGD"])
        for loss_of in make_losses(autocast=float16):
            run.step(loss_of)
        results.append((weights_of(run.network), run.scaler.state_dict()))
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.works_with("autocast")
@every_base
def test_run_resumed_with_its_scaler_equals_the_uninterrupted_one(
    make_base: Callable[[Any], Optimizer],
) -> None:
    losses = make_losses(autocast=float16)
    run = ScaledRun("step", make_base)
    for loss_of in losses[:17]:
        run.step(loss_of)
    file = io.BytesIO()
    torch.save([each.state_dict() for each in (run.network, run.optimizer, run.scaler)], file)
    file.seek(0)
    expected = [(run.step(loss_of), run.scaler.state_dict()) for loss_of in losses[17:]]
    resumed = ScaledRun("step", make_base)
    for loss_of in losses[:3]:
        resumed.step(loss_of)
    parts = (resumed.network, resumed.optimizer, resumed.scaler)
    for part, state in zip(parts, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    actual = [(resumed.step(loss_of), resumed.scaler.state_dict()) for loss_of in losses[17:]]
    assert actual == expected
    assert any(not all(are_finite) for are_finite, _ in actual)
    assert_same(weights_of(resumed.network), weights_of(run.network))


# Autocast


def train(
    make_base: Callable[[Any], Optimizer],
    losses: list[Loss],
    *,
    around_closure: Context = nullcontext,
    around_step: Context = nullcontext,
    around_loop: Context = nullcontext,
) -> list[Tensor]:
    """Return the weights after training under contexts at three places."""
    network = make_network()
    optimizer = BalancedSAM(network.parameters(), make_base, rho=RHO)
    with around_loop():
        for loss_of in losses:

            def closure(loss_of: Loss = loss_of) -> Tensor:
                with around_closure():
                    loss = loss_of(network)
                    loss.backward()
                return loss

            with around_step():
                optimizer.step(closure)
    return weights_of(network)


@pytest.mark.works_with("autocast")
@every_base
@pytest.mark.parametrize("autocast", [bfloat16, float16], ids=["bfloat16", "float16"])
def test_autocast_inside_or_outside_the_closure_takes_the_steps_of_two_passes_by_hand(
    autocast: Context, make_base: Callable[[Any], Optimizer]
) -> None:
    network = make_network()
    base = make_base(network.parameters())
    for loss_of in make_losses(10, autocast):
        descend_by_hand(network, base, loss_of)
    inside = train(make_base, make_losses(10, autocast))
    torch.testing.assert_close(inside, weights_of(network), rtol=0, atol=2e-3)
    for place in ("around_closure", "around_step", "around_loop"):
        assert_same(train(make_base, make_losses(10), **{place: autocast}), inside)
    in_float32 = train(make_base, make_losses(10))
    assert not torch.equal(in_float32[0], inside[0])


# Gradient clipping


def clip_norm(parameters: Any) -> None:
    nn.utils.clip_grad_norm_(parameters, 0.5)


def clip_value(parameters: Any) -> None:
    nn.utils.clip_grad_value_(parameters, 0.05)


@pytest.mark.works_with("gradient clipping")
@every_base
@pytest.mark.parametrize("scaled", [False, True], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("clip", [clip_norm, clip_value])
def test_clipping_in_a_step_hook_clips_the_gradient_of_the_second_pass(
    clip: Callable[[Any], None], scaled: bool, make_base: Callable[[Any], Optimizer]
) -> None:
    network, twin = make_network(), make_network()
    optimizer = BalancedSAM(network.parameters(), make_base, rho=RHO)
    base = make_base(twin.parameters())
    scaler = GradScaler("cpu", enabled=scaled)
    optimizer.register_step_pre_hook(lambda *_: clip(network.parameters()))
    losses = make_losses(10)
    for loss_of in losses:

        def closure(loss_of: Loss = loss_of) -> Tensor:
            loss = loss_of(network)
            scaler.scale(loss).backward()
            return loss

        optimizer.step(closure, scaler=scaler)
        scaler.update()
        descend_by_hand(twin, base, loss_of, clip=clip)
    torch.testing.assert_close(weights_of(network), weights_of(twin), rtol=1e-4, atol=1e-5)
    unclipped = train(make_base, losses)
    assert not torch.allclose(unclipped[0], network[0].weight, rtol=0, atol=1e-3)


@pytest.mark.works_with("gradient clipping")
def test_clipping_the_norm_in_the_closure_equals_clipping_in_a_step_hook() -> None:
    # A shorter gradient has the same direction: clipping in the first pass changes nothing.
    results = []
    for in_closure in (True, False):
        network = make_network()
        optimizer = BalancedSAM(network.parameters(), BASES["SGD"], rho=RHO)
        if not in_closure:
            optimizer.register_step_pre_hook(
                lambda *_, network=network: clip_norm(network.parameters())
            )
        for loss_of in make_losses(10):

            def closure(
                loss_of: Loss = loss_of, network: nn.Module = network, in_closure: bool = in_closure
            ) -> Tensor:
                loss = loss_of(network)
                loss.backward()
                if in_closure:
                    clip_norm(network.parameters())
                return loss

            optimizer.step(closure)
        results.append(weights_of(network))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


# Micro-batches


@st.composite
def partitions(draw: st.DrawFn) -> list[int]:
    """Sizes of the micro-batches that 12 samples are cut into."""
    cuts = draw(st.lists(st.integers(1, 11), unique=True, max_size=11).map(sorted))
    return [stop - start for start, stop in zip([0, *cuts], [*cuts, 12], strict=True)]


@pytest.mark.works_with("micro-batches")
@settings(max_examples=15, deadline=None)
@given(sizes=partitions(), way=st.sampled_from(list(WAYS)), base=st.sampled_from(list(BASES)))
def test_any_micro_batches_equal_one_large_batch(sizes: list[int], way: str, base: str) -> None:
    generator = torch.Generator().manual_seed(2)
    inputs, targets, weights = (
        torch.randn(3, 12, size, generator=generator, dtype=torch.float64) for size in (3, 1, 1)
    )
    results = []
    for parts in ([12], sizes):
        run = ScaledRun(way, BASES[base])
        run.network.double()
        calls = 0
        for batch in zip(inputs, targets, weights.exp(), strict=True):

            def closure(
                batch: tuple[Tensor, ...] = batch, run: ScaledRun = run, parts: list[int] = parts
            ) -> Tensor:
                nonlocal calls
                total = torch.zeros((), dtype=torch.float64)
                for x, y, q in zip(*(tensor.split(parts) for tensor in batch), strict=True):
                    loss = weighted_mean((run.network(x) - y).square(), q) * len(x) / 12
                    run.scaler.scale(loss).backward()
                    total += loss.detach()
                    calls += 1
                return total

            run.finish(closure)
            run.scaler.update()
        assert calls == 2 * 3 * len(parts)
        results.append(weights_of(run.network))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-9)
