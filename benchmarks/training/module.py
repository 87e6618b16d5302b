"""The network in training, as Lightning wants it.

Nothing here knows of SAM: Lightning's automatic optimization hands the optimizer a closure, and
what the optimizer does with it is its own affair.
"""

import dataclasses
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from balanced_sam.torchmetrics import RegionMetrics
from benchmarks.experiment.dataset import Dataset, Splits, is_counted
from benchmarks.experiment.method import Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.training.evaluation import Evaluation

WATCHED = ("validation", "test")
"""The splits whose error is logged after each epoch: the second one for some data sets only."""


class Regression(lightning.LightningModule):
    """A network, the loss of a stage, and the error per region on other splits."""

    def __init__(
        self, dataset: Dataset, recipe: Recipe, stage: Stage, splits: Splits, *, seed: int
    ) -> None:
        super().__init__()
        self.network = stage.network(dataset.network(recipe), splits)
        self.objective = stage.objective(dataset, recipe, splits)
        self.augmentation = dataset.augmentation() if dataset.augmentation else None
        self.watched = nn.ModuleList(RegionMetrics(dataset.regions) for _ in WATCHED)
        self.evaluation: Evaluation | None = None
        self.dataset = dataset
        self.recipe = dataclasses.replace(recipe, epochs=stage.epochs)
        self._stage = stage
        self.seed = seed

    def begin(self, checkpoint: dict[str, Any] | None) -> None:
        """Go on from the network of the stage before, all of it or but for a new head."""
        if checkpoint is not None:
            state = checkpoint["state_dict"].items()
            prefix = "network."
            self.network.load_state_dict(
                {name[len(prefix) :]: value for name, value in state if name.startswith(prefix)}
            )
        if self._stage.part == "head":
            self.network.requires_grad_(False)
            # Drawn once more, as the first one has shaped the features that it started with.
            self.network.head = self.dataset.network(self.recipe).head

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """Return the batch as the network takes it; in training augmented, the same in all passes.

        What is random about a step depends on the seed and the step alone, so that a resumed run
        sees the same.
        """
        inputs, targets = batch
        if inputs.dtype == torch.uint8:
            inputs = inputs / 255
        if self.trainer.training:
            torch.manual_seed(1_000_003 * self.seed + self.trainer.global_step)
            if self.augmentation is not None:
                with torch.no_grad():
                    inputs, targets = self.augmentation(inputs, targets)
        return [inputs, targets]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the training loss of a batch; what is logged of SAM is the mean of its passes."""
        inputs, targets = batch
        loss: Tensor = self.objective(self.network, inputs, targets)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the error on a split."""
        predictions, targets = self._predict(batch)
        counted = is_counted(targets, self.dataset.bins)
        self.watched[dataloader_idx].update(predictions[counted], targets[counted])

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over all, and the first on few-shot targets, of each split seen."""
        first = self.dataset.metrics[0]
        names = [*(f"all/{metric}" for metric in self.dataset.metrics), f"few/{first}"]
        for split, metrics in zip(WATCHED, self.watched, strict=True):
            if metrics.update_called:
                values = metrics.compute()
                metrics.reset()
                for name in names:
                    self.log(f"{split}/{name}", values[name])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Add a batch to the evaluation."""
        assert self.evaluation is not None
        self.evaluation.update(*self._predict(batch))

    def _predict(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the predictions, maps as large as the targets, and the targets."""
        inputs, targets = batch
        predictions: Tensor = self.network(inputs).float()
        if predictions.shape != targets.shape:
            size = targets.shape[-2:]
            predictions = functional.interpolate(
                predictions[:, None], size, mode="bilinear", align_corners=True
            )[:, 0]
        return predictions, targets

    def configure_optimizers(self) -> Any:
        """Return the method's optimizer and what is stepped after each epoch."""
        optimizer, schedulers = self._stage.optimizers(self.network, self.recipe, self.objective)
        return [optimizer], schedulers
