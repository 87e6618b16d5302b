"""The evaluation of a test set: batch by batch the same as in one piece, and nothing is kept."""

import dataclasses
import math
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from balanced_sam import region_report
from benchmarks.experiment.dataset import Dataset
from benchmarks.experiment.record import Record
from benchmarks.experiment.registry import get_dataset
from benchmarks.training.evaluation import Evaluation, sample_sums

AGES, DEPTHS = get_dataset("rotated_digits"), get_dataset("rooms")


def a_record(evaluation: Evaluation) -> Record:
    """Return a record of nothing but an evaluation."""
    return Record(
        dataset="",
        method="",
        seed=0,
        recipe={},
        history=[],
        best_epoch=0,
        results={"last_epoch": evaluation.result()},
        passes=0,
        seconds=0,
        provenance={},
        samples=evaluation.samples("last_epoch"),
    )


def ages() -> tuple[Tensor, Tensor]:
    """Return predictions and targets of 300 samples in all regions."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(1, 101, (300,), generator=generator).float()
    return targets + 5 * torch.randn(300, generator=generator), targets


def depths() -> tuple[Tensor, Tensor]:
    """Return predictions and targets of 12 maps, a third of whose pixels do not count."""
    generator = torch.Generator().manual_seed(0)
    targets = 0.7 + 9.2 * torch.rand(12, 6, 8, generator=generator)
    predictions = targets * (1 + 0.3 * torch.randn(targets.shape, generator=generator))
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = math.nan
    return predictions, targets


@pytest.mark.parametrize(("dataset", "data"), [(AGES, ages()), (DEPTHS, depths())])
def test_batches_give_the_report_of_the_whole(
    dataset: Dataset, data: tuple[Tensor, Tensor]
) -> None:
    predictions, targets = data
    evaluation = Evaluation(dataset)
    for batch in zip(predictions.split(5), targets.split(5), strict=True):
        evaluation.update(*batch)
    result, counted = evaluation.result(), ~targets.isnan()
    report = region_report(predictions[counted], targets[counted], dataset.regions).to_dict()
    for region, row in report.items():
        assert result["regions"][region] == pytest.approx(row, nan_ok=True)
    record = a_record(evaluation)
    of_mean = {"GM": math.exp, "RMSE": math.sqrt}
    for region in report:
        for metric in dataset.metrics:
            sums, counts = sample_sums(record, dataset, "last_epoch", region, metric)
            assert counts.sum() == report[region]["count"]
            value = of_mean.get(metric, float)(sums.sum() / counts.sum())
            assert value == pytest.approx(report[region][metric], rel=1e-2)


@pytest.mark.parametrize(("dataset", "data"), [(AGES, ages()), (DEPTHS, depths())])
def test_errors_per_bin_are_those_of_the_bins_targets(
    dataset: Dataset, data: tuple[Tensor, Tensor]
) -> None:
    predictions, targets = data
    evaluation = Evaluation(dataset)
    evaluation.update(predictions, targets)
    metric = dataset.metrics[0]
    counted = ~targets.isnan()
    index = dataset.bins.index(targets[counted])
    errors = (predictions - targets)[counted]
    for k, value in enumerate(evaluation.result()["by_bin"][metric]):
        inside = errors[index == k].double()
        if len(inside) == 0:
            assert value is None
        else:
            mean = inside.abs().mean() if metric == "MAE" else inside.square().mean().sqrt()
            assert value == pytest.approx(mean.item(), abs=1e-4)


def test_no_map_is_kept() -> None:
    predictions, targets = depths()
    evaluation = Evaluation(DEPTHS)
    evaluation.update(predictions, targets)
    sizes = [len(column) for column in evaluation.samples("last_epoch")["counts"]]
    kept = [weakref.ref(predictions), weakref.ref(targets)]
    del predictions, targets
    assert [reference() for reference in kept] == [None, None]
    assert sizes == [12, 12, 12]


GROWTH = """
import resource, torch
from benchmarks.datasets.nyud2_dir import DATASET
from benchmarks.training.evaluation import Evaluation

def peak_mebibytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
evaluation, peaks = Evaluation(DATASET), []
for batch in range(200):
    targets = 0.7 + 9.2 * torch.rand(33, 31, 43)
    evaluation.update(targets + torch.randn(targets.shape), targets)
    if batch in (19, 199):
        assert evaluation.result()["regions"]["all"]["count"] == (batch + 1) * targets.numel()
        peaks.append(peak_mebibytes())
print(peaks[1] - peaks[0])
"""


def test_ten_times_the_pixels_of_nyud2_take_no_more_memory() -> None:
    # 8.8 million pixels; predictions and targets of them would fill 67 MiB.
    command = [sys.executable, "-c", GROWTH]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    assert float(done.stdout) < 20


def test_a_region_without_targets_is_nan_and_counts_nothing() -> None:
    evaluation = Evaluation(AGES)
    evaluation.update(torch.tensor([31.0]), torch.tensor([30.0]))
    few = evaluation.result()["regions"]["few"]
    assert few["count"] == 0
    assert few["MAE"] is None
    sums, counts = sample_sums(a_record(evaluation), AGES, "last_epoch", "few", "MAE")
    assert sums.tolist() == counts.tolist() == [0]


def test_a_dataset_chooses_what_is_reported_per_bin() -> None:
    both = dataclasses.replace(AGES, metrics=("RMSE",))
    evaluation = Evaluation(both)
    evaluation.update(torch.tensor([33.0, 26.0]), torch.tensor([30.0, 30.0]))
    assert evaluation.result()["by_bin"]["RMSE"][30] == pytest.approx(math.sqrt(12.5), abs=1e-4)
