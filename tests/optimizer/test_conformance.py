"""What torch's own suite asks of an optimizer, asked of BalancedSAM around SGD and AdamW.

A gradient that is the same at w and at w + eps makes its step the base's, bit for bit. So what the
suite asks of the base is asked of both, side by side: with the options of one input of each base at
every run, with every input that the suite knows once a week.
"""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.profiler import ProfilerActivity, profile

from balanced_sam import BalancedSAM

Gradients = list[Tensor | None]

INPUTS: dict[type[Optimizer], list[dict[str, Any]]] = {
    SGD: [
        {},
        {"lr": 0.01},
        {"lr": torch.tensor(0.001)},
        {"weight_decay": 0.5},
        {"momentum": 0.9},
        {"weight_decay": 0.1, "maximize": True},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
    AdamW: [
        {},
        {"lr": 0.01},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "amsgrad": True},
    ],
}
IMPLEMENTATIONS = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
weekly = pytest.mark.weekly


def label(make_base: partial[Optimizer]) -> str:
    options = ", ".join(f"{name}={value}" for name, value in make_base.keywords.items())
    return f"{make_base.func.__name__}({options})"


BASES = [partial(base, **options) for base, inputs in INPUTS.items() for options in inputs]
every_base = pytest.mark.parametrize(
    "make_base",
    [
        # Each base's last input has the most options.
        base if base.keywords == INPUTS[base.func][-1] else pytest.param(base, marks=weekly)
        for base in BASES
    ],
    ids=label,
)
every_implementation = pytest.mark.parametrize(
    "implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS
)


@weekly
def test_inputs_are_those_of_torchs_own_suite() -> None:
    # Importing the suite's table changes settings of the process, and a test library that it
    # never calls here need not be installed.
    script = """
import sys, types, unittest
sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase)
from torch.testing._internal.common_optimizers import optim_db
for info in optim_db:
    for each in info.optim_inputs_func(device="cpu"):
        print(info.name, each.kwargs)
"""
    lines = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    theirs = [line for line in lines if line.startswith(("SGD ", "AdamW "))]
    assert sorted(theirs) == sorted(f"{b.func.__name__} {b.keywords}" for b in BASES)


# Parameters and gradients


def random(*shape: int, **options: Any) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), **options)


PARAMETERS: dict[str, Callable[[], list[Tensor]]] = {
    "contiguous": lambda: [random(4, 3), random(4)],
    "strided": lambda: [random(4, 3, 2)[..., 0], random(4, 2)[..., 0]],
    "scalar, empty": lambda: [random(4, 3), random(), random(0, 3)],
    "several dtypes": lambda: [random(3, dtype=torch.float64), random(3), random(2).bfloat16()],
    "complex, real": lambda: [random(4, 3, dtype=torch.complex64), random(4, 3)],
}


def groups_of(name: str) -> list[dict[str, Any]]:
    """Return every parameter in a group of its own, the last hardly learning."""
    groups: list[dict[str, Any]] = [
        {"params": [nn.Parameter(tensor.detach())]} for tensor in PARAMETERS[name]()
    ]
    groups[-1]["lr"] = 1e-28
    return groups


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def make_gradients(optimizer: Optimizer, steps: int) -> list[Gradients]:
    """Return gradients of any kind: of the third step all are 0, of the fourth all but one None."""
    generator = torch.Generator().manual_seed(7)
    gradients: list[Gradients] = [
        [torch.empty_like(p).normal_(generator=generator) for p in parameters_of(optimizer)]
        for _ in range(steps)
    ]
    if steps > 3:
        gradients[2] = [torch.zeros_like(p) for p in parameters_of(optimizer)]
        gradients[3][1:] = [None] * (len(gradients[3]) - 1)
    return gradients


def step(optimizer: Optimizer, gradients: Gradients) -> int:
    """Step on the gradients, wherever the parameters are; return how often the closure ran."""
    calls = 0

    def closure() -> float:
        nonlocal calls
        calls += 1
        for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        return 0.0

    optimizer.step(closure)
    return calls


