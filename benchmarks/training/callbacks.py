"""What watches a training from outside, and how its checkpoints are written."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor, nn

from benchmarks.experiment.record import draft_of
from benchmarks.training.evaluation import or_none


class Passes(Callback):
    """Count the passes over a batch by the network's forward calls in training, through a resume.

    A pass over a part of a batch counts as that part.
    """

    def __init__(self) -> None:
        self.passes = 0.0
        self._size = 0

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Listen to the network."""
        if stage == "fit":
            pl_module.network.register_forward_hook(self._count)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: list[Tensor], batch_idx: int
    ) -> None:
        """Note how large the batch is."""
        self._size = len(batch[0])

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Count no more: what comes now may be an evaluation."""
        self._size = 0

    def _count(self, network: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._size:
            self.passes += len(inputs[0]) / self._size

    def state_dict(self) -> dict[str, Any]:
        """Return the count so far, for the checkpoint."""
        return {"passes": self.passes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count of a checkpoint."""
        self.passes = state_dict["passes"]


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
