"""The perturbation: broken, missing, odd gradients, every storage, and what it costs."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import parametrizations, parametrize
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from balanced_sam import BalancedSAM, _perturbation

SGD = torch.optim.SGD
ignore_half_precision = pytest.mark.filterwarnings(
    "ignore:BalancedSAM perturbs weights stored in 16 bits"
)


class Elsewhere(Tensor):
    """A tensor that takes itself for one on an accelerator and must not be read by the host."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("meta")

    def item(self) -> float:
        raise AssertionError("the host read a value back")

    __bool__ = __float__ = __int__ = tolist = item  # type: ignore[assignment]


@pytest.fixture(params=["cpu", "accelerator"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on the CPU's code path and, on the CPU too, on that of accelerators."""
    if request.param == "accelerator":
        total_norm = _perturbation._total_norm
        monkeypatch.setattr(
            _perturbation, "_total_norm", lambda buckets: total_norm(buckets).as_subclass(Elsewhere)
        )
    return request.param


def bits(tensors: Iterable[Tensor]) -> list[bytes]:
    """Return the values of tensors, bit for bit."""
    flat = [torch.view_as_real(t) if t.is_complex() else t for t in map(Tensor.detach, tensors)]
    return [t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in flat]


def clones(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def at_perturbed(optimizer: BalancedSAM, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return the parameters as they are at w + eps."""
    with optimizer.perturbed():
        return clones(parameters)


def expected_step(
    model: nn.Module, loss: Callable[[Any], Tensor], *, rho: float, lr: float
) -> list[Tensor]:
    """Return the parameters after a step on plain gradient descent, by autograd on a copy."""
    twin = copy.deepcopy(model)
    parameters = list(twin.parameters())
    start = clones(parameters)
    gradients = torch.autograd.grad(loss(twin), parameters)
    norm = math.sqrt(sum(g.abs().to(torch.float64).square().sum().item() for g in gradients))
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            p += g * (rho / norm)
    descent = torch.autograd.grad(loss(twin), parameters)
    return [w - lr * h for w, h in zip(start, descent, strict=True)]


def assert_step_is_expected(model: nn.Module, loss: Callable[[Any], Tensor]) -> None:
    """Assert that three steps are those of the equations, and that the perturbation matters."""
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.4)

    def closure() -> Tensor:
        value = loss(model)
        value.backward()
        return value

    for _ in range(3):
        expected = expected_step(model, loss, rho=0.4, lr=0.1)
        plain = expected_step(model, loss, rho=0.0, lr=0.1)
        optimizer.step(closure)
        torch.testing.assert_close(clones(model.parameters()), expected)
        assert not all(map(torch.allclose, expected, plain))


# Broken gradients

BROKEN = {
    "NaN": [1.0, math.nan, 2.0],
    "all NaN": [math.nan] * 3,
    "inf": [1.0, math.inf, 2.0],
    "-inf": [-math.inf, 0.0, math.inf],
    "zero": [0.0, -0.0, 0.0],
}
KINDS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}


@ignore_half_precision
@pytest.mark.parametrize("dtype", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_broken_gradient_does_not_move_the_weights(
    path: str, broken: list[float], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, dtype=dtype)) for _ in range(2)]
    twins = [nn.Parameter(p.detach().clone()) for p in parameters]
    healthy = [torch.randn(3, dtype=dtype) for _ in range(2)]
    optimizer = BalancedSAM(parameters, partial(SGD, lr=0.1, momentum=0.9), rho=0.5)
    before = bits(parameters)
    seen = []

    def closure() -> float:
        seen.append(bits(parameters))
        first, second = [torch.tensor(broken, dtype=dtype), torch.zeros(3, dtype=dtype)], healthy
        for p, g in zip(parameters, second if optimizer.is_perturbed else first, strict=True):
            p.grad = g.clone()
        return 0.0

    optimizer.step(closure)
    assert seen == [before, before]
    for twin, gradient in zip(twins, healthy, strict=True):
        twin.grad = gradient.clone()
    SGD(twins, lr=0.1, momentum=0.9).step()
    assert bits(parameters) == bits(twins)
    assert bits(parameters) != before


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_broken_sparse_gradient_does_not_move_the_weights(path: str, broken: list[float]) -> None:
    parameter = nn.Parameter(torch.randn(5, 1))
    before = bits([parameter])
    optimizer = BalancedSAM([parameter], SGD, rho=0.5)
    parameter.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 3, 4]]), torch.tensor(broken).unsqueeze(1), (5, 1), check_invariants=True
    )
    assert bits(at_perturbed(optimizer, [parameter])) == before


@pytest.mark.parametrize(
    "size", [1e-45, 1e-38, 1e-30, 1e-15, 1e-10, 1e10, 1e18, 1e25, 3.4e38], ids=str
)
def test_gradient_of_any_size_moves_the_weights_by_rho_or_not(path: str, size: float) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = BalancedSAM([parameter], SGD, rho=0.5)
    parameter.grad = torch.full((3,), size)
    (moved,) = at_perturbed(optimizer, [parameter])
    length = moved.norm().item()
    # In float32 the square of a number beyond these bounds is 0 or infinite.
    assert length == (pytest.approx(0.5, rel=1e-5) if 1e-20 < size < 1e19 else 0.0)


@pytest.mark.parametrize("size", [1e-150, 1e-45, 1e25, 1e150], ids=str)
def test_gradient_of_any_size_moves_float64_weights_by_rho(path: str, size: float) -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = BalancedSAM([parameter], SGD, rho=0.5)
    parameter.grad = torch.full((3,), size, dtype=torch.float64)
    (moved,) = at_perturbed(optimizer, [parameter])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-9)


# Gradients in one pass only


def test_gradient_in_one_pass_only_is_used_in_that_pass_only(path: str) -> None:
    first = nn.Parameter(torch.tensor([1.0, 2.0]))
    second = nn.Parameter(torch.tensor([3.0]))
    both = nn.Parameter(torch.tensor([5.0]))
    optimizer = BalancedSAM([first, second, both], partial(SGD, lr=0.25), rho=13.0)
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        seen.append(clones([first, second, both]))
        if optimizer.is_perturbed:
            loss = (both * second).sum()
        else:
            loss = first @ torch.tensor([3.0, 4.0]) + 12 * both.sum()
        loss.backward()
        return loss

    for step in range(2):
        start = clones([first, second, both])
        optimizer.step(closure)
        w, s, b = seen[2 * step + 1]
        torch.testing.assert_close([w, b], [start[0] + torch.tensor([3.0, 4.0]), start[2] + 12])
        assert bits([s]) == bits([start[1]])
        assert bits([first]) == bits([start[0]])
        torch.testing.assert_close(second.data, start[1] - 0.25 * b)
        torch.testing.assert_close(both.data, start[2] - 0.25 * s)


def test_parameter_never_in_the_loss_stays(path: str) -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = BalancedSAM([used, unused, frozen], partial(SGD, lr=0.1, weight_decay=0.5), rho=0.5)

    def closure() -> Tensor:
        assert bits([unused, frozen]) == bits([torch.ones(3)] * 2)
        loss = used.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert bits([unused, frozen]) == bits([torch.ones(3)] * 2)
    assert used.tolist() != [1.0, 1.0]


# Shared parameters and storage


def test_parameter_given_twice_is_perturbed_once(path: str) -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 1.0]))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        base = SGD([parameter, parameter], lr=0.0)
    optimizer = BalancedSAM([parameter], base, rho=5.0)
    before = bits([parameter])
    parameter.grad = torch.tensor([3.0, 4.0])
    (moved,) = at_perturbed(optimizer, [parameter])
    torch.testing.assert_close(moved, torch.tensor([4.0, 5.0]))
    assert bits([parameter]) == before


class Tied(nn.Module):
    """A decoder that is the encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 3),
    "tied": Tied,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "convolution, channels last": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 4, 2, padding=1), nn.Tanh(), nn.Flatten()
    ).to(memory_format=torch.channels_last),
    "float32 and float64": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), Cast(torch.float64), nn.Linear(4, 2, dtype=torch.float64)
    ),
    "scalar": lambda: nn.PReLU(),
    "empty": lambda: WithEmpty(),
    "complex": lambda: nn.Sequential(Cast(torch.complex64), nn.Linear(3, 2, dtype=torch.complex64)),
}


