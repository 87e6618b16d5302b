"""Where only some parameters are perturbed the first pass computes no other gradient."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

from balanced_sam import BalancedSAM, frozen_running_stats, normalization_parameters

INPUTS = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make_network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 64, 1)),
    )


def make_closure(network: nn.Module, inputs: Tensor = INPUTS) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = (network(inputs) - 1).square().mean()
        loss.backward()
        return loss

    return closure


def make_optimizer(network: nn.Module, **options: Any) -> BalancedSAM:
    base = SGD(network.parameters(), lr=0.1, momentum=0.9)
    return BalancedSAM(normalization_parameters(network), base, rho=0.5, **options)


def trainable(network: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in network.parameters()]


class Backward(TorchDispatchMode):
    """Counts the gradients that backward passes compute: of weights, and of what lies before."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::convolution_backward":
            inputs, weight, bias = result
            found = {"inputs": inputs, "weight": weight, "bias": bias}
            self.made.update(kind for kind, gradient in found.items() if gradient is not None)
        elif func._schema.name in ("aten::mm", "aten::addmm"):
            self.made["mm"] += 1
        return result


def test_gradients_of_other_weights_are_not_computed() -> None:
    network = make_network()
    closure = make_closure(network)
    passes = []

    def counted() -> Tensor:
        with Backward() as backward:
            loss = closure()
        passes.append(dict(backward.made))
        return loss

    make_optimizer(network).step(counted)
    # The linear layer: forward, its inputs' gradient, its weight's. Nothing before the first
    # normalisation layer needs a gradient at all.
    assert passes == [
        {"mm": 2, "inputs": 1},
        {"mm": 3, "inputs": 1, "weight": 2, "bias": 2},
    ]


def test_group_whose_rho_is_zero_is_spared_as_well() -> None:
    network = make_network()
    groups = [
        {"params": network[:6].parameters(), "rho": 0.0},
        {"params": network[6:].parameters(), "rho": 0.3},
    ]
    optimizer = BalancedSAM(groups, partial(SGD, lr=0.1))
    had: list[list[bool]] = []
    closure = make_closure(network)

    def seen() -> Tensor:
        loss = closure()
        had.append([parameter.grad is not None for parameter in network.parameters()])
        return loss

    optimizer.step(seen)
    assert had == [[False] * 8 + [True] * 2, [True] * 10]


def test_where_all_are_perturbed_or_none_all_gradients_are_computed() -> None:
    for rho in (0.0, 0.3):
        network = make_network()
        optimizer = BalancedSAM(network.parameters(), partial(SGD, lr=0.1), rho=rho)
        closure = make_closure(network)

        def seen(closure: Any = closure, network: Any = network) -> Tensor:
            assert all(trainable(network))
            loss: Tensor = closure()
            assert all(parameter.grad is not None for parameter in network.parameters())
            return loss

        optimizer.step(seen)


def test_steps_are_those_of_a_first_pass_that_computes_all(monkeypatch: Any) -> None:
    trained = []
    for spares in (True, False):
        network = make_network()
        optimizer = make_optimizer(network)
        if not spares:
            monkeypatch.setattr(optimizer, "_spared", list)
        for _ in range(5):
            optimizer.step(make_closure(network))
        trained.append([*network.parameters(), *network.buffers()])
    for ours, theirs in zip(*trained, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("fails_in", ["pass 1", "pass 2"])
def test_requires_grad_is_as_it_was_after_an_exception(
    error: type[BaseException], fails_in: str
) -> None:
    network = make_network()
    network[3].weight.requires_grad_(False)
    before = trainable(network)
    optimizer, closure = make_optimizer(network), make_closure(network)

    def failing() -> Tensor:
        loss = closure()
        if optimizer.is_perturbed == (fails_in == "pass 2"):
            raise error
        return loss

    with pytest.raises(error):
        optimizer.step(failing)
    assert trainable(network) == before
    optimizer.step(closure)
    assert trainable(network) == before


class TwoHeads(nn.Module):
    """Two outputs, of which only the first goes through a normalisation layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        self.second = nn.Linear(3, 2)


@pytest.mark.parametrize("used", [["second"], ["second", "first"]], ids=["alone", "and another"])
def test_loss_that_no_perturbed_parameter_is_in_is_computed_with_all_gradients(
    used: list[str],
) -> None:
    torch.manual_seed(0)
    network = TwoHeads()
    optimizer, inputs, calls = make_optimizer(network), torch.randn(8, 3), []

    def closure() -> Tensor:
        calls.append(optimizer.is_perturbed)
        total = torch.zeros(())
        for head in used:
            loss = getattr(network, head)(inputs).square().mean()
            loss.backward()
            total = total + loss.detach()
        return total

    before = network.second.weight.detach().clone()
    optimizer.step(closure)
    # The first call fails halfway and is made again; from then on nothing is spared.
    assert calls == [False, False, True]
    optimizer.step(closure)
    assert calls[3:] == [False, True]
    assert all(trainable(network))
    assert not torch.equal(network.second.weight, before)


def test_loss_of_no_parameter_at_all_is_torchs_own_error() -> None:
    network = make_network()

    def closure() -> Tensor:
        loss = torch.ones(()).square()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="does not require grad"):
        make_optimizer(network).step(closure)
    assert all(trainable(network))


def test_ddp_has_all_gradients(tmp_path: Path) -> None:
    """It waits for each of them, also in a group of one."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        network, alone = make_network(), make_network()
        model = DistributedDataParallel(network)
        optimizer = make_optimizer(network)
        for _ in range(3):
            optimizer.step(make_closure(model))
    finally:
        torch.distributed.destroy_process_group()
    optimizer = make_optimizer(alone)
    for _ in range(3):
        optimizer.step(make_closure(alone))
    for ours, theirs in zip(network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("keeps", [True, False], ids=["frozen_running_stats", "as it is"])
def test_ascent_on_a_sub_batch_leaves_the_running_statistics(keeps: bool) -> None:
    """With ``frozen_running_stats`` around the first pass they are those of the whole batch."""
    network = make_network()
    # The convolution before the first layer is not perturbed.
    of_whole = 0.1 * network[0](INPUTS).detach().mean(dim=(0, 2, 3))
    context = partial(frozen_running_stats, network) if keeps else nullcontext
    optimizer = make_optimizer(network, ascent_context=context)
    optimizer.step(make_closure(network), ascent_closure=make_closure(network, 100 * INPUTS[:4]))
    assert network[1].num_batches_tracked == (1 if keeps else 2)
    assert torch.allclose(network[1].running_mean, of_whole) == keeps
