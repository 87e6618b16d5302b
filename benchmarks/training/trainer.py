"""Train one network, stage after stage, and return the record of the run."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from benchmarks.experiment.dataset import Dataset, Split, Splits
from benchmarks.experiment.method import Stage
from benchmarks.experiment.plan import Plan
from benchmarks.experiment.record import Record
from benchmarks.experiment.registry import get_dataset
from benchmarks.training.batches import evaluation_batches, training_batches
from benchmarks.training.callbacks import History, Passes, WholeFiles
from benchmarks.training.evaluation import Evaluation
from benchmarks.training.module import Regression
from benchmarks.training.noise import with_label_noise
from benchmarks.training.provenance import provenance


def train(
    plan: Plan,
    splits: Splits,
    seed: int,
    *,
    folder: Path,
    accelerator: str = "cpu",
    precision: Any = "32-true",
    after_epoch: Callable[[], None] = lambda: None,
) -> Record:
    """Train and test once, going on from ``folder``'s last checkpoint if there is one.

    Args:
        plan: What is trained on what, and how.
        splits: The data.
        seed: Seed of the network's start, of the order of the batches and of the augmentation.
        folder: Where checkpoints and the log lie while the run lasts.
        accelerator: Lightning's name of the device.
        precision: Lightning's name of the precision, such as ``"bf16-mixed"``.
        after_epoch: Called after each epoch.

    Returns:
        The record of the run.
    """
    dataset, recipe = get_dataset(plan.dataset), plan.recipe
    if recipe.label_noise:
        splits = with_label_noise(splits, dataset.bins, level=recipe.label_noise, seed=seed)
    history: list[dict[str, float | None]] = []
    passes = seconds = 0.0
    start: dict[str, Any] | None = None
    with quiet():
        for number, stage in enumerate(plan.stages):
            lightning.seed_everything(seed, verbose=False)
            module = Regression(dataset, recipe, stage, splits, seed=seed)
            module.begin(start)
            part = folder / f"stage-{number}"
            epochs, counted = History(number, after_epoch), Passes()
            checkpoints = _checkpoints(dataset, part)
            trainer = _trainer(
                stage,
                part,
                callbacks=[epochs, counted, *checkpoints.values()],
                accelerator=accelerator,
                precision=precision,
            )
            _fit(trainer, module, dataset, splits, last=part / "last_epoch.ckpt")
            passes += counted.passes
            seconds += epochs.seconds
            kept = {
                selection: torch.load(checkpoint.best_model_path, "cpu", weights_only=True)
                for selection, checkpoint in checkpoints.items()
            }
            start = kept[dataset.selections[0]]
            best_epoch = len(history) + int(kept["best_validation"]["epoch"])
            history += epochs.epochs
        tested = {selection: kept[selection] for selection in dataset.selections}
        # Several selections may have kept the same epoch.
        epochs_kept = {checkpoint["epoch"]: checkpoint for checkpoint in tested.values()}
        of_epochs = {
            epoch: _evaluate(trainer, module, splits.test, checkpoint)
            for epoch, checkpoint in epochs_kept.items()
        }
    evaluations = {selection: of_epochs[part["epoch"]] for selection, part in tested.items()}
    samples: dict[str, list[Any]] = {}
    for selection, evaluation in evaluations.items():
        samples |= evaluation.samples(selection)
    return Record(
        dataset=plan.dataset,
        method=plan.method,
        seed=seed,
        recipe=plan.description,
        history=history,
        best_epoch=best_epoch,
        results={name: evaluation.result() for name, evaluation in evaluations.items()},
        passes=int(passes) if passes.is_integer() else round(passes, 1),
        seconds=round(seconds, 1),
        provenance=provenance(splits, accelerator=accelerator) | {"precision": precision},
        samples=samples,
    )


def _trainer(
    stage: Stage,
    folder: Path,
    *,
    callbacks: list[Callback],
    accelerator: str,
    precision: Any,
) -> lightning.Trainer:
    """Return a trainer for a stage, which says nothing and logs to ``folder``."""
    return lightning.Trainer(
        accelerator=accelerator,
        devices=1,
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
    """Return what keeps the networks of the best epochs, and the last one's."""
    error = f"all/{dataset.metrics[0]}"
    monitors: dict[str, str | None] = {"best_validation": f"validation/{error}"}
    if "best_test" in dataset.selections:
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
    watched = [splits.validation, *([splits.test] if "best_test" in dataset.selections else [])]
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
    module.load_state_dict(checkpoint["state_dict"])
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
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
