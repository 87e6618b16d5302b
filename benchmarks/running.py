"""Run many experiments, several at a time, each finished one kept."""

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm

from benchmarks import distributed
from benchmarks.protocol import Recipe
from benchmarks.recipes import described_recipe, resolved_recipe
from benchmarks.registry import get_dataset, get_method
from benchmarks.store import read_record, record_path, write_json

USUAL = "ddp"
"""How the processes of ``torchrun`` share the work, unless they are told."""


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
    strategy: str | None = None
    """How the processes of ``torchrun`` share the work; None for the usual way."""

    @property
    def path(self) -> Path:
        """Where the record goes."""
        return record_path(self.records, self.dataset, self.method, self.seed)

    @property
    def folder(self) -> Path:
        """Where checkpoints and the log lie while the run lasts."""
        return self.path.with_name(f".seed-{self.seed}")

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        dataset = get_dataset(self.dataset)
        return resolved_recipe(dataset, changes=self.changes, normalized=self.normalized)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for an unfinished run to be gone on with."""
        data = str(self.data.resolve()) if self.data else None
        return {
            "recipe": self.description,
            "precision": self.precision,
            "data": data,
            **distributed.described(self.strategy or USUAL),
        }

    @property
    def description(self) -> dict[str, Any]:
        """The resolved recipe and the method's stages, as the record holds them."""
        return described_recipe(self.recipe, get_method(self.method))


def run_all(runs: list[Run], *, jobs: int, resume: bool) -> None:
    """Run what has no record yet, each in its own process or in all that ``torchrun`` started.

    Args:
        runs: The experiments.
        jobs: How many run at a time, each with its share of the processor's cores.
        resume: Keep the records there are, and go on from the checkpoints of unfinished runs. If
            False a record that is already there is an error.

    Raises:
        FileExistsError: If a record is there and ``resume`` is False.
        ValueError: If a record that is there was made with another recipe, or if ``torchrun`` is
            missing for a strategy, or there where several runs are wanted at a time.
    """
    _check_launch(runs, jobs)
    for run in runs:
        if run.path.exists():
            _check_record(run, resume=resume)
    # A run may have been killed between its record and the end of its folder.
    left = [run for run in runs if not run.path.exists() or run.folder.exists()]
    if not left:
        return
    epochs = sum(sum(run.description["stage_epochs"]) for run in left)
    is_shown = int(os.environ.get("RANK", 0)) == 0
    with tqdm(
        total=epochs, unit="epoch", desc=f"{len(left)} runs", smoothing=0.02, disable=not is_shown
    ) as bar:
        if distributed.is_launched():
            _run_together(left, resume, bar)
        else:
            _run_in_pool(left, resume, bar, jobs=jobs)
        bar.update(epochs - bar.n)


def _check_launch(runs: list[Run], jobs: int) -> None:
    """Raise if what is asked for needs ``torchrun``, or cannot be had with it."""
    if distributed.is_launched():
        if jobs > 1:
            raise ValueError(
                "Expected --jobs 1 under torchrun, whose processes train one network after the "
                f"other together, but got --jobs {jobs}."
            )
    elif wanted := {run.strategy for run in runs if run.strategy}:
        raise ValueError(
            f"Expected the processes of --strategy {wanted.pop()} to be started by torchrun, as in "
            "`torchrun --nproc-per-node 2 -m benchmarks run ...`, but got a single process."
        )


def _run_in_pool(runs: list[Run], resume: bool, bar: "tqdm[Any]", *, jobs: int) -> None:
    """Run several at a time, each in a worker."""
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[int] = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
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


def _run_together(runs: list[Run], resume: bool, bar: "tqdm[Any]") -> None:
    """Run one after the other, each in all processes."""
    launcher = os.getppid()

    def after_epoch() -> None:
        if os.getppid() != launcher:
            os._exit(1)
        bar.update()

    # Only when all have seen which runs are left does one of them begin.
    with distributed.together():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // distributed.processes_here()))
        for run in runs:
            bar.set_postfix_str(_run(run, resume, after_epoch))


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
    is_first = distributed.rank() == 0
    run.path.parent.mkdir(parents=True, exist_ok=True)
    # A killed parent's worker may live on to the end of its epoch.
    with FileLock(run.path.with_name(f".seed-{run.seed}.lock")) if is_first else nullcontext():
        if is_first and not run.path.exists():
            _prepare(run, resume)
        distributed.wait_for_all()
        if not run.path.exists():
            _train(run, after_epoch)
        if is_first:
            shutil.rmtree(run.folder, ignore_errors=True)
        distributed.wait_for_all()
    return f"{run.method} seed {run.seed}"


def _prepare(run: Run, resume: bool) -> None:
    """Keep the folder of an unfinished run if it is to be gone on with, or else empty it."""
    begun = run.folder / "run.json"
    if not resume or not begun.exists() or json.loads(begun.read_text()) != run.identity:
        shutil.rmtree(run.folder, ignore_errors=True)
        write_json(begun, run.identity)


def _train(run: Run, after_epoch: Callable[[], None]) -> None:
    """Train and write the record."""
    # Lightning takes seconds to import, which who only waits for the runs is spared.
    from benchmarks.training import train

    record = train(
        run.dataset,
        run.method,
        run.seed,
        run.recipe,
        folder=run.folder,
        data=run.data,
        accelerator=run.accelerator,
        precision=run.precision,
        strategy=run.strategy or USUAL,
        after_epoch=after_epoch,
    )
    if distributed.rank() == 0:
        # In the folder, which goes in the end, so that a draft of a killed process goes, too.
        draft = run.folder / "record.json"
        write_json(draft, record.to_dict())
        draft.replace(run.path)
