"""The commands of the benchmarks in the texts: each is one that runs, on recipes that are."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.training import pool

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
COMMANDS = sorted(
    {
        line.partition("  #")[0].replace("{0..19}", "0 1").replace("{0..9}", "0 1")
        for text in TEXTS
        for line in re.findall(r"^python -m benchmarks (run .*)", text.read_text(), re.M)
    }
)


class Planned(Exception):  # noqa: N818  # no error
    """Ends a command once its runs are known."""


def test_there_are_commands() -> None:
    assert any("--set" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_a_text_has_runs_with_a_recipe(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []

    def run_all(runs: list[pool.Run], **options: object) -> None:
        planned.extend(sum(run.plan.description["stage_epochs"]) for run in runs)
        raise Planned

    monkeypatch.setattr(pool, "run_all", run_all)
    with pytest.raises(Planned):
        main(shlex.split(command))
    assert planned
    assert min(planned) > 0
