"""Error against cost: which trainings no cheaper one matches."""

import itertools
import json
import statistics
from dataclasses import dataclass
from functools import cache

from benchmarks.experiment.record import COMMITTED, read_records
from benchmarks.experiment.registry import get_dataset
from benchmarks.results.comparisons import Records, common_seeds, difference

METHODS = ("sqinv", "sqinv_twice", "bsam", "bsam_quarter")
REFERENCE = "bsam"
VARIANTS = METHODS[METHODS.index(REFERENCE) + 1 :]
HALF = "half"
"""Folder of the records of half as many epochs."""
REGIONS = ("All", "Few")
AS_CHEAP = 1.03
"""Trainings cost the same if their seconds differ by less, which is about what rounds differ by."""
MOST_SECONDS = 1.3
MOST_PERCENT = 1.0
"""What a variant may cost, in SQINV's seconds, and lose, in percent of BSAM's error."""
Interval = tuple[float, float, float]
"""A difference, and the ends of its 95 % interval."""


@dataclass(frozen=True)
class Point:
    """A method, trained for some number of epochs."""

    method: str
    name: str
    """The method's, and what tells it from the same method trained longer."""
    epochs: int
    seeds: int
    cost: float
    """Seconds of training over those of SQINV with all of the recipe's epochs."""
    error: dict[str, float]
    """Of each region, the mean over seeds."""
    to_reference: dict[str, Interval]
    """Of each region, minus BSAM's with all epochs."""
    to_cheaper: dict[str, list[Interval]]
    """Of each region, minus each point's that costs as much or less, corrected for the number of
    comparisons."""


@dataclass(frozen=True)
class Goal:
    """What a variant of BSAM loses and saves."""

    method: str
    seeds: int
    percent: dict[str, Interval]
    """Of each region, the difference to BSAM in percent of BSAM's error."""
    is_reached: bool
    """Whether it costs and loses, by the upper end of its interval, no more than it may."""


def cost_ratios(dataset: str) -> dict[str, list[float]]:
    """Return of each method and round the seconds of training over SQINV's, {} if not measured."""
    path = COMMITTED / dataset / "cost.json"
    if not path.exists():
        return {}
    methods = json.loads(path.read_text())["methods"]
    reference = methods["sqinv"]["seconds"]
    return {
        method: [a / b for a, b in zip(row["seconds"], reference, strict=True)]
        for method, row in methods.items()
    }


def is_measured(dataset: str) -> bool:
    """Return whether there are records and costs of all methods that are compared."""
    known = read_records(COMMITTED, dataset).keys() & cost_ratios(dataset).keys()
    return known >= set(METHODS)


@cache
def points(dataset: str, selection: str) -> tuple[Point, ...]:
    """Return all trainings, the cheapest first."""
    metric, epochs = get_dataset(dataset).metrics[0], get_dataset(dataset).recipe.epochs
    records = _records(dataset)
    costs = {name: _cost(dataset, records, name, epochs) for name in records}
    names = sorted(records, key=costs.__getitem__)
    comparisons = len(REGIONS) * len(list(itertools.combinations(names, 2)))

    def against(name: str, other: str, region: str) -> Interval:
        return difference(records, name, other, selection, region, metric)

    return tuple(
        Point(
            method=records[name][0].method,
            name=name,
            epochs=sum(records[name][0].recipe["stage_epochs"]),
            seeds=len(records[name]),
            cost=costs[name],
            error={region: _mean(records, name, selection, region, metric) for region in REGIONS},
            to_reference={region: against(name, REFERENCE, region) for region in REGIONS},
            to_cheaper={
                region: [
                    _corrected(against(name, other, region), comparisons)
                    for other in names
                    if other != name and _is_as_cheap(costs[other], costs[name])
                ]
                for region in REGIONS
            },
        )
        for name in names
    )


def is_lowest(point: Point, others: tuple[Point, ...], region: str) -> bool:
    """Return whether no point that costs as much or less has so low an error."""
    return all(
        point.error[region] < other.error[region]
        for other in others
        if other is not point and _is_as_cheap(other.cost, point.cost)
    )


def verdict(point: Point, region: str) -> str:
    """Return whether the point is on the front once the comparisons are corrected for.

    Nothing says so of the cheapest.
    """
    intervals = point.to_cheaper[region]
    if any(low > 0 for _, low, _ in intervals):
        return "no"
    if not intervals:
        return "cheapest"
    return "yes" if all(high < 0 for _, _, high in intervals) else "open"


def goals(dataset: str, selection: str) -> list[Goal]:
    """Return how near each variant comes to BSAM."""
    metric, records, found = get_dataset(dataset).metrics[0], _records(dataset), []
    for method in VARIANTS:
        percent: dict[str, Interval] = {}
        for region in REGIONS:
            reference = _mean(records, REFERENCE, selection, region, metric)
            ends = difference(records, method, REFERENCE, selection, region, metric)
            percent[region] = tuple(100 * end / reference for end in ends)  # type: ignore[assignment]  # three stay three
        seconds = statistics.median(cost_ratios(dataset)[method])
        found.append(
            Goal(
                method,
                len(common_seeds(records, method, REFERENCE)),
                percent,
                seconds <= MOST_SECONDS
                and all(high <= MOST_PERCENT for _, _, high in percent.values()),
            )
        )
    return found


def _is_as_cheap(cost: float, other: float) -> bool:
    """Return whether a cost is at most another but for noise."""
    return cost <= AS_CHEAP * other


def _records(dataset: str) -> Records:
    """Return the runs of all trainings by their names."""
    whole, half = read_records(COMMITTED, dataset), read_records(COMMITTED / HALF, dataset)
    return {method: whole[method] for method in METHODS} | {
        f"{method}, {HALF}": half[method] for method in METHODS if method in half
    }


def _cost(dataset: str, records: Records, name: str, epochs: int) -> float:
    """Return the seconds of a training over those of SQINV with all epochs."""
    run = records[name][0]
    ratio = statistics.median(cost_ratios(dataset)[run.method])
    return float(ratio * run.recipe["epochs"] / epochs)


def _mean(records: Records, name: str, selection: str, region: str, metric: str) -> float:
    """Return the mean over the seeds that BSAM has, too."""
    runs = [run for run in records[name] if run.seed in common_seeds(records, name, REFERENCE)]
    return statistics.mean(run.results[selection]["regions"][region][metric] for run in runs)


def _corrected(interval: Interval, comparisons: int) -> Interval:
    """Return a 95 % interval widened so that all of so many hold together (Bonferroni).

    The draws of the bootstrap are too few for ends so far out: they are taken for normal.
    """
    value, low, high = interval
    normal = statistics.NormalDist()
    factor = normal.inv_cdf(1 - 0.025 / comparisons) / normal.inv_cdf(0.975)
    return value, value - factor * (value - low), value + factor * (high - value)
