"""Train with BSAM in a loop of accelerate, on one process or several.

The data are drawn here: 100 times the product of three numbers from 0 to 1, which is rarely large.

It shows that the optimizer goes through ``prepare`` like any other and takes its closure through
accelerate's wrapper, that the weights move to the device of the process, and that
``gather_for_metrics`` brings each test sample to the report once, however many processes share
them. It does not show which method is better: one seed, data made up.

Needs accelerate. Run it: ``python examples/accelerate_loop.py``, or on two processes:
``torchrun --standalone --nproc_per_node 2 examples/accelerate_loop.py``
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from balanced_sam import (
    BalancedSAM,
    RegionReport,
    ShotRegions,
    TargetWeights,
    region_report,
    weighted_mean,
)

# The scheme of the weights and the radius; the radius is not tuned.
METHODS = {"Vanilla": ("none", 0.0), "SQINV": ("sqinv", 0.0), "BSAM": ("sqinv", 0.05)}


def draw(samples: int) -> TensorDataset:
    """Return inputs, shape ``(N, 3)``, and targets from 0 to 100, shape ``(N,)``."""
    inputs = torch.rand(samples, 3)
    return TensorDataset(inputs, 100 * inputs.prod(dim=1))


def run(
    accelerator: Accelerator,
    train: TensorDataset,
    test: TensorDataset,
    weights: TargetWeights,
    rho: float,
) -> RegionReport:
    """Train a network, and return its report on the test data."""
    set_seed(0)
    model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))
    base = torch.optim.AdamW(model.parameters(), lr=3e-2)
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model,
        BalancedSAM(model.parameters(), base, rho=rho),
        DataLoader(train, batch_size=50, shuffle=True),
        DataLoader(test, batch_size=512),
    )
    weights = weights.to(accelerator.device)
    for _ in range(20):
        for inputs, targets in train_loader:

            def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                loss = weighted_mean((model(inputs) - targets).abs(), weights(targets))
                accelerator.backward(loss)
                return loss

            optimizer.step(closure)

    pairs = []
    with torch.no_grad():
        for inputs, targets in test_loader:
            pairs.append(accelerator.gather_for_metrics((model(inputs), targets)))
    predictions, targets = map(torch.cat, zip(*pairs, strict=True))
    return region_report(predictions, targets, ShotRegions.from_weights(weights))


def main() -> None:
    """Train with each method, and print the tables once."""
    accelerator = Accelerator(cpu=True)
    set_seed(0)
    train, test = draw(1500), draw(1999)
    for name, (scheme, rho) in METHODS.items():
        weights = TargetWeights.from_targets(train.tensors[1], scheme=scheme)
        accelerator.print(f"\n{name}\n{run(accelerator, train, test, weights, rho)}")
        accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    main()
