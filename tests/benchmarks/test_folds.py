"""Data sets with folds: a run is tested on the fold of its seed, and intervals cover the folds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.datasets import airports
from benchmarks.experiment.plan import plan
from benchmarks.experiment.record import Record, read_records, write_record
from benchmarks.results.results import Results
from benchmarks.training.evaluation import resolution

NAME = "airports"


def test_a_run_is_tested_on_the_fold_of_its_seed(tmp_path: Path) -> None:
    data, records = tmp_path / "data", tmp_path / "records"
    airports.write_miniature(data)
    changes = ["--set", "epochs=1", "--records", str(records), "--data", str(data)]
    main(["run", NAME, "vanilla", "--seeds", "0", "3", "5", *changes])
    runs = {run.seed: run for run in read_records(records, NAME)["vanilla"]}
    assert runs.keys() == {0, 3, 5}
    for seed, run in runs.items():
        expected = airports.BINS.index(airports.load(data, fold=seed % 5).test.targets)
        assert run.samples["bins"] == expected.tolist()
    assert runs[0].samples["bins"] == runs[5].samples["bins"] != runs[3].samples["bins"]


def write_runs(root: Path, method: str, errors: dict[int, list[float]]) -> None:
    """Write a run for each seed, of which the test samples have these errors."""
    for seed, of_samples in errors.items():
        errors_in_units = np.divide(of_samples, resolution(airports.BINS)).tolist()
        of_all: dict[str, Any] = {"all": {"MAE": float(np.mean(of_samples))}}
        record = Record(
            dataset=NAME,
            method=method,
            seed=seed,
            recipe=plan(NAME, method).description,
            history=[],
            best_epoch=0,
            results={"last_epoch": {"regions": of_all}},
            passes=1,
            seconds=1.0,
            provenance={},
            samples={
                "bins": [k // 10 for k in range(len(of_samples))],
                "last_epoch.errors": errors_in_units,
            },
        )
        write_record(root / NAME / method / f"seed-{seed}.json", record)


def difference(root: Path) -> tuple[float, float, float]:
    results = Results(NAME, root)
    return results.difference("sqinv", "vanilla", region="all")


def test_a_difference_is_paired_within_folds_of_other_samples_and_sizes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    # Fold k has 20 + k samples; how hard they are is the same for both methods.
    hard = [100 * generator.random(20 + k) for k in range(5)]
    for method, more in (("vanilla", 0.0), ("sqinv", 2.0)):
        write_runs(tmp_path, method, {s: (hard[s % 5] + more).tolist() for s in range(10)})
    assert difference(tmp_path) == pytest.approx((2, 2, 2), abs=1e-3)


def test_an_interval_covers_folds_and_samples(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    of_folds, spread, samples = 3 * generator.normal(size=5), 4.0, 30
    gains = [of_folds[k] + spread * generator.normal(size=samples) for k in range(5)]
    write_runs(tmp_path, "vanilla", {s: [100.0] * samples for s in range(10)})
    write_runs(tmp_path, "sqinv", {s: (100 + gains[s % 5]).tolist() for s in range(10)})
    value, low, high = difference(tmp_path)
    assert value == pytest.approx(np.mean(gains), abs=1e-3)
    # The two runs of a fold say the same.
    error = np.sqrt(np.var([g.mean() for g in gains]) / 5 + spread**2 / samples / 5)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.2)


def test_a_balanced_difference_is_paired_and_counts_each_bin_once(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    # 10 samples in each bin of 100 m, but for the last, which has a single one.
    more = [2.0] * 40 + [12.0]
    hard = [100 * generator.random(41) for _ in range(5)]
    write_runs(tmp_path, "vanilla", {s: hard[s % 5].tolist() for s in range(10)})
    write_runs(tmp_path, "sqinv", {s: (hard[s % 5] + more).tolist() for s in range(10)})
    results = Results(NAME, tmp_path, metric="bMAE")
    value, low, high = results.difference("sqinv", "vanilla", region="all")
    assert value == pytest.approx((4 * 2 + 12) / 5, abs=1e-3)
    # A draw has the last bin or not, which is 2 more or less; the interval is about the figure.
    assert value - 2 < low < value < high < value + 2
    few = results.difference("sqinv", "vanilla", region="few")
    assert np.isnan(few).all()
