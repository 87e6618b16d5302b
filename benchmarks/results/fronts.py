"""Error against cost: which trainings no cheaper one matches."""

import itertools
import statistics
from dataclasses import dataclass
from functools import cache

from benchmarks.experiment.record import COMMITTED
from benchmarks.results.results import Interval, Results, committed

METHODS = ("sqinv", "sqinv_twice", "bsam", "bsam_quarter")
REFERENCE = "bsam"
VARIANTS = METHODS[METHODS.index(REFERENCE) + 1 :]
HALF = "half"
"""Folder of the records of half as many epochs."""
REGIONS = ("all", "few")
AS_CHEAP = 1.03
"""Trainings cost the same if their seconds differ by less, which is about what rounds differ by."""
MOST_SECONDS = 1.3
MOST_PERCENT = 1.0
"""What a variant may cost, in SQINV's seconds, and lose, in percent of BSAM's error."""


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


def is_measured(results: Results) -> bool:
    """Return whether there are records and costs of all methods that are compared."""
    return results.records.keys() & results.costs.keys() >= set(METHODS)


@cache
def points(dataset: str, selection: str) -> tuple[Point, ...]:
    """Return all trainings, the cheapest first."""
    results = _trainings(dataset).by(selection=selection)
    costs = {name: _cost(results, name) for name in results.records}
    names = sorted(costs, key=costs.__getitem__)
    comparisons = len(REGIONS) * len(list(itertools.combinations(names, 2)))
    return tuple(
        Point(
            method=results.records[name][0].method,
            name=name,
            epochs=sum(results.records[name][0].recipe["stage_epochs"]),
            seeds=len(results.records[name]),
            cost=costs[name],
            error={r: results.mean(name, region=r, beside=REFERENCE) for r in REGIONS},
            to_reference={r: results.difference(name, REFERENCE, region=r) for r in REGIONS},
            to_cheaper={
                region: [
                    _corrected(results.difference(name, other, region=region), comparisons)
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


def goals(results: Results) -> list[Goal]:
    """Return how near each variant comes to BSAM."""
    found = []
    for method in VARIANTS:
        percent: dict[str, Interval] = {}
        for region in REGIONS:
            reference = results.mean(REFERENCE, region=region)
            ends = results.difference(method, REFERENCE, region=region)
            percent[region] = Interval(*(100 * end / reference for end in ends))
        seconds = statistics.median(results.seconds(method))
        is_lossless = all(interval.high <= MOST_PERCENT for interval in percent.values())
        seeds = len(results.seeds(method, REFERENCE))
        found.append(Goal(method, seeds, percent, seconds <= MOST_SECONDS and is_lossless))
    return found


def _is_as_cheap(cost: float, other: float) -> bool:
    """Return whether a cost is at most another but for noise."""
    return cost <= AS_CHEAP * other


@cache
def _trainings(dataset: str) -> Results:
    """Return the runs of all trainings by their names."""
    results, half = committed(dataset).by(), Results(dataset, COMMITTED / HALF)
    results.records = {method: results.records[method] for method in METHODS} | {
        f"{method}, {HALF}": half.records[method] for method in METHODS if method in half.records
    }
    return results


def _cost(results: Results, name: str) -> float:
    """Return the seconds of a training over those of SQINV with all epochs."""
    run = results.records[name][0]
    ratio = statistics.median(results.seconds(run.method))
    return float(ratio * run.recipe["epochs"] / results.dataset.recipe.epochs)


def _corrected(interval: Interval, comparisons: int) -> Interval:
    """Return a 95 % interval widened so that all of so many hold together (Bonferroni).

    The draws of the bootstrap are too few for ends so far out: they are taken for normal.
    """
    value, low, high = interval
    normal = statistics.NormalDist()
    factor = normal.inv_cdf(1 - 0.025 / comparisons) / normal.inv_cdf(0.975)
    return Interval(value, value - factor * (value - low), value + factor * (high - value))
