"""Fresh seeds: runs of the settings that were chosen, on seeds that no choice has seen.

Where there are folds, the samples are those that the choice has seen, split in the same way.

Weights alone and BSAM run once more, as a check of the figures of the curves, and beside them every
method that was tuned as they were::

    python -m benchmarks run airports weighted bsam_weighted --chosen --seeds 10 11 12 \
        --records benchmarks/records/fresh_seeds
"""

from functools import cache

from benchmarks.experiment.record import COMMITTED
from benchmarks.experiment.registry import dataset_names
from benchmarks.results.families import BASIS, balanced_metric
from benchmarks.results.results import Results

FOLDER = COMMITTED / "fresh_seeds"


def measured(method: str) -> list[str]:
    """Return the data sets with runs of a method and of weights alone."""
    found = []
    for name in dataset_names():
        if all(any((FOLDER / name / m).glob("seed-*.json")) for m in (method, BASIS)):
            found.append(name)
    return found


def rivals(dataset: str) -> list[str]:
    """Return the methods with runs beside weights alone, in the order of the tables."""
    return [method for method in results(dataset).methods if method != BASIS]


@cache
def results(dataset: str) -> Results:
    """Return the results at the end of training, in the balanced metric."""
    return Results(dataset, FOLDER, metric=balanced_metric(dataset))