class Cast(nn.Module):
    """Changes the dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


class WithEmpty(nn.Linear):
    """A layer with a parameter of no element."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.nothing = nn.Parameter(torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.nothing.sum()


@pytest.mark.parametrize("make_model", MODELS.values(), ids=MODELS.keys())
def test_step_equals_autograd_reference(path: str, make_model: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3)
    assert_step_is_expected(make_model(), lambda model: (model(x).abs().square() + 1).log().mean())


def test_overlapping_storage_is_restored(path: str) -> None:
    storage = torch.arange(6, dtype=torch.float32)
    parameters = [nn.Parameter(storage[:4]), nn.Parameter(storage[2:]), nn.Parameter(storage[::2])]
    optimizer = BalancedSAM(parameters, partial(SGD, lr=0.0), rho=0.3)
    before = bits([storage])

    def closure() -> Tensor:
        assert (bits([storage]) != before) is optimizer.is_perturbed
        loss = sum(p.exp().sum() for p in parameters)
        loss.backward()
        return loss

    for _ in range(10):
        optimizer.step(closure)
        assert bits([storage]) == before
    assert all(p.untyped_storage().data_ptr() == storage.data_ptr() for p in parameters)


# Sparse, complex, half precision, mixed


def test_sparse_gradients_equal_dense_ones(path: str) -> None:
    torch.manual_seed(0)
    models = [nn.Embedding(7, 3, sparse=sparse) for sparse in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    indices, y = torch.tensor([1, 4, 1, 6]), torch.randn(4, 3)
    for model in models:
        optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.4)

        def closure(model: nn.Embedding = model) -> Tensor:
            loss = (model(indices) - y).square().mean()
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        assert model.weight.grad.is_sparse is model.sparse
    torch.testing.assert_close(models[0].weight, models[1].weight)


