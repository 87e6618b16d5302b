"""Train a LightningModule with BSAM by automatic optimization, and log its errors by region.

The data are drawn here: 100 times the product of three numbers from 0 to 1, which is rarely large.

It shows that the optimizer is named in ``configure_optimizers`` and nowhere else, since Lightning
passes ``step`` the closure itself; that the loss is logged in the pass at the clean weights only;
and that ``RegionMetrics`` streams over the batches of validation and test. With ``rho=0`` the
optimizer takes AdamW's own step. It does not show which method is better: one seed, data made up.

Needs lightning and torchmetrics. Run it: ``python examples/lightning_module.py``
"""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from balanced_sam import BalancedSAM, ShotRegions, TargetWeights, weighted_mean
from balanced_sam.torchmetrics import RegionMetrics

Batch = list[Tensor]
# The scheme of the weights and the radius; the radius is not tuned.
METHODS = {"Vanilla": ("none", 0.0), "SQINV": ("sqinv", 0.0), "BSAM": ("sqinv", 0.05)}


class Regressor(pl.LightningModule):
    """A small network, the weights of its loss and the radius of its optimizer."""

    def __init__(self, weights: TargetWeights, rho: float) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))
        self.weights = weights
        self.metrics = RegionMetrics(ShotRegions.from_weights(weights))
        self.rho = rho

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted loss; Lightning runs this twice a step."""
        inputs, targets = batch
        loss = weighted_mean((self.network(inputs) - targets).abs(), self.weights(targets))
        if not self.optimizers().is_perturbed:
            self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the metrics."""
        inputs, targets = batch
        self.metrics.update(self.network(inputs), targets)

    def on_validation_epoch_start(self) -> None:
        """Start the metrics anew."""
        self.metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Log every metric of every region, such as ``few/MAE``."""
        self.log_dict(self.metrics.compute())

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> BalancedSAM:
        """Return the optimizer."""
        base = torch.optim.AdamW(self.network.parameters(), lr=3e-2)
        return BalancedSAM(self.network.parameters(), base, rho=self.rho)


def make_loader(samples: int, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """Return batches of inputs, shape ``(N, 3)``, and targets from 0 to 100, shape ``(N,)``."""
    inputs = torch.rand(samples, 3)
    return DataLoader(TensorDataset(inputs, 100 * inputs.prod(dim=1)), 50, shuffle=shuffle)


def main() -> None:
    """Train with each method, and print its table."""
    pl.seed_everything(0, verbose=False)
    train, validation, test = make_loader(1500, shuffle=True), make_loader(500), make_loader(2000)
    train_targets = train.dataset.tensors[1]
    for name, (scheme, rho) in METHODS.items():
        pl.seed_everything(0, verbose=False)
        weights = TargetWeights.from_targets(train_targets, scheme=scheme)
        module = Regressor(weights, rho)
        trainer = pl.Trainer(
            max_epochs=6,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, train, validation)
        error = trainer.callback_metrics["few/MAE"]
        print(f"\n{name}: few-shot MAE on validation data {error:.3f}; on test data:")
        trainer.test(module, test, verbose=False)
        print(module.metrics.report())


if __name__ == "__main__":
    main()
