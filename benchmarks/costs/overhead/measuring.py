"""The measurements: of the SAM part alone, of whole steps, and of what can be counted."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, Optimizer

from balanced_sam import BalancedSAM
from benchmarks.costs.ledger import Ledger
from benchmarks.costs.overhead.contenders import Contender, Parameters
from benchmarks.costs.overhead.figures import MANY
from benchmarks.costs.overhead.timing import Rounds, Work, clock_of, interleaved
from benchmarks.costs.overhead.workloads import (
    WORKLOADS,
    Case,
    fresh_gradients,
    given_gradients,
    training_closure,
)

make_base = partial(SGD, lr=1e-3, momentum=0.9, weight_decay=1e-4)


class Still(Optimizer):
    """A base optimizer without any work of its own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do nothing."""


def shapes_of(name: str) -> list[torch.Size]:
    """Return the shapes of the weights of a workload, or of many small tensors."""
    if name == MANY:
        return [torch.Size([4])] * 10_000
    return [parameter.shape for parameter in WORKLOADS[name].network().parameters()]


def parameters_of(shapes: Iterable[Iterable[int]], device: torch.device) -> Parameters:
    """Return weights of these shapes."""
    return [nn.Parameter(torch.ones(tuple(shape), device=device)) for shape in shapes]


def sam_part(
    shapes: list[torch.Size],
    contenders: dict[str, Contender],
    *,
    device: torch.device,
    seconds: float,
) -> Rounds:
    """Return the seconds of steps whose passes and base step do nothing."""
    parameters = parameters_of(shapes, device)
    closure = given_gradients(parameters)
    works: dict[str, Work] = {
        name: partial(make(parameters, Still), closure) for name, make in contenders.items()
    }
    clear = _clearing(parameters)
    return interleaved(works, seconds=seconds, clock=clock_of(device), before=clear)


def whole_step(
    case: Case,
    contenders: dict[str, Contender],
    *,
    device: torch.device,
    seconds: float,
    capture: Callable[[Work], Work] | None = None,
) -> Rounds:
    """Return the seconds of steps on a network, all on the same weights.

    In float16 only those are measured that know what to do with a scaler. ``capture`` makes a step
    into the replay of a graph.
    """
    workload = WORKLOADS[case.workload]
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    network = workload.network().to(device=device, memory_format=layout)
    inputs = workload.inputs(device).contiguous(memory_format=layout)
    scaler = None
    if case.precision == "float16":
        scaler = GradScaler(device.type)
        contenders = {
            name: partial(make, scaler=scaler)
            for name, make in contenders.items()
            if name in ("two_passes", "balanced_sam")
        }
    closure = training_closure(network, inputs, case.precision, scaler)
    parameters = list(network.parameters())
    works: dict[str, Work] = {
        name: partial(make(parameters, make_base), closure) for name, make in contenders.items()
    }
    if capture is not None and scaler is None:
        works["captured"] = capture(works["balanced_sam"])
    return interleaved(works, seconds=seconds, clock=clock_of(device), before=_clearing(parameters))


def counts(
    shapes: list[torch.Size], contender: Contender, *, device: torch.device
) -> dict[str, float]:
    """Return what a step costs whatever the clock says, passes and base step left out.

    On the ``meta`` device nothing is computed, and all is called as on an accelerator.
    """
    parameters = parameters_of(shapes, device)
    closure = given_gradients(parameters)
    weights = sum(p.numel() for p in parameters)
    ledger = Ledger()
    with ledger:
        step = contender(parameters, Still)
        # What is kept between steps is made in the first.
        step(closure)
        launches, words, host_reads = ledger.launches, ledger.words, ledger.host_reads
        step(closure)
    size = weights * parameters[0].element_size()
    # Gradients of its own, which nobody else holds, as a backward pass makes them.
    memory = Ledger()
    with memory:
        contender(parameters, Still)(fresh_gradients(parameters))
    return {
        "calls": ledger.launches - launches,
        "words": round((ledger.words - words) / weights, 2),
        "host_reads": ledger.host_reads - host_reads,
        "peak_copies": round(memory.peak_bytes / size - 1, 2),  # beyond the gradients
        "kept_copies": round(ledger.living_bytes / size, 2),
    }


def all_counts(shapes: list[torch.Size], contenders: dict[str, Contender]) -> dict[str, Any]:
    """Return the counts of each contender, on a CPU and as on an accelerator."""
    return {
        path: {
            name: counts(shapes, make, device=torch.device(device))
            for name, make in contenders.items()
        }
        for path, device in (("cpu", "cpu"), ("accelerator", "meta"))
    }


def calls_by_groups(groups: int) -> int:
    """Return the operator calls of our step on 200 tensors in so many groups, a rho each."""
    parameters = parameters_of([torch.Size([4])] * 200, torch.device("cpu"))
    rows = [{"params": parameters[i::groups], "rho": 0.05 + i / 1000} for i in range(groups)]
    optimizer = BalancedSAM(rows, Still)
    closure = given_gradients(parameters)
    optimizer.step(closure)
    with Ledger() as ledger:
        optimizer.step(closure)
    return ledger.launches


def _clearing(parameters: Parameters) -> Work:
    """Return what clears the gradients that another contender left."""

    def clear() -> None:
        for parameter in parameters:
            parameter.grad = None

    return clear
