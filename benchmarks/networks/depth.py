"""The network that tells depth from a photograph: a ResNet and the decoder of Hu et al."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.resnet import Encoder
from benchmarks.networks.small_resnet import in_full_precision


class DepthNetwork(nn.Module):
    """A map of depths in metres, half as high and wide as the image.

    The last features of the encoder are decoded in four steps, each up to the size of an earlier
    stage; beside that, all four stages are brought to the final size and fused; from both together
    a few layers refine the depth.

    Args:
        encoder: A ResNet, such as ``resnet50(pretrained=True)``.

    References:
        Hu et al. (2019), `Revisiting Single Image Depth Estimation
        <https://arxiv.org/abs/1803.08673>`_, Section 3.1.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        last = encoder.channels[-1]
        self.reduce = nn.Sequential(_convolution(last, last // 2, 1), nn.ReLU())
        self.decode = nn.ModuleList(_UpProjection(last // k, last // k // 2) for k in (2, 4, 8, 16))
        self.enlarge = nn.ModuleList(_UpProjection(channels, 16) for channels in encoder.channels)
        self.fuse = nn.Sequential(_convolution(64, 64, 5), nn.ReLU())
        self.head = _Refinement(last // 32 + 64)

    def forward(self, images: Tensor) -> Tensor:
        """Return depths, shape ``(N, H / 2, W / 2)``, of images in [0, 1]."""
        stages = self.encoder(images)
        height, width = stages[0].shape[2:]
        size = (2 * height, 2 * width)
        decoded = self.reduce(stages[-1])
        sizes = [*(stage.shape[2:] for stage in stages[-2::-1]), size]
        for up, larger in zip(self.decode, sizes, strict=True):
            decoded = up(decoded, larger)
        enlarged = [up(stage, size) for up, stage in zip(self.enlarge, stages, strict=True)]
        fused = self.fuse(torch.cat(enlarged, dim=1))
        depths: Tensor = self.head(torch.cat([decoded, fused], dim=1))
        return depths.squeeze(1)


class _UpProjection(nn.Module):
    """Features made larger by interpolation, then a residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # The 5x5 convolutions of the body and of the shortcut in one: they read the same features.
        self.spread = _convolution(inputs, 2 * outputs, 5)
        self.body = _convolution(outputs, outputs, 3)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return features of the given height and width."""
        features = functional.interpolate(features, size, mode="bilinear", align_corners=False)
        start, shortcut = self.spread(features).chunk(2, dim=1)
        output: Tensor = (self.body(start.relu()) + shortcut).relu()
        return output


class _Refinement(nn.Sequential):
    """Depths of features, by a few layers that see a little around each pixel."""

    def __init__(self, features: int) -> None:
        super().__init__(
            _convolution(features, features, 5),
            nn.ReLU(),
            _convolution(features, features, 5),
            nn.ReLU(),
            nn.Conv2d(features, 1, 5, padding=2),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return depths, shape ``(N, 1, H, W)``, of features of that size."""
        *layers, last = self
        for layer in layers:
            features = layer(features)
        return in_full_precision(last, features)


def _convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """Return a convolution that keeps the size, and BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)
    )
