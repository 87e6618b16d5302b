"""What the measured rounds come to: ratios, and which goals are met."""

from typing import Any

from benchmarks.costs.overhead.timing import Rounds, minus, over, spread

OURS, BARE, REFERENCE, CONTROL = "balanced_sam", "bare", "pytorch_optimizer", "two_passes"
Figures = dict[str, Any]
MANY = "10,000 tensors"
"""Of 4 weights each, in no network."""


def of_sam_part(rounds: Rounds) -> Figures:
    """Return milliseconds and ratios of the SAM parts; a part is a step without the control's.

    Args:
        rounds: Seconds of each contender's step and of the control's.
    """
    parts = {
        name: minus(seconds, rounds[CONTROL]) for name, seconds in rounds.items() if name != CONTROL
    }
    return {
        "ms": {name: _milliseconds(part) for name, part in parts.items()},
        "ours_over": {
            name: spread(over(parts[OURS], part)) for name, part in parts.items() if name != OURS
        },
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
            goal("SAM part over pytorch_optimizer's", name, ratios[REFERENCE][0], 0.5)
        if name == MANY:
            goal("SAM part over the bare operators", name, ratios[BARE][0], 1.05)
    for name, case in record["whole_step"].items():
        if name == "mlp, float32":
            goal("whole step over two passes", name, case["over_two_passes"][OURS][0], 1.1)
    calls_of_one, calls_of_all = record["calls_by_groups"].values()
    goal("operator calls over those of one group", "200 groups", calls_of_all / calls_of_one, 1.3)
    by_path = _ours_by_path(record["counts"])
    for path, counts in by_path.items():
        calls = [count["calls"] for count in counts]
        goal("operator calls, difference of networks", path, max(calls) - min(calls), 0)
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
