"""The README: its code runs, its commands exist, its links lead somewhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PAPER = "https://arxiv.org/abs/2508.16973"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


def names() -> dict[str, Any]:
    """Return what the README takes for given."""
    torch.manual_seed(0)
    inputs = torch.rand(256, 3)
    train_targets = inputs.sum(dim=1) * 40
    return {
        "torch": torch,
        "model": torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)),
        "loader": [(inputs[i : i + 32], train_targets[i : i + 32]) for i in range(0, 256, 32)],
        "train_targets": train_targets,
        "test_inputs": inputs[:50],
        "test_targets": train_targets[:50],
    }


def side(sign: str) -> str:
    """Return the loop with the lines that one side of the diff has."""
    (diff,) = (code for language, code in BLOCKS if language == "diff")
    return "\n".join(line[1:] for line in diff.split("\n") if line[:1] in ("", " ", sign))


@pytest.mark.parametrize("sign", ["-", "+"])
def test_the_loop_trains_before_and_after(sign: str) -> None:
    given = names()

    def error() -> float:
        with torch.no_grad():
            predictions = given["model"](given["test_inputs"])
        return float((predictions - given["test_targets"]).abs().mean())

    before = error()
    exec(side(sign), given)
    assert error() < before
    if sign == "+":
        (report,) = re.findall(r"`(region_report\(.+\))`", TEXT)
        given["predictions"] = given["model"](given["test_inputs"]).detach()
        exec("from balanced_sam import ShotRegions, region_report", given)
        assert "few" in str(eval(report, given))


def test_commands_are_targets_of_the_makefile() -> None:
    commands = [
        line
        for language, code in BLOCKS
        if language == "console"
        for line in code.split("\n")
        if line
    ]
    clone, install, *make = commands
    source = clone.removeprefix("git clone ")
    assert f'Source = "{source}"' in (ROOT / "pyproject.toml").read_text()
    assert install.partition("  #")[0] == "pip install ./balanced-sam"
    assert make == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    for command in make:
        assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.MULTILINE)


def test_it_is_short() -> None:
    assert TEXT.count("\n") <= 90
    assert len(TEXT.split()) <= 700


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


def test_citation_is_that_of_the_citation_file() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    text = " ".join(TEXT.partition("## Citing")[2].split())
    title = re.search(r"title: (Balanced.+)", citation)
    assert title is not None
    assert title[1] in text
    for family in re.findall(r"family-names: (\w+)", citation):
        assert family in text
