"""What training costs, and which trainings no cheaper one matches."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.datasets import rotated_digits
from benchmarks.experiment.plan import plan
from benchmarks.experiment.record import COMMITTED, read_records
from benchmarks.experiment.registry import get_dataset
from benchmarks.results import fronts
from benchmarks.results.fronts import METHODS, REGIONS, VARIANTS, Point, is_lowest, verdict
from benchmarks.results.results import Interval, Results

EMBEDDED = ("rotated_digits", "rooms")
SELECTIONS = ("best_validation", "last_epoch")


def test_the_cost_of_methods_of_one_pass_two_and_a_part_and_of_two_stages(tmp_path: Path) -> None:
    rotated_digits.write_miniature(tmp_path / "data")
    command = ["cost", "rotated_digits", "rrt", "bsam", "bsam_quarter", "sqinv_twice"]
    command += ["--data", str(tmp_path / "data"), "--records", str(tmp_path)]
    main([*command, "--batch-size", "512", "--steps", "1", "--rounds", "2"])
    record = json.loads((tmp_path / "rotated_digits" / "cost.json").read_text())
    methods = record["methods"]
    rrt = plan("rotated_digits", "rrt")
    assert {name: row["passes"] for name, row in methods.items()} == {
        "sqinv": 1,
        "rrt": 1 + rrt.constants["retrain_epochs"] / rrt.recipe.epochs,
        "bsam": 2,
        "bsam_quarter": 1.25,
        "sqinv_twice": 2,
    }
    assert record["batch_size"] == 512
    for row in methods.values():
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0


def point(cost: float, error: float, *, to_cheaper: tuple[Interval, ...] = ()) -> Point:
    return Point(
        method="bsam",
        name=f"{cost}",
        epochs=1,
        seeds=1,
        cost=cost,
        error=dict.fromkeys(REGIONS, error),
        to_reference=dict.fromkeys(REGIONS, Interval(0.0, 0.0, 0.0)),
        to_cheaper={region: list(to_cheaper) for region in REGIONS},
    )


def test_on_the_front_is_what_no_cheaper_point_matches() -> None:
    points = (point(0.5, 3.0), point(1.0, 2.0), point(1.3, 2.0), point(2.0, 1.0))
    assert [is_lowest(p, points, "all") for p in points] == [True, True, False, True]


def test_points_that_differ_by_the_noise_of_the_clock_are_compared_both_ways() -> None:
    points = (point(1.0, 3.0), point(1.02, 2.0), point(1.04, 1.0))
    assert [is_lowest(p, points, "all") for p in points] == [False, False, True]


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ((), "cheapest"),
        (((-2.0, -3.0, -1.0), (-1.0, -1.5, -0.5)), "yes"),
        (((-2.0, -3.0, -1.0), (-1.0, -2.5, 0.5)), "open"),
        (((-1.0, -2.5, 0.5), (1.0, 0.5, 1.5)), "no"),
    ],
)
def test_verdict_counts_what_is_certain_alone(
    intervals: tuple[Interval, ...], expected: str
) -> None:
    assert verdict(point(1.0, 1.0, to_cheaper=intervals), "few") == expected


@pytest.mark.parametrize("dataset", EMBEDDED)
@pytest.mark.parametrize("selection", SELECTIONS)
class TestCommitted:
    def test_points_are_of_both_lengths_from_the_cheapest_on(
        self, dataset: str, selection: str
    ) -> None:
        points = fronts.points(dataset, selection)
        assert [p.cost for p in points] == sorted(p.cost for p in points)
        halves = {f"{method}, half" for method in METHODS if method != "sqinv_twice"}
        assert {p.name for p in points} == {*METHODS, *halves}
        by_name = {p.name: p for p in points}
        assert by_name["sqinv"].cost == 1
        assert by_name["sqinv, half"].cost == pytest.approx(0.5, abs=0.03)
        assert by_name["bsam"].to_reference == dict.fromkeys(REGIONS, Interval(0.0, 0.0, 0.0))

    def test_corrected_intervals_hold_the_plain_ones(self, dataset: str, selection: str) -> None:
        points = fronts.points(dataset, selection)
        dearest = points[-1]
        for region in REGIONS:
            assert len(dearest.to_cheaper[region]) == len(points) - 1
            of_bsam = next(i for i, p in enumerate(points) if p.name == "bsam")
            if of_bsam < len(points) - 1:
                value, low, high = dearest.to_cheaper[region][of_bsam]
                plain = dearest.to_reference[region]
                assert value == plain[0]
                assert low < plain[1]
                assert high > plain[2]
        assert verdict(points[0], "all") == "cheapest"

    def test_a_goal_is_reached_if_cost_and_every_interval_allow_it(
        self, dataset: str, selection: str
    ) -> None:
        results = Results(dataset, selection=selection)
        goals = fronts.goals(results)
        assert [goal.method for goal in goals] == list(VARIANTS)
        for goal in goals:
            worst = max(high for _, _, high in goal.percent.values())
            ratios = results.seconds(goal.method)
            cheap = sorted(ratios)[len(ratios) // 2] <= 1.3
            assert goal.is_reached == (cheap and worst <= 1)


@pytest.mark.parametrize("dataset", EMBEDDED)
class TestCommittedRecords:
    def test_every_method_was_measured_on_clean_code(self, dataset: str) -> None:
        record = json.loads((COMMITTED / dataset / "cost.json").read_text())
        assert record["methods"].keys() == read_records(COMMITTED, dataset).keys()
        assert record["provenance"]["dirty"] is False
        assert record["batch_size"] == get_dataset(dataset).recipe.batch_size

    def test_half_of_the_epochs_are_otherwise_the_recipe(self, dataset: str) -> None:
        whole = read_records(COMMITTED, dataset)
        for method, runs in read_records(COMMITTED / fronts.HALF, dataset).items():
            full = plan(dataset, method)
            half = {"epochs": full.recipe.epochs // 2}
            if "rho_warmup_epochs" in full.constants:
                half["rho_warmup_epochs"] = full.constants["rho_warmup_epochs"] // 2
            expected = plan(dataset, method, half).description
            for run in runs:
                assert run.recipe == expected
                assert run.provenance["dirty"] is False
            seeds = [run.seed for run in runs]
            assert seeds == [run.seed for run in whole[method]]


def test_the_network_for_faces_was_measured() -> None:
    record = json.loads((COMMITTED / "agedb_dir" / "cost.json").read_text())
    assert record["methods"].keys() == {"sqinv", "bsam", *VARIANTS}
    assert record["provenance"]["dirty"] is False
