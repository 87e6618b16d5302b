"""A small network that tells depth from an image: strided convolutions and a decoder with skips."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.small_resnet import in_full_precision


class SmallDepthNetwork(nn.Module):
    """A map of depths in metres, half as high and wide as the image; 87 000 weights.

    Args:
        widths: Channels of the stages of the encoder, each half as high and wide as the one before.
        offset: Depth where the head gives 0, in metres.
        scale: Metres per unit of the head.
    """

    def __init__(
        self, widths: tuple[int, ...] = (16, 24, 32, 48), *, offset: float, scale: float
    ) -> None:
        super().__init__()
        self.offset, self.scale = offset, scale
        ins = (3, *widths)
        self.encoder = nn.ModuleList(
            _block(a, b, stride=2) for a, b in zip(ins, widths, strict=False)
        )
        self.middle = _block(widths[-1], widths[-1])
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.decoder = nn.ModuleList(_block(below + skip, skip) for below, skip in pairs)
        self.head = nn.Conv2d(widths[0], 1, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return depths, shape ``(N, H / 2, W / 2)``, of images from 0 to 1, ``(N, 3, H, W)``."""
        features = (images.contiguous(memory_format=torch.channels_last) - 0.45) / 0.25
        skips = []
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        features = self.middle(features)
        for stage, skip in zip(self.decoder, skips[-2::-1], strict=True):
            features = functional.interpolate(features, size=skip.shape[-2:], mode="bilinear")
            features = stage(torch.cat([features, skip], dim=1))
        return self.offset + self.scale * in_full_precision(self.head, features)[:, 0]


def _block(channels: int, width: int, *, stride: int = 1) -> nn.Sequential:
    """Return a convolution with BatchNorm and ReLU."""
    convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
