"""What works with what: the table of the README, made of the tests that ran.

A test says by ``@pytest.mark.works_with("ddp")`` which row it stands for. A run in which every row
had a test, such as that of all tests, fails if the README says something else;
``pytest --write-compatibility`` writes the table anew.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
ROWS = {
    "bases": (
        "SGD, Adam, AdamW and other `torch.optim` optimizers",
        "built, a class or a `functools.partial`; one that needs a closure itself, such as LBFGS, "
        "is refused",
    ),
    "schedulers": (
        "every scheduler in `torch.optim.lr_scheduler`, EMA, SWA",
        "on the wrapper or on the base",
    ),
    "checkpoints": (
        "checkpoints",
        "`state_dict()` is the base's own with `rho`; resume is exact; plain SGD and AdamW "
        "checkpoints load",
    ),
    "amp": (
        "`torch.amp.GradScaler`, `autocast`",
        "`optimizer.step(closure, scaler=scaler)`; an overflow in either pass skips the step",
    ),
    "clipping": (
        "gradient clipping",
        "in the closure, or in a step pre hook, which sees the descent gradient",
    ),
    "micro_batches": ("micro-batches", "looped inside the closure"),
    "batch_norm": (
        "BatchNorm",
        "`descent_context=partial(frozen_running_stats, model)` keeps the statistics of the clean "
        "pass",
    ),
    "ddp": (
        "`DistributedDataParallel`",
        "one perturbation for all processes; with `ascent_context=model.no_sync` one for each",
    ),
    "sharded": (
        "FSDP2 (`fully_shard`), HSDP, tensor parallelism",
        "shard first, then make the optimizer; FSDP1 is refused",
    ),
    "dcp": (
        "`torch.distributed.checkpoint`",
        "goes on exactly on another number of processes",
    ),
    "compile": (
        "`torch.compile`",
        "of the model (one graph for both passes), of the closure, of a manual loop",
    ),
    "lightning": (
        "Lightning, Fabric",
        "automatic and manual optimization; not `accumulate_grad_batches`, not 16-mixed with "
        "automatic optimization",
    ),
    "accelerate": ("Accelerate", "`prepare`, `save_state`, `load_state`; not `accumulate()`"),
    "transformers": (
        "transformers' `Trainer`",
        "not as it is: it calls `step()` alone, which raises; with a `training_step` of three "
        "lines, see the docs",
    ),
    "half_weights": (
        "weights stored in 16 bits",
        "work, with a warning: most coordinates do not move by less than their rounding",
    ),
}
_BLOCK = re.compile(r"(<!-- compatibility -->\n).*?(<!-- end compatibility -->)", re.DOTALL)


class Report:
    """Collect which rows have tests that passed, and compare the README with them."""

    def __init__(self, *, write: bool) -> None:
        self._write = write
        self._files: dict[str, set[str]] = defaultdict(set)
        self._seen: set[str] = set()
        self._failed: set[str] = set()
        self._complaint = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Send the rows of each test along with its report, from other processes as well."""
        for item in items:
            for key in _keys(item):
                if key not in ROWS:
                    raise pytest.UsageError(f"Expected a row of {list(ROWS)}, but got {key!r}.")
                item.user_properties.append(("works_with", key))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a test."""
        for name, key in report.user_properties:
            if name == "works_with":
                self._seen.add(str(key))
                if report.failed:
                    self._failed.add(str(key))
                elif report.when == "call" and report.passed:
                    self._files[str(key)].add(report.nodeid.partition("::")[0])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare the README with the tests, or write it, if every row had a test."""
        if hasattr(session.config, "workerinput") or self._seen != ROWS.keys():
            return
        text = README.read_text()
        expected = _BLOCK.sub(lambda match: f"{match[1]}\n{self._table()}\n\n{match[2]}", text)
        if self._write:
            README.write_text(expected)
        elif text != expected:
            self._complaint = (
                "Expected README.md to say what the tests show: pytest --write-compatibility."
            )
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what is wrong."""
        if self._complaint:
            terminalreporter.write_line(self._complaint, red=True)

    def _table(self) -> str:
        """Return the table of the rows whose tests all passed."""
        rows = [["What", "How", "Shown by"], ["---"] * 3]
        for key, (what, how) in ROWS.items():
            if self._files[key] and key not in self._failed:
                files = sorted(self._files[key])
                rows.append([what, how, ", ".join(f"[{Path(f).stem}]({f})" for f in files)])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _keys(item: pytest.Item) -> Iterator[str]:
    """Yield the rows that a test stands for."""
    for marker in item.iter_markers("works_with"):
        yield from marker.args
