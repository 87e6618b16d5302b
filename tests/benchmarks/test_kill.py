"""Runs of the benchmarks that are killed anywhere, over and over, and gone on with."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch

from benchmarks.datasets import rotated_digits
from benchmarks.training import pool
from benchmarks.training.pool import Run
from support.networks import TinyNetwork

ROOT = Path(__file__).parents[2]
# How often a process dies of what it is about to do to a file of a kind, and how often at any time.
KILLS = {"ckpt": 6, "record": 5, "other": 4, "time": 5}
CHANGES = {"epochs": 2, "batch_size": 40, "lr": 0.05}
CONSTANTS: dict[str, dict[str, Any]] = {"vanilla": {}, "bsam": {}, "rrt": {"retrain_epochs": 2}}
SECONDS = 120


def the_runs(data: Path, records: Path) -> list[Run]:
    """Return runs of one pass a step and of two, of one stage and of two."""
    return [
        Run("rotated_digits", method, 0, records, data, CHANGES | constants)
        for method, constants in CONSTANTS.items()
    ]


def work(runs: list[Run], kind: str, number: int, done: Path) -> None:
    """Do what a worker does, on few samples and weights, and die before a change of a file.

    Args:
        runs: What to run.
        kind: The file's kind; any other word to live on.
        number: Which of the changes of such files, counted from 1.
        done: Where to write how many changes there were of each kind, and how long it took.
    """
    start = monotonic()
    torch.set_num_threads(1)
    rotated_digits.TRAIN_COUNTS = (rotated_digits.TRAIN_COUNTS > 0).int()
    rotated_digits.VALIDATION_PER_TARGET = rotated_digits.TEST_PER_TARGET = 1
    rotated_digits.DATASET = dataclasses.replace(
        rotated_digits.DATASET, network=lambda recipe: TinyNetwork(maps=False)
    )
    seen: Counter[str] = Counter()

    def meet(kind_of_file: str) -> None:
        seen[kind_of_file] += 1
        if kind_of_file == kind and seen[kind] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_epoch() -> None:
        with epochs_of(runs).open("a") as file:
            file.write(".")

    watch(runs[0].records, meet)
    for run in runs:
        pool._run(run, True, after_epoch)
    done.write_text(json.dumps({"counts": seen, "seconds": monotonic() - start}))


def epochs_of(runs: list[Run]) -> Path:
    """Return the file that has a character for each epoch of all processes."""
    return runs[0].records.with_suffix(".epochs")


def watch(root: Path, meet: Callable[[str], None]) -> None:
    """Call ``meet`` before each change of a file below ``root``, and when half of it is written."""
    save, write_text = torch.save, Path.write_text

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        path = Path(str(arguments[0]))
        if event in ("os.remove", "os.rmdir") and not path.is_absolute():
            # Named relative to the folder that goes with it.
            meet("other")
        elif root in path.parents and (event != "open" or "w" in str(arguments[1])):
            meet(kind_of(path))

    def save_half_first(value: Any, path: Path) -> None:
        buffer = BytesIO()
        save(value, buffer)
        path.write_bytes(buffer.getvalue()[: buffer.tell() // 2])
        meet(kind_of(path))
        save(value, path)

    def write_half_first(path: Path, text: str) -> None:
        write_text(path, text[: len(text) // 2])
        meet(kind_of(path))
        write_text(path, text)

    sys.addaudithook(hear)
    torch.save = save_half_first
    Path.write_text = write_half_first  # type: ignore[method-assign, assignment]


def kind_of(path: Path) -> str:
    """Return the kind of a file, or of its draft."""
    return next((kind for kind in ("ckpt", "record") if kind in path.name), "other")


class Worker:
    """A process at a time that has everything imported when it starts."""

    def __init__(self, folder: Path) -> None:
        self._done = folder / "done.json"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["benchmarks.training.trainer", "pytest"])

    def run(self, runs: list[Run], kind: str = "none", number: int = 0) -> bool:
        """Return whether the process died as it was to."""
        process = self._start(runs, kind, number)
        try:
            process.join(SECONDS)
            assert process.exitcode in (0, -signal.SIGKILL)
            return process.exitcode != 0
        finally:
            process.kill()

    def run_for(self, seconds: float, runs: list[Run]) -> bool:
        """Return whether the process was killed before it was done."""
        process = self._start(runs, "none", 0)
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode != 0

    def done(self) -> dict[str, Any]:
        """Return what the last process that was not killed has counted."""
        done: dict[str, Any] = json.loads(self._done.read_text())
        return done

    def _start(self, runs: list[Run], kind: str, number: int) -> ForkServerProcess:
        process = self._context.Process(target=work, args=(runs, kind, number, self._done))
        process.start()
        return process


def without_circumstances(text: str) -> dict[str, Any]:
    """Return a record but for what may differ between two equal runs."""
    record: dict[str, Any] = json.loads(text)
    del record["seconds"], record["provenance"]
    return record


def texts(runs: list[Run]) -> dict[str, str]:
    """Return the records there are, by method."""
    return {run.method: run.path.read_text() for run in runs if run.path.exists()}


def test_killed_at_twenty_moments_runs_lose_no_record_and_end_as_if_never_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For the server that forks the processes.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(ROOT)
    rotated_digits.write_miniature(tmp_path / "data")
    worker, generator = Worker(tmp_path), random.Random(0)
    runs = the_runs(tmp_path / "data", tmp_path / "never_killed")
    assert not worker.run(runs)
    expected = {method: without_circumstances(text) for method, text in texts(runs).items()}
    assert len(expected) == len(runs)
    counts, seconds = worker.done()["counts"], worker.done()["seconds"]
    epochs = len(epochs_of(runs).read_text())
    kills = [kind for kind, times in KILLS.items() for _ in range(times)]
    generator.shuffle(kills)
    was_killed, folders = False, itertools.count()
    while kills or was_killed:
        if not was_killed:
            runs = the_runs(tmp_path / "data", tmp_path / f"{next(folders)}")
            times = 0
        before = texts(runs)
        kind = kills[-1] if kills else "none"
        if kind == "time":
            was_killed = worker.run_for(generator.uniform(0, seconds), runs)
        else:
            was_killed = worker.run(runs, kind, generator.randint(1, counts.get(kind, 2) // 2))
        after = texts(runs)
        assert before.items() <= after.items()
        for method, text in after.items():
            assert without_circumstances(text) == expected[method]
        if was_killed:
            kills.pop()
            times += 1
        else:
            # Each time at most the epoch is lost that had not been saved yet.
            assert len(epochs_of(runs).read_text()) <= epochs + times
            assert len(after) == len(runs)
            left = {path.name for run in runs for path in run.path.parent.iterdir()}
            assert left == {"seed-0.json", "seed-0.npz", ".seed-0.lock"}
