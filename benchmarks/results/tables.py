"""Tables in Markdown, made of records, and written into texts between markers."""

import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.costs.overhead import report as overhead_report
from benchmarks.experiment.dataset import REGIONS
from benchmarks.experiment.record import COMMITTED, Record
from benchmarks.experiment.registry import get_dataset, get_method, method_names
from benchmarks.results import families, fresh_seeds
from benchmarks.results import label_noise as noise
from benchmarks.results.intervals import differ_from_zero
from benchmarks.results.results import Interval, Results, committed, place

TITLES = {"all": "All", "many": "Many", "medium": "Med.", "few": "Few"}
REFERENCES = ("vanilla", "sqinv")
SELECTIONS = {
    "best_validation": "epoch with the lowest validation error",
    "last_epoch": "last epoch",
    "best_test": "epoch with the lowest test error, as in the literature",
}
DECIMALS = {"MAE": 2, "bMAE": 2, "GM": 2, "RMSE": 3, "delta_1": 3}
PAGES = ("pays", "results", "cost")
TEXTS = tuple(Path(text) for text in ("README.md", *(f"docs/{page}.md" for page in PAGES)))
_BLOCK = re.compile(r"(<!-- table: (?P<call>.+?) -->\n).*?(<!-- end table -->)", re.DOTALL)


def summary(results: Results, methods: str = "") -> str:
    """Return mean ± standard deviation over seeds, the published figures beside them.

    ``methods`` are names with commas between; all that have records if it is empty.
    """
    paper = _published(results.dataset.published)
    beside = paper.get("metric") == results.metric
    title = paper.get("title", "") + (", test-selected" if paper.get("test_selected") else "")
    heads = [f"{title}, {region}" for region in ("All", "Few")] if beside else []
    rows = [["Method", "Seeds", "Passes × SQINV", "Seconds × SQINV", *TITLES.values(), *heads]]
    for method in _chosen(results, methods):
        cells = [_mean_and_deviation(results, method, region) for region in REGIONS]
        if beside:
            values = paper["rows"].get(method, [None] * 4)
            cells += [_figure(values[0]), _figure(values[3])]
        passes = results.passes(method)
        costs = ["" if passes is None else f"{passes:.2f}", _seconds(results, method)]
        seeds = str(len(results.records[method]))
        rows.append([get_method(method).title, seeds, *costs, *cells])
    return markdown(rows)


def differences(results: Results, reference: str, methods: str = "") -> str:
    """Return each method's paired difference to a reference, with its 95 % interval.

    What differs from 0, corrected over the table, is bold. ``methods`` are as in :func:`summary`.
    """
    seeds = {method: results.seeds(method, reference) for method in _chosen(results, methods)}
    compared = [method for method, common in seeds.items() if common and method != reference]
    found = _differences(results, [(m, reference, r) for m in compared for r in REGIONS])
    rows = [[f"Difference to {get_method(reference).title}", "Seeds", *TITLES.values()]]
    for method in compared:
        cells = [_difference_cell(*found[method, reference, r], results.metric) for r in REGIONS]
        rows.append([get_method(method).title, str(len(seeds[method])), *cells])
    return markdown(rows)


def pays(method: str) -> str:
    """Return what a family gains over weights alone, a row a data set, see ``results.families``.

    The first difference is that of the curves' runs, the second that of fresh seeds. What differs
    from 0, corrected over the table, is bold.
    """
    datasets = families.measured(method)
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
            _difference_cell(ends, next(are_real), metric)
            for ends, metric in zip(
                found[name], (balanced, balanced, ours.results.metric), strict=True
            )
        ]
        passes = f"{ours.passes / reference.passes:.2f}"
        cells = [_chosen_point(point) for point in (reference, ours)]
        rows.append([_title(name), *differences, passes, *cells])
    return markdown(rows)


def weights(*datasets: str) -> str:
    """Return what weights change, with the chosen exponent, beside training without weights.

    What differs from 0, corrected over the table, is bold.
    """
    rows = [["Data set", "Exponent", "bMAE without", "Difference", "All", "Few"]]
    regions = [(name, region) for name in datasets for region in ("balanced", "all", "few")]
    found = {
        (name, region): families.gain_of_weights(
            name,
            region="all" if region == "balanced" else region,
            metric=families.balanced_metric(name) if region == "balanced" else "",
        )
        for name, region in regions
    }
    are_real = iter(differ_from_zero(list(found.values())))
    for name in datasets:
        point = families.chosen(name, families.BASIS)
        balanced = families.balanced_metric(name)
        without = families.curve(name, families.BASIS)[0].mean("all", balanced)
        cells = [
            _difference_cell(found[name, region], next(are_real), balanced)
            for region in ("balanced", "all", "few")
        ]
        rows.append(
            [_title(name), f"{point.exponent:g}", f"{without:.{DECIMALS[balanced]}f}", *cells]
        )
    return markdown(rows)


def _on_fresh_seeds(dataset: str, method: str) -> Interval:
    """Return the balanced difference of a family to weights alone there, NaN if it has no runs."""
    if dataset not in fresh_seeds.measured(method):
        return Interval(math.nan, math.nan, math.nan)
    return fresh_seeds.results(dataset).difference(method, families.BASIS, region="all")


