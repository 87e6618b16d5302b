"""Train one network: a Lightning module, its Trainer, and the record of the run.

Nothing here knows of SAM: Lightning's automatic optimization hands the optimizer a closure, and
what the optimizer does with it is its own affair.
"""

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from balanced_sam import region_report
from balanced_sam.torchmetrics import RegionMetrics
from benchmarks.protocol import Dataset, Method, Recipe, Record, Splits
from benchmarks.provenance import provenance
from benchmarks.registry import get_dataset, get_method


class Regression(lightning.LightningModule):
    """A network, its training loss, and the validation error per region."""

    def __init__(self, dataset: Dataset, method: Method, recipe: Recipe, targets: Tensor) -> None:
        super().__init__()
        self.network = dataset.network()
        self.objective = method.objective(dataset.bins, targets)
        self.metrics = RegionMetrics(dataset.regions)
        self.passes: Tensor
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._method = method
        self._recipe = recipe

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the training loss of a batch."""
        self.passes += 1
        inputs, targets = batch
        loss: Tensor = self.objective(self.network(inputs), targets)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Add a batch to the validation error."""
        inputs, targets = batch
        self.metrics.update(self.network(inputs), targets)

    def on_validation_epoch_end(self) -> None:
        """Log the validation MAE per region."""
        values = self.metrics.compute()
        self.metrics.reset()
        names = ("All/MAE", "Many/MAE", "Med./MAE", "Few/MAE")
        self.log_dict({f"validation/{name}": values[name] for name in names})

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the predictions of a batch."""
        predictions: Tensor = self.network(batch[0])
        return predictions

    def configure_optimizers(self) -> Any:
        """Return the method's optimizer and what is stepped after each epoch."""
        parameters = [*self.network.parameters(), *self.objective.parameters()]
        optimizer, schedulers = self._method.optimizers(parameters, self._recipe, self.objective)
        return [optimizer], schedulers


class History(Callback):
    """Keep what was logged after each epoch, through a resume as well."""

    def __init__(self, after_epoch: Callable[[], None]) -> None:
        self.epochs: list[dict[str, float]] = []
        self._after_epoch = after_epoch

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Add the epoch."""
        self.epochs.append({k: round(v.item(), 5) for k, v in trainer.callback_metrics.items()})
        self._after_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs so far, for the checkpoint."""
        return {"epochs": list(self.epochs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the epochs of a checkpoint."""
        self.epochs[:] = state_dict["epochs"]


def resolved_recipe(dataset: Dataset, method: Method, changes: dict[str, Any]) -> Recipe:
    """Return the recipe a run uses: the data set's, changed, for as long as the method trains."""
    unknown = sorted(changes.keys() - dataclasses.asdict(dataset.recipe).keys())
    if unknown:
        raise ValueError(f"Expected entries of the recipe {dataset.recipe}, but got {unknown}.")
    recipe = dataclasses.replace(dataset.recipe, **changes)
    return dataclasses.replace(recipe, epochs=recipe.epochs * method.epochs_factor)


def train(
    dataset_name: str,
    method_name: str,
    seed: int,
    *,
    folder: Path,
    data: Path | None = None,
    changes: dict[str, Any] | None = None,
    accelerator: str = "cpu",
    after_epoch: Callable[[], None] = lambda: None,
) -> Record:
    """Train and test once, going on from ``folder``'s last checkpoint if there is one.

    Args:
        dataset_name: File name of the data set.
        method_name: File name of the method.
        seed: Seed of the network's start and of the order of the batches.
        folder: Where checkpoints and the log lie while the run lasts.
        data: Folder of the data; the embedded data if None.
        changes: Entries of the recipe to change.
        accelerator: Lightning's name of the device.
        after_epoch: Called after each epoch.

    Returns:
        The record of the run.
    """
    start = time.monotonic()
    dataset, method = get_dataset(dataset_name), get_method(method_name)
    recipe = resolved_recipe(dataset, method, changes or {})
    splits = dataset.load(data)
    with _quiet():
        lightning.seed_everything(seed, verbose=False)
        module = Regression(dataset, method, recipe, splits.train.tensors[1])
        history = History(after_epoch)
        best = ModelCheckpoint(
            folder,
            "best",
            monitor="validation/All/MAE",
            save_last=True,
            save_on_train_epoch_end=True,
        )
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=recipe.epochs,
            callbacks=[history, best],
            logger=CSVLogger(folder, name="log"),
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1000,
        )
        last = folder / "last.ckpt"
        trainer.fit(
            module,
            _loader(splits.train, recipe, seed),
            _loader(splits.validation, recipe),
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )
        passes = int(module.passes)
        predictions = {"last_epoch": _predict(trainer, module, splits, recipe)}
        state = torch.load(best.best_model_path, weights_only=True)
        module.load_state_dict(state["state_dict"])
        predictions["best_validation"] = _predict(trainer, module, splits, recipe)
    targets = splits.test.tensors[1]
    return Record(
        dataset=dataset_name,
        method=method_name,
        seed=seed,
        recipe=dataclasses.asdict(recipe),
        history=history.epochs,
        best_epoch=int(state["epoch"]),
        results={name: _result(p, targets, dataset) for name, p in predictions.items()},
        test_targets=targets.tolist(),
        passes=passes,
        seconds=round(time.monotonic() - start, 1),
        provenance=provenance(splits),
    )


def _loader(dataset: TensorDataset, recipe: Recipe, seed: int | None = None) -> DataLoader[Any]:
    """Return the batches of a split: shuffled by seed and epoch, or in order without a seed."""
    if seed is None:
        return DataLoader(dataset, batch_size=1024)
    # The order depends on the seed and the epoch alone, so that a resumed run sees the same.
    sampler: Any = DistributedSampler(dataset, num_replicas=1, rank=0, seed=seed)
    return DataLoader(dataset, batch_size=recipe.batch_size, sampler=sampler)


def _predict(
    trainer: lightning.Trainer, module: nn.Module, splits: Splits, recipe: Recipe
) -> Tensor:
    """Return the predictions for the test set."""
    batches = trainer.predict(module, _loader(splits.test, recipe))
    return torch.cat(batches)


def _result(predictions: Tensor, targets: Tensor, dataset: Dataset) -> dict[str, Any]:
    """Return the metrics per region, the MAE per bin, and the predictions themselves."""
    index = dataset.bins.index(targets)
    counts = torch.bincount(index, minlength=len(dataset.bins))
    errors = torch.zeros(len(counts)).index_add_(0, index, (predictions - targets).abs())
    return {
        "regions": region_report(predictions, targets, dataset.regions).to_dict(),
        "mae_per_bin": [
            round(e, 4) if n else None
            for e, n in zip((errors / counts).tolist(), counts, strict=True)
        ],
        "predictions": [round(p, 3) for p in predictions.tolist()],
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice that does not apply to small networks and data in memory."""
    loggers = [
        logging.getLogger(f"lightning.pytorch{name}") for name in ("", ".utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*Checkpoint directory.*exists.*",
            ".*smaller than the logging interval.*",
            ".*isinstance.treespec, LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message)
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
