"""Run many experiments, several at a time, each finished one kept."""

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm

from benchmarks.experiment.dataset import Splits
from benchmarks.experiment.plan import Plan, plan
from benchmarks.experiment.record import (
    read_record,
    record_path,
    samples_path,
    write_json,
    write_record,
)
from benchmarks.experiment.registry import get_dataset


@dataclass(frozen=True)
class Run:
    """One experiment, and how and where it is run."""

    dataset: str
    method: str
    seed: int
    records: Path
    data: Path | None
    changes: dict[str, Any]
    """Entries of the recipe, or constants of the method, to change."""
    normalized: bool = False
    """Train with weights of mean 1, the recipe converted."""
    accelerator: str = "cpu"
    precision: str = "32-true"

    @property
    def path(self) -> Path:
        """Where the record goes."""
        return record_path(self.records, self.dataset, self.method, self.seed)

    @property
    def folder(self) -> Path:
        """Where checkpoints and the log lie while the run lasts."""
        return self.path.with_name(f".seed-{self.seed}")

    @property
    def plan(self) -> Plan:
        """What is done."""
        return plan(self.dataset, self.method, self.changes, normalized=self.normalized)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same, beside the data, for an unfinished run to be gone on with."""
        return {
            "recipe": self.plan.description,
            "precision": self.precision,
            "data": str(self.data.resolve()) if self.data else None,
            # Elsewhere Lightning does not remember which epoch was the best.
            "folder": str(self.folder.resolve()),
        }


def run_all(runs: list[Run], *, jobs: int, resume: bool) -> None:
    """Run what has no record yet, each in its own process.

    Args:
        runs: The experiments.
        jobs: How many run at a time, each with its share of torch's threads.
        resume: Keep the records there are, and go on from the checkpoints of unfinished runs. If
            False a record that is already there is an error.

    Raises:
        FileExistsError: If a record is there and ``resume`` is False.
        ValueError: If a record that is there was made with another recipe or of other data.
    """
    finished = [run for run in runs if run.path.exists()]
    for run in finished:
        _check_record(run, resume=resume)
    _check_data(finished)
    # A run may have been killed between its record and the end of its folder.
    left = [run for run in runs if not run.path.exists() or run.folder.exists()]
    if not left:
        return
    epochs = sum(sum(run.plan.description["stage_epochs"]) for run in left)
    with tqdm(total=epochs, unit="epoch", desc=f"{len(left)} runs", smoothing=0.02) as bar:
        _run_in_pool(left, resume, bar, jobs=jobs)
        bar.update(epochs - bar.n)


def _run_in_pool(runs: list[Run], resume: bool, bar: "tqdm[Any]", *, jobs: int) -> None:
    """Run several at a time, each in a worker."""
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[int] = context.SimpleQueue()
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, context, _start_worker, (queue, threads)) as pool:
        pending: set[Future[str]] = {pool.submit(_run, run, resume, _tell) for run in runs}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                while not queue.empty():
                    bar.update(queue.get())
                for future in done:
                    bar.set_postfix_str(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _check_record(run: Run, *, resume: bool) -> None:
    """Raise if the record of ``run`` may not be taken for its result."""
    if not resume:
        raise FileExistsError(
            f"Expected no record yet at {run.path}. Pass --resume to keep what is there, or "
            "another folder with --records."
        )
    record, expected = read_record(run.path), run.plan.description
    if record.provenance.get("precision") != run.precision:
        raise ValueError(
            f"Expected the record {run.path} to be of the precision {run.precision}, but got "
            f"{record.provenance.get('precision')}. Pass another folder with --records."
        )
    recipe = record.recipe
    names = {*expected, "label_noise"}  # which is not said where there is none
    if any(recipe.get(name) != expected.get(name) for name in names):
        raise ValueError(
            f"Expected the record {run.path} to be of the recipe {expected}, but got {recipe}. "
            "Pass another folder with --records."
        )


def _check_data(runs: list[Run]) -> None:
    """Raise if the record of a run was made of other data than it asks for."""
    # Read once for all runs, as the folds of a data set share its checksum.
    asked = {(run.dataset, run.data) for run in runs}
    checksums = {(name, root): get_dataset(name).load(root).checksum for name, root in asked}
    for run in runs:
        expected = checksums[run.dataset, run.data]
        found = read_record(run.path).provenance.get("data_sha256")
        if found != expected:
            raise ValueError(
                f"Expected the record {run.path} to be of the data with the checksum {expected}, "
                f"but got {found}. Pass another folder with --records."
            )


_queue: Any = None  # set in each worker: the one thing a spawned process must be handed


def _start_worker(queue: SimpleQueue[int], threads: int) -> None:
    global _queue
    _queue = queue
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Stop when the process that asked for the runs is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _tell() -> None:
    """Report an epoch."""
    _queue.put(1)


def _run(run: Run, resume: bool, after_epoch: Callable[[], None]) -> str:
    """Train, write the record, clear up; return the name of the run."""
    # First, so that a run whose data cannot be read leaves nothing behind, and loses nothing.
    splits = get_dataset(run.dataset).load_for(run.seed, run.data)
    run.path.parent.mkdir(parents=True, exist_ok=True)
    # A killed parent's worker may live on to the end of its epoch.
    with FileLock(run.path.with_name(f".seed-{run.seed}.lock")):
        if not run.path.exists():
            _prepare(run, splits, resume)
            _train(run, splits, after_epoch)
        shutil.rmtree(run.folder, ignore_errors=True)
    return f"{run.method} seed {run.seed}"


def _prepare(run: Run, splits: Splits, resume: bool) -> None:
    """Keep the folder of an unfinished run if it is to be gone on with, or else empty it."""
    begun, identity = run.folder / "run.json", run.identity | {"data_sha256": splits.checksum}
    if not resume or not begun.exists() or json.loads(begun.read_text()) != identity:
        shutil.rmtree(run.folder, ignore_errors=True)
        write_json(begun, identity)


def _train(run: Run, splits: Splits, after_epoch: Callable[[], None]) -> None:
    """Train and write the record."""
    # Lightning takes seconds to import, which who only waits for the runs is spared.
    from benchmarks.training.trainer import train

    record = train(
        run.plan,
        splits,
        run.seed,
        folder=run.folder,
        accelerator=run.accelerator,
        precision=run.precision,
        after_epoch=after_epoch,
    )
    # In the folder, which goes in the end, so that a draft of a killed process goes, too.
    draft = run.folder / "record.json"
    write_record(draft, record)
    samples_path(draft).replace(samples_path(run.path))
    draft.replace(run.path)
