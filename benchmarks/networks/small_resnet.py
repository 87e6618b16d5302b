"""Networks, and what all have in common."""

import torch
from torch import Tensor, nn


def in_full_precision(layer: nn.Module, features: Tensor) -> Tensor:
    """Return what a last layer makes of features, in 32 bits under autocast, too.

    In 16 bits an age near 50 is a multiple of a quarter of a year.
    """
    with torch.autocast(features.device.type, enabled=False):
        output: Tensor = layer(features.float())
    return output


class SmallResNet(nn.Module):
    """A residual network of 77 169 weights for small images, one number out.

    Args:
        offset: Where the output starts, such as the middle of the target range.
        scale: What one unit of the last layer is worth, in target units.
        outputs: Predictions an image.
        width: Channels of the first layers; 8 make a fourth of the weights.
        channels: Of the images; 1 for grey ones.
    """

    def __init__(
        self,
        *,
        offset: float,
        scale: float,
        outputs: int = 1,
        width: int = 16,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.offset = offset
        self.scale = scale
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _Block(width, width, stride=1),
            _Block(width, 2 * width, stride=2),
            _Block(2 * width, 4 * width, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, outputs)
        # A third faster on a CPU.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return one prediction an image, shape ``(N,)``, or several, shape ``(N, outputs)``."""
        output = in_full_precision(self.head, self.features(images)).squeeze(1)
        return self.offset + self.scale * output


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's feature maps."""
        output: Tensor = (self.body(images) + self.shortcut(images)).relu()
        return output
