"""What only a GPU can show; skipped where there is none."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.autograd import DeviceType
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from balanced_sam import BalancedSAM, TargetBins, TargetWeights, frozen_running_stats, weighted_mean
from support import reference

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

# Of torch's own making, in the first backward pass of a process.
pytestmark = pytest.mark.filterwarnings("ignore:Attempting to run cu.*no current CUDA context")
ignore_half_precision = pytest.mark.filterwarnings(
    "ignore:BalancedSAM perturbs weights stored in 16 bits"
)

DEVICE = torch.device("cuda")
RHO = 1.0
Loss = Callable[[nn.Module], Tensor]
Context = Callable[[], AbstractContextManager[Any]]
Rule = Callable[[], reference.SGD | reference.Adam]
sgd_rule = partial(reference.SGD, lr=0.02, momentum=0.9)
adamw_rule = partial(reference.Adam, lr=0.01, weight_decay=0.1, decoupled=True)
MomentumSGD = partial(SGD, lr=0.02, momentum=0.9)
DecayingAdamW = partial(AdamW, lr=0.01, weight_decay=0.1)
BASES: dict[str, tuple[Callable[[Any], Optimizer], Rule]] = {
    "SGD": (MomentumSGD, sgd_rule),
    "fused SGD": (partial(MomentumSGD, fused=True), sgd_rule),
    "AdamW": (DecayingAdamW, adamw_rule),
    "fused AdamW": (partial(DecayingAdamW, fused=True), adamw_rule),
    "capturable AdamW": (partial(DecayingAdamW, capturable=True), adamw_rule),
    "capturable Adam": (partial(Adam, lr=0.01, capturable=True), partial(reference.Adam, lr=0.01)),
    "fused, capturable Adam": (
        partial(Adam, lr=0.01, fused=True, capturable=True),
        partial(reference.Adam, lr=0.01),
    ),
}
every_base = pytest.mark.parametrize("make_base", [b for b, _ in BASES.values()], ids=BASES)
float16 = partial(torch.autocast, DEVICE.type, dtype=torch.float16)
bfloat16 = partial(torch.autocast, DEVICE.type, dtype=torch.bfloat16)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(DEVICE)


def make_batches(count: int) -> list[list[Tensor]]:
    """Return inputs, targets and weights of each batch."""
    generator = torch.Generator().manual_seed(1)
    batches = [[torch.randn(16, n, generator=generator) for n in (3, 1, 1)] for _ in range(count)]
    return [[x.to(DEVICE), 3 * y.to(DEVICE), q.exp().to(DEVICE)] for x, y, q in batches]


def loss_on(batch: list[Tensor], network: nn.Module, *, autocast: Context = nullcontext) -> Tensor:
    inputs, targets, weights = batch
    with autocast():
        return weighted_mean((network(inputs) - targets).square().float(), weights)


def make_closure(batch: list[Tensor], network: nn.Module) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = loss_on(batch, network)
        loss.backward()
        return loss

    return closure


def clones(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def descend_by_hand(
    network: nn.Module, base: Optimizer, loss_of: Loss, *, rho: float = RHO, scale: float = 1.0
) -> None:
    """Take one step of SAM: the equations, on gradients of the loss times ``scale``."""
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss_of(network) * scale, parameters)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    before = clones(parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.add_(rho * gradient / norm)
    gradients = torch.autograd.grad(loss_of(network) * scale, parameters)
    with torch.no_grad():
        for parameter, weight, gradient in zip(parameters, before, gradients, strict=True):
            parameter.copy_(weight)
            parameter.grad = gradient / scale
    base.step()


def at_perturbed(
    parameters: Sequence[Tensor], gradients: Iterable[Tensor], *, rho: float
) -> list[Tensor]:
    """Return the weights at w + eps; without a learning rate they must come back bit for bit."""
    optimizer = BalancedSAM(parameters, partial(SGD, lr=0.0), rho=rho)
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        seen.append(clones(parameters))
        given = map(torch.zeros_like, parameters) if optimizer.is_perturbed else gradients
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.grad = gradient
        return torch.zeros((), device=DEVICE)

    optimizer.step(closure)
    start, perturbed = seen
    assert_same(clones(parameters), start)
    return perturbed


# Against the oracle


def assert_trajectory_is_reference(
    make_base: Callable[[Any], Optimizer],
    rule: Rule,
    *,
    tolerance: float,
    dtype: torch.dtype,
    first_layer: torch.device = DEVICE,
) -> None:
    """Assert that thirty steps are the oracle's, W and b on a device of their own or not."""
    samples, start = reference.regression()
    run = reference.train(samples, start, [rule() for _ in start], [0.1] * 4, steps=30)
    devices = [first_layer, first_layer, DEVICE, DEVICE]
    W, b, v, c = parameters = [
        nn.Parameter(torch.tensor(w, dtype=dtype, device=device))
        for w, device in zip(start, devices, strict=True)
    ]
    x, y, q = (
        torch.tensor(a, dtype=dtype, device=DEVICE) for a in (samples.x, samples.y, samples.q)
    )

    def closure() -> Tensor:
        hidden = torch.tanh(x.to(first_layer) @ W.T + b).to(DEVICE)
        loss = weighted_mean((hidden @ v + c - y).square(), q)
        loss.backward()
        return loss

    optimizer = BalancedSAM(parameters, make_base, rho=0.1)
    losses, sharpnesses = [], []
    for _ in range(30):
        losses.append(optimizer.step(closure))
        sharpnesses.append(optimizer.sharpness)
    close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    for parameter, array in zip(parameters, run.weights, strict=True):
        close(parameter.detach().cpu().numpy(), array)
    close(torch.stack(losses).cpu().numpy(), run.losses)
    close(torch.stack(sharpnesses).cpu().numpy(), run.sharpnesses)


