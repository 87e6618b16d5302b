"""Run the tests that show what works with what, and write into the docs which files they are in.

``python -m tests.support.compatibility``
"""

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| (`tests[^|]*) \|$", re.MULTILINE)
"""What, how, and the files."""


class Shown:
    """Collects the files of the tests that passed, by the words of their mark."""

    def __init__(self) -> None:
        self.files: dict[str, set[str]] = {}
        self._marks: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep what each test shows."""
        for item in items:
            marks = [mark.args[0] for mark in item.iter_markers("works_with")]
            self._marks[item.nodeid] = marks

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take up a test that passed."""
        if report.when == "call" and report.passed:
            for mark in self._marks[report.nodeid]:
                self.files.setdefault(mark, set()).add(report.nodeid.partition("::")[0])


def write(shown: dict[str, set[str]]) -> None:
    """Write the files into the rows that have the words of their marks."""

    def replace(match: re.Match[str]) -> str:
        what, how, _ = match.groups()
        files = set().union(*(shown[mark] for mark in shown if mark in what))
        if not files:
            sys.exit(f"Expected tests that show {what!r}, but none passed.")
        return f"| {what} | {how} | {', '.join(f'`{file}`' for file in sorted(files))} |"

    text = ROW.sub(replace, PAGE.read_text())
    version = torch.__version__.partition("+")[0]
    PAGE.write_text(re.sub(r"PyTorch [\d.]*\d", f"PyTorch {version}", text))


if __name__ == "__main__":
    found = Shown()
    status = pytest.main(["--quiet", "-m", "works_with", str(ROOT / "tests")], plugins=[found])
    if status:
        sys.exit(int(status))
    write(found.files)
