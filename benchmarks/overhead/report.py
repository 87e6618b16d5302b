"""The record of a run as tables."""

from typing import Any

from benchmarks.overhead.contenders import CONTENDERS
from benchmarks.overhead.figures import CONTROL

Rows = list[list[str]]
Record = dict[str, Any]
_NAMES = [name for name in CONTENDERS if name != CONTROL]


def tables(record: Record) -> dict[str, Rows]:
    """Return the tables of a record by their titles."""
    found = {
        "SAM part alone, ms (and the middle half of the rounds' ratios)": sam_part(record),
        "Page faults a step, SAM part alone": page_faults(record),
        "Whole step, ms, and times as long (and the middle half of the rounds)": whole_step(record),
        "Counts, SAM part alone": counts(record),
        "Measured, and what the cost model says": model(record),
        "What the model says of a larger machine, for each rank": larger(record),
        "Goals": goals(record),
    }
    if record["launches"]:
        found["Launches and memory on the GPU, SAM part alone"] = launches(record)
    if record["checks"]:
        found["Checks on the GPU"] = [["Check", "Result"], *map(list, record["checks"].items())]
    return found


def sam_part(record: Record) -> Rows:
    """Return milliseconds of each contender, the floor, and our ratios."""
    heads = ["ours / pytorch_optimizer", "ours / floor"]
    rows = [["Network", "Weights", "Tensors", *_NAMES, "floor", *heads]]
    for name, part in record["sam_part"].items():
        ratios = part["ours_over"]
        rows.append(
            [
                name,
                f"{part['weights']:,}",
                str(part["tensors"]),
                *(_figure(part["ms"].get(contender)) for contender in _NAMES),
                _figure(part["floor_ms"]),
                _ratio(ratios.get("pytorch_optimizer")),
                _ratio(ratios["floor"]),
            ]
        )
    return rows


def model(record: Record) -> Rows:
    """Return the parts of the model's sum, and what was measured over it."""
    rows = [["Network", "per step, ms", "tensors, ms", "words, ms", "model", "measured", "ratio"]]
    entries = record["cost_model"]
    for name, part in record["sam_part"].items():
        per_tensor = entries["per_tensor_us"] * part["tensors"]
        measured, predicted = part["ms"]["balanced_sam"][0], part["model_ms"]
        parts = [entries["fixed_us"] / 1e3, per_tensor / 1e3, part["floor_ms"][0]]
        figures = [*parts, predicted, measured, measured / predicted]
        rows.append([name, *(f"{figure:.3g}" for figure in figures)])
    return rows


def larger(record: Record) -> Rows:
    """Return what is assumed of a larger machine and what follows."""
    found = record["larger"]
    assumed = found["assumed"]
    return [
        ["", ""],
        ["Weights, float32", f"{assumed['weights']:,}"],
        ["Tensors", f"{assumed['tensors']}"],
        ["Ranks", f"{assumed['ranks']}"],
        ["Tokens a rank and pass", f"{assumed['tokens_per_rank']:,}"],
        ["Memory, TB/s", f"{assumed['bytes_per_second'] / 1e12:.3g}"],
        ["Operations, 10^12/s", f"{assumed['operations_per_second'] / 1e12:.3g}"],
        ["All-reduce of one number, µs", f"{assumed['all_reduce_us']}"],
        ["Copy of the shards, GB", f"{found['copy_gb']:.3g}"],
        ["Words moved, ms", f"{found['memory_ms']:.3g}"],
        ["Host, ms", f"{found['host_ms']:.3g}"],
        ["SAM part, ms", f"{found['sam_part_ms']:.3g}"],
        ["Two passes, ms", f"{found['two_passes_ms']:,.0f}"],
        ["SAM step over two passes", f"{found['over_two_passes']:.3f}"],
    ]


def page_faults(record: Record) -> Rows:
    """Return how many pages each contender gets from the operating system in a step."""
    return [["Network", *_NAMES]] + [
        [name, *(f"{faults[c]:,.0f}" if c in faults else "" for c in _NAMES)]
        for name, faults in ((n, part["page_faults"]) for n, part in record["sam_part"].items())
    ]


def whole_step(record: Record) -> Rows:
    """Return the milliseconds of two passes and a base step, and each contender's ratio to it."""
    has_captured = any("captured" in case["seconds"] for case in record["whole_step"].values())
    names = [*_NAMES, *["captured"] * has_captured]
    rows = [["Network", "two passes, ms", *names]]
    for name, case in record["whole_step"].items():
        ratios = [_ratio(case["over_two_passes"].get(contender)) for contender in names]
        rows.append([name, _figure(case["two_passes_ms"]), *ratios])
    return rows


def counts(record: Record) -> Rows:
    """Return the counts of each contender on each network."""
    heads = ["calls", "words a weight", "host reads", "peak copies", "kept copies"]
    return [["Network", "path", "contender", *heads]] + [
        [network, path, contender, *(f"{value:g}" for value in count.values())]
        for network, by_path in record["counts"].items()
        for path, by_contender in by_path.items()
        for contender, count in by_contender.items()
        if contender != CONTROL
    ]


def launches(record: Record) -> Rows:
    """Return what each contender launches on the GPU, and its memory, on each network."""
    return [["Network", "contender", "launches", "peak copies"]] + [
        [network, contender, *(f"{value:g}" for value in count.values())]
        for network, by_contender in record["launches"].items()
        for contender, count in by_contender.items()
    ]


def goals(record: Record) -> Rows:
    """Return each goal and whether it is met."""
    return [["Goal", "where", "measured", "at most", "result"]] + [
        [
            goal["goal"],
            goal["where"],
            f"{goal['measured']:.3g}",
            f"{goal['at_most']:g}",
            "met" if goal["met"] else "not met",
        ]
        for goal in record["goals"]
    ]


def _figure(spread: list[float] | None) -> str:
    return "" if spread is None else f"{spread[0]:.3g}"


def _ratio(spread: list[float] | None) -> str:
    return "" if spread is None else "{:.3f} ({:.3f} to {:.3f})".format(*spread)
