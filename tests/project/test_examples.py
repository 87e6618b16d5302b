"""The examples, run as a user runs them: each prints its tables, and what it says of them holds."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
REGIONS = ["all", "many", "medium", "few"]
COLUMNS = ["count", "MAE", "GM", "RMSE", "delta_1", "bMAE"]
# The methods of each script, and the test samples (or pixels) of its tables.
EXPECTED = {
    "accelerate_loop": (["Vanilla", "SQINV", "BSAM"], 1999),
    "dense_targets": (["Vanilla", "SQINV", "BSAM"], 64 * 24 * 24),
    "lightning_module": (["Vanilla", "SQINV", "BSAM"], 2000),
    "sample_weight": (["Unweighted", "SQINV", "INV"], 148),
    "several_targets": (["Vanilla", "SQINV", "BSAM"], 189),
    "tabular": (["Vanilla", "Weighted", "BSAM"], 89),
}
# Lightning's own: a torch name it uses is deprecated, and it wants more loader processes.
LIGHTNINGS = [
    "`isinstance(treespec, LeafSpec)` is deprecated",
    *(f"The '{part}_dataloader' does not have many" for part in ("train", "val", "test")),
]
Table = dict[str, dict[str, float]]
Output = Callable[[str], str]
every_example = pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])


def run(folder: Path, *command: str) -> str:
    """Return what the command prints, run in ``folder`` with warnings as errors."""
    filters = ["error", *(f"ignore:{start}" for start in LIGHTNINGS)]
    options = [option for rule in filters for option in ("-W", rule)]
    result = subprocess.run(
        [sys.executable, *options, *command],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        cwd=folder,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tables(output: str) -> dict[str, Table]:
    """Return the tables in ``output`` by method, the first word of the line before each."""
    found = {}
    lines = output.splitlines()
    for i, line in enumerate(lines):
        if line.split() == ["region", *COLUMNS]:
            rows = [row.split() for row in lines[i + 1 : i + 5]]
            method = re.split(r"\W", lines[i - 1])[0]
            assert method not in found
            found[method] = {
                region: dict(zip(COLUMNS, map(float, cells), strict=True))
                for region, *cells in rows
            }
    return found


@pytest.fixture(scope="module")
def output_of(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Run each script once, in an empty folder of its own."""

    @cache
    def output(name: str) -> str:
        folder = tmp_path_factory.mktemp(name)
        printed = run(folder, str(ROOT / "examples" / f"{name}.py"))
        assert list(folder.iterdir()) == []
        return printed

    return output


def test_every_example_is_expected_here_and_shown_on_the_page() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\{literalinclude\} \.\./examples/(\w+)\.py$", page, re.MULTILINE)
    assert sorted(shown) == sorted(EXPECTED) == [path.stem for path in EXAMPLES]


@every_example
def test_example_prints_a_table_of_finite_numbers_for_each_method(
    name: str, output_of: Output
) -> None:
    methods, samples = EXPECTED[name]
    found = tables(output_of(name))
    assert list(found) == methods
    for table in found.values():
        assert list(table) == REGIONS
        assert all(math.isfinite(value) for row in table.values() for value in row.values())
        counts = [table[region]["count"] for region in REGIONS]
        assert counts[0] == sum(counts[1:]) == samples
        assert min(counts) > 0


@every_example
def test_example_has_the_same_regions_and_other_errors_for_each_method(
    name: str, output_of: Output
) -> None:
    found = list(tables(output_of(name)).values())
    assert len({tuple(table[region]["count"] for region in REGIONS) for table in found}) == 1
    assert len({tuple(table[region]["MAE"] for region in REGIONS) for table in found}) == len(found)


# The error of predicting the median of the test targets, rounded down.
@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("accelerate_loop", 10.0),
        ("dense_targets", 0.8),
        ("lightning_module", 9.0),
        ("sample_weight", 59.0),
        ("several_targets", 0.7),
        ("tabular", 68.0),
    ],
)
def test_example_predicts_better_than_a_constant(
    name: str, constant: float, output_of: Output
) -> None:
    for table in tables(output_of(name)).values():
        assert table["all"]["MAE"] < constant


def test_tabular_reports_the_exponent_with_the_lowest_validation_error(output_of: Output) -> None:
    output = output_of("tabular")
    line = r"^exponent (\S+) +validation bMAE (\S+)$"
    errors = {exponent: float(error) for exponent, error in re.findall(line, output, re.MULTILINE)}
    (reported,) = re.findall(r"^Weighted, exponent (\S+)$", output, re.MULTILINE)
    assert len(errors) == 5
    assert errors[reported] == min(errors.values())


def test_several_targets_reports_each_output_in_its_own_unit(output_of: Output) -> None:
    line = r"few-shot MAE of the area (\S+), of the concavity (\S+)$"
    found = re.findall(line, output_of("several_targets"), re.MULTILINE)
    assert len(found) == 3
    for area, concavity in found:
        assert 0 < float(concavity) < 1 < float(area) < math.inf


def test_lightning_module_logs_the_few_shot_error_of_the_validation_data(output_of: Output) -> None:
    logged = re.findall(r"few-shot MAE on validation data (\S+);", output_of("lightning_module"))
    assert len(logged) == 3
    assert all(0 < float(error) < math.inf for error in logged)


def test_sample_weight_is_one_without_a_scheme_and_spreads_most_with_inv(output_of: Output) -> None:
    found = re.findall(
        r"^(\w+): weights from (\S+) to (\S+)$", output_of("sample_weight"), re.MULTILINE
    )
    spread = {name: float(high) / float(low) for name, low, high in found}
    assert spread["Unweighted"] == 1
    assert 1 < spread["SQINV"] < spread["INV"]


def test_accelerate_loop_reports_each_test_sample_once_on_two_processes(tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "accelerate_loop.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = tables(run(tmp_path, *torchrun, script))
    methods, samples = EXPECTED["accelerate_loop"]
    assert list(found) == methods
    assert all(table["all"]["count"] == samples for table in found.values())
