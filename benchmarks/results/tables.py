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
from benchmarks.experiment.record import COMMITTED, Record, read_records
from benchmarks.experiment.registry import get_dataset, get_method, method_names
from benchmarks.results import fronts
from benchmarks.results.comparisons import Records, common_seeds, difference

ALL_REGIONS = ("All", *REGIONS)
REFERENCES = ("vanilla", "sqinv")
CLAIMS = (
    *(("bsam", "sqinv"), ("bsam", "sqinv_twice"), ("bsam", "sam"), ("bsam", "bsam_descent_only")),
    *(("bsam", "rrt"), ("bsam", "balanced_mse_gai"), ("bsam_inv", "inv")),
)
"""The comparisons that the library stands or falls with: with what it is made of, with the control
that costs as much, and with the strongest of the other baselines."""
SELECTIONS = {
    "best_validation": "epoch with the lowest validation error",
    "last_epoch": "last epoch",
    "best_test": "epoch with the lowest test error, as in the literature",
}
DECIMALS = {"MAE": 2, "GM": 2, "RMSE": 3, "delta_1": 3}
PAGES = ("results", "cost", "choose", "method", "variants")
TEXTS = tuple(Path(text) for text in ("README.md", *(f"docs/{page}.md" for page in PAGES)))
_BLOCK = re.compile(r"(<!-- table: (?P<call>.+?) -->\n).*?(<!-- end table -->)", re.DOTALL)


def summary(root: Path, dataset: str, selection: str, metric: str, methods: str = "") -> str:
    """Return mean ± standard deviation over seeds, the published figures beside them.

    ``methods`` are names with commas between; all that have records if it is empty.
    """
    records = read_records(root, dataset)
    paper = _published(get_dataset(dataset).published)
    beside = paper["metric"] == metric
    title = paper["title"] + (", test-selected" if paper.get("test_selected") else "")
    heads = [f"{title}, {region}" for region in ("All", "Few")] if beside else []
    heads = ["Method", "Seeds", "Passes × SQINV", "Seconds × SQINV", *ALL_REGIONS, *heads]
    rows = [heads]
    for method in methods.split(",") if methods else _ordered(records):
        runs = records[method]
        cells = [_mean_and_deviation(runs, selection, region, metric) for region in ALL_REGIONS]
        if beside:
            values = paper["rows"].get(method, [None] * 4)
            cells += [_figure(values[0]), _figure(values[3])]
        costs = [_passes(records, method), _seconds(dataset, method)]
        rows.append([get_method(method).title, str(len(runs)), *costs, *cells])
    return markdown(rows)


def differences(
    root: Path, dataset: str, selection: str, metric: str, reference: str, methods: str = ""
) -> str:
    """Return each method's paired difference to a reference, with its 95 % interval.

    ``methods`` are as in :func:`summary`.
    """
    records = read_records(root, dataset)
    rows = [[f"Difference to {get_method(reference).title}", "Seeds", *ALL_REGIONS]]
    for method in methods.split(",") if methods else _ordered(records):
        if method != reference and common_seeds(records, method, reference):
            cells = [
                _difference_cell(records, method, reference, selection, region, metric)
                for region in ALL_REGIONS
            ]
            seeds = len(common_seeds(records, method, reference))
            rows.append([get_method(method).title, str(seeds), *cells])
    return markdown(rows)


def claims(root: Path, dataset: str, selection: str) -> str:
    """Return what BSAM gains over its controls, and whether the gain survives its interval."""
    records, metric = read_records(root, dataset), get_dataset(dataset).metrics[0]
    rows = [["Comparison", "Seeds"]]
    for region in ("All", "Few"):
        rows[0] += [f"{metric}, {region}", "Relative", "Survives"]
    for method, reference in CLAIMS:
        seeds = common_seeds(records, method, reference)
        if not seeds:
            continue
        row = [f"{get_method(method).title} − {get_method(reference).title}", str(len(seeds))]
        for region in ("All", "Few"):
            row += _claim(records, method, reference, selection, region, metric)
        rows.append(row)
    rows += _published_claims(dataset, selection)
    return markdown(rows)


