"""Families along the exponent of their weights, and how far one is beyond another."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.__main__ import main
from benchmarks.experiment.plan import plan
from benchmarks.experiment.record import COMMITTED, Record, write_record
from benchmarks.experiment.registry import get_dataset
from benchmarks.results import answers, families, fresh_seeds, plots
from benchmarks.results.families import BASIS, EXPONENTS, distance, distances
from benchmarks.training import pool
from benchmarks.training.evaluation import resolution

Array = NDArray[np.float64]
Errors = Callable[[float, int, Array], Array]
NAME = "airports"
# Weights trade the error on all for that on few-shot targets: 2 for 1 between two exponents.
ALL = np.array([[10.0, 11.0, 12.0, 13.0, 14.0]])
FEW = np.array([[30.0, 28.0, 26.0, 24.0, 22.0]])


def test_a_curve_is_as_far_from_itself_as_nothing() -> None:
    assert distances((ALL, FEW), (ALL, FEW)).tolist() == [0]


def test_a_lower_curve_is_as_far_as_it_is_lower_on_few() -> None:
    assert distances((ALL, FEW - 3), (ALL, FEW)) == pytest.approx(-3)
    assert distances((ALL, FEW), (ALL, FEW - 3)) == pytest.approx(3)


def test_a_trade_along_the_same_curve_is_no_distance() -> None:
    # Further down the same line, where the basis has ended, is no gain either.
    assert distances((ALL + 1, FEW - 2), (ALL, FEW)) == pytest.approx(0, abs=0.005)
    assert distances((ALL, FEW), (ALL + 1, FEW - 2)) == pytest.approx(0, abs=0.005)


def test_draws_are_compared_each_by_itself() -> None:
    all_, few = (np.concatenate([values, 2 * values]) for values in (ALL, FEW))
    assert distances((all_, few - [[1], [5]]), (all_, few)) == pytest.approx([-1, -5])


def test_points_worse_on_both_do_not_count() -> None:
    bent = np.array([[12.0, 11.0, 10.0, 11.0, 12.0]]), np.array([[40.0, 35.0, 30.0, 28.0, 26.0]])
    straight = np.array([[10.0, 10.5, 11.0, 11.5, 12.0]]), np.array([[30.0, 29, 28, 27, 26]])
    assert distances(bent, straight) == pytest.approx(0, abs=1e-9)


def test_curves_that_reach_no_common_error_are_compared_where_the_later_begins() -> None:
    late = ALL + 10, FEW - 1
    # At 20 it has 29, and the basis had 22 before.
    assert distances(late, (ALL, FEW)) == pytest.approx(29 - 22)


def write_family(root: Path, method: str, errors: Errors) -> None:
    """Write ten runs of each exponent."""
    for exponent in EXPONENTS:
        write_runs(root / f"{exponent:g}", method, errors, exponent=exponent)


def write_runs(folder: Path, method: str, errors: Errors, **changes: float) -> None:
    """Write ten runs whose errors are a function of exponent, seed and targets.

    Args:
        folder: Of the records.
        method: File name of the method.
        errors: The function.
        changes: Of the recipe, the exponent among them.
    """
    targets = np.repeat([50.0, 3050.0], [40, 10])
    for seed in range(10):
        signed = errors(changes["exponent"], seed, targets)
        of_all = np.abs(signed)
        rare = targets > 2500
        means = {"all": of_all.mean(), "many": of_all[~rare].mean(), "few": of_all[rare].mean()}
        balanced = (means["many"] + means["few"]) / 2
        of_regions = {region: {"MAE": float(mean)} for region, mean in means.items()}
        of_regions["medium"] = {"MAE": 0.0}
        of_regions["all"]["bMAE"] = float(balanced)
        record = Record(
            dataset=NAME,
            method=method,
            seed=seed,
            recipe=plan(NAME, method, changes).description,
            history=[{"validation/all/bMAE": 5 + (changes["exponent"] - 0.25) ** 2}],
            best_epoch=0,
            results={"last_epoch": {"regions": of_regions}},
            passes=8 if method == BASIS else 12,
            seconds=1.0,
            provenance={},
            samples={
                "bins": get_dataset(NAME).bins.index(torch.from_numpy(targets)).tolist(),
                "last_epoch.errors": (signed / resolution(get_dataset(NAME).bins)).tolist(),
            },
        )
        write_record(folder / NAME / method / f"seed-{seed}.json", record)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield where the records of a test are, and forget what was read of them."""
    monkeypatch.setattr(families, "FOLDER", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    for function in (
        families.curve,
        families.difference,
        families.distance,
        families.gain_of_weights,
        families._results,
        fresh_seeds.results,
    ):
        function.cache_clear()


def errors_of_basis(exponent: float, seed: int, targets: Array) -> Array:
    noise = np.random.default_rng([seed, int(100 * exponent)]).normal(size=len(targets))
    rare = targets > 2500
    return np.where(rare, 300 - 100 * exponent, 60 + 40 * exponent) + 5 * noise


def higher_by(more: float) -> Errors:
    """Return the errors of the basis, each higher by the same."""

    def errors(exponent: float, seed: int, targets: Array) -> Array:
        return errors_of_basis(exponent, seed, targets) + more

    return errors


def cells_of(table: str) -> list[list[str]]:
    """Return the cells of a Markdown table, row by row."""
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


def test_the_distance_of_records_covers_that_which_they_were_made_with(records: Path) -> None:
    write_family(records, BASIS, errors_of_basis)

    def lower(exponent: float, seed: int, targets: Array) -> Array:
        return errors_of_basis(exponent, seed + 100, targets) - 20 * (targets > 2500)

    write_family(records, "bsam_weighted", lower)
    value, low, high = distance(NAME, "bsam_weighted")
    # 20 lower on a fifth of the targets is 4 lower on all, which buys another 100 * 4 / 12: on all
    # the basis has 108 + 12 a, and on few-shot targets 300 - 100 a.
    assert value == pytest.approx(-20 - 400 / 12, abs=5)
    assert low < value < high < 0


def test_the_exponent_is_chosen_by_the_balanced_validation_error(records: Path) -> None:
    write_family(records, BASIS, errors_of_basis)
    write_family(records, "bsam_weighted", errors_of_basis)
    assert families.chosen(NAME, BASIS).exponent == 0.25
    assert families.difference(NAME, "bsam_weighted", region="all") == (0, 0, 0)


def test_a_family_of_which_an_exponent_is_missing_is_not_measured(records: Path) -> None:
    write_family(records, BASIS, errors_of_basis)
    assert families.measured(BASIS) == [NAME]
    assert families.measured("bsam_weighted") == []
    for path in (records / "0.5" / NAME / BASIS).glob("seed-*"):
        path.unlink()
    forget()
    assert families.measured(BASIS) == []


def test_a_command_runs_each_exponent_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[pool.Run] = []

    def run_all(runs: list[pool.Run], *, jobs: int, resume: bool) -> None:
        assert resume
        planned.extend(runs)

    monkeypatch.setattr(pool, "run_all", run_all)
    main(["exponents", NAME, BASIS, "bsam_weighted"])
    assert len(planned) == len({run.path for run in planned}) == 2 * 10 * len(EXPONENTS)
    for run in planned:
        folder = families.FOLDER / f"{run.plan.constants['exponent']:g}"
        assert run.path == folder / NAME / run.method / f"seed-{run.seed}.json"


def test_a_command_takes_the_chosen_exponent(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(records, BASIS, errors_of_basis)
    planned: list[pool.Run] = []
    monkeypatch.setattr(pool, "run_all", lambda runs, **_: planned.extend(runs))
    main(["run", NAME, BASIS, "--chosen", "--set", "label_noise=100"])
    (run,) = planned
    assert run.changes == {"exponent": 0.25, "label_noise": 100}
    with pytest.raises(SystemExit, match=f"Expected records of bsam_weighted on {NAME} with each"):
        main(["run", NAME, "bsam_weighted", "--chosen"])


def test_the_table_has_a_row_a_data_set_and_marks_what_differs(records: Path) -> None:
    write_family(records, BASIS, errors_of_basis)

    def higher(exponent: float, seed: int, targets: Array) -> Array:
        return errors_of_basis(exponent, seed, targets) + 50

    write_family(records, "bsam_weighted", higher)
    header, _, row = answers.pays("bsam_weighted").splitlines()
    assert " Weights alone |" in header
    assert " BSAM |" in header
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "Airports (m)"
    # The same draws of both: 50 m higher on each target.
    assert cells[1].startswith("**+50.00 [+50.00, +50.00]")
    assert cells[3].startswith("**+")
    assert cells[4] == "1.50"
    assert "exponent 0.25" in cells[5]


def test_the_table_of_weights_sets_the_chosen_exponent_beside_none(records: Path) -> None:
    def without_noise(exponent: float, seed: int, targets: Array) -> Array:
        return np.where(targets > 2500, 300 - 100 * exponent, 60 + 40 * exponent)

    write_family(records, BASIS, without_noise)
    header, _, row = answers.weights(NAME).splitlines()
    assert header.count("|") == row.count("|")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["Airports (m)", "0.25", "180.00"]
    # 25 m less on the few-shot bin and 10 m more on the other one.
    assert cells[3].startswith("**−7.50 [")
    assert cells[4].startswith("**+3.00 [")
    assert cells[5] == "**−25.00 [−25.00, −25.00]**"


def test_the_table_of_exponents_has_each_familys_means(records: Path) -> None:
    write_family(records, BASIS, errors_of_basis)
    rows = answers.exponents(NAME).splitlines()[2:]
    assert len(rows) == len(EXPONENTS)
    for row, exponent in zip(rows, EXPONENTS, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == f"{exponent:g}"
        expected = 0.8 * (60 + 40 * exponent) + 0.2 * (300 - 100 * exponent)
        assert cells[2] == "10"
        assert float(cells[5]) == pytest.approx(expected, abs=1)
        assert float(cells[8]) == pytest.approx(300 - 100 * exponent, abs=1)
        assert float(cells[10]) == pytest.approx(5 + (exponent - 0.25) ** 2, abs=0.01)


def test_the_picture_of_the_trade_has_a_curve_a_family(records: Path) -> None:
    for method in (BASIS, "bsam_weighted"):
        write_family(records, method, errors_of_basis)
    (axes,) = plots.trade(NAME).axes
    assert [line.get_label() for line in axes.lines] == ["Weights alone", "BSAM"]
    for line in axes.lines:
        few = [300 - 100 * exponent for exponent in EXPONENTS]
        assert line.get_ydata() == pytest.approx(few, abs=2)


def test_of_more_than_two_curves_only_that_of_weights_alone_has_its_exponents(
    records: Path,
) -> None:
    methods = (BASIS, "averaged", "bsam_weighted")
    for method in methods:
        write_family(records, method, errors_of_basis)
    for drawn, numbered in ((plots.COMPARED, 2), (methods, 1)):
        (axes,) = plots.trade(NAME, methods=drawn).axes
        assert [line.get_label() for line in axes.lines] == [families.FAMILIES[m] for m in drawn]
        exponents = [text.get_text() for text in axes.texts]
        assert exponents == [f"{exponent:g}" for exponent in EXPONENTS] * numbered


SETTINGS = {
    f"epochs={epochs},rho={rho},exponent={exponent}": {
        "recipe": {"epochs": epochs, "stage_epochs": [epochs], "rho": rho, "exponent": exponent},
        "last": {
            "all": epochs + rho - exponent,
            "few": 2.0,
            "balanced": abs(epochs - 20) + rho - exponent,
        },
    }
    for epochs in (40, 10, 20)
    for rho in (0.1, 0.3)
    for exponent in (0.5, 1.0)
}


def test_the_best_setting_has_the_lowest_balanced_error() -> None:
    assert families.best_setting(SETTINGS)["recipe"]["epochs"] == 20
    of_all = {
        name: row | {"last": {"all": row["last"]["all"], "few": 0.0}}
        for name, row in SETTINGS.items()
    }
    assert families.best_setting(of_all)["recipe"]["epochs"] == 10


def test_settings_by_epochs_are_the_best_with_the_exponent_one_half() -> None:
    found = families.settings_by_epochs(SETTINGS)
    assert list(found) == [10, 20, 40]
    assert {row["recipe"]["rho"] for row in found.values()} == {0.1}
    assert {row["recipe"]["exponent"] for row in found.values()} == {0.5}


def test_exponents_with_other_seeds_are_refused(records: Path) -> None:
    write_family(records, BASIS, errors_of_basis)
    for path in (records / "0.75" / NAME / BASIS).glob("seed-9.*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"all exponents of weighted on airports .* '0\.75': \[0"):
        families.curve(NAME, BASIS)


def test_families_with_other_seeds_are_not_compared(records: Path) -> None:
    for method in (BASIS, "bsam_weighted"):
        write_family(records, method, errors_of_basis)
    for path in records.glob("*/airports/bsam_weighted/seed-9.*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"bsam_weighted and weighted on airports .* same seeds"):
        distance(NAME, "bsam_weighted")
    with pytest.raises(ValueError, match="same seeds"):
        families.difference(NAME, "bsam_weighted", region="all")


def test_an_exponent_of_which_a_run_diverged_is_not_chosen(records: Path) -> None:
    write_family(records, BASIS, errors_of_basis)
    path = records / "0.25" / NAME / BASIS / "seed-3.json"
    record = json.loads(path.read_text())
    record["history"]["validation/all/bMAE"][-1] = None
    path.write_text(json.dumps(record))
    assert families.chosen(NAME, BASIS).exponent in (0.0, 0.5)


def test_pictures_without_records_say_so(records: Path) -> None:
    with pytest.raises(SystemExit, match="Expected records of weighted and bsam_weighted in"):
        main(["pays", "--out", str(records)])


def test_every_target_counts_alike_in_the_balanced_metric() -> None:
    assert families.balanced_metric("airports") == "bMAE"
    assert families.balanced_metric("rooms") == "RMSE"


MEASURED = (
    "airports",
    "melting_points",
    "rooms",
    "rotated_and_scaled_digits",
    "rotated_digits",
    "satellite_elevation",
)


def test_pictures_have_a_panel_a_data_set_in_rows_of_three() -> None:
    axes = plots.error_and_epochs(*MEASURED).axes
    assert [panel.get_title() for panel in axes] == [get_dataset(name).title for name in MEASURED]
    assert {panel.get_gridspec().ncols for panel in axes} == {3}


def test_the_table_shows_some_data_sets_as_the_whole_table_does() -> None:
    *head, airports, _, _, _, _, satellite = answers.pays("bsam_weighted").splitlines()
    some = answers.pays("bsam_weighted", "airports", "satellite_elevation").splitlines()
    assert [row.split() for row in some[2:]] == [row.split() for row in (airports, satellite)]
    assert some[0].split() == head[0].split()
    with pytest.raises(ValueError, match=r"Expected data sets with curves .* got \['moon'\]"):
        answers.pays("bsam_weighted", "airports", "moon")


def test_the_measured_data_sets_are_those_of_the_texts() -> None:
    assert tuple(families.measured("bsam_weighted")) == MEASURED


@pytest.mark.parametrize("name", MEASURED)
class TestCommittedRecords:
    def test_every_exponent_has_ten_runs_of_the_recipe_by_clean_code(self, name: str) -> None:
        for method in families.FAMILIES:
            for point in families.curve(name, method):
                runs = point.results.records[method]
                assert [run.seed for run in runs] == list(range(10))
                expected = plan(name, method, {"exponent": point.exponent}).description
                for run in runs:
                    assert run.recipe == expected
                    assert run.provenance["dirty"] is False
                    assert run.provenance["data_sha256"] == runs[0].provenance["data_sha256"]

    def test_a_family_runs_with_its_best_setting_but_for_the_exponent(self, name: str) -> None:
        choices = json.loads((COMMITTED / name / "tuning.json").read_text())
        for method in families.FAMILIES:
            if families.curve(name, method):
                best = families.best_setting(choices[method])["recipe"]
                changes = {"exponent": best["exponent"]}
                assert plan(name, method, changes).description == best

    def test_all_families_tried_as_many_settings_on_seeds_that_are_not_reported(
        self, name: str
    ) -> None:
        choices = json.loads((COMMITTED / name / "tuning.json").read_text())
        tried = {method: len(choices[method]) for method in choices if families.curve(name, method)}
        assert len(set(tried.values())) == 1, tried
        for row in (row for settings in choices.values() for row in settings.values()):
            assert len(row["seeds"]) == 2
            assert not set(row["seeds"]) & set(range(20))