@pytest.mark.parametrize("base", BASES)
def test_trajectory_in_float32_equals_reference(base: str) -> None:
    assert_trajectory_is_reference(*BASES[base], dtype=torch.float32, tolerance=1e-4)


@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_trajectory_in_float64_equals_reference(base: str) -> None:
    assert_trajectory_is_reference(*BASES[base], dtype=torch.float64, tolerance=1e-9)


# The CPU, and a second GPU where there is one.
OTHERS = ["cpu", "cuda:1"][: torch.cuda.device_count()]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_network_on_two_devices_equals_reference(base: str, other: str) -> None:
    assert_trajectory_is_reference(
        *BASES[base], dtype=torch.float64, tolerance=1e-9, first_layer=torch.device(other)
    )


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "last"])
def test_norm_is_over_all_devices(other: str, is_first: bool) -> None:
    order = slice(None, None, 1 if is_first else -1)
    gradients = [torch.tensor([12.0], device=other), torch.tensor([3.0, 4.0], device=DEVICE)][order]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    expected = clones(gradients)
    torch.testing.assert_close(at_perturbed(parameters, gradients, rho=13.0), expected)


# Odd gradients


def of_a_sum() -> list[Tensor]:
    """Return gradients of which autograd makes two in one tensor."""
    operands = [torch.randn(5, device=DEVICE, requires_grad=True) for _ in range(3)]
    one, other, factor = operands
    gradients = torch.autograd.grad(((one + other) * factor).sin().sum(), operands)
    assert gradients[0].data_ptr() == gradients[1].data_ptr()
    return list(gradients)


def of_one_tensor() -> list[Tensor]:
    gradient = torch.randn(5, device=DEVICE)
    return [gradient, gradient, torch.randn(2, device=DEVICE)]


def expanded() -> list[Tensor]:
    """Return gradients with fewer values than elements, such as that of a sum."""
    weight = torch.randn(3, 4, device=DEVICE, requires_grad=True)
    (gradient,) = torch.autograd.grad(weight.sum(), weight)
    assert gradient.stride() == (0, 0)
    return [gradient, torch.randn(1, 5, device=DEVICE).expand(4, 5), torch.randn(2, device=DEVICE)]


