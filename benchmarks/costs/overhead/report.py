"""The record of a run as tables."""

from typing import Any

from benchmarks.costs.overhead.contenders import CONTENDERS
from benchmarks.costs.overhead.figures import BARE, CONTROL, REFERENCE

Rows = list[list[str]]
Record = dict[str, Any]
_NAMES = [name for name in CONTENDERS if name != CONTROL]


def tables(record: Record) -> dict[str, Rows]:
    """Return the tables of a record by their titles."""
    found = {
        "SAM part alone, ms (and the middle half of the rounds' ratios)": sam_part(record),
        "Whole step, ms, and times as long (and the middle half of the rounds)": whole_step(record),
        "Counts on 500 tensors, SAM part alone": counts(record),
        "Goals": goals(record),
    }
    if record["launches"]:
        found["Launches and memory on the GPU, SAM part alone"] = launches(record)
    if record["checks"]:
        found["Checks on the GPU"] = [["Check", "Result"], *map(list, record["checks"].items())]
    return found


def sam_part(record: Record) -> Rows:
    """Return milliseconds of each contender, and our ratios."""
    others = (REFERENCE, BARE)
    rows = [["Network", "Weights", "Tensors", *_NAMES, *(f"ours / {name}" for name in others)]]
    for name, part in record["sam_part"].items():
        size = [name, f"{part['weights']:,}", f"{part['tensors']:,}"]
        rows.append(
            [
                *size,
                *(_figure(part["ms"].get(contender)) for contender in _NAMES),
                *(_ratio(part["ours_over"].get(other)) for other in others),
            ]
        )
    return rows


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
    """Return the counts of each contender on the network of 500 tensors."""
    by_path = record["counts"]["500 tensors"]
    heads = ["calls", "words a weight", "host reads"]
    rows = [["", *(f"{head}, {path}" for path in by_path for head in heads), "peak copies, cpu"]]
    for contender, count in by_path["cpu"].items():
        if contender != CONTROL:
            keys = ("calls", "words", "host_reads")
            found = [by_path[path][contender][key] for path in by_path for key in keys]
            rows.append([contender, *(f"{value:g}" for value in [*found, count["peak_copies"]])])
    return rows


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
