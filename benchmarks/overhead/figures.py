"""What the measured rounds come to: ratios, the cost model, and which goals are met."""

from statistics import median
from typing import Any

from benchmarks.overhead.timing import Rounds, minus, over, significant, spread

OURS, REFERENCE, CONTROL = "balanced_sam", "pytorch_optimizer", "two_passes"
Figures = dict[str, Any]


def of_sam_part(rounds: Rounds, words: float) -> Figures:
    """Return milliseconds and ratios of the SAM parts; a part is a step without the control's.

    Args:
        rounds: Seconds of each contender's step, of the control's and of a copy of the weights.
        words: Moved by ours, a weight. A copy moves two, so the floor is as many copies as it
            takes to move them.
    """
    contenders = [name for name in rounds if name not in (CONTROL, "copy")]
    parts = {name: minus(rounds[name], rounds[CONTROL]) for name in contenders}
    floor = [copy * words / 2 for copy in rounds["copy"]]
    ratios = {"floor": spread(over(parts[OURS], floor))}
    if REFERENCE in parts:
        ratios[REFERENCE] = spread(over(parts[OURS], parts[REFERENCE]))
    return {
        "ms": {name: _milliseconds(part) for name, part in parts.items()},
        "floor_ms": _milliseconds(floor),
        "ours_over": ratios,
    }


def of_whole_step(rounds: Rounds) -> Figures:
    """Return the milliseconds of the control, and how many times as long each step takes."""
    return {
        "two_passes_ms": _milliseconds(rounds[CONTROL]),
        "over_two_passes": {
            name: spread(over(seconds, rounds[CONTROL]))
            for name, seconds in rounds.items()
            if name != CONTROL
        },
    }


def cost_model(one: Rounds, many: Rounds, tensors: int) -> Figures:
    """Return what a step of ours costs on next to no weights: at all, and a tensor.

    Args:
        one: Rounds on one tensor of one weight.
        many: Rounds on more of them.
        tensors: How many more.
    """
    few, lots = (median(minus(rounds[OURS], rounds[CONTROL])) for rounds in (one, many))
    per_tensor = (lots - few) / (tensors - 1)
    return {
        "fixed_us": significant(1e6 * (few - per_tensor)),
        "per_tensor_us": significant(1e6 * per_tensor),
    }


def predicted_ms(model: Figures, tensors: int, floor_ms: float, *, in_turn: bool) -> float:
    """Return what the model says of a step's SAM part.

    Args:
        model: From :func:`cost_model`.
        tensors: How many there are.
        floor_ms: What moving the words takes.
        in_turn: Whether the host works, then the memory, as on a CPU; or both at a time.
    """
    host_ms = (model["fixed_us"] + model["per_tensor_us"] * tensors) / 1000
    return significant(host_ms + floor_ms if in_turn else max(host_ms, floor_ms))


LARGER: Figures = {
    "weights": 6_738_415_616,
    "tensors": 291,
    "ranks": 8,
    "tokens_per_rank": 8_192,
    "bytes_per_second": 0.8 * 4.8e12,
    "operations_per_second": 0.4e15,
    "all_reduce_us": 50,
}
"""What is assumed of a larger machine: a Llama 2 of 7 billion weights in float32, sharded by FSDP2
over 8 GPUs that reach 0.8 of an H200's bandwidth and 0.4 of its bfloat16 operations."""


def larger(record: Figures) -> Figures:
    """Return what the model says of a step on a larger machine, for each rank.

    The host works for every tensor as it was measured on this machine; on a GPU meanwhile.
    """
    weights = LARGER["weights"] / LARGER["ranks"]
    words = max(count["words"] for count in _ours_by_path(record["counts"])["accelerator"])
    memory_ms = 1e3 * words * 4 * weights / LARGER["bytes_per_second"]
    host_ms = predicted_ms(record["sharded_cost_model"], LARGER["tensors"], 0, in_turn=True)
    part_ms = max(memory_ms, host_ms) + LARGER["all_reduce_us"] / 1e3
    # Two operations a weight and token forward, four backward.
    operations = 6 * LARGER["weights"] * LARGER["tokens_per_rank"]
    passes_ms = 2e3 * operations / LARGER["operations_per_second"]
    found = {
        "copy_gb": 4 * weights / 1e9,
        "memory_ms": memory_ms,
        "host_ms": host_ms,
        "sam_part_ms": part_ms,
        "two_passes_ms": passes_ms,
        "over_two_passes": 1 + part_ms / passes_ms,
    }
    return {"assumed": LARGER} | {name: significant(value) for name, value in found.items()}


def goals(record: Figures) -> list[Figures]:
    """Return each goal with what was measured and whether it is met."""
    found: list[Figures] = []

    def goal(what: str, where: str, measured: float, bound: float) -> None:
        met = measured <= bound
        found.append(
            {"goal": what, "where": where, "measured": measured, "at_most": bound, "met": met}
        )

    for name, part in record["sam_part"].items():
        ratios = part["ours_over"]
        if REFERENCE in ratios:
            goal("SAM part over pytorch_optimizer's", name, ratios[REFERENCE][0], 0.55)
    for name, part in record["sam_part"].items():
        if name.startswith("resnet"):
            goal("SAM part over its floor", name, part["ours_over"]["floor"][0], 1.3)
    for name, case in record["whole_step"].items():
        if name == "mlp, float32":
            goal("whole step over two passes", name, case["over_two_passes"][OURS][0], 1.08)
    by_path = _ours_by_path(record["counts"])
    for path, counts in by_path.items():
        calls = [count["calls"] for count in counts]
        goal("operator calls, most less fewest", path, max(calls) - min(calls), 0)
        goal("peak copies of the weights", path, max(c["peak_copies"] for c in counts), 1.01)
    reads = max(count["host_reads"] for count in by_path["accelerator"])
    goal("host reads", "accelerator", reads, 0)
    return found


def _ours_by_path(counts: Figures) -> dict[str, list[Figures]]:
    """Return our counts on every workload, for the CPU and for an accelerator."""
    return {
        path: [by_path[path][OURS] for by_path in counts.values()]
        for path in ("cpu", "accelerator")
    }


def _milliseconds(seconds: list[float]) -> list[float]:
    return spread([1000 * second for second in seconds])
