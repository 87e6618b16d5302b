"""What is trained: networks from 19 thousand to 86 million weights, on random numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from transformers import ViTConfig, ViTModel

from benchmarks.costs.overhead.contenders import Closure, Parameters
from benchmarks.networks.resnet import AgeNetwork, resnet18, resnet50


@dataclass(frozen=True)
class Workload:
    """A network and the shape of a batch.

    Args:
        network: Makes it; it maps a batch to one number a sample.
        batch: On a CPU.
        large_batch: On an accelerator.
    """

    network: Callable[[], nn.Module]
    batch: tuple[int, ...]
    large_batch: tuple[int, ...]

    def inputs(self, device: torch.device) -> Tensor:
        """Return a batch on a device."""
        shape = self.batch if device.type == "cpu" else self.large_batch
        return torch.randn(shape, device=device)


@dataclass(frozen=True)
class Case:
    """A workload, and in which precision and memory format a whole step is measured."""

    workload: str
    precision: str = "float32"
    channels_last: bool = False

    def __str__(self) -> str:
        parts = [self.workload, self.precision, *["channels_last"] * self.channels_last]
        return ", ".join(parts)


class Residual(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, x: Tensor) -> Tensor:
        """Return input and output, summed."""
        return x + super().forward(x)


class VisionTransformer(nn.Module):
    """A ViT and a linear layer.

    Args:
        config: Its settings; where nothing is said they are those of a ViT-B/16.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.encoder = ViTModel(config, add_pooling_layer=False)
        self.head = nn.Linear(config.hidden_size, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return one number an image."""
        output: Tensor = self.head(self.encoder(images).last_hidden_state[:, 0]).squeeze(1)
        return output


def mlp() -> nn.Module:
    """Return a network for tables, of 18 817 weights in 6 tensors."""
    layers = [nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)]
    return nn.Sequential(*layers, nn.Flatten(0))


def small_tensors() -> nn.Module:
    """Return 125 residual blocks of 4 tensors each, 4.7 million weights in all."""
    blocks = [Residual(nn.LayerNorm(192), nn.Linear(192, 192), nn.ReLU()) for _ in range(125)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(0))


WORKLOADS = {
    "mlp": Workload(mlp, (256, 16), (256, 16)),
    "500 tensors": Workload(small_tensors, (64, 192), (256, 192)),
    "resnet18": Workload(lambda: AgeNetwork(resnet18()), (8, 3, 64, 64), (128, 3, 224, 224)),
    "resnet50": Workload(
        lambda: AgeNetwork(resnet50(pretrained=False)), (4, 3, 64, 64), (64, 3, 224, 224)
    ),
    "vit_b": Workload(lambda: VisionTransformer(ViTConfig()), (2, 3, 224, 224), (64, 3, 224, 224)),
}
_AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def training_closure(
    network: nn.Module, inputs: Tensor, precision: str, scaler: GradScaler | None = None
) -> Closure:
    """Return the closure of the mean absolute error on a batch, under autocast in 16 bits."""
    targets = torch.randn(len(inputs), device=inputs.device)
    dtype = _AUTOCAST[precision]
    autocast = partial(torch.autocast, inputs.device.type, dtype=dtype, enabled=dtype is not None)

    def closure() -> Tensor:
        with autocast():
            loss = (network(inputs) - targets).abs().mean()
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    return closure


def given_gradients(parameters: Parameters) -> Closure:
    """Return a closure that costs next to nothing: it sets gradients that are there already."""
    gradients = [torch.ones_like(p).detach() for p in parameters]
    loss = torch.zeros((), device=parameters[0].device)

    def closure() -> Tensor:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss

    return closure


def fresh_gradients(parameters: Parameters) -> Closure:
    """Return a closure that makes new gradients, as a backward pass does."""
    loss = torch.zeros((), device=parameters[0].device)

    def closure() -> Tensor:
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter).detach()
        return loss

    return closure
