"""What training changes about faces besides their crop."""

from kornia.augmentation import ColorJitter, RandomGrayscale, RandomHorizontalFlip
from torch import Tensor, nn


class FaceAugmentation(nn.Module):
    """Flip faces, vary their colours, and take the colours of some away; ages stay.

    The strengths are those of the BSAM code. Unlike there, the order of brightness, contrast,
    saturation and hue is drawn once a batch, not once an image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Sequential(
            RandomHorizontalFlip(p=0.5),
            ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            RandomGrayscale(p=0.2),
        )

    def forward(self, images: Tensor, ages: Tensor) -> tuple[Tensor, Tensor]:
        """Return images from 0 to 1, shape ``(N, 3, H, W)``, and their ages, shape ``(N,)``."""
        return self.steps(images), ages