def overlapping() -> list[Tensor]:
    memory = torch.randn(8, device=DEVICE)
    return [memory[:6], memory[2:], memory[::2]]


@pytest.mark.parametrize("make", [of_a_sum, of_one_tensor, expanded, overlapping])
def test_gradients_that_share_memory_perturb_by_rho(make: Callable[[], list[Tensor]]) -> None:
    torch.manual_seed(0)
    gradients = make()
    parameters = [nn.Parameter(torch.randn_like(g, requires_grad=False)) for g in gradients]
    before = clones(parameters)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    expected = [w + 0.3 * g / norm for w, g in zip(before, gradients, strict=True)]
    perturbed = at_perturbed(parameters, gradients, rho=0.3)
    torch.testing.assert_close(perturbed, expected)
    moves = [(p - w).flatten() for p, w in zip(perturbed, before, strict=True)]
    assert torch.cat(moves).norm().item() == pytest.approx(0.3, rel=1e-5)


@ignore_half_precision
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64], ids=str
)
@pytest.mark.parametrize(
    "broken",
    [[1.0, math.nan, 2.0], [math.inf, 0.0, -math.inf], [0.0, -0.0, 0.0]],
    ids=["NaN", "inf", "zero"],
)
def test_broken_gradient_does_not_move_the_weights(broken: list[float], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, dtype=dtype, device=DEVICE)) for _ in range(2)]
    gradients = [torch.tensor(broken, dtype=dtype, device=DEVICE), torch.zeros_like(parameters[1])]
    before = clones(parameters)
    assert_same(at_perturbed(parameters, gradients, rho=0.5), before)


# Nothing waits for the device


@contextmanager
def no_host_read() -> Iterator[None]:
    """Raise where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
@pytest.mark.parametrize("autocast", [nullcontext, bfloat16], ids=["float32", "bfloat16"])
@every_base
def test_step_reads_nothing_back_from_the_device(
    make_base: Callable[[Any], Optimizer], autocast: Context
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    inputs, targets = torch.randn(16, 3, device=DEVICE), torch.randn(16, 1)
    weights = TargetWeights.from_targets(targets, TargetBins.uniform(-4, 4, width=1)).to(DEVICE)
    targets = targets.to(DEVICE)
    network.to(DEVICE)
    optimizer = BalancedSAM(
        [{"params": network[0].parameters(), "rho": 0.1}, {"params": network[1:].parameters()}],
        make_base,
        rho=0.2,
        descent_context=partial(frozen_running_stats, network),
    )

    def closure() -> Tensor:
        loss = loss_on([inputs, targets, weights(targets)], network, autocast=autocast)
        loss.backward()
        return loss

    def cycle() -> tuple[Tensor, Tensor]:
        loss, sharpness = optimizer.step(closure), optimizer.sharpness
        optimizer.zero_grad()
        closure()
        with optimizer.perturbed():
            closure()
        optimizer.step()
        optimizer.zero_grad()
        return loss, sharpness

    # What is made once, such as momentum, may wait.
    cycle()
    before = network[0].weight.detach().clone()
    with no_host_read():
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            targets.sum().item()
        for _ in range(3):
            loss, sharpness = cycle()
    assert loss.isfinite()
    assert sharpness.isfinite()
    assert network[0].weight.isfinite().all()
    assert not torch.equal(network[0].weight, before)


CAPTURABLE = [name for name in BASES if "SGD" in name or "capturable" in name]


@pytest.mark.parametrize("base", CAPTURABLE)
def test_replays_of_a_captured_step_equal_eager_steps(base: str) -> None:
    make_base, _ = BASES[base]
    batches = make_batches(13)
    eager = make_network()
    optimizer = BalancedSAM(eager.parameters(), make_base, rho=RHO)
    expected = [
        (optimizer.step(make_closure(batch, eager)), optimizer.sharpness) for batch in batches
    ]
    network = make_network()
    optimizer = BalancedSAM(network.parameters(), make_base, rho=RHO)
    place = clones(batches[0])
    closure = make_closure(place, network)
    # What a step makes once, such as momentum, must be there before the capture.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for batch in batches[:3]:
            torch._foreach_copy_(place, batch)
            optimizer.step(closure)
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()
    captured = clones(network.parameters())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = optimizer.step(closure)
    assert_same(clones(network.parameters()), captured)
    actual = []
    for batch in batches[3:]:
        torch._foreach_copy_(place, batch)
        graph.replay()
        actual.append((loss.clone(), optimizer.sharpness.clone()))
    torch.testing.assert_close(actual, expected[3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        clones(network.parameters()), clones(eager.parameters()), rtol=1e-4, atol=1e-5
    )


# What it costs


class Still(Optimizer):
    """A base optimizer without any work of its own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        return None


