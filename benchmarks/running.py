"""Run many experiments, several at a time, each finished one kept."""

import json
import multiprocessing
import os
import shutil
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm

from benchmarks.protocol import Recipe
from benchmarks.recipes import described_recipe, resolved_recipe
from benchmarks.registry import get_dataset, get_method
from benchmarks.store import read_record, record_path, write_json


@dataclass(frozen=True)
class Run:
    """One experiment, and how and where it is run."""

    dataset: str
    method: str
    seed: int
    records: Path
    data: Path | None
    changes: dict[str, Any]
    """Entries of the recipe to change."""
    normalized: bool = False
    """Train with weights of mean 1, the recipe converted."""
    accelerator: str = "cpu"
    precision: str = "32-true"

    @property
    def path(self) -> Path:
        """Where the record goes."""
        return record_path(self.records, self.dataset, self.method, self.seed)

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        dataset = get_dataset(self.dataset)
        return resolved_recipe(dataset, changes=self.changes, normalized=self.normalized)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for an unfinished run to be gone on with."""
        data = str(self.data.resolve()) if self.data else None
        return {"recipe": self.description, "precision": self.precision, "data": data}

    @property
    def description(self) -> dict[str, Any]:
        """The resolved recipe and the method's stages, as the record holds them."""
        return described_recipe(self.recipe, get_method(self.method))


def run_all(runs: list[Run], *, jobs: int, resume: bool) -> None:
    """Run what has no record yet.

    Args:
        runs: The experiments.
        jobs: How many run at a time, each with its share of the processor's cores.
        resume: Keep the records there are, and go on from the checkpoints of unfinished runs. If
            False a record that is already there is an error.

    Raises:
        FileExistsError: If a record is there and ``resume`` is False.
        ValueError: If a record that is there was made with another recipe.
    """
    for run in runs:
        if run.path.exists():
            _check_record(run, resume=resume)
    missing = [run for run in runs if not run.path.exists()]
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[int] = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    epochs = sum(sum(run.description["stage_epochs"]) for run in missing)
    with (
        tqdm(total=epochs, unit="epoch", desc=f"{len(missing)} runs", smoothing=0.02) as bar,
        ProcessPoolExecutor(jobs, context, _start_worker, (queue, threads)) as pool,
    ):
        pending: set[Future[str]] = {pool.submit(_run, run, resume) for run in missing}
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
        bar.update(epochs - bar.n)


def _check_record(run: Run, *, resume: bool) -> None:
    """Raise if the record of ``run`` may not be taken for its result."""
    if not resume:
        raise FileExistsError(
            f"Expected no record yet at {run.path}. Pass --resume to keep what is there, or "
            "another folder with --records."
        )
    record, expected = read_record(run.path), run.description
    if record.provenance.get("precision") != run.precision:
        raise ValueError(
            f"Expected the record {run.path} to be of the precision {run.precision}, but got "
            f"{record.provenance.get('precision')}. Pass another folder with --records."
        )
    recipe = record.recipe
    if {name: recipe.get(name) for name in expected} != expected:
        raise ValueError(
            f"Expected the record {run.path} to be of the recipe {expected}, but got {recipe}. "
            "Pass another folder with --records."
        )


_queue: Any = None  # set in each worker: the one thing a spawned process must be handed


def _start_worker(queue: SimpleQueue[int], threads: int) -> None:
    global _queue
    _queue = queue
    torch.set_num_threads(threads)


def _run(run: Run, resume: bool) -> str:
    """Train, write the record, clear up; return the name of the run."""
    # Lightning takes seconds to import, which who only waits for the runs is spared.
    from benchmarks.training import train

    folder = run.path.with_name(f".seed-{run.seed}")
    folder.mkdir(parents=True, exist_ok=True)
    # A killed parent's worker may live on to the end of its epoch.
    with FileLock(run.path.with_name(f".seed-{run.seed}.lock")):
        begun = folder / "run.json"
        if not resume or not begun.exists() or json.loads(begun.read_text()) != run.identity:
            shutil.rmtree(folder)
            write_json(begun, run.identity)
        record = train(
            run.dataset,
            run.method,
            run.seed,
            run.recipe,
            folder=folder,
            data=run.data,
            accelerator=run.accelerator,
            precision=run.precision,
            after_epoch=_after_epoch,
        )
        write_json(run.path, record.to_dict())
        shutil.rmtree(folder)
    return f"{run.method} seed {run.seed}"


def _after_epoch() -> None:
    """Report an epoch; stop if the process that asked for it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)
    _queue.put(1)
