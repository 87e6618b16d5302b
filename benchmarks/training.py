"""Train one network: a Lightning module, its Trainer, and the record of the run.

Nothing here knows of SAM: Lightning's automatic optimization hands the optimizer a closure, and
what the optimizer does with it is its own affair.
"""

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from unittest.mock import patch

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional

from balanced_sam import TargetWeights
from balanced_sam.torchmetrics import RegionMetrics
from benchmarks import distributed
from benchmarks.data import evaluation_batches, training_batches
from benchmarks.evaluation import REGIONS, Evaluation, or_none
from benchmarks.protocol import Dataset, Recipe, Record, Split, Splits, Stage
from benchmarks.provenance import provenance
from benchmarks.recipes import described_recipe
from benchmarks.registry import get_dataset, get_method
from benchmarks.store import draft_of

WATCHED = ("validation", "test")
"""The splits whose error is logged after each epoch: the second one for some data sets only."""


class Regression(lightning.LightningModule):
    """A network, the loss of a stage, and the error per region on other splits."""

    def __init__(
        self, dataset: Dataset, recipe: Recipe, stage: Stage, splits: Splits, *, seed: int
    ) -> None:
        super().__init__()
        self.network = dataset.network(recipe)
        self.objective = stage.objective(dataset, recipe, splits)
        self.augmentation = dataset.augmentation() if dataset.augmentation else None
        # Each process sees all samples.
        self.watched = nn.ModuleList(
            RegionMetrics(dataset.regions, sync_on_compute=False) for _ in WATCHED
        )
        self.evaluation: Evaluation | None = None
        self.passes: Tensor
        self.register_buffer("passes", torch.zeros((), dtype=torch.float64))
        self.dataset = dataset
        self.recipe = dataclasses.replace(recipe, epochs=stage.epochs)
        self._stage = stage
        self._splits = splits
        self.seed = seed

    def begin(self, checkpoint: dict[str, Any] | None) -> None:
        """Go on from the network of the stage before, and free only what this stage trains."""
        if checkpoint is not None:
            state = checkpoint["state_dict"].items()
            prefix = "network."
            self.network.load_state_dict(
                {name[len(prefix) :]: value for name, value in state if name.startswith(prefix)}
            )
        if self._stage.part == "new head":
            self.network.head.reset_parameters()
        if self._stage.part != "network":
            self.network.requires_grad_(False)
            self.network.head.requires_grad_(True)

    def configure_model(self) -> None:
        """Share out the weights among the processes, if the strategy is to do so."""
        if self.device_mesh is not None and not isinstance(self.network, FSDPModule):
            # It shards contiguous weights only.
            self.network.to(memory_format=torch.contiguous_format)
            mesh = self.device_mesh["data_parallel"]
            # In its parts also after a forward pass alone, when a checkpoint may be loaded.
            fully_shard(self.network, mesh=mesh, reshard_after_forward=True)

    def on_train_epoch_start(self) -> None:
        """Keep the statistics of BatchNorm where only the head is trained."""
        if self._stage.part != "network":
            self.network.eval()

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """Return the batch as the network takes it; in training augmented, the same in all passes.

        What is random about a step depends on the seed, the step and the process alone, so that a
        resumed run sees the same.
        """
        inputs, targets = batch
        if inputs.dtype == torch.uint8:
            inputs = inputs / 255
        if self.trainer.training:
            step = 1_000_003 * self.seed + self.trainer.global_step
            torch.manual_seed(step + 1_000_000_007 * self.global_rank)
            if self.augmentation is not None:
                with torch.no_grad():
                    inputs, targets = self.augmentation(inputs, targets)
        return [inputs, targets]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the training loss of a batch; what is logged of SAM is the mean of its passes."""
        inputs, targets = batch
        if getattr(self.objective, "draws", False):
            drawn = self.objective.draw(targets)
            inputs, targets = inputs[drawn], targets[drawn]
        self.passes += len(inputs) / len(batch[0])
        predictions, targets = self._of_all(
            self.network(inputs), targets, batch_idx, self._splits.train
        )
        loss: Tensor = self.objective(predictions, targets)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the error on a split."""
        split = getattr(self._splits, WATCHED[dataloader_idx])
        predictions, targets = self._predict(batch, batch_idx, split)
        counted = ~targets.isnan()
        self.watched[dataloader_idx].update(predictions[counted], targets[counted])

    def on_validation_epoch_start(self) -> None:
        """Give all processes the mean of what the BatchNorm of each has seen."""
        for name, buffer in self.network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                distributed.average(buffer)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics per region of each split that was seen."""
        for split, metrics in zip(WATCHED, self.watched, strict=True):
            if metrics.update_called:
                values = metrics.compute()
                metrics.reset()
                for name in (f"{r}/{m}" for m in self.dataset.metrics for r in ("All", *REGIONS)):
                    self.log(f"{split}/{name}", values[name])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Add a batch to the evaluation."""
        assert self.evaluation is not None
        self.evaluation.update(*self._predict(batch, batch_idx, self._splits.test))

    def _predict(self, batch: list[Tensor], batch_idx: int, split: Split) -> tuple[Tensor, Tensor]:
        """Return the predictions, maps as large as the targets, and the targets."""
        inputs, targets = batch
        predictions: Tensor = self.network(inputs).float()
        if predictions.shape != targets.shape:
            size = targets.shape[-2:]
            predictions = functional.interpolate(
                predictions[:, None], size, mode="bilinear", align_corners=True
            )[:, 0]
        return self._of_all(predictions, targets, batch_idx, split)

    def _of_all(
        self, predictions: Tensor, targets: Tensor, batch_idx: int, split: Split
    ) -> tuple[Tensor, Tensor]:
        """Return the predictions and targets of all processes for a batch."""
        size = min(self.recipe.batch_size, len(split) - batch_idx * self.recipe.batch_size)
        return (
            distributed.batch_of_shares(predictions, size),
            distributed.batch_of_shares(targets, size),
        )

    def configure_optimizers(self) -> Any:
        """Return the method's optimizer and what is stepped after each epoch."""
        optimizer, schedulers = self._stage.optimizers(self.network, self.recipe, self.objective)
        return [optimizer], schedulers


