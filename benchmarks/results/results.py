"""A data set and the records of its runs: one object that answers what tables and pictures ask."""

import copy
import json
import statistics
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.experiment.record import COMMITTED, Record, read_records
from benchmarks.experiment.registry import get_dataset, get_method
from benchmarks.results.intervals import (
    RESAMPLES,
    balanced_on_draws,
    metric_on_draws,
    paired_difference,
)
from benchmarks.training.evaluation import sample_bins, sample_sums

BASIS = "sqinv"
"""The method whose passes and seconds are 1."""


class Interval(NamedTuple):
    """A difference and the ends of its 95 % interval, in the metric's unit; NaN for no target."""

    value: float
    low: float
    high: float


class Results:
    """What the runs on a data set came to, by one selection of the epoch and one metric.

    Args:
        name: File name of the data set.
        root: Folder of the records.
        selection: Which epoch, of those of the data set.
        metric: Name of the metric; the data set's first if it is empty.

    Attributes:
        records: Of each method a run for each seed.
    """

    def __init__(
        self,
        name: str,
        root: Path = COMMITTED,
        *,
        selection: str = "last_epoch",
        metric: str = "",
    ) -> None:
        self.name = name
        self.root = root
        self.dataset = get_dataset(name)
        self.selection = self._checked(selection)
        self.metric = metric or self.dataset.metrics[0]
        self.records: dict[str, list[Record]] = read_records(root, name)
        # By method, region, selection and metric; all that `by` returns share it.
        self._drawn: dict[tuple[str, str, str, str], NDArray[np.float64]] = {}

    def by(self, *, selection: str = "", metric: str = "") -> "Results":
        """Return the same runs by another selection or metric."""
        results = copy.copy(self)
        results.selection = self._checked(selection or self.selection)
        results.metric = metric or self.metric
        return results

    def _checked(self, selection: str) -> str:
        """Return a selection, or raise if no network of the data set is tested by it."""
        if selection not in self.dataset.selections:
            raise ValueError(
                f"Expected one of the selections {list(self.dataset.selections)} of {self.name}, "
                f"but got {selection!r}."
            )
        return selection

    @property
    def methods(self) -> list[str]:
        """The methods that have records, in the order of the tables."""
        return sorted(self.records, key=place)

    def seeds(self, *methods: str) -> list[int]:
        """Return the seeds of which all these methods have a record."""
        each = [{run.seed for run in self.records.get(method, [])} for method in methods]
        return sorted(set.intersection(*each))

    def values(self, method: str, *, region: str, beside: str = "") -> list[float]:
        """Return the metric of each run; None where there is no target.

        Args:
            method: The method.
            region: ``"all"`` or one of the regions.
            beside: Another method: only the seeds that it has, too.
        """
        seeds = self.seeds(method, beside or method)
        runs = [run for run in self.records[method] if run.seed in seeds]
        return [run.results[self.selection]["regions"][region][self.metric] for run in runs]

    def mean(self, method: str, *, region: str, beside: str = "") -> float:
        """Return the mean of :meth:`values`."""
        return statistics.mean(self.values(method, region=region, beside=beside))

    def difference(self, method: str, reference: str, *, region: str) -> Interval:
        """Return method minus reference, paired over the seeds that both have."""
        seeds = self.seeds(method, reference)
        of_seeds = [
            self.on_draws(name, region)[:, [run.seed in seeds for run in self.records[name]]]
            for name in (method, reference)
        ]
        folds = [self.dataset.fold(seed) for seed in seeds]
        return Interval(*paired_difference(*of_seeds, folds))

    def passes(self, method: str) -> float | None:
        """Return the passes over those of SQINV, which trains as many steps; None without it."""
        if BASIS not in self.records:
            return None
        return self.records[method][0].passes / self.records[BASIS][0].passes

    def seconds(self, method: str) -> list[float]:
        """Return in each round the seconds of training over those of SQINV; [] if not measured."""
        return self.costs.get(method, [])

    @cached_property
    def costs(self) -> dict[str, list[float]]:
        """Of each method that was measured, :meth:`seconds`."""
        path = COMMITTED / self.name / "cost.json"
        if not path.exists():
            return {}
        methods = json.loads(path.read_text())["methods"]
        return {
            method: [a / b for a, b in zip(row["seconds"], methods[BASIS]["seconds"], strict=True)]
            for method, row in methods.items()
        }

    def on_draws(self, method: str, region: str) -> NDArray[np.float64]:
        """Return the metric of each run on each draw of the test samples."""
        key = (method, region, self.selection, self.metric)
        if key not in self._drawn:
            runs = self.records[method]
            drawn = np.empty((1 + RESAMPLES, len(runs)))
            # Runs of a fold share their test samples.
            for fold in range(self.dataset.folds):
                of_fold = [k for k, run in enumerate(runs) if self.dataset.fold(run.seed) == fold]
                if not of_fold:
                    continue
                pairs = [
                    sample_sums(runs[k], self.dataset, self.selection, region, self.metric)
                    for k in of_fold
                ]
                sums, counts = np.stack([of_samples for of_samples, _ in pairs]), pairs[0][1]
                if self.metric == "bMAE":
                    bins = sample_bins(runs[of_fold[0]])
                    drawn[:, of_fold] = balanced_on_draws(sums, counts, bins, fold=fold)
                else:
                    drawn[:, of_fold] = metric_on_draws(sums, counts, metric=self.metric, fold=fold)
            self._drawn[key] = drawn
        return self._drawn[key]


def place(method: str) -> tuple[int, str]:
    """Return what sorts the methods as tables have them."""
    return get_method(method).place, method