def test_a_step_that_perturbs_nothing_can_follow_one_with_sparse_gradients(path: str) -> None:
    model = nn.Embedding(7, 3, sparse=True)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.4)
    for rho in (0.4, 0.0, 0.4):
        optimizer.param_groups[0]["rho"] = rho
        model.zero_grad()
        before = bits(model.parameters())
        model(torch.tensor([1, 4])).square().mean().backward()
        with optimizer.perturbed():
            assert (bits(model.parameters()) == before) is (rho == 0)
            model(torch.tensor([1, 4])).square().mean().backward()
        assert bits(model.parameters()) == before
        optimizer.step()
        assert bits(model.parameters()) != before


def test_sparse_and_dense_gradients_share_one_norm(path: str) -> None:
    dense, sparse = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3, 1))
    optimizer = BalancedSAM([dense, sparse], SGD, rho=13.0)
    dense.grad = torch.tensor([3.0, 4.0])
    # Row 1 comes twice: its gradient is the sum.
    sparse.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 1]]), torch.tensor([[5.0], [7.0]]), (3, 1), check_invariants=True
    )
    moved = at_perturbed(optimizer, [dense, sparse])
    torch.testing.assert_close(moved[0], torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(moved[1], torch.tensor([[0.0], [12.0], [0.0]]))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_perturbation_has_length_rho(path: str, dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.tensor([1 + 1j, 2 - 1j], dtype=dtype))
    before = bits([parameter])
    optimizer = BalancedSAM([parameter], SGD, rho=5.0)
    parameter.grad = torch.tensor([3j, -4], dtype=dtype)
    (moved,) = at_perturbed(optimizer, [parameter])
    torch.testing.assert_close(moved, torch.tensor([1 + 4j, -2 - 1j], dtype=dtype))
    assert bits([parameter]) == before


@ignore_half_precision
@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0, 4e4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_norm_is_accumulated_in_float32(
    path: str, dtype: torch.dtype, size: float
) -> None:
    parameters = [nn.Parameter(torch.zeros(500, dtype=dtype)) for _ in range(2)]
    optimizer = BalancedSAM(parameters, SGD, rho=0.5)
    for parameter in parameters:
        parameter.grad = torch.full((500,), size, dtype=dtype)
    moved = torch.cat(at_perturbed(optimizer, parameters)).to(torch.float64)
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-2)


