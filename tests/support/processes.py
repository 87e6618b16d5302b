"""Processes of one gloo group that run the functions sent to them: ``torchrun`` for tests."""

import multiprocessing
import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# A collective that waits longer for its peers is an error in the process...
COLLECTIVE_SECONDS = 120
# ... and a function that does not answer by then is killed.
FUNCTION_SECONDS = 240


class RankError(Exception):
    """What went wrong, on each rank on which something did."""

    def __init__(self, errors: dict[int, str]) -> None:
        super().__init__("\n".join(f"Rank {rank}: {error}" for rank, error in errors.items()))
        self.errors = errors


class Ranks:
    """Two processes of one group, each with its rank; started when they are first needed.

    A function that raises ends its process, as it would end a script; the next one finds a new
    pair.

    Args:
        root: An empty folder for the files by which the processes find each other.
        ignored: Messages, as in ``warnings``, of the warnings that are not errors.
    """

    def __init__(self, root: Path, *, ignored: Iterable[str] = ()) -> None:
        self.root = root
        self.ignored = tuple(ignored)
        self.processes: list[SpawnProcess] = []
        self.connections: list[Connection] = []
        self.starts = 0

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self.connections:
            # Nothing more to come: a process that still listens ends.
            connection.close()
        for process in self.processes:
            process.join(FUNCTION_SECONDS)
        self._kill()

    def run(self, function: Callable[..., T], *args: object) -> list[T]:
        """Return what ``function(*args)`` returns on each rank.

        Args:
            function: A function of a module, which the processes import.
            args: What pickle can send.

        Raises:
            RankError: If it raises, ends its process or takes too long, on any rank.
        """
        if not self.processes:
            self._start()
        for connection in self.connections:
            connection.send_bytes(pickle.dumps((function, args)))
        deadline = time.monotonic() + FUNCTION_SECONDS
        answers = [_answer(connection, deadline) for connection in self.connections]
        errors = {rank: value for rank, (done, value) in enumerate(answers) if not done}
        if errors:
            self._kill()
            raise RankError(errors)
        return [value for _, value in answers]

    def _start(self) -> None:
        """Start a pair that meets in a file of its own."""
        self.starts += 1
        context = multiprocessing.get_context("spawn")
        for rank in range(2):
            mine, other = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(rank, self.root / f"store{self.starts}", self.ignored, other),
                daemon=True,
            )
            process.start()
            # Only then does the end of the process end the connection.
            other.close()
            self.processes.append(process)
            self.connections.append(mine)

    def _kill(self) -> None:
        """End what is left of the pair."""
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.connections = [], []


def _answer(connection: Connection, deadline: float) -> tuple[bool, object]:
    """Return whether a process is done with its function, and the value or what went wrong."""
    if not connection.poll(max(0.0, deadline - time.monotonic())):
        return False, f"no answer within {FUNCTION_SECONDS} seconds"
    try:
        return pickle.loads(connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        return False, "the process ended without an answer"


def _serve(rank: int, store: Path, ignored: Iterable[str], connection: Connection) -> None:
    """Run what comes, warnings being errors as in the test run, until nothing can come any more."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=store.as_uri(),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )
    # Not before: a machine that cannot resolve its own name is warned of there.
    warnings.simplefilter("error")
    for message in ignored:
        warnings.filterwarnings("ignore", message)
    while True:
        try:
            job = connection.recv_bytes()
        except EOFError:
            break
        try:
            function, args = pickle.loads(job)
            # Pickled here, not by the connection: that would send tensors as shared memory.
            answer = pickle.dumps((True, function(*args)))
        except Exception:
            connection.send_bytes(pickle.dumps((False, traceback.format_exc())))
            return
        connection.send_bytes(answer)
    dist.destroy_process_group()
