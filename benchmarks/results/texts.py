"""Texts, whose tables are made anew from the records, between markers."""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.results import answers, tables

PAGES = ("pays", "results", "cost")
TEXTS = tuple(Path(text) for text in ("README.md", *(f"docs/{page}.md" for page in PAGES)))
_BLOCK = re.compile(r"(<!-- table: (?P<call>.+?) -->\n).*?(<!-- end table -->)", re.DOTALL)


def fill(text: str) -> str:
    """Return ``text`` with what stands between table markers made anew from the records.

    A marker names a table and its arguments::

        <!-- table: exponents rotated_digits -->
        <!-- end table -->
    """
    functions: dict[str, Callable[..., str]] = {
        "pays": answers.pays,
        "rivals": answers.rivals,
        "fresh_seeds": answers.errors_on_fresh_seeds,
        "weights": answers.weights,
        "exponents": answers.exponents,
        "label_noise": answers.label_noise,
        "costs": tables.costs,
        "published": tables.published,
        "tuning": tables.tuning,
        "loading": tables.loading,
        "overhead": tables.overhead,
    }

    def replace(match: re.Match[str]) -> str:
        name, *arguments = match["call"].split()
        return f"{match[1]}\n{functions[name](*arguments)}\n\n{match[3]}"

    return _BLOCK.sub(replace, text)
