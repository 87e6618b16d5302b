"""ResNet encoders, and the network that tells an age from a face."""

import torch
from torch import Tensor, nn
from transformers import ResNetBackbone, ResNetConfig

from benchmarks.networks.small_resnet import in_full_precision

IMAGENET_RESNET50 = "microsoft/resnet-50"
"""Where transformers finds ImageNet weights: a name on its hub, or a folder."""
STAGES = ["stage1", "stage2", "stage3", "stage4"]


class Encoder(nn.Module):
    """The four stages of a ResNet: from images in [0, 1] to maps of features.

    Args:
        backbone: The stem and the stages.
        mean: Of each colour, subtracted from the images.
        std: Of each colour, by which they are divided.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: ResNetBackbone,
        *,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels: tuple[int, ...] = tuple(backbone.channels)
        # Constants, so no part of a checkpoint.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return a map of ``channels[k]`` features for each stage, 1/4 to 1/32 of the size."""
        stages: tuple[Tensor, ...] = self.backbone((images - self.mean) / self.std).feature_maps
        return stages


def resnet18() -> Encoder:
    """Return a ResNet-18 from random weights."""
    config = ResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
    )
    return Encoder(_random(config))


def resnet50(*, pretrained: bool) -> Encoder:
    """Return a ResNet-50 (v1.5), from ImageNet weights or from random ones.

    Raises:
        OSError: If ImageNet weights are asked for and neither stored nor to be had.
    """
    # The settings are those of a ResNet-50 where nothing else is said.
    backbone = _imagenet_resnet50() if pretrained else _random(ResNetConfig())
    return Encoder(backbone, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class AgeNetwork(nn.Module):
    """An encoder, the mean of its last features, and a linear layer: an age in years a face.

    Args:
        encoder: A ResNet, such as ``resnet18()``.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.channels[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return one age an image, shape ``(N,)``."""
        features = self.encoder(images)[-1].mean((2, 3))
        return in_full_precision(self.head, features).squeeze(1)


def _random(config: ResNetConfig) -> ResNetBackbone:
    """Return the stem and stages from random weights, for ReLU (He et al., 2015, fan-out)."""
    config.out_features = STAGES
    return ResNetBackbone(config)


def _imagenet_resnet50() -> ResNetBackbone:
    """Return the stem and stages of a ResNet-50 that was trained on ImageNet."""
    try:
        backbone: ResNetBackbone = ResNetBackbone.from_pretrained(
            IMAGENET_RESNET50, out_features=STAGES
        )
    except OSError as error:
        raise OSError(
            f"Expected the ImageNet weights of {IMAGENET_RESNET50} on the hub of transformers or "
            "in its cache, but got neither: run once with a network, let HF_HOME name a folder "
            "that holds the cache, or start from random weights with `--set pretrained=false`."
        ) from error
    # It comes in evaluation mode, in which the trainer would leave it.
    backbone.train()
    return backbone
