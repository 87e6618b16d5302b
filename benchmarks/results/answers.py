"""Tables of what pays: families and rivals beside weights alone."""

import math

from benchmarks.experiment.dataset import REGIONS
from benchmarks.experiment.registry import get_dataset, get_method
from benchmarks.results import families, fresh_seeds
from benchmarks.results import label_noise as noise
from benchmarks.results.cells import DECIMALS, TITLES, difference_cell, markdown
from benchmarks.results.intervals import differ_from_zero
from benchmarks.results.results import Interval, place


def pays(method: str, *shown: str) -> str:
    """Return what a family gains over weights alone, a row a data set, see ``results.families``.

    The first difference is that of the curves' runs, the second that of fresh seeds. What differs
    from 0, corrected over all data sets, is bold.

    Args:
        method: The family.
        shown: Data sets with a row; all if there is none.

    Raises:
        ValueError: If one of them is not measured.
    """
    datasets = families.measured(method)
    if unknown := sorted({*shown} - {*datasets}):
        raise ValueError(f"Expected data sets with curves of {method}, but got {unknown}.")
    title = families.FAMILIES[method]
    found = {
        name: (
            families.difference(name, method, region="all", metric=families.balanced_metric(name)),
            _on_fresh_seeds(name, method),
            families.distance(name, method),
        )
        for name in datasets
    }
    are_real = iter(differ_from_zero([ends for of_name in found.values() for ends in of_name]))
    basis = families.FAMILIES[families.BASIS]
    heads = ["Difference", "Again, fresh seeds", "Few-shot at equal all", "Passes"]
    rows = [["Data set", *heads, basis, title]]
    for name in datasets:
        ours, reference = (families.chosen(name, m) for m in (method, families.BASIS))
        balanced = families.balanced_metric(name)
        differences = [
            difference_cell(ends, next(are_real), metric)
            for ends, metric in zip(
                found[name], (balanced, balanced, ours.results.metric), strict=True
            )
        ]
        if shown and name not in shown:
            continue
        passes = f"{ours.passes / reference.passes:.2f}"
        cells = [_chosen_point(point) for point in (reference, ours)]
        rows.append([_title(name), *differences, passes, *cells])
    return markdown(rows)


def weights(*datasets: str) -> str:
    """Return what weights change, with the chosen exponent, beside training without weights.

    What differs from 0, corrected over the table, is bold.
    """
    rows = [["Data set", "Exponent", "Error without", "Difference", "All", "Few"]]
    balanced = {name: families.balanced_metric(name) for name in datasets}
    of_first = {name: get_dataset(name).metrics[0] for name in datasets}
    errors = {
        name: [
            (name, "all", balanced[name]),
            (name, "all", of_first[name]),
            (name, "few", of_first[name]),
        ]
        for name in datasets
    }
    # Once, where the first two are the same.
    found = {
        error: families.gain_of_weights(error[0], region=error[1], metric=error[2])
        for of_name in errors.values()
        for error in of_name
    }
    are_real = dict(zip(found, differ_from_zero(list(found.values())), strict=True))
    for name, metric in balanced.items():
        point = families.chosen(name, families.BASIS)
        without = families.curve(name, families.BASIS)[0].mean("all", metric)
        cells = [f"{point.exponent:g}", f"{without:.{DECIMALS[metric]}f}"]
        cells += [difference_cell(found[e], are_real[e], metric) for e in errors[name]]
        rows.append([_title(name), *cells])
    return markdown(rows)


def rivals(*datasets: str) -> str:
    """Return what each method that was tuned changes on fresh seeds, a column a data set.

    The first row is the balanced error of weights alone, the others are differences to it. What
    differs from 0, corrected over the table, is bold; where a method did not run, there is nothing.
    """
    compared = [(name, method) for name in datasets for method in fresh_seeds.rivals(name)]
    found = [_on_fresh_seeds(name, method) for name, method in compared]
    cells = {
        (name, method): difference_cell(ends, is_real, families.balanced_metric(name))
        for (name, method), ends, is_real in zip(
            compared, found, differ_from_zero(found), strict=True
        )
    }
    for name in datasets:
        error = fresh_seeds.results(name).mean(families.BASIS, region="all")
        cells[name, families.BASIS] = f"{error:.{DECIMALS[families.balanced_metric(name)]}f}"
    methods = sorted({method for _, method in cells}, key=place)
    rows = [["Method", *map(_title, datasets)]]
    rows += [[_name(m), *(cells.get((name, m), "") for name in datasets)] for m in methods]
    return markdown(rows)


