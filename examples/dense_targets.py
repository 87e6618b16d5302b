"""Train on a map of targets per sample, here the depth of each pixel, with a map of weights.

The images are drawn here: a floor that runs to a wall and a box that stands before it, all paler
the farther away they are. Most walls are near, so that few pixels are far.

It shows that nothing changes for maps: the bins count pixels, ``weights(depths)`` is a map of
weights, ``weighted_mean`` takes the mean over all pixels of all images, and the report counts
pixels. It does not show which method is better: one seed, images made up; and the pixels of one
image are no independent samples, so that the limits of the regions are a choice.

Needs nothing but balanced-sam. Run it: ``python examples/dense_targets.py``
"""

import torch
from torch import Tensor, nn

from balanced_sam import (
    BalancedSAM,
    ShotRegions,
    TargetBins,
    TargetWeights,
    region_report,
    weighted_mean,
)

SIZE = 24


def draw(samples: int) -> tuple[Tensor, Tensor]:
    """Return images, shape ``(N, 1, H, W)``, and their depths in metres, shape ``(N, H, W)``."""
    walls = 2 + 8 * torch.rand(samples, 1, 1) ** 3
    rows = torch.linspace(1, 0.05, SIZE).reshape(1, SIZE, 1)
    depths = torch.minimum(walls, 0.8 / (1.05 - rows)).repeat(1, 1, SIZE).flip(1)
    tops = torch.randint(4, SIZE - 10, (samples,)).tolist()
    lefts = torch.randint(0, SIZE - 8, (samples,)).tolist()
    for depth, top, left in zip(depths, tops, lefts, strict=True):
        depth[top : top + 8, left : left + 8].clamp_(max=depth.max().item() / 2)
    images = torch.exp(-depths / 4) * (1 + 0.1 * torch.randn_like(depths))
    return images.unsqueeze(1), depths


def fit(images: Tensor, depths: Tensor, weights: TargetWeights, rho: float) -> nn.Module:
    """Return a network from images to depths, trained with the weights and the radius."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 1, 1),
        nn.Flatten(1, 2),
    )
    base = torch.optim.AdamW(network.parameters(), lr=3e-3)
    optimizer = BalancedSAM(network.parameters(), base, rho=rho)
    for _ in range(15):
        for rows in torch.randperm(len(images)).split(16):

            def closure(rows: Tensor = rows) -> Tensor:
                errors = (network(images[rows]) - depths[rows]).abs()
                loss = weighted_mean(errors, weights(depths[rows]))
                loss.backward()
                return loss

            optimizer.step(closure)
    return network


torch.manual_seed(0)
train_images, train_depths = draw(96)
test_images, test_depths = draw(64)
# A number, since a rule would take the pixels for independent samples and make narrow bins.
bins = TargetBins.from_targets(train_depths, 20)
sqinv = TargetWeights.from_targets(train_depths, bins)
equal = TargetWeights.from_targets(train_depths, bins, scheme="none")
regions = ShotRegions.from_weights(sqinv, many_above=4000, few_below=1000)
# The weights and the radius; the radius is not tuned.
methods = {"Vanilla": (equal, 0.0), "SQINV": (sqinv, 0.0), "BSAM": (sqinv, 0.05)}
for name, (weights, rho) in methods.items():
    network = fit(train_images, train_depths, weights, rho)
    with torch.no_grad():
        predictions = network(test_images)
    print(f"\n{name}\n{region_report(predictions, test_depths, regions)}")
