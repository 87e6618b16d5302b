"""What training costs."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.datasets import rotated_and_scaled_digits, rotated_digits
from benchmarks.experiment.plan import plan
from benchmarks.experiment.record import COMMITTED


def test_the_cost_of_methods_of_one_pass_two_and_a_part_and_of_two_stages(tmp_path: Path) -> None:
    rotated_digits.write_miniature(tmp_path / "data")
    command = ["cost", "rotated_digits", "rrt", "bsam", "bsam_quarter"]
    command += ["--data", str(tmp_path / "data"), "--records", str(tmp_path)]
    main([*command, "--batch-size", "512", "--steps", "1", "--rounds", "2"])
    record = json.loads((tmp_path / "rotated_digits" / "cost.json").read_text())
    methods = record["methods"]
    rrt, bsam, quarter = (plan("rotated_digits", m) for m in ("rrt", "bsam", "bsam_quarter"))
    assert {name: row["passes"] for name, row in methods.items()} == {
        "sqinv": 1,
        "rrt": 1 + rrt.constants["retrain_epochs"] / rrt.recipe.epochs,
        "bsam": 2 * bsam.recipe.epochs / rrt.recipe.epochs,
        "bsam_quarter": 1.25 * quarter.recipe.epochs / rrt.recipe.epochs,
    }
    assert record["batch_size"] == 512
    for row in methods.values():
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0


def test_of_all_methods_those_that_do_not_fit_the_data_set_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, names = "rotated_and_scaled_digits", ["balanced_mse_bmc", "log_target", "vanilla"]
    monkeypatch.setattr("benchmarks.costs.training.method_names", lambda: names)
    rotated_and_scaled_digits.write_miniature(tmp_path / "data")
    command = ["--data", str(tmp_path / "data"), "--records", str(tmp_path)]
    command += ["--batch-size", "512", "--steps", "1", "--rounds", "2"]
    main(["cost", name, *command])
    record = json.loads((tmp_path / name / "cost.json").read_text())
    assert record["methods"].keys() == {"sqinv", "vanilla"}
    left_out = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in left_out] == [
        "Left out balanced_mse_bmc",
        "Left out log_target",
    ]
    with pytest.raises(SystemExit, match="Expected one target a sample"):
        main(["cost", name, "balanced_mse_bmc", *command])


def test_the_network_for_faces_was_measured() -> None:
    record = json.loads((COMMITTED / "agedb_dir" / "cost.json").read_text())
    assert record["methods"].keys() == {"sqinv", "bsam", "bsam_quarter"}
    assert record["provenance"]["dirty"] is False
