"""Tables in Markdown, made of records, and written into texts between markers."""

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.intervals import Array, paired_difference
from benchmarks.protocol import Record
from benchmarks.registry import get_dataset, get_method
from benchmarks.store import COMMITTED, read_records

REGIONS = ("All", "Many", "Med.", "Few")
ORDER = ("vanilla", "inv", "sqinv", "sqinv_twice", "sam", "bsam")
REFERENCES = ("vanilla", "sqinv")
SELECTIONS = {
    "best_validation": "epoch with the lowest validation MAE",
    "last_epoch": "last epoch",
}
TEXTS = (Path("README.md"), Path("docs/results.md"))
_BLOCK = re.compile(r"(<!-- table: (?P<call>.+?) -->\n).*?(<!-- end table -->)", re.DOTALL)


def summary(root: Path, dataset: str, selection: str, metric: str) -> str:
    """Return mean ± standard deviation over seeds per method and region, in target units."""
    records = read_records(root, dataset)
    rows = [["Method", "Seeds", "Passes", *REGIONS]]
    for method in _ordered(records):
        runs = records[method]
        cells = [_mean_and_deviation(runs, selection, region, metric) for region in REGIONS]
        rows.append([get_method(method).title, str(len(runs)), f"{runs[0].passes:,}", *cells])
    return _markdown(rows)


def differences(root: Path, dataset: str, selection: str, metric: str, reference: str) -> str:
    """Return each method's paired difference to a reference, with its 95 % interval."""
    records = read_records(root, dataset)
    rows = [[f"Difference to {get_method(reference).title}", *REGIONS]]
    for method in _ordered(records):
        if method != reference:
            cells = [
                difference(records, method, reference, selection, region, metric)
                for region in REGIONS
            ]
            rows.append([get_method(method).title, *cells])
    return _markdown(rows)


def published(name: str) -> str:
    """Return the published figures of a data set, with their source."""
    table = json.loads((COMMITTED / "published.json").read_text())[name]
    rows = [["Published, " + table["title"], *REGIONS]]
    rows += [[method, *(f"{value:.3f}" for value in row)] for method, row in table["rows"].items()]
    return _markdown(rows) + f"\n\nSource: {table['source']}"


def difference(
    records: dict[str, list[Record]],
    method: str,
    reference: str,
    selection: str,
    region: str,
    metric: str,
) -> str:
    """Return the paired difference over the seeds both have, bold if its interval leaves out 0."""
    ours = {run.seed: run for run in records[method]}
    theirs = {run.seed: run for run in records[reference]}
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return ""
    value, low, high = paired_difference(
        _errors([ours[seed] for seed in seeds], selection, region),
        _errors([theirs[seed] for seed in seeds], selection, region),
        metric=metric,
    )
    cell = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
    return f"**{cell}**" if low > 0 or high < 0 else cell


def tuning(dataset: str) -> str:
    """Return the validation errors that the recipe was chosen by."""
    choices = json.loads((COMMITTED / dataset / "tuning.json").read_text())
    rows = [
        [
            "Method",
            "Setting",
            "Seeds",
            *(f"{e}, {r}" for e in ("Best", "Last") for r in ("All", "Few")),
        ]
    ]
    for method in sorted(choices, key=_order):
        for name, row in choices[method].items():
            cells = [
                _cell(row[epoch][region]) for epoch in ("best", "last") for region in ("All", "Few")
            ]
            rows.append([get_method(method).title, name, str(len(row["seeds"])), *cells])
    return _markdown(rows)


def report(root: Path, dataset: str) -> str:
    """Return all tables of a data set."""
    title, records = get_dataset(dataset).title, read_records(root, dataset)
    parts = [f"# {title}, in target units"]
    for selection, words in SELECTIONS.items():
        for metric in ("MAE", "GM"):
            parts += [f"## {metric}, {words}", summary(root, dataset, selection, metric)]
            parts += ["Paired differences and their 95 % intervals, bold where 0 is outside:"]
            parts += [
                differences(root, dataset, selection, metric, reference)
                for reference in REFERENCES
                if reference in records
            ]
    parts += ["## Published, on other data: for orientation, not for comparison"]
    parts += [published(get_dataset(dataset).published)]
    return "\n\n".join(parts)


def fill(text: str) -> str:
    """Return ``text`` with what stands between table markers made anew from the records.

    A marker names a function of this module and its arguments::

        <!-- table: summary rotated_digits best_validation MAE -->
        <!-- end table -->
    """
    functions: dict[str, Callable[..., str]] = {
        "summary": lambda *arguments: summary(COMMITTED, *arguments),
        "differences": lambda *arguments: differences(COMMITTED, *arguments),
        "published": published,
        "tuning": tuning,
    }

    def replace(match: re.Match[str]) -> str:
        name, *arguments = match["call"].split()
        return f"{match[1]}\n{functions[name](*arguments)}\n\n{match[3]}"

    return _BLOCK.sub(replace, text)


def _ordered(records: dict[str, list[Record]]) -> list[str]:
    """Return the methods, the well-known ones first."""
    return sorted(records, key=_order)


def _order(method: str) -> tuple[int, str]:
    return (ORDER.index(method) if method in ORDER else len(ORDER), method)


def _mean_and_deviation(runs: list[Record], selection: str, region: str, metric: str) -> str:
    values = [run.results[selection]["regions"][region][metric] for run in runs]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def _errors(runs: list[Record], selection: str, region: str) -> Array:
    """Return the absolute errors of a region's test samples, shape ``(seeds, samples)``."""
    targets = np.array(runs[0].test_targets)
    errors = np.abs(np.array([run.results[selection]["predictions"] for run in runs]) - targets)
    if region == "All":
        return errors
    name = {"Many": "many", "Med.": "medium", "Few": "few"}[region]
    mask = get_dataset(runs[0].dataset).regions.mask(torch.from_numpy(targets), name)
    return errors[:, mask.numpy()]


def _cell(value: float) -> str:
    return f"{value:.2f}"


def _markdown(rows: list[list[str]]) -> str:
    """Return the rows as a Markdown table whose columns are aligned in plain text, too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        for line in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
