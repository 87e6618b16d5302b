"""Choose a recipe on validation data alone, and keep a record of the choice."""

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.experiment.record import Record, read_record, write_json
from benchmarks.experiment.registry import get_dataset
from benchmarks.training.pool import Run, run_all

WORK = Path("runs") / "tuning"


def tune(
    dataset: str,
    methods: list[str],
    seeds: list[int],
    grid: dict[str, list[Any]],
    *,
    path: Path,
    jobs: int,
) -> None:
    """Train every point of a grid and add its validation error to the choices in ``path``.

    Args:
        dataset: The data set.
        methods: The methods, each over the whole grid.
        seeds: Seeds that are not among those reported.
        grid: Values to try for entries of the recipe, or for constants that all methods have.
        path: Where the choices are kept; points that are there already are not trained again.
        jobs: How many runs at a time.

    Raises:
        ValueError: If a method lacks a constant of the grid.
    """
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    runs: dict[tuple[str, str], list[Run]] = {}
    for method in methods:
        for point in points:
            name = ",".join(f"{key}={value}" for key, value in point.items())
            folder = WORK / name
            runs[method, name] = [Run(dataset, method, seed, folder, None, point) for seed in seeds]
    run_all([run for group in runs.values() for run in group], jobs=jobs, resume=True)
    choices: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for (method, name), group in runs.items():
        records = [read_record(run.path) for run in group]
        choices.setdefault(method, {})[name] = _summary(records)
    write_json(path, {method: choices[method] for method in sorted(choices)})


def _summary(records: list[Record]) -> dict[str, Any]:
    """Return the recipe, and the validation error at the best epoch and the last, over seeds."""
    best = [record.history[record.best_epoch] for record in records]
    last = [record.history[-1] for record in records]
    metric, *others = get_dataset(records[0].dataset).metrics
    names = {region: f"{region}/{metric}" for region in ("all", "few")}
    if "bMAE" in others:
        names["balanced"] = "all/bMAE"
    return {
        "recipe": records[0].recipe,
        "seeds": [record.seed for record in records],
        "best": {title: _mean(best, name) for title, name in names.items()},
        "last": {title: _mean(last, name) for title, name in names.items()},
    }


def _mean(epochs: list[dict[str, float | None]], name: str) -> float | None:
    """Return the mean over runs, None if one has no finite error, as if it diverged."""
    errors = [epoch[f"validation/{name}"] for epoch in epochs]
    finite = [error for error in errors if error is not None]
    return round(statistics.mean(finite), 3) if len(finite) == len(errors) else None
