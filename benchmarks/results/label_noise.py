"""Label noise: runs whose training targets are off by a Gaussian, and those that they stand beside.

Each level is run with the settings that were chosen without noise::

    python -m benchmarks run airports weighted bsam_weighted --chosen --set label_noise=100 \
        --seeds 0 1 2 --records benchmarks/records/label_noise/100
"""

from benchmarks.experiment.record import COMMITTED
from benchmarks.experiment.registry import dataset_names
from benchmarks.results.results import Results

FOLDER = COMMITTED / "label_noise"
"""The records of each level, in a folder that it names, in target units."""


def measured() -> list[str]:
    """Return the data sets with records."""
    return [name for name in dataset_names() if any(FOLDER.glob(f"*/{name}/*/seed-*.json"))]


def by_level(dataset: str) -> dict[float, Results]:
    """Return the results at the end of training by the level, the smallest first."""
    levels = sorted({path.parents[1].name for path in FOLDER.glob(f"*/{dataset}/*")}, key=float)
    return {float(level): Results(dataset, FOLDER / level) for level in levels}
