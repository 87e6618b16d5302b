"""Train a small network on tabular data with float labels, and choose weights on validation data.

The data are scikit-learn's diabetes set (Efron et al., 2004, Least Angle Regression), which ships
inside that package: ten measurements of each of 442 patients and how far the disease had gone a
year later, from 25 to 346. High values are rare.

It shows the whole path from a table to errors by region: bins and weights from the training targets
alone, the exponent of the weights by the balanced validation error (bMAE), then ``BalancedSAM``
around AdamW with the same weights, one look at the test set. With ``rho=0`` the optimizer takes
AdamW's own step, so one function trains all three methods. It does not show which method is better:
one seed, 89 test samples.

Needs scikit-learn. Run it: ``python examples/tabular.py``
"""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from balanced_sam import (
    BalancedSAM,
    ShotRegions,
    TargetWeights,
    balanced_mean_absolute_error,
    region_report,
    weighted_mean,
)

torch.manual_seed(0)
table, labels = (torch.from_numpy(a) for a in load_diabetes(return_X_y=True, scaled=False))
train, validation, test = torch.randperm(len(labels)).split([265, 88, 89])
# Scaled by what the training part says.
inputs = ((table - table[train].mean(dim=0)) / table[train].std(dim=0)).float()
targets = labels.float()
center, spread = targets[train].mean(), targets[train].std()

# Weights n^-a of the exponents a, from the n samples of each target's bin.
weights_of = {
    exponent: TargetWeights.from_targets(targets[train], scheme=exponent)
    for exponent in (0, 0.25, 0.5, 0.75, 1)
}
# The usual limit, 100, is made for larger data.
regions = ShotRegions.from_weights(weights_of[0], many_above=40)


def predict(network: nn.Module, rows: Tensor) -> Tensor:
    """Return one prediction a row, shape ``(N,)``, in the unit of the targets."""
    return center + spread * network(inputs[rows]).squeeze(1)


def fit(weights: TargetWeights, rho: float) -> nn.Module:
    """Return a network trained with the weights and the radius."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    base = torch.optim.AdamW(network.parameters(), lr=3e-3)
    optimizer = BalancedSAM(network.parameters(), base, rho=rho)
    for _ in range(40):
        for rows in train[torch.randperm(len(train))].split(53):

            def closure(rows: Tensor = rows) -> Tensor:
                errors = (predict(network, rows) - targets[rows]).abs()
                loss = weighted_mean(errors, weights(targets[rows]))
                loss.backward()
                return loss

            optimizer.step(closure)
    return network


def validation_error(network: nn.Module) -> float:
    """Return the balanced MAE on the validation part: every target value counts equally."""
    predictions = predict(network, validation)
    return balanced_mean_absolute_error(predictions, targets[validation], bins=regions.bins).item()


weighted = {exponent: fit(weights, rho=0) for exponent, weights in weights_of.items()}
for exponent, network in weighted.items():
    print(f"exponent {exponent:<4}  validation bMAE {validation_error(network):.2f}")
best = min(weighted, key=lambda exponent: validation_error(weighted[exponent]))

networks = {
    "Vanilla": weighted[0],
    f"Weighted, exponent {best}": weighted[best],
    f"BSAM, exponent {best}, rho 0.05": fit(weights_of[best], rho=0.05),
}
for name, network in networks.items():
    print(f"\n{name}\n{region_report(predict(network, test), targets[test], regions)}")