def launches_of_a_step(tensors: int) -> int:
    """Return how many kernels and copies a step launches whose passes and base step do nothing."""
    parameters = [nn.Parameter(torch.ones(1000, device=DEVICE)) for _ in range(tensors)]
    gradients = [torch.ones_like(parameter).detach() for parameter in parameters]
    optimizer = BalancedSAM(parameters, Still, rho=0.5)

    def closure() -> Tensor:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return torch.zeros((), device=DEVICE)

    optimizer.step(closure)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        optimizer.step(closure)
        torch.cuda.synchronize()
    return sum(
        event.device_type == DeviceType.CUDA and not event.is_user_annotation
        for event in profiler.events()
    )


def test_number_of_launches_does_not_depend_on_the_number_of_tensors() -> None:
    few, some, many = (launches_of_a_step(tensors) for tensors in (10, 30, 200))
    assert few == some > 0
    # The addresses of a long list are too many for the arguments of one kernel: before CUDA 13 one
    # call on 200 pairs of tensors is four launches. What goes tensor by tensor would add 190.
    assert many - few < 190 / 4


def peak_of(step: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Return the most bytes in use during a step, beyond those in use before."""
    for _ in range(2):  # Momentum, and what cuBLAS keeps.
        step()
    for parameter in parameters:
        parameter.grad = None
    torch.cuda.synchronize()
    # A block that is left from before may be larger than what is put there.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("rhos", [(0.1, 0.1), (0.1, 0.2)], ids=["one rho", "two"])
def test_peak_of_memory_is_that_of_two_passes_and_one_copy_of_the_weights(
    rhos: tuple[float, float],
) -> None:
    network = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(8))).to(DEVICE)
    parameters = list(network.parameters())
    halves = zip((parameters[:4], parameters[4:]), rhos, strict=True)
    base = MomentumSGD([{"params": half, "rho": rho} for half, rho in halves])
    closure = make_closure([torch.randn(16, 1024, device=DEVICE) for _ in range(3)], network)

    def two_passes() -> None:
        for _ in range(2):
            base.zero_grad()
            closure()
        base.step()

    expected = peak_of(two_passes, parameters)
    base.zero_grad()
    peak = peak_of(partial(BalancedSAM(parameters, base).step, closure), parameters)
    size = sum(parameter.nbytes for parameter in parameters)
    assert (peak - expected) / size == pytest.approx(1, abs=0.05)


# Precision and layout


# Not fused SGD: torch leaves its momentum undefined where the first step is skipped.
@pytest.mark.parametrize("base", ["SGD", "AdamW", "fused AdamW"])
def test_overflow_in_either_pass_skips_the_step_and_backs_off(base: str) -> None:
    make_base, _ = BASES[base]
    network, twin = make_network(), make_network()
    optimizer = BalancedSAM(network.parameters(), make_base, rho=RHO)
    scaler = GradScaler(DEVICE.type, init_scale=2.0**12, growth_interval=1)
    kinds = []
    for batch in make_batches(40):
        loss_of = partial(loss_on, batch, autocast=float16)
        are_finite: list[bool] = []

        def closure(loss_of: Loss = loss_of, are_finite: list[bool] = are_finite) -> Tensor:
            loss = loss_of(network)
            scaler.scale(loss).backward()
            are_finite.append(all(p.grad.isfinite().all() for p in network.parameters()))
            return loss

        scale = scaler.get_scale()
        twin.load_state_dict(network.state_dict())
        twin_base = make_base(twin.parameters())
        # The tensors of a state that is loaded are shared.
        twin_base.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        before = clones(network.parameters()), copy.deepcopy(optimizer.state_dict())
        optimizer.step(closure, scaler=scaler)
        scaler.update()
        kinds.append(tuple(are_finite))
        if all(are_finite):
            descend_by_hand(twin, twin_base, loss_of, scale=scale)
            torch.testing.assert_close(
                clones(network.parameters()), clones(twin.parameters()), rtol=0, atol=1e-3
            )
            assert not torch.equal(network[0].weight, before[0][0])
            assert scaler.get_scale() == 2 * scale
        else:
            assert_same((clones(network.parameters()), optimizer.state_dict()), before)
            assert scaler.get_scale() == scale / 2
    # A second pass after an overflow would leave its trace in batch-norm statistics.
    assert set(kinds) == {(True, True), (True, False), (False,)}


@every_base
def test_autocast_takes_the_steps_of_two_passes_by_hand(
    make_base: Callable[[Any], Optimizer],
) -> None:
    batches = make_batches(10)
    twin = make_network()
    base = make_base(twin.parameters())
    for batch in batches:
        descend_by_hand(twin, base, partial(loss_on, batch, autocast=bfloat16))
    expected = clones(twin.parameters())
    results = []
    # Around the steps autocast would keep the weights of the first pass for the second.
    for inside, outside in ((bfloat16, nullcontext), (nullcontext, bfloat16)):
        network = make_network()
        optimizer = BalancedSAM(network.parameters(), make_base, rho=RHO)
        with outside():
            for batch in batches:

                def closure(
                    batch: list[Tensor] = batch,
                    network: nn.Module = network,
                    inside: Context = inside,
                ) -> Tensor:
                    loss = loss_on(batch, network, autocast=inside)
                    loss.backward()
                    return loss

                optimizer.step(closure)
        results.append(clones(network.parameters()))
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("base", ["SGD", "fused SGD"])
def test_channels_last_takes_the_steps_of_two_passes_by_hand(base: str) -> None:
    make_base, _ = BASES[base]
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 4, 3), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(4 * 8 * 8, 1))
    network.to(device=DEVICE, memory_format=torch.channels_last)
    twin, plain = copy.deepcopy(network), copy.deepcopy(network)
    images = torch.randn(16, 3, 12, 12, device=DEVICE).to(memory_format=torch.channels_last)
    targets, weights = torch.randn(16, 1, device=DEVICE), torch.rand(16, 1, device=DEVICE)
    batch = [images, targets, weights]
    places = [(p.data_ptr(), p.stride()) for p in network.parameters()]
    assert places[0][1] == (27, 1, 9, 3)
    optimizer = BalancedSAM(network.parameters(), make_base, rho=RHO)
    bases = {twin: (make_base(twin.parameters()), RHO), plain: (make_base(plain.parameters()), 0.0)}
    for _ in range(5):
        optimizer.step(make_closure(batch, network))
        for other, (other_base, rho) in bases.items():
            descend_by_hand(other, other_base, partial(loss_on, batch), rho=rho)
    assert [(p.data_ptr(), p.stride()) for p in network.parameters()] == places
    # Convolutions have no more digits than TensorFloat32.
    torch.testing.assert_close(network.state_dict(), twin.state_dict(), rtol=0, atol=2e-3)
    assert not torch.allclose(network[0].weight, plain[0].weight, rtol=0, atol=1e-2)
