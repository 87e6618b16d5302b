"""Two methods compared by their records."""

import numpy as np

from benchmarks.experiment.record import Record
from benchmarks.experiment.registry import get_dataset
from benchmarks.results.intervals import paired_difference
from benchmarks.training.evaluation import Array, sample_sums

Records = dict[str, list[Record]]
"""Of each method a run for each seed."""


def common_seeds(records: Records, method: str, reference: str) -> list[int]:
    """Return the seeds of which both methods have a record."""
    ours, theirs = ({run.seed for run in records.get(name, [])} for name in (method, reference))
    return sorted(ours & theirs)


def difference(
    records: Records, method: str, reference: str, selection: str, region: str, metric: str
) -> tuple[float, float, float]:
    """Return the paired difference over the seeds that both have, and its 95 % interval."""
    seeds = common_seeds(records, method, reference)
    parts = []
    for name in (method, reference):
        runs = {run.seed: run for run in records[name]}
        sums, counts = _sums([runs[seed] for seed in seeds], selection, region, metric)
        parts.append(sums)
    return paired_difference(*parts, counts, metric=metric)


def _sums(runs: list[Record], selection: str, region: str, metric: str) -> tuple[Array, Array]:
    """Return what the test samples of a region add to a metric, shapes ``(seeds, N), (N,)``."""
    dataset = get_dataset(runs[0].dataset)
    pairs = [sample_sums(run, dataset, selection, region, metric) for run in runs]
    return np.stack([sums for sums, _ in pairs]), pairs[0][1]