def wrap(groups: Any, make_base: Callable[..., Optimizer]) -> BalancedSAM:
    return BalancedSAM(groups, make_base, rho=0.5)


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def assert_same_optimizers(optimizer: BalancedSAM, base: Optimizer) -> None:
    """Compare weights, gradients, state and options."""
    for mine, other in zip(parameters_of(optimizer), parameters_of(base), strict=True):
        assert_same(mine.detach(), other.detach())
        assert (mine.grad is None) == (other.grad is None)
        if other.grad is not None:
            assert_same(mine.grad, other.grad)
    mine, other = copy.deepcopy([optimizer.state_dict(), base.state_dict()])
    for group in mine["param_groups"]:
        assert group.pop("rho") == 0.5
    assert mine.keys() == other.keys()
    assert mine["state"].keys() == other["state"].keys()
    for index, state in other["state"].items():
        assert mine["state"][index].keys() == state.keys()
        for name, value in state.items():
            assert_same(mine["state"][index][name], value)
    assert mine["param_groups"] == other["param_groups"]


@pytest.mark.filterwarnings("ignore:BalancedSAM perturbs weights stored in 16 bits")
@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        pytest.param(name, implementation, id=f"{name}-{key}")
        for name in PARAMETERS
        for key, implementation in IMPLEMENTATIONS.items()
        # See the errors below.
        if (name, key) != ("complex, real", "fused")
    ],
)
@every_base
def test_step_on_given_gradients_is_the_bases_own(
    make_base: partial[Optimizer], name: str, implementation: dict[str, bool]
) -> None:
    base = make_base(groups_of(name), **implementation)
    optimizer = wrap(groups_of(name), partial(make_base, **implementation))
    for gradients in make_gradients(base, 7):
        assert step(base, gradients) == 1
        assert step(optimizer, gradients) == 2
        assert_same_optimizers(optimizer, base)


@every_base
def test_step_without_any_gradient_does_nothing_as_the_base_does(
    make_base: partial[Optimizer],
) -> None:
    base, optimizer = make_base(groups_of("contiguous")), wrap(groups_of("contiguous"), make_base)
    step(base, [None, None])
    with pytest.warns(UserWarning, match="does nothing where the closure leaves no gradient"):
        step(optimizer, [None, None])
    assert_same_optimizers(optimizer, base)


@every_base
def test_group_added_between_steps_is_trained_as_by_the_base(
    make_base: partial[Optimizer],
) -> None:
    base, optimizer = make_base(groups_of("contiguous")), wrap(groups_of("contiguous"), make_base)
    for each in (base, optimizer):
        step(each, make_gradients(each, 1)[0])
        each.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.3})
        step(each, make_gradients(each, 2)[1])
    assert_same_optimizers(optimizer, base)


# A loss


class Fit:
    """Least squares; the complex parameter may be given as its real view."""

    def __init__(self, *, dtype: torch.dtype, strided: bool = False, as_real: bool = False) -> None:
        weight, bias = random(4, 3, 2, dtype=dtype), random(4, 2, dtype=dtype)
        # A slice in the last dimension is not contiguous.
        tensors = [t[..., 0] if strided else t[..., 0].contiguous() for t in (weight, bias)]
        tensors = [torch.view_as_real(t).clone() if as_real else t for t in tensors]
        self.parameters = [nn.Parameter(tensor) for tensor in tensors]
        self.as_real = as_real
        self.inputs = random(3, dtype=dtype)

    def loss(self) -> Tensor:
        weight, bias = (
            map(torch.view_as_complex, self.parameters) if self.as_real else self.parameters
        )
        loss = (weight.mv(self.inputs) + bias).abs().square().sum()
        loss.backward()
        return loss


