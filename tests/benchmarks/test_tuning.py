"""Tuning: what is tried is kept with its validation errors, a setting that diverged, too."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.experiment.record import Record, write_record
from benchmarks.results import families
from benchmarks.training import tuning
from benchmarks.training.pool import Run

DIVERGED = 1e30
"""A learning rate."""


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Return the runs of tuning, which write records without training."""
    runs: list[Run] = []

    def run_all(asked: list[Run], *, jobs: int, resume: bool) -> None:
        runs.extend(asked)
        for run in asked:
            write_record(run.path, record_of(run))

    monkeypatch.setattr(tuning, "run_all", run_all)
    monkeypatch.setattr(tuning, "WORK", tmp_path / "tuning")
    return runs


def record_of(run: Run) -> Record:
    """Return a record of two epochs whose errors are the learning rate, or of no finite error."""
    recipe = run.plan.description
    diverged = recipe["lr"] == DIVERGED and run.seed == 101
    error = None if diverged else recipe["lr"]
    names = [f"validation/{name}" for name in ("all/MAE", "few/MAE", "all/bMAE")]
    return Record(
        dataset=run.dataset,
        method=run.method,
        seed=run.seed,
        recipe=recipe,
        history=[dict.fromkeys(names, 9.0), dict.fromkeys(names, error)],
        best_epoch=0,
        results={},
        passes=1,
        seconds=1.0,
        provenance={},
    )


def tune(path: Path, methods: list[str], **grid: list[Any]) -> dict[str, Any]:
    """Return the choices on airports."""
    tuning.tune("airports", methods, [100, 101], grid, path=path, jobs=1)
    choices: dict[str, Any] = json.loads(path.read_text())
    return choices


def test_a_setting_that_diverged_is_kept_as_such_and_is_never_the_best(
    trained: list[Run], tmp_path: Path
) -> None:
    choices = tune(tmp_path / "tuning.json", ["weighted"], lr=[DIVERGED, 0.5])["weighted"]
    diverged, finite = choices[f"lr={DIVERGED}"], choices["lr=0.5"]
    assert diverged["last"] == {"all": None, "few": None, "balanced": None}
    assert diverged["best"] == {"all": 9, "few": 9, "balanced": 9}
    assert finite["last"] == {"all": 0.5, "few": 0.5, "balanced": 0.5}
    assert families.best_setting(choices) == finite


def test_all_methods_try_all_of_the_grid(trained: list[Run], tmp_path: Path) -> None:
    methods = ["bsam", "bsam_weighted"]
    choices = tune(tmp_path / "tuning.json", methods, rho=[0.1, 0.2])
    assert len(trained) == 2 * 2 * 2
    assert {method: list(settings) for method, settings in choices.items()} == {
        method: ["rho=0.1", "rho=0.2"] for method in methods
    }
    for run in trained:
        assert run.changes in ({"rho": 0.1}, {"rho": 0.2})


def test_a_constant_that_a_method_lacks_is_refused_before_anything_trains() -> None:
    command = ["tune", "airports", "bsam_weighted", "weighted", "--seeds", "100"]
    with pytest.raises(
        SystemExit, match=r"constants of weighted \['exponent'\], but got \['rho'\]"
    ):
        main([*command, "--grid", "rho=0.1,0.2"])
