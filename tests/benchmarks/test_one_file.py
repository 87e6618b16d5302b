"""A new method, and a new data set, are one new file each; and no two of them import each other."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
METHOD = '''"""The mean of the losses to a power of its own."""

from functools import partial

from benchmarks.experiment.method import Method
from benchmarks.methods._losses import Loss
from benchmarks.methods._stages import whole


class Powered(Loss):
    """A power of each loss."""

    def __init__(self, dataset, recipe, splits, *, power):
        super().__init__()
        self.criterion, self.power = dataset.criterion, power

    def of(self, predictions, targets):
        return self.criterion(predictions, targets).pow(self.power).mean()


METHOD = Method(
    title="Powered",
    stages=lambda recipe, *, power: whole(partial(Powered, power=power))(recipe),
    constants={"power": 2.0},
    tuned={"lines": {"power": 1.5}},
)
'''
DATASET = '''"""Points on a noisy line."""

import torch
from torch import nn

from balanced_sam import ShotRegions, TargetBins
from benchmarks.datasets._memory import in_memory
from benchmarks.experiment.element_losses import absolute_error
from benchmarks.experiment.dataset import Dataset
from benchmarks.experiment.recipe import Recipe

BINS = TargetBins.uniform(0, 10, width=1)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, inputs):
        return self.head(inputs).squeeze(1)


def load(root):
    generator = torch.Generator().manual_seed(0)
    parts = []
    for size in (300, 60, 60):
        inputs = torch.rand(size, 1, generator=generator)
        parts.append((inputs, 10 * inputs.squeeze(1).square()))
    return in_memory(*parts, BINS)


DATASET = Dataset(
    title="Lines",
    source="drawn",
    target="Height",
    unit="m",
    bins=BINS,
    regions=ShotRegions.from_counts(BINS, load(None).train_counts, many_above=40, few_below=20),
    counts={},
    metrics=("MAE", "GM"),
    criterion=absolute_error,
    recipe=Recipe(epochs=2, batch_size=32, lr=0.1, weight_decay=0.0),
    network=lambda recipe: Line(),
    load=load,
    write_miniature=lambda root: None,
    published="agedb_dir",
)
'''
SCRIPT = """
from benchmarks.__main__ import main

records = ["--records", "records"]
main(["list"])
main(["run", "lines", "powered", "sqinv", "bsam", *records])
main(["miniature", "airports", "airports"])
changes = ["--set", "epochs=1", "--set", "power=1"]
main(["run", "airports", "powered", "--data", "airports", *changes, *records])
print("table of lines:")
main(["table", "lines", *records])
"""


def test_a_method_and_a_data_set_are_one_file_each(tmp_path: Path) -> None:
    shutil.copytree(
        BENCHMARKS, tmp_path / "benchmarks", ignore=shutil.ignore_patterns("seed-*", "__pycache__")
    )
    (tmp_path / "benchmarks" / "methods" / "powered.py").write_text(METHOD)
    (tmp_path / "benchmarks" / "datasets" / "lines.py").write_text(DATASET)

    # In one process: most of a command's time goes into its imports.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    listed, table = done.stdout.split("table of lines:")
    assert "Points on a noisy line." in listed
    assert "The mean of the losses to a power of its own." in listed
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    # Without a place of its own a method comes last.
    assert rows.index("SQINV") < rows.index("BSAM") < rows.index("Powered")
    for dataset, power in (("lines", "1.5"), ("airports", "1")):
        text = (tmp_path / "records" / dataset / "powered" / "seed-0.json").read_text()
        assert f'"power": {power},' in text
    assert '"passes": 40,' in (tmp_path / "records/lines/bsam/seed-0.json").read_text()


@pytest.mark.parametrize("folder", ["datasets", "methods"])
def test_no_data_set_or_method_imports_another(folder: str) -> None:
    found = set()
    for path in (BENCHMARKS / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            package, _, name = module.rpartition(".")
            if package in ("benchmarks.datasets", "benchmarks.methods"):
                assert name.startswith("_"), f"{path.name} imports {module}"
                found.add(package)
    assert found == {f"benchmarks.{folder}"}
