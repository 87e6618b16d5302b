"""Under torch.compile, of the model, the closure, the base's step or the loop: the eager steps."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim import SGD, AdamW, Optimizer

from balanced_sam import (
    BalancedSAM,
    TargetBins,
    TargetWeights,
    frozen_running_stats,
    weighted_mean,
)

# Torch's own: Dynamo looks at the gradient of a loss, an import of its own is deprecated, and the
# first patch release of Python 3.13 is slow.
pytestmark = [
    pytest.mark.works_with("torch.compile"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0"),
]

# Neither backend writes C++: what Dynamo and AOTAutograd capture is what matters here.
every_backend = pytest.mark.parametrize("backend", ["eager", "aot_eager"])
BASES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(SGD, lr=0.1, momentum=0.9),
    "AdamW": partial(AdamW, lr=0.01),
}
STEPS = 5


@pytest.fixture(autouse=True)
def compiler_starts_anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Run:
    """Training of a small network with batch normalisation; parts of it may be compiled."""

    def __init__(self, base: str = "SGD") -> None:
        torch.manual_seed(0)
        # A bias before the normalisation has no gradient but rounding errors, which Adam blows up.
        first = nn.Linear(3, 4, bias=False)
        self.network = nn.Sequential(first, nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.inputs = torch.randn(STEPS, 8, 3)
        self.targets = 10 * torch.rand(STEPS, 8)
        self.weights = TargetWeights.from_targets(
            self.targets.flatten(), TargetBins.uniform(0, 10, width=2)
        )
        self.optimizer = BalancedSAM(
            self.network.parameters(),
            BASES[base],
            rho=0.3,
            descent_context=partial(frozen_running_stats, self.network),
        )
        self.forward: Callable[[Tensor], Tensor] = self.network
        self.closure = self.plain_closure
        self.batch = 0

    def plain_closure(self) -> Tensor:
        inputs, targets = self.inputs[self.batch], self.targets[self.batch]
        losses = (self.forward(inputs)[:, 0] - targets).square()
        loss = weighted_mean(losses, self.weights(targets))
        loss.backward()
        return loss

    def train(self) -> tuple[list[float], dict[str, Tensor]]:
        """Return loss and sharpness of every step, and weights and statistics after the last."""
        history = []
        for self.batch in range(STEPS):
            history.append(self.optimizer.step(lambda: self.closure()).item())
            history.append(self.optimizer.sharpness.item())
        return history, copy.deepcopy(self.network.state_dict())


def assert_same(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@every_backend
def test_compiled_model_takes_the_steps_of_the_eager_one_in_one_graph(backend: str) -> None:
    counter = CompileCounterWithBackend(backend)
    run = Run()
    run.forward = torch.compile(run.network, backend=counter)
    assert_same(run.train(), Run().train())
    assert counter.frame_count == 1


@every_backend
def test_compiled_closure_takes_the_steps_of_the_eager_one(backend: str) -> None:
    counter = CompileCounterWithBackend(backend)
    run = Run()
    run.closure = torch.compile(run.plain_closure, backend=counter)
    assert_same(run.train(), Run().train())
    assert counter.frame_count > 0


@pytest.mark.parametrize("base", BASES)
def test_compiled_step_of_the_base_takes_the_steps_of_the_eager_one(base: str) -> None:
    counter = CompileCounterWithBackend("eager")
    run = Run(base)
    run.optimizer.base_optimizer.step = torch.compile(
        run.optimizer.base_optimizer.step, backend=counter
    )
    assert_same(run.train(), Run(base).train())
    assert counter.frame_count > 0


def test_compiled_model_under_autocast_sees_the_perturbed_weights() -> None:
    results = []
    for compiled in (True, False):
        run = Run()
        if compiled:
            run.forward = torch.compile(run.network, backend="aot_eager")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(run.train())
    assert_same(*results)
    sharpness = results[0][0][1::2]
    assert min(sharpness) > 0


# Torch's own, before 2.7: it does not trace its own function.
@pytest.mark.filterwarnings("ignore:Graph break due to unsupported builtin")
def test_manual_loop_compiled_as_a_whole_takes_the_steps_of_the_eager_one() -> None:
    results = []
    for compiled in (True, False):
        run = Run()

        def train_batch(run: Run = run) -> None:
            run.optimizer.zero_grad()
            run.plain_closure()
            with run.optimizer.perturbed():
                run.plain_closure()
            run.optimizer.step()

        train = torch.compile(train_batch, backend="eager") if compiled else train_batch
        for run.batch in range(STEPS):
            train()
        results.append(run.network.state_dict())
    assert_same(*results)


@pytest.mark.parametrize("way", ["the method", "a function that calls it"])
@pytest.mark.parametrize("with_model", [False, True], ids=["alone", "and the model"])
def test_compiled_step_takes_the_steps_of_the_eager_one(way: str, with_model: bool) -> None:
    counter = CompileCounterWithBackend("eager")
    run = Run()
    if with_model:
        run.forward = torch.compile(run.network, backend=counter)
    step = run.optimizer.step if way == "the method" else lambda c: run.optimizer.step(c)
    compiled = torch.compile(step, backend=counter)
    history = []
    for run.batch in range(STEPS):
        history.append(compiled(run.plain_closure).item())
        history.append(run.optimizer.sharpness.item())
    assert_same((history, run.network.state_dict()), Run().train())
    # The step itself is left alone, the model inside it is not.
    assert counter.frame_count == with_model
