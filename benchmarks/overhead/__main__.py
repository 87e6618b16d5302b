"""Measure what Balanced SAM costs beyond its two passes: ``python -m benchmarks.overhead``.

Beside it run other implementations of SAM (the extra ``peers``) and a loop of two passes without
any, all in turns.
"""

import argparse
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.overhead import figures, gpu, report
from benchmarks.overhead.contenders import PEERS, available, missing
from benchmarks.overhead.measuring import (
    MANY,
    all_counts,
    calls_by_groups,
    sam_part,
    shapes_of,
    whole_step,
)
from benchmarks.overhead.timing import Rounds, significant
from benchmarks.overhead.workloads import Case
from benchmarks.provenance import device_name, git_state
from benchmarks.store import COMMITTED, write_json
from benchmarks.tables import markdown

CPU_PARTS = ("mlp", "500 tensors", "resnet18", "resnet50", MANY)
CPU_CASES = (
    Case("mlp"),
    Case("mlp", "bfloat16"),
    Case("500 tensors"),
    Case("resnet18"),
    Case("resnet50"),
)
"""In bfloat16 the MLP alone: a CPU without such instructions takes six times as long."""
CUDA_PARTS = (*CPU_PARTS, "vit_b")
CUDA_CASES = (
    *(
        Case(name, precision)
        for precision in ("float32", "bfloat16")
        for name in ("mlp", "500 tensors", "resnet18", "resnet50", "vit_b")
    ),
    *(Case(name, "float16") for name in ("resnet50", "vit_b")),
    *(Case("resnet50", precision, channels_last=True) for precision in ("float32", "bfloat16")),
)


def main() -> None:
    """Measure, print and keep the record."""
    parser = argparse.ArgumentParser("python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each measurement")
    parser.add_argument("--out", type=Path, help="the record (default: named by the device)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("Expected a GPU for `--device cuda`, but torch finds none.")
    torch.set_num_threads(options.threads)
    is_gpu = options.device == "cuda"
    record = measure(
        CUDA_PARTS if is_gpu else CPU_PARTS,
        CUDA_CASES if is_gpu else CPU_CASES,
        device=torch.device(options.device),
        seconds=options.seconds,
    )
    threads = "" if is_gpu else f"_{options.threads}_thread{'s' * (options.threads > 1)}"
    write_json(options.out or default_path(record["device"] + threads), record)
    for title, rows in report.tables(record).items():
        print(f"\n{title}\n\n{markdown(rows)}")
    for sentence in record["not_run"]:
        print(f"\nNot run: {sentence}.")


def default_path(machine: str) -> Path:
    """Return where the record of a machine lies."""
    return COMMITTED / "overhead" / f"{re.sub('[^a-z0-9]+', '_', machine.lower()).strip('_')}.json"


def measure(
    parts: tuple[str, ...], cases: tuple[Case, ...], *, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Return the record.

    Args:
        parts: Workloads on which to measure the SAM part alone.
        cases: Whole steps to measure.
        device: Where.
        seconds: For each measurement, about.
    """
    contenders, is_gpu = available(), device.type == "cuda"
    load_before = os.getloadavg()
    checks = gpu.checks() if is_gpu else {}
    # How long a replay takes says nothing where it is not a step.
    capture = gpu.captured if checks.get(gpu.CAPTURE_CHECK) == "passed" else None
    shapes = {name: shapes_of(name) for name in parts}
    networks = [name for name in parts if name != MANY]
    counts = {name: all_counts(shapes[name], contenders) for name in tqdm(networks, "counts")}
    sam_parts: dict[str, Any] = {}
    for name in tqdm(parts, "SAM part alone"):
        rounds = sam_part(shapes[name], contenders, device=device, seconds=seconds)
        figure = figures.of_sam_part(rounds) | {"seconds": _rounded(rounds)}
        sam_parts[name] = _size(shapes[name]) | figure
    whole_steps: dict[str, Any] = {}
    for case in tqdm(cases, "whole steps"):
        rounds = whole_step(case, contenders, device=device, seconds=seconds, capture=capture)
        whole_steps[str(case)] = figures.of_whole_step(rounds) | {"seconds": _rounded(rounds)}
    record = facts(device) | {
        "load_average": [load_before, os.getloadavg()],
        "seconds_per_measurement": seconds,
        "not_run": not_run(device),
        "sam_part": sam_parts,
        "whole_step": whole_steps,
        "counts": counts,
        "calls_by_groups": {str(groups): calls_by_groups(groups) for groups in (1, 200)},
        "launches": {name: gpu.counts(shapes[name], contenders) for name in parts if is_gpu},
        "checks": checks,
    }
    return record | {"goals": figures.goals(record)}


def facts(device: torch.device) -> dict[str, Any]:
    """Return what is needed to measure again: the machine, the code, the versions."""
    packages = ("balanced-sam", "torch", "transformers", *set(PEERS).difference(missing()))
    return {
        "device": device_name(device.type),
        "threads": torch.get_num_threads(),
        "commit": git_state("rev-parse", "HEAD"),
        "dirty": bool(git_state("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: version(name) for name in sorted(packages)},
    }


def not_run(device: torch.device) -> list[str]:
    """Return what was left out, and why."""
    sentences = [f"{name}, which is not installed (the extra `peers` has it)" for name in missing()]
    if device.type != "cuda":
        sentences += [f"{what}, for want of a GPU" for what in gpu.NOT_RUN]
    return sentences


def _size(shapes: list[torch.Size]) -> dict[str, int]:
    return {"weights": sum(shape.numel() for shape in shapes), "tensors": len(shapes)}


def _rounded(rounds: Rounds) -> Rounds:
    return {name: [significant(value) for value in values] for name, values in rounds.items()}


if __name__ == "__main__":
    main()