def front(dataset: str, selection: str) -> str:
    """Return which trainings no cheaper one matches, see :mod:`benchmarks.results.fronts`."""
    decimals = DECIMALS[get_dataset(dataset).metrics[0]]
    points = fronts.points(dataset, selection)
    rows = [["Training", "Epochs", "Seeds", "Seconds × SQINV"]]
    for region in fronts.REGIONS:
        rows[0] += [f"{get_dataset(dataset).metrics[0]}, {region}", "On the front", "Corrected"]
    for point in points:
        title = get_method(point.method).title
        row = [title, str(point.epochs), str(point.seeds), f"{point.cost:.2f}"]
        for region in fronts.REGIONS:
            row += [
                f"{point.error[region]:.{decimals}f}",
                "yes" if fronts.is_lowest(point, points, region) else "no",
                fronts.verdict(point, region),
            ]
        rows.append(row)
    return markdown(rows)


def costs(dataset: str) -> str:
    """Return the passes and seconds of each method that was measured, over those of SQINV."""
    record = json.loads((COMMITTED / dataset / "cost.json").read_text())
    rows = [["Method", "Passes × SQINV", "Seconds × SQINV", "Seconds"]]
    for method in sorted(record["methods"], key=_order):
        row = record["methods"][method]
        seconds = statistics.median(row["seconds"])
        title = get_method(method).title
        rows.append([title, f"{row['passes']:.2f}", _seconds(dataset, method), f"{seconds:.3g}"])
    return markdown(rows)


def goal(dataset: str, selection: str) -> str:
    """Return how near the cheaper variants come to BSAM, in percent of its error."""
    metric = get_dataset(dataset).metrics[0]
    heads = [f"{metric}, {region}" for region in fronts.REGIONS]
    rows = [["Difference to BSAM", "Seeds", "Seconds × SQINV", *heads, "Within the goal"]]
    for entry in fronts.goals(dataset, selection):
        cells = [
            _minus(f"{value:+.1f} % [{low:+.1f}, {high:+.1f}]")
            for value, low, high in entry.percent.values()
        ]
        title, reached = get_method(entry.method).title, "yes" if entry.is_reached else "no"
        rows.append([title, str(entry.seeds), _seconds(dataset, entry.method), *cells, reached])
    return markdown(rows)


def published(name: str) -> str:
    """Return the published figures of a data set, with their source."""
    table = _published(name)
    rows = [[f"Published, {table['title']}, {table['metric']} in {table['unit']}", *ALL_REGIONS]]
    for method, values in table["rows"].items():
        title = get_method(method).title if method in method_names() else method
        rows.append([title, *map(_figure, values)])
    return markdown(rows) + f"\n\nSource: {table['source']}"


def tuning(dataset: str, method: str = "") -> str:
    """Return the validation errors that the recipe was chosen by, of one method or of all."""
    choices = json.loads((COMMITTED / dataset / "tuning.json").read_text())
    decimals = DECIMALS[get_dataset(dataset).metrics[0]]
    columns = [(epoch, region) for epoch in ("best", "last") for region in ("All", "Few")]
    rows = [["Method", "Setting", "Seeds", *(f"{e.capitalize()}, {r}" for e, r in columns)]]
    for name in [method] if method else sorted(choices, key=_order):
        for setting, row in choices[name].items():
            cells = [f"{row[epoch][region]:.{decimals}f}" for epoch, region in columns]
            rows.append([get_method(name).title, setting, str(len(row["seeds"])), *cells])
    return markdown(rows)


