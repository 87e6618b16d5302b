"""Tables of a data set: errors, differences, costs, settings, published figures."""

import json
import statistics
from typing import Any

from benchmarks.costs.overhead import report as overhead_report
from benchmarks.experiment.dataset import REGIONS
from benchmarks.experiment.record import COMMITTED, Record
from benchmarks.experiment.registry import get_dataset, get_method, method_names
from benchmarks.results import answers, families
from benchmarks.results.cells import DECIMALS, TITLES, difference_cell, markdown
from benchmarks.results.intervals import differ_from_zero
from benchmarks.results.results import Interval, Results, place

REFERENCES = ("vanilla", "sqinv")
SELECTIONS = {
    "best_validation": "epoch with the lowest validation error",
    "last_epoch": "last epoch",
    "best_test": "epoch with the lowest test error, as in the literature",
}


def summary(results: Results) -> str:
    """Return mean ± standard deviation over seeds, the published figures beside them."""
    paper = _published(results.dataset.published)
    beside = paper.get("metric") == results.metric
    title = paper.get("title", "") + (", test-selected" if paper.get("test_selected") else "")
    heads = [f"{title}, {region}" for region in ("All", "Few")] if beside else []
    rows = [["Method", "Seeds", "Passes / SQINV", "Seconds / SQINV", *TITLES.values(), *heads]]
    for method in results.methods:
        cells = [_mean_and_deviation(results, method, region) for region in REGIONS]
        if beside:
            values = paper["rows"].get(method, [None] * 4)
            cells += [_figure(values[0]), _figure(values[3])]
        passes = results.passes(method)
        costs = ["" if passes is None else f"{passes:.2f}", _seconds(results, method)]
        seeds = str(len(results.records[method]))
        rows.append([get_method(method).title, seeds, *costs, *cells])
    return markdown(rows)


def differences(results: Results, reference: str) -> str:
    """Return each method's paired difference to a reference, with its 95 % interval.

    What differs from 0, corrected over the table, is bold.
    """
    seeds = {method: results.seeds(method, reference) for method in results.methods}
    compared = [method for method, common in seeds.items() if common and method != reference]
    found = _differences(results, [(m, reference, r) for m in compared for r in REGIONS])
    rows = [[f"Difference to {get_method(reference).title}", "Seeds", *TITLES.values()]]
    for method in compared:
        cells = [difference_cell(*found[method, reference, r], results.metric) for r in REGIONS]
        rows.append([get_method(method).title, str(len(seeds[method])), *cells])
    return markdown(rows)


def costs(dataset: str) -> str:
    """Return the passes and seconds of each method that was measured, over those of SQINV."""
    record = json.loads((COMMITTED / dataset / "cost.json").read_text())
    results = Results(dataset)
    rows = [["Method", "Passes / SQINV", "Seconds / SQINV", "Seconds"]]
    for method in sorted(record["methods"], key=place):
        row = record["methods"][method]
        seconds = statistics.median(row["seconds"])
        title = get_method(method).title
        rows.append([title, f"{row['passes']:.2f}", _seconds(results, method), f"{seconds:.3g}"])
    return markdown(rows)


def published(name: str) -> str:
    """Return the published figures of a data set, with their source."""
    table = _published(name)
    rows = [
        [f"Published, {table['title']}, {table['metric']} in {table['unit']}", *TITLES.values()]
    ]
    for method, values in table["rows"].items():
        title = get_method(method).title if method in method_names() else method
        rows.append([title, *map(_figure, values)])
    return markdown(rows) + f"\n\nSource: {table['source']}"


def tuning(dataset: str) -> str:
    """Return what was tried of each method, the best setting bold, and its validation errors.

    Errors are those at the end of training; the lowest balanced one was chosen. Each setting's are
    in the data set's ``tuning.json``.
    """
    choices = json.loads((COMMITTED / dataset / "tuning.json").read_text())
    decimals = DECIMALS[get_dataset(dataset).metrics[0]]
    columns = {"all": "All", "few": "Few"}
    if "bMAE" in get_dataset(dataset).metrics:
        columns["balanced"] = "bMAE"
    rows = [["Method", "Settings", "Seeds", *columns.values(), "Tried"]]
    for name in sorted(choices, key=place):
        settings, best = choices[name], families.best_setting(choices[name])
        tried = "; ".join(
            f"{title} {_values(settings, constant, best)}"
            for constant, title in _constants(settings).items()
        )
        of_best = [best["last"][column] for column in columns]
        errors = ["none" if error is None else f"{error:.{decimals}f}" for error in of_best]
        counts = [str(len(settings)), str(len(best["seeds"]))]
        rows.append([get_method(name).title, *counts, *errors, tried])
    return markdown(rows)


def _constants(settings: dict[str, Any]) -> dict[str, str]:
    """Return the constants that settings name, each with its name in words."""
    names = [part.split("=")[0] for setting in settings for part in setting.split(",")]
    return {name: name.replace("_", " ") for name in dict.fromkeys(names)}


