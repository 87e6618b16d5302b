"""What training changes about photographs and their maps of depth."""

import torch
from kornia.augmentation import (
    AugmentationSequential,
    CenterCrop,
    ColorJitter,
    RandomHorizontalFlip,
    RandomRotation,
)
from kornia.constants import DataKey
from torch import Tensor, nn


class DepthAugmentation(nn.Module):
    """Flip and rotate a photograph and its depth alike, crop their middle, then vary the colours.

    The map of depths becomes half as high and wide as the crop. Depths are moved, never mixed: the
    nearest one is taken. What a rotation brings in from outside is black and has depth 0, as in the
    benchmark code of NYUD2-DIR.

    Args:
        size: Height and width of the crop.
        degrees: The largest rotation.
        lighting: Standard deviation along each principal component of ImageNet's colours.
        jitter: The largest change of brightness, contrast and saturation, as a share.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        degrees: float = 5.0,
        lighting: float = 0.1,
        jitter: float = 0.4,
    ) -> None:
        super().__init__()
        self.geometry = AugmentationSequential(
            RandomHorizontalFlip(p=0.5),
            RandomRotation(degrees, p=1.0),
            CenterCrop(size, cropping_mode="slice"),
            data_keys=["input", "mask"],
            extra_args={DataKey.MASK: {"resample": "nearest", "align_corners": True}},
        )
        self.colours = nn.Sequential(Lighting(lighting), ColorJitter(jitter, jitter, jitter, p=1.0))

    def forward(self, images: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        """Return images, shape ``(N, 3, H, W)``, and depths, ``(N, H / 2, W / 2)``."""
        images, maps = self.geometry(images, depths.unsqueeze(1))
        # The pixels that Pillow's nearest neighbour keeps of a map made half as large.
        return self.colours(images), maps[:, 0, 1::2, 1::2]


class Lighting(nn.Module):
    """Add to each image a colour, drawn along the principal components of ImageNet's colours.

    Args:
        deviation: Standard deviation along each component, as a share of the component's own.

    References:
        Krizhevsky et al. (2012), ImageNet Classification with Deep Convolutional Neural Networks,
        Section 4.1.
    """

    components: Tensor

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation
        directions = torch.tensor(
            [
                [-0.5675, 0.7192, 0.4009],
                [-0.5808, -0.0045, -0.8140],
                [-0.5836, -0.6948, 0.4203],
            ]
        )
        spreads = torch.tensor([0.2175, 0.0188, 0.0045])
        self.register_buffer("components", directions * spreads, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images under other light, shape ``(N, 3, H, W)``."""
        draws = self.deviation * torch.randn(len(images), 3, device=images.device)
        return images + (draws @ self.components.T)[..., None, None]
