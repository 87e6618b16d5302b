"""Runs of the chosen settings on fresh seeds, and the tables that have them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.experiment.plan import plan
from benchmarks.experiment.record import COMMITTED
from benchmarks.experiment.registry import get_dataset
from benchmarks.results import answers, families, fresh_seeds
from benchmarks.results.families import BASIS
from tests.benchmarks.test_families import MEASURED as ON_CURVES
from tests.benchmarks.test_families import (
    NAME,
    cells_of,
    errors_of_basis,
    forget,
    higher_by,
    write_family,
    write_runs,
)

FAMILIES = ["averaged", "bsam_weighted", "bsam_quarter"]
ON_POSITIVE_TARGETS = [
    "weighted_capped",
    "averaged",
    "log_target",
    "weighted_balanced_head",
    "bsam_weighted",
    "bsam_quarter",
]
RIVALS = {
    "airports": [
        "weighted_capped",
        "averaged",
        "random_perturbation",
        "weighted_balanced_head",
        "bsam_weighted",
        "bsam_quarter",
        "bsam_loss_units",
        "bsam_balanced_head",
    ],
    "melting_points": [
        "weighted_capped",
        "averaged",
        "log_target",
        "random_perturbation",
        "weighted_balanced_head",
        "bsam_weighted",
        "bsam_quarter",
        "bsam_loss_units",
        "bsam_balanced_head",
    ],
    "rooms": ON_POSITIVE_TARGETS,
    "rotated_and_scaled_digits": ["weighted_capped", "weighted_per_output", *FAMILIES],
    "rotated_digits": [*ON_POSITIVE_TARGETS, "bsam_balanced_head"],
    "satellite_elevation": [
        "weighted_capped",
        "averaged",
        "weighted_balanced_head",
        "bsam_weighted",
        "bsam_quarter",
    ],
}
"""The methods that were tuned as weights alone and BSAM were."""


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder of runs on fresh seeds of three methods, one better and one worse."""
    monkeypatch.setattr(families, "FOLDER", tmp_path / "exponents")
    monkeypatch.setattr(fresh_seeds, "FOLDER", tmp_path / "fresh_seeds")
    forget()
    for method in (BASIS, "bsam_weighted"):
        write_family(families.FOLDER, method, errors_of_basis)
    for method, more in ((BASIS, 0.0), ("bsam_weighted", 20.0), ("weighted_capped", -10.0)):
        write_runs(fresh_seeds.FOLDER, method, higher_by(more), exponent=0.25)
    yield tmp_path
    forget()


@pytest.mark.usefixtures("records")
def test_the_table_of_rivals_has_their_differences_to_weights_alone() -> None:
    header, _, *rows = cells_of(answers.rivals(NAME))
    assert header == ["Method", "Airports (m)"]
    error = fresh_seeds.results(NAME).mean(BASIS, region="all")
    assert rows == [
        ["Weights alone", f"{error:.2f}"],
        ["Weighted, capped", "**−10.00 [−10.00, −10.00]**"],
        ["BSAM", "**+20.00 [+20.00, +20.00]**"],
    ]


@pytest.mark.usefixtures("records")
def test_the_table_of_fresh_seeds_has_the_errors_of_each_method() -> None:
    header, _, *rows = cells_of(answers.errors_on_fresh_seeds(NAME))
    assert header[:4] == ["Method", "Runs", "Epochs", "Passes"]
    assert header[4:] == ["All", "Many", "Med.", "Few", "bMAE"]
    assert [row[:2] for row in rows] == [
        ["Weights alone", "10"],
        ["Weighted, capped", "10"],
        ["BSAM", "10"],
    ]
    for column in (4, 5, 7, 8):
        of_basis, capped, bsam = (float(row[column]) for row in rows)
        assert of_basis - capped == pytest.approx(10, abs=0.02)
        assert bsam - of_basis == pytest.approx(20, abs=0.02)


@pytest.mark.usefixtures("records")
def test_the_table_of_what_pays_has_the_difference_again() -> None:
    header, _, row = cells_of(answers.pays("bsam_weighted"))
    assert header[1:3] == ["Difference", "Again, fresh seeds"]
    assert row[1:3] == ["+0.00 [+0.00, +0.00]", "**+20.00 [+20.00, +20.00]**"]


def test_a_data_set_without_such_runs_has_none(records: Path) -> None:
    for path in (records / "fresh_seeds").rglob("seed-*"):
        path.unlink()
    assert fresh_seeds.measured("bsam_weighted") == []
    *_, row = cells_of(answers.pays("bsam_weighted"))
    assert row[2] == "none"


def test_the_measured_data_sets_are_those_of_the_texts() -> None:
    assert tuple(fresh_seeds.measured("bsam_weighted")) == ON_CURVES
    for name in ON_CURVES:
        assert fresh_seeds.rivals(name) == RIVALS.get(name, FAMILIES)


@pytest.mark.parametrize("name", ON_CURVES)
def test_committed_runs_have_the_settings_that_were_chosen(name: str) -> None:
    choices = json.loads((COMMITTED / name / "tuning.json").read_text())
    results = fresh_seeds.results(name)
    for method, runs in results.records.items():
        assert len(choices[method]) >= len(choices[BASIS])
        if families.curve(name, method):
            exponent = families.chosen(name, method).exponent
            expected = plan(name, method, {"exponent": exponent}).description
        else:
            expected = families.best_setting(choices[method])["recipe"]
            assert plan(name, method).description == expected
        assert [run.seed for run in runs] == list(range(10, 20))
        for run in runs:
            assert run.recipe == expected
            assert run.provenance["dirty"] is False


@pytest.mark.parametrize("name", ON_CURVES)
def test_the_best_epoch_of_committed_runs_is_that_of_validation(name: str) -> None:
    error = f"validation/all/{get_dataset(name).metrics[0]}"
    for run in (run for runs in fresh_seeds.results(name).records.values() for run in runs):
        first = sum(run.recipe["stage_epochs"][:-1])
        errors = [epoch[error] for epoch in run.history[first:]]
        assert run.best_epoch == first + errors.index(min(errors))


@pytest.mark.parametrize("name", ON_CURVES)
def test_committed_runs_share_their_data_with_the_curves(name: str) -> None:
    (run, *_) = families.chosen(name, BASIS).results.records[BASIS]
    for runs in fresh_seeds.results(name).records.values():
        assert {run.provenance["data_sha256"]} == {r.provenance["data_sha256"] for r in runs}


@pytest.mark.parametrize("name", ON_CURVES)
def test_committed_runs_share_neither_seeds_nor_processor_with_the_curves(name: str) -> None:
    on_curves = families.chosen(name, BASIS).results.records[BASIS]
    for runs in fresh_seeds.results(name).records.values():
        assert not {run.seed for run in runs} & {run.seed for run in on_curves}
        devices = ({run.provenance["device"] for run in group} for group in (runs, on_curves))
        assert not set.intersection(*devices)