def errors_on_fresh_seeds(dataset: str) -> str:
    """Return the errors of every method that was tuned, on fresh seeds, and what it cost."""
    results = fresh_seeds.results(dataset)
    balanced = results.metric
    of_first = results.by(metric=results.dataset.metrics[0])
    rows = [["Method", "Runs", "Epochs", "Passes", *TITLES.values(), balanced]]
    for method in results.methods:
        runs = results.records[method]
        errors = [of_first.mean(method, region=region) for region in REGIONS]
        errors += [results.mean(method, region="all")]
        cells = [str(len(runs)), str(runs[0].recipe["epochs"]), f"{runs[0].passes:g}"]
        cells += [f"{error:.{DECIMALS[balanced]}f}" for error in errors]
        rows.append([_name(method), *cells])
    return markdown(rows)


def exponents(dataset: str) -> str:
    """Return the errors of each family with each exponent, at the end of training."""
    balanced = families.balanced_metric(dataset)
    heads = [*TITLES.values(), balanced, f"Validation {balanced}"]
    rows = [["Method", "Exponent", "Runs", "Epochs", "Passes", *heads]]
    for method, title in families.FAMILIES.items():
        for point in families.curve(dataset, method):
            decimals = DECIMALS[point.results.metric]
            errors = [point.mean(region) for region in REGIONS]
            errors += [point.mean("all", balanced), point.validation]
            runs = point.results.records[method]
            cells = [f"{point.exponent:g}", str(len(runs)), str(runs[0].recipe["epochs"])]
            cells += [f"{runs[0].passes:g}"]
            rows.append([title, *cells, *(f"{error:.{decimals}f}" for error in errors)])
    return markdown(rows)


def label_noise(method: str) -> str:
    """Return the balanced error of weights alone and of a family at each level of label noise.

    What differs from 0, corrected over the table, is bold.
    """
    methods = (families.BASIS, method)
    lines: list[tuple[str, float, list[float]]] = []
    found: list[Interval] = []
    for name in noise.measured():
        balanced = families.balanced_metric(name)
        means = [families.chosen(name, m).mean("all", balanced) for m in methods]
        lines.append((name, 0.0, means))
        found.append(families.difference(name, method, region="all", metric=balanced))
        for level, results in noise.by_level(name).items():
            noisy = results.by(metric=balanced)
            lines.append((name, level, [noisy.mean(m, region="all") for m in methods]))
            found.append(noisy.difference(method, families.BASIS, region="all"))
    rows = [["Data set", "Label noise", *(families.FAMILIES[m] for m in methods), "Difference"]]
    for (name, level, means), ends, is_real in zip(
        lines, found, differ_from_zero(found), strict=True
    ):
        balanced = families.balanced_metric(name)
        cells = [f"{level:g}", *(f"{mean:.{DECIMALS[balanced]}f}" for mean in means)]
        rows.append([_title(name), *cells, difference_cell(ends, is_real, balanced)])
    return markdown(rows)


def _on_fresh_seeds(dataset: str, method: str) -> Interval:
    """Return the balanced difference of a family to weights alone there, NaN if it has no runs."""
    if dataset not in fresh_seeds.measured(method):
        return Interval(math.nan, math.nan, math.nan)
    return fresh_seeds.results(dataset).difference(method, families.BASIS, region="all")


def _chosen_point(point: families.Point) -> str:
    """Return the balanced error of a family's chosen exponent, and what was chosen."""
    balanced = families.balanced_metric(point.results.name)
    error = point.mean("all", balanced)
    recipe = point.results.records[point.method][0].recipe
    words = [f"exponent {point.exponent:g}", f"{recipe['epochs']} epochs"]
    words += [f"rho {recipe[name]:g}" for name in ("rho", "rho_quarter") if name in recipe]
    return f"{error:.{DECIMALS[balanced]}f} ({', '.join(words)})"


def _name(method: str) -> str:
    """Return what a method is called where all are weighted."""
    return families.FAMILIES.get(method, get_method(method).title)


def _title(dataset: str) -> str:
    """Return the title of a data set and the unit of its target."""
    about = get_dataset(dataset)
    return f"{about.title} ({about.unit})"
