"""The benchmarks under ``torchrun``: two processes train one network as a single one does.

Started by ``torchrun``, this file is the script of each process.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks import distributed
from benchmarks.__main__ import main
from benchmarks.datasets import rotated_digits
from benchmarks.distributed import Shares
from benchmarks.protocol import Record
from benchmarks.recipes import resolved_recipe
from benchmarks.registry import get_dataset
from benchmarks.store import read_record, record_path
from benchmarks.training import History, train

ROOT = Path(__file__).parents[2]
NAME = "rotated_digits"
SECONDS = 240
# One pass a step and two; two stages; losses that are no means of what each sample adds, and one
# that learns a parameter of its own.
METHODS = ("bsam", "rrt", "balanced_mse_bmc", "term")
# Batches and shares that do not come out even: the last validation batch is a single sample.
CHANGES: dict[str, Any] = {
    "epochs": 2,
    "retrain_epochs": 2,
    "balanced_mse_epochs": 1,
    "batch_size": 1009,
    "lr": 0.03,
}
BATCH_NORM_CHANGES: dict[str, Any] = {"epochs": 2, "batch_size": 512, "lr": 0.01}


class Plain(nn.Module):
    """A network whose predictions do not depend on the statistics of its BatchNorm.

    Those each process has of its share alone.
    """

    kinds: ClassVar[set[str]] = set()
    """Of what its parameters are, outside the passes."""
    means: ClassVar[list[float]] = []
    """What the statistics are in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(400, 8), nn.Tanh())
        self.head = nn.Linear(8, 1)
        self.unused = nn.BatchNorm1d(400, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        self.unused(images.flatten(1))
        if not self.training:
            assert self.unused.running_mean is not None
            self.means.append(self.unused.running_mean.mean().item())
        output: Tensor = 50 + 10 * self.head(self.body(images)).squeeze(1)
        return output

    def train(self, mode: bool = True) -> "Plain":
        self.kinds.update(type(parameter).__name__ for parameter in self.parameters())
        return super().train(mode)


class Draw(nn.Module):
    """An augmentation that draws a number and changes nothing."""

    drawn: ClassVar[list[float]] = []

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        self.drawn.append(torch.rand(()).item())
        return images, targets


PLAIN = dataclasses.replace(
    rotated_digits.DATASET, network=lambda recipe: Plain(), augmentation=Draw
)


class StoppedError(Exception):
    """What ends a run."""


def stop_after(epochs: int, command: list[str]) -> None:
    """Run a command that an exception ends in its so many-th epoch, before the checkpoint."""
    on_train_epoch_end = History.on_train_epoch_end
    left = iter(range(epochs - 1))

    def end(self: History, *arguments: Any) -> None:
        on_train_epoch_end(self, *arguments)
        if next(left, None) is None:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(History, "on_train_epoch_end", end)
        with pytest.raises(StoppedError):
            main(command)


def run_in_each_process(data: str, folder: str, strategy: str) -> None:
    """Run the methods, and two of them once more, stopped twice and gone on with."""
    rotated_digits.DATASET = PLAIN
    options = ["--data", data, "--strategy", strategy, *settings(CHANGES), "--records"]
    with distributed.together():
        # One group for all commands: another needs another `torchrun`.
        distributed.together = nullcontext
        main(["run", NAME, *METHODS, *options, f"{folder}/whole"])
        command = ["run", NAME, "bsam", "rrt", "--resume", *options, f"{folder}/resumed"]
        stop_after(2, command)
        # In the second stage of the second run.
        stop_after(5, command)
        main(command)
        first, second = of_both(Draw.drawn)
        assert (first != second).all()
        first, second = of_both(Plain.means)
        assert (first == second).all()
    # Until it is shared out a network has plain parameters, as all of it has in each process of
    # the other strategy.
    assert ("DTensor" in Plain.kinds) == (strategy == "fsdp")


def of_both(values: list[float]) -> Tensor:
    """Return the values of each process, shape ``(2, N)``."""
    return distributed.batch_of_shares(torch.tensor(values), 2 * len(values)).view(2, -1)


def settings(changes: dict[str, Any]) -> list[str]:
    """Return the options that change the recipe."""
    return [text for name, value in changes.items() for text in ("--set", f"{name}={value}")]


@contextmanager
def torchrun(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start two processes; in the end they are gone."""
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    arguments += ["--nproc-per-node", "2", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        # Upon this signal, but no harder one, it ends those it started.
        process.terminate()
        process.wait()


def finish(*command: str, log: Path) -> None:
    """Wait for two processes, which must succeed in time."""
    with torchrun(*command, log=log) as process:
        assert process.wait(SECONDS) == 0, log.read_text()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the miniature of rotated digits."""
    folder = tmp_path_factory.mktemp("digits")
    rotated_digits.write_miniature(folder)
    return folder


def single(method: str, data: Path, folder: Path, changes: dict[str, Any]) -> Record:
    """Return the record of a single process."""
    recipe = resolved_recipe(get_dataset(NAME), changes=changes, normalized=False)
    return train(NAME, method, 0, recipe, folder=folder, data=data)


@pytest.fixture(scope="module")
def plain_records(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """Return the records of the network that heeds no BatchNorm, by method."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotated_digits, "DATASET", PLAIN)
        return {
            method: single(method, digits, tmp_path_factory.mktemp(method), CHANGES)
            for method in METHODS
        }


@pytest.fixture(scope="module")
def batch_norm_record(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return the record of BSAM with the real network."""
    return single("bsam", digits, tmp_path_factory.mktemp("bsam"), BATCH_NORM_CHANGES)


def check_alike(record: Record, expected: Record, *, error: float) -> None:
    """Check that two runs are the same but for rounding, or for BatchNorm."""
    assert record.recipe == expected.recipe
    assert record.passes == expected.passes
    assert record.best_epoch == expected.best_epoch
    assert record.samples == expected.samples
    for epoch, expected_epoch in zip(record.history, expected.history, strict=True):
        assert epoch == pytest.approx(expected_epoch, rel=error, abs=2e-5)
    for selection, result in record.results.items():
        for region, row in result["regions"].items():
            for metric in get_dataset(NAME).metrics:
                expected_value = expected.results[selection]["regions"][region][metric]
                assert row[metric] == pytest.approx(expected_value, rel=error)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_reach_the_metrics_of_one_and_resume_exactly(
    strategy: str, digits: Path, plain_records: dict[str, Record], tmp_path: Path
) -> None:
    command = ["-m", "tests.experiments.test_torchrun", str(digits), str(tmp_path), strategy]
    finish(*command, log=tmp_path / "log.txt")
    # Two networks are tested, one after the other.
    assert plain_records["rrt"].best_epoch < len(plain_records["rrt"].history) - 1
    for method, expected in plain_records.items():
        record = read_record(record_path(tmp_path / "whole", NAME, method, 0))
        check_alike(record, expected, error=1e-5)
        about = {"strategy": strategy, "processes": 2}
        assert record.provenance.items() >= about.items()
        assert not expected.provenance.keys() & about.keys()
    for method in ("bsam", "rrt"):
        whole, resumed = (
            read_record(record_path(tmp_path / name, NAME, method, 0))
            for name in ("whole", "resumed")
        )
        circumstances: dict[str, Any] = {"seconds": whole.seconds, "provenance": whole.provenance}
        assert dataclasses.replace(resumed, **circumstances) == whole


def test_two_processes_with_batch_norm_come_close_to_one(
    digits: Path, batch_norm_record: Record, tmp_path: Path
) -> None:
    command = ["-m", "benchmarks", "run", NAME, "bsam", "--data", str(digits)]
    command += ["--records", str(tmp_path), *settings(BATCH_NORM_CHANGES)]
    finish(*command, log=tmp_path / "log.txt")
    record = read_record(record_path(tmp_path, NAME, "bsam", 0))
    check_alike(record, batch_norm_record, error=1e-3)


def test_killed_torchrun_goes_on_from_its_last_epoch(
    digits: Path, batch_norm_record: Record, tmp_path: Path
) -> None:
    command = ["-m", "benchmarks", "run", NAME, "bsam", "--data", str(digits), "--resume"]
    command += ["--records", str(tmp_path), *settings(BATCH_NORM_CHANGES), "--strategy", "fsdp"]
    path = record_path(tmp_path, NAME, "bsam", 0)
    checkpoint = path.parent / ".seed-0" / "stage-0" / "last_epoch.ckpt"
    end = time.monotonic() + SECONDS
    with torchrun(*command, log=tmp_path / "killed.txt") as process:
        while not checkpoint.exists():
            assert process.poll() is None, (tmp_path / "killed.txt").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    # It waits for what the killed one has left behind, which ends with its epoch.
    finish(*command, log=tmp_path / "log.txt")
    check_alike(read_record(path), batch_norm_record, error=1e-3)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5))
def test_shares_of_a_batch_are_equally_long_and_begin_with_the_batch(
    samples: int, batch_size: int, processes: int
) -> None:
    batches = [list(range(samples))[i : i + batch_size] for i in range(0, samples, batch_size)]
    shares = [
        list(Shares(range(samples), batch_size, rank=rank, processes=processes))
        for rank in range(processes)
    ]
    for batch, parts in zip(batches, zip(*shares, strict=True), strict=True):
        assert len({len(part) for part in parts}) == 1
        together = [index for part in parts for index in part]
        assert together[: len(batch)] == batch
        assert set(together) == set(batch)
        assert len(together) < len(batch) + processes


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--strategy", "ddp"], {}, "of --strategy ddp to be started by torchrun"),
        (["--jobs", "2"], {"TORCHELASTIC_RUN_ID": "1"}, "--jobs 1 under torchrun.*got --jobs 2"),
    ],
)
def test_what_torchrun_is_for_is_said(
    options: list[str],
    environment: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        main(["run", NAME, "bsam", "--records", str(tmp_path), *options])
    assert not list(tmp_path.iterdir())


if __name__ == "__main__":
    run_in_each_process(*sys.argv[1:])