@every_base
@every_implementation
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_loss_goes_the_way_it_should(
    strided: bool, implementation: dict[str, bool], make_base: partial[Optimizer]
) -> None:
    fit = Fit(dtype=torch.float32, strided=strided)
    optimizer = wrap(fit.parameters, partial(make_base, **implementation))
    losses = [optimizer.step(fit.loss).item() for _ in range(20)]
    assert (losses[-1] > losses[0]) == make_base.keywords.get("maximize", False)


@every_base
def test_every_implementation_takes_the_same_steps(make_base: partial[Optimizer]) -> None:
    results = []
    for implementation in IMPLEMENTATIONS.values():
        fit = Fit(dtype=torch.float64)
        optimizer = wrap(fit.parameters, partial(make_base, **implementation))
        for _ in range(7):
            optimizer.step(fit.loss)
        results.append(fit.parameters)
    torch.testing.assert_close(results[1:], [results[0]] * 2, rtol=1e-7, atol=1e-9)


@every_base
def test_complex_parameters_take_the_steps_of_their_real_view(
    make_base: partial[Optimizer],
) -> None:
    results = []
    for as_real in (True, False):
        fit = Fit(dtype=torch.complex128, as_real=as_real)
        optimizer = wrap(fit.parameters, make_base)
        for _ in range(7):
            optimizer.step(fit.loss)
        results.append([p if as_real else torch.view_as_real(p) for p in fit.parameters])
    torch.testing.assert_close(*results)


# State


