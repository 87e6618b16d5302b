"""Ways to take a step of SAM, each called as its documentation says."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from balanced_sam import BalancedSAM

RHO = 0.05
Parameters = list[nn.Parameter]
Closure = Callable[[], Tensor]
"""Computes the loss and calls backward; it does not clear the gradients."""
Step = Callable[[Closure], object]
Contender = Callable[[Parameters, Callable[..., Optimizer]], Step]


def balanced_sam(
    parameters: Parameters,
    make_base: Callable[..., Optimizer],
    *,
    scaler: GradScaler | None = None,
) -> Step:
    """Return the step of this library."""
    optimizer = BalancedSAM(parameters, make_base, rho=RHO)
    if scaler is None:
        return optimizer.step

    def step(closure: Closure) -> None:
        optimizer.step(closure, scaler=scaler)
        scaler.update()

    return step


def two_passes(
    parameters: Parameters,
    make_base: Callable[..., Optimizer],
    *,
    scaler: GradScaler | None = None,
) -> Step:
    """Return a step of two passes at the same weights: what SAM costs at least."""
    base = make_base(parameters)

    def step(closure: Closure) -> None:
        for _ in range(2):
            base.zero_grad()
            closure()
        if scaler is None:
            base.step()
        else:
            scaler.step(base)
            scaler.update()

    return step


def pytorch_optimizer(parameters: Parameters, make_base: Callable[..., Optimizer]) -> Step:
    """Return the step of the package pytorch_optimizer, whose first pass is the caller's."""
    from pytorch_optimizer import SAM

    optimizer = SAM(parameters, make_base, rho=RHO)

    def step(closure: Closure) -> None:
        optimizer.zero_grad()
        closure()
        optimizer.step(closure)

    return step


def temperon(parameters: Parameters, make_base: Callable[..., Optimizer]) -> Step:
    """Return the step of the package temperon, all of whose training is the tail that has SAM."""
    from temperon import Temperon

    optimizer = Temperon(make_base(parameters), total_steps=1, tail_frac=1.0, rho=RHO)

    def step(closure: Closure) -> None:
        def clearing_closure() -> Tensor:
            optimizer.zero_grad()
            return closure()

        optimizer.step(clearing_closure)

    return step


def published(parameters: Parameters, make_base: Callable[..., Optimizer]) -> Step:
    """Return a step with the arithmetic of the class that was published with the paper.

    Tensor by tensor: the perturbation is kept for good, copied from the gradient, scaled, added,
    and subtracted after the second pass. The published loop's weighting is not in here.
    """
    base = make_base(parameters)
    perturbations = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def ascend() -> None:
        norm = torch.stack([p.grad.norm() for p in parameters]).norm() + 1e-16
        for parameter, perturbation in zip(parameters, perturbations, strict=True):
            perturbation.copy_(parameter.grad).mul_(RHO / norm)
            parameter.add_(perturbation)

    @torch.no_grad()
    def descend() -> None:
        for parameter, perturbation in zip(parameters, perturbations, strict=True):
            parameter.sub_(perturbation)
        base.step()

    def step(closure: Closure) -> None:
        base.zero_grad()
        closure()
        ascend()
        base.zero_grad()
        closure()
        descend()

    return step


def bare(parameters: Parameters, make_base: Callable[..., Optimizer]) -> Step:
    """Return a step of our operators alone, right only where nothing goes wrong.

    What ours takes beyond it is Python: parameter groups, checks, restoring after an exception.
    """
    base = make_base(parameters)
    saved = [p.detach().clone() for p in parameters]

    def gradients(closure: Closure) -> list[Tensor]:
        for parameter in parameters:
            parameter.grad = None
        closure().detach().clone()
        return [p.grad for p in parameters if p.grad is not None]

    def step(closure: Closure) -> None:
        ascent = gradients(closure)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(ascent)))
            torch._foreach_copy_(saved, parameters)
            if norm.is_cpu:
                torch._foreach_add_(parameters, ascent, alpha=RHO / norm.item())
            else:
                torch._foreach_mul_(ascent, RHO / norm)
                torch._foreach_add_(parameters, ascent)
        del ascent
        gradients(closure)
        with torch.no_grad():
            torch._foreach_copy_(parameters, saved)
        base.step()

    return step


CONTENDERS: dict[str, Contender] = {
    "two_passes": two_passes,
    "balanced_sam": balanced_sam,
    "bare": bare,
    "pytorch_optimizer": pytorch_optimizer,
    "temperon": temperon,
    "published": published,
}
PEERS = ("pytorch_optimizer", "temperon")
"""Packages of the same name, the extra ``peers``."""


def missing() -> list[str]:
    """Return the peers that are not installed."""
    return [name for name in PEERS if find_spec(name) is None]


def available() -> dict[str, Contender]:
    """Return the contenders that can be measured here."""
    absent = missing()
    return {name: make for name, make in CONTENDERS.items() if name not in absent}