def rivals(*datasets: str) -> str:
    """Return the errors of every method that was tuned, on fresh seeds, beside weights alone.

    What differs from 0, corrected over the table, is bold.
    """
    compared = [(name, method) for name in datasets for method in fresh_seeds.rivals(name)]
    found = [_on_fresh_seeds(name, method) for name, method in compared]
    are_real = differ_from_zero(found)
    cells = {
        pair: _difference_cell(ends, is_real, families.balanced_metric(pair[0]))
        for pair, ends, is_real in zip(compared, found, are_real, strict=True)
    }
    rows = [["Data set", "Method", "All", "Few", "bMAE", "Difference of bMAE", "Passes"]]
    for name in datasets:
        results = fresh_seeds.results(name)
        balanced = results.metric
        basis = results.records[families.BASIS][0]
        for method in results.methods:
            of_first = results.by(metric=results.dataset.metrics[0])
            errors = [of_first.mean(method, region=region) for region in ("all", "few")]
            errors += [results.mean(method, region="all")]
            passes = results.records[method][0].passes / basis.passes
            rows.append(
                [
                    _title(name),
                    families.FAMILIES.get(method, get_method(method).title),
                    *(f"{error:.{DECIMALS[balanced]}f}" for error in errors),
                    cells.get((name, method), ""),
                    f"{passes:.2f}",
                ]
            )
    return markdown(rows)


def _title(dataset: str) -> str:
    """Return the title of a data set and the unit of its target."""
    about = get_dataset(dataset)
    return f"{about.title} ({about.unit})"


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
    runs = [
        (name, level, results.by(metric=families.balanced_metric(name)))
        for name in noise.measured()
        for level, results in noise.by_level(name).items()
    ]
    found = [results.difference(method, families.BASIS, region="all") for *_, results in runs]
    titles = [families.FAMILIES[m] for m in (families.BASIS, method)]
    rows = [["Data set", "Label noise", *titles, "Difference"]]
    for (name, level, results), ends, is_real in zip(
        runs, found, differ_from_zero(found), strict=True
    ):
        decimals = DECIMALS[results.metric]
        means = [results.mean(m, region="all") for m in (families.BASIS, method)]
        cells = [f"{level:g}", *(f"{mean:.{decimals}f}" for mean in means)]
        difference = _difference_cell(ends, is_real, results.metric)
        rows.append([_title(name), *cells, difference])
    return markdown(rows)


def _chosen_point(point: families.Point) -> str:
    """Return the balanced error of a family's chosen exponent, and what was chosen."""
    balanced = families.balanced_metric(point.results.name)
    error = point.mean("all", balanced)
    recipe = point.results.records[point.method][0].recipe
    words = [f"exponent {point.exponent:g}", f"{recipe['epochs']} epochs"]
    words += [f"rho {recipe['rho']:g}"] if "rho" in recipe else []
    return f"{error:.{DECIMALS[balanced]}f} ({', '.join(words)})"


def costs(dataset: str) -> str:
    """Return the passes and seconds of each method that was measured, over those of SQINV."""
    record = json.loads((COMMITTED / dataset / "cost.json").read_text())
    results = committed(dataset)
    rows = [["Method", "Passes × SQINV", "Seconds × SQINV", "Seconds"]]
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


def tuning(dataset: str, method: str = "") -> str:
    """Return the validation errors at the end of training by which a method's setting was chosen.

    Of all methods if ``method`` is empty.
    """
    choices = json.loads((COMMITTED / dataset / "tuning.json").read_text())
    decimals = DECIMALS[get_dataset(dataset).metrics[0]]
    columns = {"all": "All", "few": "Few"}
    if "bMAE" in get_dataset(dataset).metrics:
        columns["balanced"] = "bMAE"
    rows = [["Method", "Setting", "Seeds", *columns.values()]]
    for name in [method] if method else sorted(choices, key=place):
        for setting, row in choices[name].items():
            cells = [f"{row['last'][name]:.{decimals}f}" for name in columns]
            rows.append([get_method(name).title, setting, str(len(row["seeds"])), *cells])
    return markdown(rows)


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
        parts += [f"{epochs} epochs; weights of {scale}; {_tuned(runs)}."]
        parts += _timed(name)
    elif results.root == COMMITTED and families.curve(name, families.BASIS):
        parts += ["With weights of each exponent, at the end of training:", exponents(name)]
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


def fill(text: str) -> str:
    """Return ``text`` with what stands between table markers made anew from the records.

    A marker names a function of this module and its arguments::

        <!-- table: summary rotated_digits last_epoch MAE -->
        <!-- end table -->
    """
    functions: dict[str, Callable[..., str]] = {
        "summary": lambda name, selection, metric, *rest: summary(
            committed(name).by(selection=selection, metric=metric), *rest
        ),
        "differences": lambda name, selection, metric, *rest: differences(
            committed(name).by(selection=selection, metric=metric), *rest
        ),
        "pays": pays,
        "rivals": rivals,
        "weights": weights,
        "exponents": exponents,
        "label_noise": label_noise,
        "costs": costs,
        "published": published,
        "tuning": tuning,
        "loading": loading,
        "overhead": overhead,
    }

    def replace(match: re.Match[str]) -> str:
        name, *arguments = match["call"].split()
        return f"{match[1]}\n{functions[name](*arguments)}\n\n{match[3]}"

    return _BLOCK.sub(replace, text)


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
    """Return the radius and TERM's tilt that the runs took."""
    entries = {"rho": "rho", "term_t": "TERM's t"}
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


def _chosen(results: Results, methods: str) -> list[str]:
    """Return the methods named, or all."""
    return methods.split(",") if methods else results.methods


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


def _difference_cell(difference: Interval, is_real: bool, metric: str) -> str:
    """Return the difference, bold if there is one."""
    if not math.isfinite(difference.value):
        return "none"
    cell = _interval(difference, metric)
    return f"**{cell}**" if is_real else cell


def _interval(interval: Interval, metric: str) -> str:
    value, low, high = (f"{end:+.{DECIMALS[metric]}f}" for end in interval)
    return _minus(f"{value} [{low}, {high}]")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def markdown(rows: list[list[str]]) -> str:
    """Return the rows as a Markdown table whose columns are aligned in plain text, too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        for line in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
