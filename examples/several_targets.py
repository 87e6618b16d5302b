"""Train a network with two outputs, weighted by how rare their combination is.

The data are scikit-learn's breast cancer set (Street et al., 1993), which ships inside that
package: measurements of the cell nuclei in each of 569 images. The targets are the largest area and
the largest concavity, the inputs the means and standard errors. High targets are rare.

It shows what is different with several targets: a ``TargetGrid`` has a bin for each combination,
``weights(targets)`` is one weight a sample, and the report has the mean over the outputs or each
output. The outputs have different units, so they are divided by their spread. It does not show
which method is better: one seed, 189 test samples.

Needs scikit-learn. Run it: ``python examples/several_targets.py``
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from balanced_sam import (
    BalancedSAM,
    ShotRegions,
    TargetGrid,
    TargetWeights,
    region_report,
    weighted_mean,
)

torch.manual_seed(0)
table = load_breast_cancer(as_frame=True).frame
outputs = torch.tensor(table[["worst area", "worst concavity"]].to_numpy(), dtype=torch.float32)
inputs = torch.tensor(table.iloc[:, :20].to_numpy(), dtype=torch.float32)
train, test = torch.randperm(len(outputs)).split([380, 189])
# Scaled by what the training part says.
inputs = (inputs - inputs[train].mean(dim=0)) / inputs[train].std(dim=0)
spread = outputs[train].std(dim=0)
targets = outputs / spread

grid = TargetGrid.from_targets(targets[train], 6)
sqinv = TargetWeights.from_targets(targets[train], grid)
equal = TargetWeights.from_targets(targets[train], grid, scheme="none")
# The usual limits, 100 and 20, are made for larger data.
regions = ShotRegions.from_weights(sqinv, many_above=40, few_below=10)


def fit(weights: TargetWeights, rho: float) -> nn.Module:
    """Return a network trained with the weights and the radius."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    base = torch.optim.AdamW(network.parameters(), lr=3e-3)
    optimizer = BalancedSAM(network.parameters(), base, rho=rho)
    for _ in range(40):
        for rows in train[torch.randperm(len(train))].split(38):

            def closure(rows: Tensor = rows) -> Tensor:
                errors = (network(inputs[rows]) - targets[rows]).abs()
                loss = weighted_mean(errors, weights(targets[rows]))
                loss.backward()
                return loss

            optimizer.step(closure)
    return network


# The weights and the radius; the radius is not tuned.
methods = {"Vanilla": (equal, 0.0), "SQINV": (sqinv, 0.0), "BSAM": (sqinv, 0.05)}
for name, (weights, rho) in methods.items():
    with torch.no_grad():
        predictions = fit(weights, rho)(inputs[test])
    print(f"\n{name}\n{region_report(predictions, targets[test], regions)}")
    few = region_report(predictions, targets[test], regions, multioutput="raw_values").rows["few"]
    area, concavity = (few[f"MAE_{j}"] * spread[j] for j in range(2))
    print(f"few-shot MAE of the area {area:.0f}, of the concavity {concavity:.3f}")
