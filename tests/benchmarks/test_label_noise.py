"""Runs with noise on the training targets, and the table that sets them beside those without."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.experiment.plan import plan
from benchmarks.results import answers, families, label_noise
from benchmarks.results.families import BASIS
from tests.benchmarks.test_families import (
    NAME,
    cells_of,
    errors_of_basis,
    forget,
    higher_by,
    write_family,
    write_runs,
)

Array = NDArray[np.float64]
MEASURED = ("airports", "melting_points")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder of runs of which BSAM's are better by the level of the noise."""
    monkeypatch.setattr(families, "FOLDER", tmp_path / "exponents")
    monkeypatch.setattr(label_noise, "FOLDER", tmp_path / "label_noise")
    forget()
    for method in (BASIS, "bsam_weighted"):
        write_family(families.FOLDER, method, errors_of_basis)
        for level in (200.0, 50.0, 1000.0):
            write_runs(
                label_noise.FOLDER / f"{level:g}",
                method,
                higher_by(-level / 10 if method == "bsam_weighted" else 0.0),
                exponent=0.25,
                label_noise=level,
            )
    yield tmp_path
    forget()


@pytest.mark.usefixtures("records")
def test_levels_come_by_size() -> None:
    assert label_noise.measured() == [NAME]
    found = label_noise.by_level(NAME)
    assert list(found) == [50, 200, 1000]
    for level, results in found.items():
        for run in results.records[BASIS]:
            assert run.recipe["label_noise"] == level
            assert run.recipe["exponent"] == 0.25


@pytest.mark.usefixtures("records")
def test_the_table_has_the_difference_at_each_level() -> None:
    rows = cells_of(answers.label_noise("bsam_weighted"))
    assert rows[0] == ["Data set", "Label noise", "Weights alone", "BSAM", "Difference"]
    assert [row[1] for row in rows[2:]] == ["0", "50", "200", "1000"]
    assert rows[2][4] == "+0.00 [+0.00, +0.00]"
    assert rows[4][4] == "**−20.00 [−20.00, −20.00]**"
    assert float(rows[4][2]) - float(rows[4][3]) == pytest.approx(20, abs=0.02)


@pytest.mark.usefixtures("records")
def test_without_noise_each_method_has_its_own_exponent() -> None:
    def at_half(exponent: float, seed: int, targets: Array) -> Array:
        return errors_of_basis(exponent, seed, targets) + 1000 * (exponent - 0.5)

    write_family(families.FOLDER, "bsam_weighted", at_half)
    for path in families.FOLDER.glob("*/airports/bsam_weighted/seed-*.json"):
        record = json.loads(path.read_text())
        errors = record["history"]["validation/all/bMAE"]
        errors[-1] = abs(record["recipe"]["exponent"] - 0.5)
        path.write_text(json.dumps(record))
    forget()
    assert families.chosen(NAME, BASIS).exponent == 0.25
    assert families.chosen(NAME, "bsam_weighted").exponent == 0.5
    row = cells_of(answers.label_noise("bsam_weighted"))[2]
    expected = families.difference(NAME, "bsam_weighted", region="all", metric="bMAE").value
    assert float(row[3]) - float(row[2]) == pytest.approx(expected, abs=0.02)
    assert row[4].startswith(("+", "−", "**"))


def test_the_measured_data_sets_are_those_of_the_texts() -> None:
    assert tuple(label_noise.measured()) == MEASURED


@pytest.mark.parametrize("name", MEASURED)
def test_committed_runs_have_the_settings_that_were_chosen_without_noise(name: str) -> None:
    levels = label_noise.by_level(name)
    assert len(levels) == 3
    for method in (BASIS, "bsam_weighted"):
        exponent = families.chosen(name, method).exponent
        for level, results in levels.items():
            noise = {"label_noise": level}
            runs = results.records[method]
            assert [run.seed for run in runs] == list(range(10))
            for run in runs:
                assert run.recipe == plan(name, method, {"exponent": exponent} | noise).description
                assert run.provenance["dirty"] is False
