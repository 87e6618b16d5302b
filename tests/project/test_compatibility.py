"""The page of what works with what: each row names the files of the tests that show it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import compatibility
from tests.support.compatibility import PAGE, ROOT, ROW, Shown, write


def test_each_row_names_the_files_of_the_tests_that_are_marked_for_it() -> None:
    rows = {
        what: set(re.findall("`([^`]+)`", files))
        for what, _, files in ROW.findall(PAGE.read_text())
    }
    marked: dict[str, set[str]] = {what: set() for what in rows}
    for path in {*(ROOT / "tests").rglob("test_*.py")} - {Path(__file__)}:
        for mark in re.findall(r'mark\.works_with\("(.+?)"\)', path.read_text()):
            (what,) = (what for what in rows if mark in what)
            marked[what].add(path.relative_to(ROOT).as_posix())
    assert len(marked) > 10
    assert rows == marked


def test_files_of_tests_that_passed_are_written_into_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("Last with PyTorch 1.0.\n| a thing | so | `tests/old.py` |\n")
    monkeypatch.setattr(compatibility, "PAGE", page)
    write({"thing": {"tests/b.py", "tests/a.py"}})
    last, row = page.read_text().splitlines()
    assert row == "| a thing | so | `tests/a.py`, `tests/b.py` |"
    assert last == f"Last with PyTorch {torch.__version__.partition('+')[0]}."
    with pytest.raises(SystemExit, match="tests that show 'a thing', but none passed"):
        write({"other": {"tests/c.py"}})


@pytest.mark.works_with("itself")
def test_only_tests_that_passed_show_something(request: pytest.FixtureRequest) -> None:
    shown = Shown()
    shown.pytest_collection_modifyitems([request.node])
    for when, outcome in (("setup", "passed"), ("call", "failed"), ("call", "skipped")):
        shown.pytest_runtest_logreport(report(request.node.nodeid, when, outcome))
    assert shown.files == {}
    shown.pytest_runtest_logreport(report(request.node.nodeid, "call", "passed"))
    assert shown.files == {"itself": {"tests/project/test_compatibility.py"}}


def report(nodeid: str, when: Any, outcome: Any) -> pytest.TestReport:
    return pytest.TestReport(nodeid, ("", 0, ""), {}, outcome, None, when)