@ignore_half_precision
def test_float16_scale_below_the_smallest_float16_still_perturbs(path: str) -> None:
    parameter = nn.Parameter(torch.zeros(4096, dtype=torch.float16))
    optimizer = BalancedSAM([parameter], SGD, rho=0.05)
    parameter.grad = torch.full((4096,), 6e4, dtype=torch.float16)
    (moved,) = at_perturbed(optimizer, [parameter])
    assert moved.to(torch.float64).norm().item() == pytest.approx(0.05, rel=1e-2)


@pytest.mark.works_with("16 bits")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_are_warned_of_once(path: str, dtype: torch.dtype) -> None:
    half, full = nn.Parameter(torch.ones(3, dtype=dtype)), nn.Parameter(torch.ones(3))
    optimizer = BalancedSAM([full, half], partial(SGD, lr=0.1))

    def closure() -> Tensor:
        loss = half.float().square().sum() + full.sum()
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match="perturbs weights stored in 16 bits"):
        optimizer.step(closure)
    # A warning is an error in this suite, so that a second one would fail here.
    optimizer.step(closure)


def test_half_precision_weights_that_are_not_perturbed_are_not_warned_of(path: str) -> None:
    half, full = nn.Parameter(torch.ones(3, dtype=torch.bfloat16)), nn.Parameter(torch.ones(3))
    optimizer = BalancedSAM([full], SGD([full, half], lr=0.1), rho=0.5)
    before = bits([half])
    full.grad, half.grad = torch.ones(3), torch.ones(3, dtype=torch.bfloat16)
    assert bits(at_perturbed(optimizer, [half])) == before


@pytest.mark.works_with("16 bits")
@ignore_half_precision
def test_every_dtype_shares_one_norm(path: str) -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
    parameters = [nn.Parameter(torch.zeros(1, dtype=dtype)) for dtype in dtypes]
    optimizer = BalancedSAM(parameters, SGD, rho=6.0)
    sizes = (1.0, 3.0, 1.0, 3.0, 4.0)
    for parameter, size in zip(parameters, sizes, strict=True):
        parameter.grad = torch.full_like(parameter, size).detach()
    moved = [m.abs().item() for m in at_perturbed(optimizer, parameters)]
    assert moved == pytest.approx(sizes, rel=1e-2)


# Caches that hide the perturbation


@pytest.mark.works_with("autocast")
@pytest.mark.parametrize("outside", [True, False], ids=["outside the closure", "inside"])
def test_pass_2_sees_the_perturbed_weights_under_autocast(path: str, outside: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=2.0)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    outputs: list[Tensor] = []
    weights: list[list[Tensor]] = []

    def closure() -> Tensor:
        with contextlib.nullcontext() if outside else autocast():
            weights.append(clones(model.parameters()))
            outputs.append(model(x))
            loss = outputs[-1].float().square().mean()
        loss.backward()
        return loss

    with autocast() if outside else contextlib.nullcontext():
        for _ in range(2):
            optimizer.step(closure)
    for output, (weight, bias) in zip(outputs, weights, strict=True):
        assert output.dtype is torch.bfloat16
        with autocast():
            assert torch.equal(output, nn.functional.linear(x, weight, bias))
    assert len({repr(output.tolist()) for output in outputs}) == 4


