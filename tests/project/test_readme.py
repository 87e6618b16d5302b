"""The README: its code runs, its commands exist, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PAPER = "https://arxiv.org/abs/2508.16973"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


def test_python_blocks_run_and_train(capsys: object) -> None:
    torch.manual_seed(0)
    inputs = torch.rand(256, 3)
    train_targets = inputs.sum(dim=1) * 40
    model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    before = (model(inputs) - train_targets).abs().mean()
    names = {
        "model": model,
        "loader": [(inputs[i : i + 32], train_targets[i : i + 32]) for i in range(0, 256, 32)],
        "train_targets": train_targets,
        "test_inputs": inputs[:50],
        "test_targets": train_targets[:50],
    }
    blocks = [code for language, code in BLOCKS if language == "python"]
    assert blocks
    for code in blocks:
        exec(code, names)
    assert (model(inputs) - train_targets).abs().mean() < before


def test_commands_are_targets_of_the_makefile() -> None:
    commands = [
        line
        for language, code in BLOCKS
        if language == "console"
        for line in code.split("\n")
        if line
    ]
    makefile = (ROOT / "Makefile").read_text()
    assert commands[:3] == ["pip install balanced-sam", "make demo", "make test"]
    for command in commands[1:3]:
        assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.MULTILINE)


def test_commands_of_the_benchmarks_run_on_a_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["miniature", "agedb_dir", "DIR"])
    # The network is the real one, so two images to test and to validate on are enough.
    faces = tmp_path / "DIR" / "agedb.csv"
    faces.write_text("".join(faces.read_text().splitlines(keepends=True)[:11]))
    lines = [line for _, code in BLOCKS for line in code.split("\n") if "-m benchmarks" in line]
    prepare, run, table = (shlex.split(line)[3:] for line in lines)
    # A miniature is not the whole data set, and says so.
    monkeypatch.setattr("benchmarks.datasets.agedb_dir.fetch", lambda *args, **kwargs: None)
    with pytest.raises(SystemExit, match="Expected 12208 training images, but got 6"):
        main(prepare)
    run[run.index("cuda")] = "cpu"
    # Few processors compute in 16 bits, and one method is enough.
    run[run.index("bf16-mixed")] = "32-true"
    run = [word for word in run if word not in ("vanilla", "sqinv", "1", "2")]
    main([*run, "--set", "epochs=1"])
    main(table)
    assert "| BSAM " in capsys.readouterr().out


def test_links_lead_to_files_and_headings() -> None:
    anchors = {
        "#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    }
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if link != PAPER]
    assert links
    for link in links:
        file = link.partition("#")[0]
        assert link in anchors or (file and (ROOT / file).exists()), link


def test_table_of_what_works_with_what_names_the_tests_marked_for_each_row() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| (\[test_[^|]+) \|$", TEXT, re.MULTILINE)
    shown = {what: set(re.findall(r"\(([^)]+)\)", links)) for what, links in rows}
    marked: dict[str, set[str]] = {what: set() for what in shown}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for mark in re.findall(r'mark\.works_with\("(.+?)"\)', path.read_text()):
            (what,) = (what for what in shown if mark in what)
            marked[what].add(path.relative_to(ROOT).as_posix())
    assert marked
    assert shown == marked


def test_citation_is_that_of_the_citation_file() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    bibtex = next(code for language, code in BLOCKS if language == "bibtex")
    title = re.search(r"title += \{(.+)\}", bibtex)
    assert title is not None
    assert title[1] in citation
    for family in re.findall(r"(\w+), \w+", bibtex):
        assert f"family-names: {family}" in citation
