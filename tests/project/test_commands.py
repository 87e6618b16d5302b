"""The commands of the benchmarks in the texts: each is one that runs, on recipes that are."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.training import pool

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
LOOP = re.compile(
    r"^for (?P<name>\w+) in (?P<values>[^;\n]+); do\n(?P<body>.+?)^done$", re.M | re.S
)


def unrolled(text: str) -> str:
    """Return a text with its long lines joined and its loops unrolled, as a shell runs them."""

    def unroll(loop: re.Match[str]) -> str:
        values = loop["values"].split()
        return "".join(loop["body"].replace(f"${loop['name']}", value) for value in values)

    return LOOP.sub(unroll, text.replace("\\\n", ""))


COMMANDS = sorted(
    {
        re.sub(r"\{(\d+)\.\.\d+\}", r"\1", line.partition("  #")[0])
        for text in TEXTS
        for line in re.findall(
            r"^ *python -m benchmarks ((?:run|exponents) .*)", unrolled(text.read_text()), re.M
        )
    }
)


class Planned(Exception):  # noqa: N818  # no error
    """Ends a command once its runs are known."""


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 2


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_a_text_has_runs_with_a_recipe(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []

    def run_all(runs: list[pool.Run], **options: object) -> None:
        planned.extend(sum(run.plan.description["stage_epochs"]) for run in runs)
        raise Planned

    monkeypatch.setattr(pool, "run_all", run_all)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # some are for a GPU
    with pytest.raises(Planned):
        main(shlex.split(command))
    assert planned
    assert min(planned) > 0


def test_commands_for_real_data_run_on_a_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["miniature", "agedb_dir", "DIR"])
    # The network is the real one, so two images to test and to validate on are enough.
    faces = tmp_path / "DIR" / "agedb.csv"
    faces.write_text("".join(faces.read_text().splitlines(keepends=True)[:11]))
    text = (ROOT / "benchmarks" / "README.md").read_text()
    lines = re.findall(r"^python -m benchmarks (\w+ agedb_dir.*)", text, re.M)
    prepare, run, table = map(shlex.split, lines)
    # A miniature is not the whole data set, and says so.
    monkeypatch.setattr("benchmarks.datasets.agedb_dir.fetch", lambda *args, **kwargs: None)
    with pytest.raises(SystemExit, match="Expected 12208 training images, but got 6"):
        main(prepare)
    run[run.index("cuda")] = "cpu"
    # One method is enough.
    run = [word for word in run if word not in ("vanilla", "sqinv", "1", "2")]
    main([*run, "--set", "epochs=1"])
    main(table)
    assert "| BSAM " in capsys.readouterr().out
