"""Cells of tables, and tables in Markdown."""

import math

from benchmarks.results.results import Interval

TITLES = {"all": "All", "many": "Many", "medium": "Med.", "few": "Few"}
"""Of the regions."""
DECIMALS = {"MAE": 2, "bMAE": 2, "GM": 2, "RMSE": 3, "delta_1": 3}
"""Of the metrics."""


def markdown(rows: list[list[str]]) -> str:
    """Return the rows as a Markdown table whose columns are aligned in plain text, too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        for line in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def difference_cell(difference: Interval, is_real: bool, metric: str) -> str:
    """Return the difference, bold if there is one."""
    if not math.isfinite(difference.value):
        return "none"
    cell = _interval(difference, metric)
    return f"**{cell}**" if is_real else cell


def _interval(interval: Interval, metric: str) -> str:
    value, low, high = (f"{end:+.{DECIMALS[metric]}f}" for end in interval)
    return _minus(f"{value} [{low}, {high}]")


def _minus(text: str) -> str:
    return text.replace("-", "−")
