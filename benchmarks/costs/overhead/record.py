"""Measure what Balanced SAM costs beyond its two passes: ``python -m benchmarks overhead``.

Beside it run other implementations of SAM (the extra ``peers``) and a loop of two passes without
any, all in turns.
"""

import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.costs.overhead import figures, gpu
from benchmarks.costs.overhead.contenders import PEERS, available, missing
from benchmarks.costs.overhead.figures import MANY
from benchmarks.costs.overhead.measuring import (
    all_counts,
    calls_by_groups,
    sam_part,
    shapes_of,
    whole_step,
)
from benchmarks.costs.overhead.timing import Rounds, significant
from benchmarks.costs.overhead.workloads import Case
from benchmarks.experiment.record import COMMITTED
from benchmarks.training.provenance import device_name, git_state

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


def default_path(record: dict[str, Any]) -> Path:
    """Return where the record of a machine lies."""
    machine, threads = record["device"], record["threads"]
    if not record["checks"]:  # Those are of a GPU.
        machine += f" {threads} thread{'s' * (threads > 1)}"
    return COMMITTED / "overhead" / f"{re.sub('[^a-z0-9]+', '_', machine.lower()).strip('_')}.json"


def measure(device: torch.device, *, seconds: float) -> dict[str, Any]:
    """Return the record.

    Args:
        device: Where.
        seconds: For each measurement, about.
    """
    contenders, is_gpu = available(), device.type == "cuda"
    parts, cases = (CUDA_PARTS, CUDA_CASES) if is_gpu else (CPU_PARTS, CPU_CASES)
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
