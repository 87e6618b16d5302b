"""What only a GPU can tell: that nothing waits for it, captured steps, and launches."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.optim import AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from benchmarks.costs.overhead.contenders import Contender, balanced_sam
from benchmarks.costs.overhead.measuring import Still, make_base, parameters_of
from benchmarks.costs.overhead.timing import Work
from benchmarks.costs.overhead.workloads import WORKLOADS, given_gradients, training_closure

NOT_RUN = (
    "events on a GPU's own clock",
    "launches counted by the profiler",
    "steps under torch.cuda.set_sync_debug_mode('error')",
    "capture and replay of a step in a CUDA graph",
    "whole steps of a ViT-B/16, under GradScaler in float16, and in channels_last",
)
"""What is left out where there is no GPU."""
DEVICE = torch.device("cuda")
CAPTURE_CHECK = "captured steps equal eager ones"


def captured(step: Work) -> Work:
    """Return what replays a step from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # What a step makes once, such as momentum, must be there before the capture.
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def checks() -> dict[str, str]:
    """Return what came of each check: ``"passed"``, or the error."""
    found = {
        f"no synchronisation, {name}, {precision}": _outcome(
            partial(check_no_synchronisation, name, make, precision)
        )
        for name, make in {"SGD": make_base, "AdamW": AdamW}.items()
        for precision in ("float32", "bfloat16")
    }
    return found | {CAPTURE_CHECK: _outcome(check_captured)}


def check_no_synchronisation(name: str, make: Callable[..., Optimizer], precision: str) -> None:
    """Raise if a step makes the host wait for the GPU."""
    network, inputs = _network("resnet18")
    step = balanced_sam(list(network.parameters()), make)
    closure = training_closure(network, inputs, precision)
    step(closure)
    with _no_synchronisation():
        for _ in range(3):
            step(closure)


def check_captured(*, steps: int = 5) -> None:
    """Raise if replays of a captured step do not lead where steps do."""
    network, inputs = _network("mlp")
    parameters = list(network.parameters())
    closure = training_closure(network, inputs, "float32")
    # Without momentum the weights are all there is to a step.
    step = partial(balanced_sam(parameters, partial(torch.optim.SGD, lr=0.1)), closure)
    replay = captured(step)
    start = [p.detach().clone() for p in parameters]
    ends: list[list[Tensor]] = []
    for work in (replay, step):
        with torch.no_grad():
            torch._foreach_copy_(parameters, start)
        for _ in range(steps):
            work()
        ends.append([p.detach().clone() for p in parameters])
    torch.testing.assert_close(*ends)
    if all(map(torch.equal, ends[0], start)):
        raise AssertionError("the replays moved nothing")


def counts(
    shapes: list[torch.Size], contenders: dict[str, Contender]
) -> dict[str, dict[str, float]]:
    """Return what the SAM part of each contender launches, and the memory that it needs."""
    parameters = parameters_of(shapes, DEVICE)
    closure = given_gradients(parameters)
    size = sum(p.numel() * p.element_size() for p in parameters)
    found = {}
    for name, make in contenders.items():
        step = partial(make(parameters, Still), closure)
        found[name] = {
            "launches": launches(step),
            "peak_copies": round(peak_bytes(step) / size, 2),
        }
    return found


def launches(work: Work) -> int:
    """Return how many kernels and copies a piece of work launches."""
    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    return count_launches(profiler.events() or [])


def count_launches(events: Iterable[FunctionEvent]) -> int:
    """Return how many of the events ran on the GPU; marks of the program's own do not count."""
    return sum(
        event.device_type == DeviceType.CUDA and not event.is_user_annotation for event in events
    )


def peak_bytes(work: Work) -> int:
    """Return the most memory that a piece of work has in use, beyond what it finds in use."""
    work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _network(workload: str) -> tuple[nn.Module, Tensor]:
    """Return a network and a batch on the GPU."""
    return WORKLOADS[workload].network().to(DEVICE), WORKLOADS[workload].inputs(DEVICE)


def _outcome(check: Work) -> str:
    try:
        check()
    except (RuntimeError, AssertionError) as error:
        return f"failed: {str(error).splitlines()[0]}"
    return "passed"


@contextmanager
def _no_synchronisation() -> Iterator[None]:
    """Make it an error that the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
