"""What training by each method takes beside SQINV: ``python -m benchmarks cost``.

The methods take turns on the same machine, in another order in each round, with the network, the
batches and the trainer of the benchmark.
"""

import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import trange

from benchmarks.experiment.dataset import Splits
from benchmarks.experiment.plan import Plan, plan
from benchmarks.experiment.registry import get_dataset, method_names
from benchmarks.training.batches import training_batches
from benchmarks.training.callbacks import Passes
from benchmarks.training.module import Regression
from benchmarks.training.provenance import provenance
from benchmarks.training.trainer import quiet

REFERENCE = "sqinv"
WARM_UP = 2
"""Steps at the start of a turn that do not count."""


def cost(
    dataset_name: str,
    methods: list[str],
    changes: dict[str, Any],
    *,
    data: Path | None = None,
    accelerator: str = "cpu",
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Return the passes and, in each round, the seconds of training over the steps of SQINV's.

    Where a method trains as long as SQINV does, these are those of one step.

    Args:
        dataset_name: File name of the data set.
        methods: File names of the methods; all that fit the data set if there are none. SQINV is
            measured in any case.
        changes: Entries of the recipe to change.
        data: Folder of the data; the embedded data if None.
        accelerator: Lightning's name of the device.
        steps: Steps of a turn that count, at least 1.
        rounds: How many turns each method has, at least 2; in a round all take one, in random
            order.

    Raises:
        ValueError: If a method that is named does not fit the data set.
    """
    dataset = get_dataset(dataset_name)
    splits = dataset.load(data)
    names = dict.fromkeys([REFERENCE, *(methods or method_names())])
    plans = {name: plan(dataset_name, name, changes) for name in names}
    recipe = plans[REFERENCE].recipe
    if not methods:
        plans = _fitting(plans, splits)
    turns = [(method, stage) for method, own in plans.items() for stage in own.stages]
    passes: dict[str, list[float]] = {method: [0.0] * rounds for method in plans}
    seconds: dict[str, list[float]] = {method: [0.0] * rounds for method in plans}
    order = random.Random(0)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        for number in trange(rounds, desc="rounds", unit="round"):
            for method, stage in order.sample(turns, len(turns)):
                module = Regression(dataset, recipe, stage, splits, seed=0)
                module.begin(None)
                batches = training_batches(
                    splits.train, batch_size=recipe.batch_size, seed=0, epoch=0
                )
                counted, clock = Passes(), Clock()
                _train(module, batches, WARM_UP + steps, accelerator, folder, [counted, clock])
                share = stage.epochs / recipe.epochs
                passes[method][number] += share * counted.passes / len(clock.seconds)
                seconds[method][number] += share * median(clock.seconds[WARM_UP:])
    return {
        "dataset": dataset_name,
        "batch_size": recipe.batch_size,
        "steps": steps,
        "methods": {
            method: {
                "passes": round(median(passes[method]), 3),
                "seconds": [round(of_round, 4) for of_round in seconds[method]],
            }
            for method in plans
        },
        "load_average": os.getloadavg(),
        "provenance": provenance(splits, accelerator=accelerator),
    }


def _fitting(plans: dict[str, Plan], splits: Splits) -> dict[str, Plan]:
    """Return the plans of the methods that fit the data set, and say which ones do not."""
    fitting = {}
    for method, own in plans.items():
        try:
            for stage in own.stages:
                Regression(get_dataset(own.dataset), own.recipe, stage, splits, seed=0)
        except ValueError as error:
            print(f"Left out {method}: {error}", flush=True)
        else:
            fitting[method] = own
    return fitting


class Clock(Callback):
    """Take the time of each step: forward and backward passes and the optimizer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Begin, once what came before is done."""
        _wait(module.device)
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        """End."""
        _wait(module.device)
        self.seconds.append(time.perf_counter() - self._start)


def _train(
    module: Regression,
    batches: Any,
    steps: int,
    accelerator: str,
    folder: str,
    callbacks: list[Callback],
) -> None:
    """Train for so many steps."""
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=steps,
        limit_val_batches=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, batches, batches)  # Lightning warns if there is nothing to validate on


def _wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