class History(Callback):
    """Keep what was logged after each epoch of a stage and how long it took, through a resume."""

    def __init__(self, stage: int, after_epoch: Callable[[], None]) -> None:
        self.epochs: list[dict[str, float | None]] = []
        self.seconds = 0.0
        self._stage = stage
        self._after_epoch = after_epoch
        self._start = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Take the time."""
        self._start = monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Add the epoch."""
        self.seconds += monotonic() - self._start
        values = trainer.callback_metrics.items()
        logged = {name: or_none(value.item(), digits=5) for name, value in values}
        self.epochs.append({"stage": self._stage} | logged)
        self._after_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs so far, for the checkpoint."""
        return {"epochs": list(self.epochs), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the epochs of a checkpoint."""
        self.epochs[:] = state_dict["epochs"]
        self.seconds = state_dict["seconds"]


class WholeFiles(TorchCheckpointIO):
    """Write checkpoints whole or not at all; Lightning's own are copied from ``/tmp``."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint."""
        with draft_of(Path(path)) as draft:
            torch.save(checkpoint, draft)


def train(
    dataset_name: str,
    method_name: str,
    seed: int,
    recipe: Recipe,
    *,
    folder: Path,
    data: Path | None = None,
    accelerator: str = "cpu",
    precision: Any = "32-true",
    strategy: str = "ddp",
    after_epoch: Callable[[], None] = lambda: None,
) -> Record:
    """Train and test once, going on from ``folder``'s last checkpoint if there is one.

    Args:
        dataset_name: File name of the data set.
        method_name: File name of the method.
        seed: Seed of the network's start, of the order of the batches and of the augmentation.
        recipe: How to train.
        folder: Where checkpoints and the log lie while the run lasts.
        data: Folder of the data; the embedded data if None.
        accelerator: Lightning's name of the device.
        precision: Lightning's name of the precision, such as ``"bf16-mixed"``.
        strategy: How several processes share the work, an entry of ``STRATEGIES``.
        after_epoch: Called after each epoch.

    Returns:
        The record of the run.
    """
    dataset, method = get_dataset(dataset_name), get_method(method_name)
    splits = dataset.load(data)
    history: list[dict[str, float | None]] = []
    passes = seconds = 0.0
    best: dict[str, Any] | None = None
    with quiet():
        for number, stage in enumerate(method.stages(recipe)):
            lightning.seed_everything(seed, verbose=False)
            module = Regression(dataset, recipe, stage, splits, seed=seed)
            module.begin(best)
            part = folder / f"stage-{number}"
            epochs = History(number, after_epoch)
            checkpoints = _checkpoints(dataset, part)
            trainer = _trainer(
                stage,
                part,
                callbacks=[epochs, *checkpoints.values()],
                accelerator=accelerator,
                precision=precision,
                strategy=strategy,
            )
            _fit(trainer, module, dataset, splits, last=part / "last_epoch.ckpt")
            passes += float(module.passes)
            seconds += epochs.seconds
            kept = {
                selection: torch.load(checkpoint.best_model_path, "cpu", weights_only=True)
                for selection, checkpoint in checkpoints.items()
            }
            best = kept["best_validation"]
            best_epoch = len(history) + int(best["epoch"])
            history += epochs.epochs
        # Several selections may have kept the same epoch.
        epochs_kept = {checkpoint["epoch"]: checkpoint for checkpoint in kept.values()}
        evaluations = {
            epoch: _evaluate(trainer, module, splits.test, checkpoint)
            for epoch, checkpoint in epochs_kept.items()
        }
    return Record(
        dataset=dataset_name,
        method=method_name,
        seed=seed,
        recipe=described_recipe(recipe, method),
        history=history,
        best_epoch=best_epoch,
        results={name: evaluations[part["epoch"]].result() for name, part in kept.items()},
        passes=int(passes) if passes.is_integer() else round(passes, 1),
        seconds=round(seconds, 1),
        provenance=provenance(splits, accelerator=accelerator)
        | {"precision": precision}
        | distributed.described(strategy),
        samples=evaluations[kept["last_epoch"]["epoch"]].samples(),
    )