def loading() -> str:
    """Return whether faces are read as fast as the network learns from them."""
    record = json.loads((COMMITTED / "loading.json").read_text())
    words = {
        "decoded": "decoded and cropped",
        "delivered": "the same, and augmented",
        "learned": "learned from: a ResNet-18 forward and backward",
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


def report(root: Path, name: str) -> str:
    """Return all tables of a data set."""
    dataset, records = get_dataset(name), read_records(root, name)
    parts = [f"# {dataset.title}, in {dataset.unit}"]
    if dataset.ours:
        parts += [f"Our own choice, as the literature gives none: {dataset.ours}."]
    if runs := [run for group in records.values() for run in group]:
        scale = "mean 1" if runs[0].recipe["normalized"] else "the paper's raw scale"
        epochs = "/".join(str(n) for n in sorted({run.recipe["epochs"] for run in runs}))
        parts += [f"{epochs} epochs; weights of {scale}; {_tuned(runs)}."]
        parts += _timed(name)
    else:
        parts += [f"No records in {root / name}."]
    for selection, words in SELECTIONS.items():
        if not any(selection in run.results for run in runs):
            continue
        for metric in dataset.metrics:
            parts += [f"## {metric}, {words}", summary(root, name, selection, metric)]
            references = [reference for reference in REFERENCES if reference in records]
            if references:
                parts += ["Paired differences and their 95 % intervals, bold where 0 is outside:"]
            parts += [
                differences(root, name, selection, metric, reference) for reference in references
            ]
        parts += ["Whether the gain of BSAM survives its interval:", claims(root, name, selection)]
    paper = _published(dataset.published)
    if dataset.published != name:
        parts += ["## Published, on other data: for orientation, not for comparison"]
    else:
        parts += [f"## Published, {paper['title']}"]
    return "\n\n".join([*parts, published(dataset.published)])


def fill(text: str) -> str:
    """Return ``text`` with what stands between table markers made anew from the records.

    A marker names a function of this module and its arguments::

        <!-- table: summary rotated_digits best_validation MAE -->
        <!-- end table -->
    """
    functions: dict[str, Callable[..., str]] = {
        "summary": lambda *arguments: summary(COMMITTED, *arguments),
        "differences": lambda *arguments: differences(COMMITTED, *arguments),
        "claims": lambda *arguments: claims(COMMITTED, *arguments),
        "costs": costs,
        "front": front,
        "goal": goal,
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
    """Return an entry of the published figures."""
    entry: dict[str, Any] = json.loads((COMMITTED / "published.json").read_text())[name]
    return entry


def _published_claims(dataset: str, selection: str) -> list[list[str]]:
    """Return the rows of what others found for BSAM against SQINV."""
    rows = []
    for name in (get_dataset(dataset).published, f"{dataset}_trial"):
        entry = json.loads((COMMITTED / "published.json").read_text()).get(name, {})
        gains = entry.get("gains", {}).get(selection)
        if {"bsam", "sqinv"} <= entry.get("rows", {}).keys():
            pairs = zip(entry["rows"]["bsam"], entry["rows"]["sqinv"], strict=True)
            relative = [100 * (a / b - 1) if a and b else None for a, b in pairs]
            gains = [relative[0], relative[3]]
        if gains:
            cells = [part for gain in gains for part in ("", _percent(gain), "")]
            rows.append([f"BSAM − SQINV: {entry['title']}", "", *cells])
    return rows


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


def _claim(
    records: Records, method: str, reference: str, selection: str, region: str, metric: str
) -> list[str]:
    """Return the difference, the same in percent of the reference, and whether it survives."""
    value, low, high = difference(records, method, reference, selection, region, metric)
    if not math.isfinite(value):
        return ["none", "", ""]
    seeds = common_seeds(records, method, reference)
    runs = [run for run in records[reference] if run.seed in seeds]
    mean = statistics.mean(run.results[selection]["regions"][region][metric] for run in runs)
    cell = _interval(value, low, high, metric)
    survives = "yes" if high < 0 else "no, worse" if low > 0 else "no"
    return [cell, _percent(100 * value / mean), survives]


def _passes(records: Records, method: str) -> str:
    """Return the passes of a method over those of SQINV, which trains as many steps."""
    if "sqinv" not in records:
        return ""
    return f"{records[method][0].passes / records['sqinv'][0].passes:.2f}"


def _seconds(dataset: str, method: str) -> str:
    """Return the seconds over those of SQINV: the median of the rounds and their middle half."""
    ratios = fronts.cost_ratios(dataset).get(method)
    if ratios is None:
        return ""
    low, middle, high = statistics.quantiles(ratios)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _ordered(records: Records) -> list[str]:
    """Return the methods in the order of the tables."""
    return sorted(records, key=_order)


def _order(method: str) -> tuple[int, str]:
    return get_method(method).place, method


def _mean_and_deviation(runs: list[Record], selection: str, region: str, metric: str) -> str:
    values = [run.results[selection]["regions"][region][metric] for run in runs]
    if None in values:
        return "none"
    decimals = DECIMALS[metric]
    deviation = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{deviation}"


def _difference_cell(records: Records, *arguments: str) -> str:
    """Return the paired difference, bold if its interval leaves out 0."""
    value, low, high = difference(records, *arguments)
    if not math.isfinite(value):
        return "none"
    cell = _interval(value, low, high, arguments[-1])
    return f"**{cell}**" if low > 0 or high < 0 else cell


def _interval(value: float, low: float, high: float, metric: str) -> str:
    decimals = DECIMALS[metric]
    return _minus(f"{value:+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}]")


def _percent(value: float | None) -> str:
    return "" if value is None else _minus(f"{value:+.1f} %")


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