def test_evaluation_after_pass_2_sees_the_restored_weights_under_autocast() -> None:
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.0), rho=2.0)

    def closure() -> Tensor:
        loss = model(x).float().square().mean()
        loss.backward()
        return loss

    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(x).detach()
        optimizer.step(closure)
        assert torch.equal(model(x), before)


def test_parametrization_cache_around_the_step_raises() -> None:
    model = parametrizations.weight_norm(nn.Linear(3, 2))
    before = bits(model.parameters())
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.5)

    def closure() -> Tensor:
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss

    with parametrize.cached(), pytest.raises(RuntimeError, match=r"outside .*parametrize\.cached"):
        optimizer.step(closure)
    assert bits(model.parameters()) == before
    assert not optimizer.is_perturbed


def test_parametrization_cache_inside_the_closure_equals_none() -> None:
    results: list[list[Tensor]] = []
    for cached in (parametrize.cached, contextlib.nullcontext):
        torch.manual_seed(0)
        model, x = parametrizations.orthogonal(nn.Linear(3, 3)), torch.randn(5, 3)
        optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.5)

        def closure(
            cached: Callable[[], Any] = cached, model: nn.Module = model, x: Tensor = x
        ) -> Tensor:
            with cached():
                loss = (model(x) + model(2 * x)).tanh().square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        results.append(clones(model.parameters()))
    torch.testing.assert_close(results[0], results[1])


# What it costs


class Ledger(TorchDispatchMode):
    """Keeps the book of every operator call: names, words moved, memory that lives."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.words = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append(func._schema.name)
        if any(argument.alias_info and not argument.is_write for argument in func._schema.returns):
            return result
        copies, reserves = "copy_" in func._schema.name, "empty" in func._schema.name
        for argument, value in zip(func._schema.arguments, args, strict=False):
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            size = sum(t.numel() for t in _tensors(value))
            self.words += size * (is_written + (not (copies and is_written))) * (not reserves)
        for made in _tensors(result):
            storage = made.untyped_storage()
            if not func._schema.is_mutable:
                self.words += made.numel() * (not reserves)
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    @property
    def launches(self) -> list[str]:
        """Calls that do work: no views, no memory only reserved, no marks of the profiler."""
        idle = ("aten::view", "aten::detach", "aten::empty_like", "profiler::")
        return [call for call in self.calls if not call.startswith(idle)]

    @property
    def living_bytes(self) -> int:
        """Bytes that were allocated under this mode and are still in use."""
        return sum(size for storage, size in self._storages.values() if not storage.expired())


def _tensors(value: object) -> list[Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, Tensor)]


class Still(Optimizer):
    """A base optimizer without any work of its own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        return None


def sam_part(
    tensors: int, *, size: int = 1000, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Ledger, dict[str, int]]:
    """Return the ledger of a step's SAM part alone, and its living bytes at certain points."""
    parameters = [
        nn.Parameter(torch.ones(size, device=device, dtype=dtype)) for _ in range(tensors)
    ]
    gradients = [[torch.ones_like(p).detach() for p in parameters] for _ in range(2)]
    loss = torch.ones((), device=device)
    optimizer = BalancedSAM(parameters, Still, rho=0.5)
    ledger, living = Ledger(), {}

    def closure() -> Tensor:
        living["pass 2" if optimizer.is_perturbed else "pass 1"] = ledger.living_bytes
        for p, g in zip(parameters, gradients.pop(), strict=True):
            p.grad = g
        return loss

    with ledger:
        optimizer.step(closure)
    living["after"] = ledger.living_bytes
    return ledger, living


@ignore_half_precision
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_number_of_operator_calls_does_not_depend_on_the_number_of_tensors(
    device: str, dtype: torch.dtype
) -> None:
    counts = [
        len(sam_part(tensors, size=3, device=device, dtype=dtype)[0].launches)
        for tensors in (10, 100, 500)
    ]
    assert counts[0] == counts[1] == counts[2]
    assert 0 < counts[0] < (20 if device == "cpu" else 46)