class Sharded(ModelParallelStrategy):
    """FSDP2, with checkpoints such as those of a single process."""

    def __init__(self) -> None:
        super().__init__(
            data_parallel_size=distributed.processes(),
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )

    def load_checkpoint(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Load a checkpoint."""
        # Entry by entry, and for all others torch hands over stand-ins, of the edges of bins, too.
        with patch.object(TargetWeights, "set_extra_state"):
            return super().load_checkpoint(*arguments, **options)


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    # The statistics of BatchNorm are averaged once an epoch.
    "ddp": lambda: DDPStrategy(broadcast_buffers=False),
    # Lightning's FSDPStrategy is for CUDA only, and shards such that each process would perturb
    # along its own shard's norm.
    "fsdp": Sharded,
}
"""How processes share the work: all have the whole network, or each a part of its weights."""


def _trainer(
    stage: Stage,
    folder: Path,
    *,
    callbacks: list[Callback],
    accelerator: str,
    precision: Any,
    strategy: str,
) -> lightning.Trainer:
    """Return a trainer for a stage, which says nothing and logs to ``folder``."""
    here = distributed.processes_here()
    return lightning.Trainer(
        accelerator=accelerator,
        devices=here,
        num_nodes=distributed.processes() // here,
        strategy=STRATEGIES[strategy]() if distributed.is_together() else "auto",
        use_distributed_sampler=False,
        plugins=[WholeFiles()],
        precision=precision,
        max_epochs=stage.epochs,
        callbacks=callbacks,
        logger=CSVLogger(folder, name="log"),
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1000,
    )


def _checkpoints(dataset: Dataset, folder: Path) -> dict[str, ModelCheckpoint]:
    """Return what keeps the network of each selection: the best epoch's, and the last one's."""
    error = f"All/{dataset.metrics[0]}"
    monitors: dict[str, str | None] = {"best_validation": f"validation/{error}"}
    if dataset.test_selection:
        monitors["best_test"] = f"test/{error}"
    # Saved last, it holds what the others have just kept: a resumed run goes on from there.
    monitors["last_epoch"] = None
    return {
        selection: ModelCheckpoint(
            folder,
            selection,
            monitor=monitor,
            # Only the last one is gone on with; the optimizer's state is twice the network's.
            save_weights_only=monitor is not None,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        for selection, monitor in monitors.items()
    }


def _fit(
    trainer: lightning.Trainer, module: Regression, dataset: Dataset, splits: Splits, last: Path
) -> None:
    """Train, from the checkpoint of the last epoch if there is one."""
    checkpoint = last if last.exists() else None
    epoch = torch.load(last, "cpu", weights_only=True)["epoch"] + 1 if checkpoint else 0
    batch_size = module.recipe.batch_size
    watched = [splits.validation, *([splits.test] if dataset.test_selection else [])]
    trainer.fit(
        module,
        training_batches(splits.train, batch_size=batch_size, seed=module.seed, epoch=epoch),
        [evaluation_batches(split, batch_size=batch_size) for split in watched],
        ckpt_path=checkpoint,
        weights_only=True,
    )


def _evaluate(
    trainer: lightning.Trainer, module: Regression, split: Split, checkpoint: dict[str, Any]
) -> Evaluation:
    """Return the errors of a checkpoint's network on the test set."""
    whole = StateDictOptions(full_state_dict=True)
    set_model_state_dict(module, checkpoint["state_dict"], options=whole)
    module.evaluation = Evaluation(module.dataset)
    batches = evaluation_batches(split, batch_size=module.recipe.batch_size)
    trainer.test(module, batches, verbose=False)
    return module.evaluation


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice that does not apply to small networks and data in memory."""
    loggers = [
        logging.getLogger(f"lightning.pytorch{name}") for name in ("", ".utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",
                ".*Checkpoint directory.*exists.*",
                ".*smaller than the logging interval.*",
                ".*isinstance.treespec, LeafSpec.*",
                # All processes log the same, and no older torch knows the option's new name.
                ".*sync_dist=True.*",
                ".*broadcast_buffers. is deprecated.*",
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
