"""Whether faces are read as fast as the network learns from them: ``python -m benchmarks loading``.

Both use the same cores, in turns: the loader, with its processes, the augmentation behind it, and a
ResNet-18, forward and backward. The faces are generated, as large as those of the data sets.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import trange

from benchmarks.datasets._faces import write_miniature
from benchmarks.datasets.agedb_dir import DATASET, TABLE, image_path
from benchmarks.experiment.dataset import Splits
from benchmarks.training.batches import training_batches
from benchmarks.training.provenance import provenance

SIZE = (256, 256)
STEPS = 2
"""Of the network in a round."""


def loading(*, device: str, images: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Return the record.

    Args:
        device: torch's name.
        images: How many are written; three fifths of them are read in each round.
        batch_size: Of the network.
        rounds: Turns of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_miniature(Path(folder), table=TABLE, image_path=image_path, images=images, size=SIZE)
        splits = DATASET.load(Path(folder))
        rates = measure(
            splits,
            device=torch.device(device),
            batch_size=batch_size,
            rounds=rounds,
        )
    return summary(rates) | {
        "images": images,
        "size": SIZE,
        "batch_size": batch_size,
        "rates": rates,
        "load_average": os.getloadavg(),
        "provenance": provenance(splits, accelerator=device),
    }


def measure(
    splits: Splits, *, device: torch.device, batch_size: int, rounds: int
) -> dict[str, list[float]]:
    """Return images a second in each round.

    Args:
        splits: Faces on disk.
        device: Where the augmentation and the network run.
        batch_size: Images in a batch.
        rounds: How often each is measured, all in turns; once more before, which does not count.

    Returns:
        ``"decoded"`` (the loader), ``"delivered"`` (the loader and the augmentation) and
        ``"learned"`` (forward and backward).
    """
    assert DATASET.augmentation is not None
    batches = training_batches(splits.train, batch_size=batch_size, seed=0, epoch=0)
    augmentation = DATASET.augmentation().to(device)
    network = DATASET.network(DATASET.recipe).to(device)
    inputs, ages = (part.to(device) for part in next(iter(batches)))
    inputs = inputs / 255

    def decode() -> int:
        return sum(len(images) for images, _ in batches)

    def deliver() -> int:
        delivered = 0
        for images, targets in batches:
            augmentation(images.to(device) / 255, targets.to(device))
            delivered += len(images)
        return delivered

    def learn() -> int:
        for _ in range(STEPS):
            (network(inputs) - ages).abs().mean().backward()
        # The batch is smaller than asked for where there are fewer images.
        return STEPS * len(inputs)

    work = {"decoded": decode, "delivered": deliver, "learned": learn}
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in trange(rounds + 1, unit="round"):
        for name, do in work.items():
            rates[name].append(round(_rate(do, device), 1))
    return {name: values[1:] for name, values in rates.items()}


def _rate(work: Callable[[], int], device: torch.device) -> float:
    """Return how many images a second are done."""
    start = time.perf_counter()
    images = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return the median of each rate, and of the ratio of delivered to learned in each round."""
    ratios = [d / n for d, n in zip(rates["delivered"], rates["learned"], strict=True)]
    medians = {name: median(values) for name, values in rates.items()}
    return medians | {"delivered_by_learned": round(median(ratios), 2)}