@pytest.mark.skipif(
    not hasattr(torch, "_foreach_clone"),
    reason="This torch copies one tensor at a time; 2.10 does, 2.13 does not",
)
def test_not_even_a_view_is_taken_of_each_tensor_on_the_cpu() -> None:
    calls = [sam_part(tensors, size=3)[0].calls for tensors in (10, 100, 500)]
    assert calls[0] == calls[1] == calls[2]


# The guard against broken gradients on an accelerator, where the host must not look, costs 4 words.
@pytest.mark.parametrize(("device", "words"), [("cpu", 8), ("meta", 12)])
def test_words_moved_a_weight_are_within_the_budget(device: str, words: int) -> None:
    ledger, _ = sam_part(10, size=10_000, device=device)
    assert 7 <= ledger.words / 100_000 <= words + 0.01


@pytest.mark.parametrize(("device", "kept"), [("cpu", 1), ("meta", 0)])
def test_one_copy_of_the_weights_lives_between_the_passes_and_on_the_cpu_after(
    device: str, kept: int
) -> None:
    _, living = sam_part(20, size=10_000, device=device)
    weights = 20 * 10_000 * 4
    assert living["pass 1"] == 0
    assert weights <= living["pass 2"] <= 1.01 * weights
    assert kept * weights <= living["after"] < kept * weights + 1000


def shared_by_autograd() -> list[nn.Parameter]:
    p1, p2, w = (nn.Parameter(torch.linspace(a, 1, 5)) for a in (0.1, 0.4, -0.7))
    gradients = torch.autograd.grad(((p1 + p2) * w).sin().sum(), [p1, p2, w])
    assert gradients[0] is gradients[1]
    for parameter, gradient in zip((p1, p2, w), gradients, strict=True):
        parameter.grad = gradient
    return [p1, p2, w]


def shared_by_hand() -> list[nn.Parameter]:
    p1, p2 = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
    p1.grad = p2.grad = torch.tensor([1.0, -2.0, 3.0])
    return [p1, p2]


def expanded() -> list[nn.Parameter]:
    parameter = nn.Parameter(torch.ones(2, 3))
    parameter.grad = torch.tensor(0.5).expand(2, 3)
    return [parameter]


def overlapping() -> list[nn.Parameter]:
    flat = torch.linspace(-1, 1, 6)
    parameters = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))]
    parameters[0].grad, parameters[1].grad = flat[:4], flat[2:]
    return parameters


@pytest.mark.parametrize("rhos", [(0.3,), (0.3, 0.1)], ids=["one radius", "two radii"])
@pytest.mark.parametrize("make", [shared_by_autograd, shared_by_hand, expanded, overlapping])
def test_gradients_that_share_memory_are_each_scaled_once(
    path: str, make: Callable[[], list[nn.Parameter]], rhos: tuple[float, ...]
) -> None:
    parameters = make()
    radii = [rhos[i % len(rhos)] for i in range(len(parameters))]
    before = clones(parameters)
    held = [p.grad for p in parameters]
    gradients = clones(held)
    groups = [{"params": [p], "rho": rho} for p, rho in zip(parameters, radii, strict=True)]
    moved = at_perturbed(BalancedSAM(groups, SGD), parameters)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    for p, w, g, rho in zip(moved, before, gradients, radii, strict=True):
        torch.testing.assert_close(p - w, rho * g / norm)
    # They are the user's.
    assert bits(held) == bits(gradients)


def test_many_radii_take_the_operator_calls_of_one() -> None:
    counts = []
    for rhos in ([0.1] * 200, [0.1 + i / 1000 for i in range(200)]):
        parameters = [nn.Parameter(torch.ones(3)) for _ in rhos]
        groups = [{"params": [p], "rho": r} for p, r in zip(parameters, rhos, strict=True)]
        optimizer = BalancedSAM(groups, Still)

        def closure(parameters: list[nn.Parameter] = parameters) -> float:
            for p in parameters:
                p.grad = torch.ones(3)
            return 0.0

        optimizer.step(closure)
        with Ledger() as ledger:
            optimizer.step(closure)
        counts.append(len(ledger.launches))
    assert counts[1] <= counts[0] + 1