def _values(settings: dict[str, Any], constant: str, best: Any) -> str:
    """Return the values of a constant that were tried, the best setting's bold."""
    chosen = best["recipe"][constant]
    values = sorted({row["recipe"][constant] for row in settings.values()})
    return ", ".join(f"**{value:g}**" if value == chosen else f"{value:g}" for value in values)


def loading() -> str:
    """Return whether faces are read as fast as the network learns from them."""
    record = json.loads((COMMITTED / "loading.json").read_text())
    words = {
        "decoded": "decoded and cropped",
        "delivered": "the same, and augmented",
        "learned": "training step of a ResNet-18, for comparison",
    }
    rows = [["Images a second", f"Median of {len(record['rates']['learned'])} rounds", "Range"]]
    for name, what in words.items():
        rates = record["rates"][name]
        rows.append([what, f"{record[name]:.1f}", f"{min(rates):.1f} to {max(rates):.1f}"])
    return markdown(rows)


def overhead(name: str, table: str) -> str:
    """Return a table of what a step costs on a machine, see ``costs.overhead.report``."""
    record = json.loads((COMMITTED / "overhead" / f"{name}.json").read_text())
    rows: list[list[str]] = getattr(overhead_report, table)(record)
    return markdown(rows)


def report(results: Results) -> str:
    """Return all tables of a data set."""
    name, dataset = results.name, results.dataset
    parts = [f"# {dataset.title}, in {dataset.unit}"]
    if dataset.ours:
        parts += [f"Our own choice, as the literature gives none: {dataset.ours}."]
    if runs := [run for group in results.records.values() for run in group]:
        scale = "mean 1" if runs[0].recipe["normalized"] else "the paper's raw scale"
        epochs = "/".join(str(n) for n in sorted({run.recipe["epochs"] for run in runs}))
        words = [f"{epochs} epochs", f"weights of {scale}", _tuned(runs)]
        parts += ["; ".join(filter(None, words)) + "."]
        parts += _timed(name)
    elif results.root == COMMITTED and families.curve(name, families.BASIS):
        parts += ["With weights of each exponent, at the end of training:", answers.exponents(name)]
    else:
        parts += [f"No records in {results.root / name}."]
    for selection, words in SELECTIONS.items():
        if not runs or selection not in dataset.selections:
            continue
        for metric in dataset.metrics:
            of_metric = results.by(selection=selection, metric=metric)
            parts += [f"## {metric}, {words}", summary(of_metric)]
            references = [reference for reference in REFERENCES if reference in results.records]
            if references:
                parts += ["Paired differences, 95 % intervals, bold by Holm's correction:"]
            parts += [differences(of_metric, reference) for reference in references]
    if not dataset.published:
        return "\n\n".join(parts)
    paper = _published(dataset.published)
    if dataset.published != name:
        parts += ["## Published, on other data: for orientation, not for comparison"]
    else:
        parts += [f"## Published, {paper['title']}"]
    return "\n\n".join([*parts, published(dataset.published)])


def _published(name: str) -> dict[str, Any]:
    """Return an entry of the published figures, an empty one for no name."""
    published = json.loads((COMMITTED / "published.json").read_text())
    entry: dict[str, Any] = published[name] if name else {}
    return entry


def _timed(dataset: str) -> list[str]:
    """Return where the seconds come from, if they were measured."""
    path = COMMITTED / dataset / "cost.json"
    if not path.exists():
        return []
    about = json.loads(path.read_text())["provenance"]
    return [f"Seconds were measured on {about['device']}, {about['threads']} threads."]


def _tuned(runs: list[Record]) -> str:
    """Return the radius and TERM's tilt that the runs took, if any."""
    entries = {"rho": "rho", "rho_quarter": "the quarter's rho", "term_t": "TERM's t"}
    values = {
        f"{words} {run.recipe[entry]:g}"
        for run in runs
        for entry, words in entries.items()
        if entry in run.recipe
    }
    return ", ".join(sorted(values))


def _seconds(results: Results, method: str) -> str:
    """Return the seconds over those of SQINV: the median of the rounds and their middle half."""
    ratios = results.seconds(method)
    if not ratios:
        return ""
    low, middle, high = statistics.quantiles(ratios)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _mean_and_deviation(results: Results, method: str, region: str) -> str:
    values = results.values(method, region=region)
    if None in values:
        return "none"
    decimals = DECIMALS[results.metric]
    deviation = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{deviation}"


def _differences(
    results: Results, comparisons: list[tuple[str, str, str]]
) -> dict[tuple[str, str, str], tuple[Interval, bool]]:
    """Return of each method, reference and region the difference, and whether there is any."""
    found = [results.difference(m, reference, region=r) for m, reference, r in comparisons]
    are_real = [
        # A single seed says nothing of another.
        is_real and len(results.seeds(m, reference)) > 1
        for (m, reference, _), is_real in zip(comparisons, differ_from_zero(found), strict=True)
    ]
    return dict(zip(comparisons, zip(found, are_real, strict=True), strict=True))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