@every_base
@pytest.mark.parametrize("named", [(False, False), (True, False), (False, True), (True, True)])
def test_state_loads_from_and_into_the_base_with_names_or_without(
    named: tuple[bool, bool], make_base: partial[Optimizer]
) -> None:
    for wrapped in ((True, False), (False, True), (True, True)):
        saved, resumed = (
            (wrap if is_wrapped else lambda params, make: make(params))(
                [(f"p{i}", p) if is_named else p for i, p in enumerate(fit.parameters)], make_base
            )
            for is_named, is_wrapped, fit in zip(
                named, wrapped, (Fit(dtype=torch.float32) for _ in range(2)), strict=True
            )
        )
        step(saved, make_gradients(saved, 1)[0])
        file = io.BytesIO()
        torch.save(saved.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        with torch.no_grad():
            for mine, other in zip(parameters_of(resumed), parameters_of(saved), strict=True):
                mine.copy_(other)
        for gradients in make_gradients(saved, 3):
            step(saved, gradients)
            step(resumed, gradients)
        assert_same(parameters_of(resumed), parameters_of(saved))


NEW_OPTIONS = (
    "maximize",
    "foreach",
    "fused",
    "differentiable",
    "capturable",
    "decoupled_weight_decay",
)


@every_base
def test_checkpoint_of_an_older_torch_loads_as_into_the_base(make_base: partial[Optimizer]) -> None:
    base, optimizer = make_base(groups_of("contiguous")), wrap(groups_of("contiguous"), make_base)
    for each in (base, optimizer):
        gradients = make_gradients(each, 3)
        step(each, gradients[0])
        old = copy.deepcopy(each.state_dict())
        for group in old["param_groups"]:
            for option in NEW_OPTIONS:
                group.pop(option, None)
        for state in old["state"].values():
            # A number in older versions of torch.
            if "step" in state:
                state["step"] = state["step"].item()
        each.load_state_dict(old)
        step(each, gradients[1])
    assert_same_optimizers(optimizer, base)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@every_base
def test_copy_has_every_public_attribute_and_goes_on_as_the_original(
    make_base: partial[Optimizer], copied: Callable[[Any], Any]
) -> None:
    optimizer = wrap(groups_of("contiguous"), make_base)
    first, second = make_gradients(optimizer, 2)
    step(optimizer, first)
    twin = copied(optimizer)
    public = [{name for name in vars(each) if name[0] != "_"} for each in (optimizer, twin)]
    assert public[0] == public[1] == {"base_optimizer"}
    for each in (optimizer, twin):
        step(each, second)
    assert_same(parameters_of(twin), parameters_of(optimizer))
    assert_same(list(twin.state.values()), list(optimizer.state.values()))


@every_base
def test_load_hooks_change_what_is_loaded_as_they_do_for_the_base(
    make_base: partial[Optimizer],
) -> None:
    rates = []
    for each in (make_base(groups_of("contiguous")), wrap(groups_of("contiguous"), make_base)):

        def write(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            state_dict["param_groups"][0]["lr"] = 0.002

        def replace(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            replacement = copy.deepcopy(state_dict)
            replacement["param_groups"][0]["lr"] = 0.003
            return replacement

        each.register_load_state_dict_pre_hook(write)
        each.load_state_dict(each.state_dict())
        rates.append(each.param_groups[0]["lr"])
        last = each.register_load_state_dict_pre_hook(replace)
        each.load_state_dict(each.state_dict())
        rates.append(each.param_groups[0]["lr"])
        last.remove()
        each.register_load_state_dict_pre_hook(replace, prepend=True)
        each.register_load_state_dict_post_hook(
            lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
        )
        each.load_state_dict(each.state_dict())
    assert rates == [0.002, 0.003, 0.002] * 2


@every_base
def test_save_hooks_change_what_is_saved(make_base: partial[Optimizer]) -> None:
    optimizer = wrap(groups_of("contiguous"), make_base)
    seen: list[Optimizer] = []
    optimizer.register_state_dict_pre_hook(seen.append)
    optimizer.register_state_dict_post_hook(lambda _, saved: saved.update(note=len(seen)))
    assert optimizer.state_dict()["note"] == 1
    optimizer.register_state_dict_post_hook(lambda _, saved: {"only": saved["note"]})
    assert optimizer.state_dict() == {"only": 2}


# What watches a step


@every_base
def test_step_hooks_fire_in_torchs_order_with_the_base_optimizer(
    make_base: partial[Optimizer],
) -> None:
    optimizer, other = (wrap(groups_of("contiguous"), make_base) for _ in range(2))
    gradients = make_gradients(optimizer, 1)[0]
    events: list[tuple[str, Optimizer]] = []

    def note(event: str) -> Callable[..., None]:
        return lambda hooked, args, kwargs: events.append((event, hooked))

    handles = [
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
    ]
    try:
        step(optimizer, gradients)
        step(other, gradients)
    finally:
        for handle in handles:
            handle.remove()
    step(optimizer, gradients)
    mine = ["global pre", "pre", "post", "global post"]
    assert events == [
        *((event, optimizer.base_optimizer) for event in mine),
        ("global pre", other.base_optimizer),
        ("global post", other.base_optimizer),
    ]


@pytest.mark.parametrize("base", INPUTS, ids=lambda base: base.__name__)
def test_profiler_shows_one_step_of_the_base_a_step(base: type[Optimizer]) -> None:
    optimizer = wrap(groups_of("contiguous"), base)
    gradients = make_gradients(optimizer, 1)[0]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            step(optimizer, gradients)
    counts = {event.key: event.count for event in profiler.key_averages()}
    name = base.__name__
    assert counts[f"Optimizer.step#{name}.step"] == 3
    assert {key for key in counts if key.startswith("Optimizer.step")} == {
        f"Optimizer.step#{name}.step"
    }


@every_base
def test_repr_names_every_option_of_the_base(make_base: partial[Optimizer]) -> None:
    optimizer = wrap(groups_of("contiguous"), make_base)
    lines = repr(make_base(groups_of("contiguous"))).splitlines()
    assert set(repr(optimizer).splitlines()) == {
        "BalancedSAM (",
        "    rho: 0.5",
        *lines[1:],
    }


# What the base refuses, or does in its own way


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("base", INPUTS, ids=lambda base: base.__name__)
def test_differentiable_base_is_differentiated_through(base: type[Optimizer]) -> None:
    if base is AdamW and torch.__version__ < "2.7":
        pytest.skip("Before 2.7 torch's differentiable AdamW, alone too, overwrites what it needs")
    results = []
    make_base = partial(base, lr=0.1, differentiable=True)
    for make_optimizer in (make_base, partial(wrap, make_base=make_base)):
        start, gradient = random(4).requires_grad_(), random(4).square().requires_grad_()
        weight = start.clone()
        optimizer = make_optimizer([weight])

        def closure(weight: Tensor = weight, gradient: Tensor = gradient) -> float:
            weight.grad = gradient
            return 0.0

        for _ in range(2):
            optimizer.step(closure)
        results.append(torch.autograd.grad(weight.sin().sum(), [start, gradient]))
    assert_same(*results)


one = nn.Parameter(torch.ones(1))
two = nn.Parameter(torch.ones(1))
imaginary = nn.Parameter(torch.ones(1) * 1j)
ERRORS: dict[str, tuple[type[Optimizer], Any, dict[str, Any]]] = {
    "parameter in two groups": (SGD, [{"params": [one]}, {"params": [one]}], {}),
    "some with names": (SGD, [("one", one), two], {}),
    "some groups with names": (SGD, [{"params": [one]}, {"params": [("two", two)]}], {}),
    "two learning rates": (SGD, [one], {"lr": torch.tensor([0.1, 0.2])}),
    "negative lr": (SGD, [one], {"lr": -1.0}),
    "negative momentum": (SGD, [one], {"momentum": -0.5}),
    "negative weight decay": (AdamW, [one], {"weight_decay": -1}),
    "nesterov without momentum": (SGD, [one], {"nesterov": True}),
    "beta of one": (AdamW, [one], {"betas": (1.0, 0.0)}),
    "betas of two kinds": (AdamW, [one], {"betas": (0.9, torch.tensor(0.99))}),
    "tensor lr under foreach": (AdamW, [one], {"lr": torch.tensor(0.1), "foreach": True}),
    "fused and foreach": (AdamW, [one], {"fused": True, "foreach": True}),
    "fused and differentiable": (AdamW, [one], {"fused": True, "differentiable": True}),
    "fused and complex, at construction": (AdamW, [imaginary], {"fused": True}),
    "fused and complex, in the step": (SGD, [imaginary], {"fused": True}),
    "capturable on the CPU": (AdamW, [one], {"capturable": True}),
    "no such option": (SGD, [one], {"beta": 1}),
    "no parameters": (SGD, [], {}),
    "a number": (SGD, [1], {}),
}


@pytest.mark.parametrize(("base", "params", "options"), ERRORS.values(), ids=ERRORS)
def test_error_of_the_base_comes_as_it_is_and_leaves_the_weights(
    base: type[Optimizer], params: Any, options: dict[str, Any]
) -> None:
    def use(make_optimizer: Callable[[Any], Optimizer]) -> None:
        optimizer = make_optimizer(params)
        step(optimizer, [torch.ones_like(p) for p in parameters_of(optimizer)])

    make_base = partial(base, **options)
    errors = []
    for make_optimizer in (make_base, partial(wrap, make_base=make_base)):
        with pytest.raises((TypeError, ValueError, RuntimeError, AssertionError)) as raised:
            use(make_optimizer)
        errors.append((raised.type, str(raised.value)))
    assert errors[0] == errors[1]
    assert [one.item(), two.item(), imaginary.item()] == [1, 1, 1j]


def test_parameter_given_twice_in_a_group_is_warned_of_by_the_base() -> None:
    with pytest.warns(UserWarning, match="duplicate parameters"):
        wrap([one, one], SGD)


@every_base
def test_maximizing_equals_minimizing_the_negative(make_base: partial[Optimizer]) -> None:
    results = []
    for sign in (1, -1):
        weight = nn.Parameter(torch.linspace(-1, 2, 5, dtype=torch.float64))
        optimizer = wrap([weight], partial(make_base, maximize=sign < 0))

        def closure(weight: Tensor = weight, sign: int = sign) -> Tensor:
            loss = sign * (weight.sin() * torch.arange(1, 6)).sum()
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        results.append(weight.detach())
    torch.testing.assert_close(*results)