def square(w: Tensor) -> Tensor:
    loss = w.square().sum()
    loss.backward()
    return loss


def test_weights_may_change_shape_and_dtype_between_steps() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = BalancedSAM([w], SGD([w], lr=0.0))
    of_one_size = torch.rand(2, 2), torch.rand(4), torch.rand(1, 4)
    for data in (torch.rand(3), torch.rand(1), *of_one_size, torch.rand(2, 2).double()):
        w.data, w.grad = data.clone(), None
        optimizer.step(partial(square, w))
        assert torch.equal(w, data)


def test_weights_may_change_to_another_dtype_of_the_same_size_between_steps() -> None:
    model = nn.Linear(3, 1).half()
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.0))
    with pytest.warns(UserWarning, match="16 bits"):
        optimizer.step(partial(square, model.weight))
    model.bfloat16()
    with torch.no_grad():
        # In float16 the second is infinite and the third 0.
        model.weight.copy_(torch.tensor([[1.0, 1e5, 1e-9]]))
    before = model.weight.detach().clone()
    optimizer.step(partial(square, model.weight))
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("manual", [True, False], ids=["perturbed", "step"])
def test_gradients_of_pass_1_are_freed_before_pass_2(manual: bool) -> None:
    model = nn.Linear(3, 2)
    optimizer = BalancedSAM(model.parameters(), partial(SGD, lr=0.1), rho=0.5)
    gradients: list[StorageWeakRef] = []
    alive: list[bool] = []

    def closure() -> Tensor:
        if optimizer.is_perturbed:
            alive.extend(not gradient.expired() for gradient in gradients)
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        gradients.extend(StorageWeakRef(p.grad.untyped_storage()) for p in model.parameters())
        return loss

    if manual:
        closure()
        with optimizer.perturbed():
            closure()
    else:
        optimizer.step(closure)
    assert alive == [False, False]


@ignore_half_precision
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make_base", [SGD, torch.optim.AdamW], ids=["sgd", "adamw"])
def test_step_reads_no_value_back_from_the_device(
    make_base: Callable[..., Optimizer], dtype: torch.dtype
) -> None:
    # Nothing on the meta device has a value: to read one raises.
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, device="meta", dtype=dtype),
        nn.BatchNorm2d(4, device="meta", dtype=dtype),
        nn.Flatten(),
        nn.Linear(4, 1, device="meta", dtype=dtype),
    )
    x = torch.ones(5, 3, 3, 3, device="meta", dtype=dtype)
    with pytest.raises(RuntimeError):
        x.sum().item()
    optimizer = BalancedSAM(model.parameters(), partial(make_base, lr=0.1), rho=0.5)

    def closure() -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        assert optimizer.step(closure).is_meta
        assert optimizer.sharpness.is_meta
        closure()
        with optimizer.perturbed():
            closure()
        optimizer.step()
        optimizer.zero_grad()
    ledger, _ = sam_part(3, device="meta", dtype=dtype)
    assert "aten::_local_scalar_dense" not in ledger.calls


@ignore_half_precision
@pytest.mark.parametrize("dtype", KINDS.values(), ids=KINDS.keys())
def test_accelerator_path_equals_cpu_path(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    total_norm = _perturbation._total_norm
    moved = []
    for kind in (Tensor, Elsewhere):
        monkeypatch.setattr(
            _perturbation,
            "_total_norm",
            lambda buckets, kind=kind: total_norm(buckets).as_subclass(kind),
        )
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((5,), (2, 3), ())]
        before = bits(parameters)
        optimizer = BalancedSAM(parameters, SGD, rho=0.5)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        moved.append(at_perturbed(optimizer, parameters))
        assert bits(parameters) == before
        assert bits(moved[-1]) != before
    torch.testing.assert_close(moved[0], moved[1])
