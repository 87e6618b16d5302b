"""A perceptron for rows of features."""

from torch import Tensor, nn

from benchmarks.networks.small_resnet import in_full_precision


class Perceptron(nn.Module):
    """Three linear layers with ReLU between them: features in, one number out.

    Args:
        inputs: Features of a sample.
        offset: Where the output starts, such as the middle of the target range.
        scale: What one unit of the last layer is worth, in target units.
        width: Features of either hidden layer.
    """

    def __init__(self, inputs: int, *, offset: float, scale: float, width: int = 256) -> None:
        super().__init__()
        self.offset, self.scale = offset, scale
        self.features = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one prediction a sample, shape ``(N,)``, of features, shape ``(N, inputs)``."""
        output = in_full_precision(self.head, self.features(inputs)).squeeze(1)
        return self.offset + self.scale * output
