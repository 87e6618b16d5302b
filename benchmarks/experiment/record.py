"""The record of a run, and records on disk: per run a JSON file, written whole or not at all.

What each test sample adds lies beside it, compressed.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMMITTED = Path(__file__).parents[1] / "records"


@dataclass(frozen=True)
class Record:
    """One run, self-sufficient: what was done, with what, and what came out."""

    dataset: str
    method: str
    seed: int
    recipe: dict[str, Any]
    """The resolved recipe, as far as the method uses it, and the epochs of each stage."""
    history: list[dict[str, float | None]]
    """Per epoch: stage, training loss, and on validation the metrics over all and the first on
    few-shot targets; None where there is no target or no finite value."""
    best_epoch: int
    """The entry of ``history`` of the last stage's best epoch by the overall validation error."""
    results: dict[str, Any]
    """Per selection of the data set, such as "last_epoch": metrics per region on the test set, and
    the first of them per bin."""
    passes: float
    """Forward and backward passes over a batch: one a step, two for SAM; a part of one is a
    fraction."""
    seconds: float
    """How long the epochs took, their validation included."""
    provenance: dict[str, Any]
    samples: dict[str, list[Any]] = field(default_factory=dict)
    """Of each test sample its bin and, by selection, what it adds (``training.evaluation``)."""


def record_path(root: Path, dataset: str, method: str, seed: int) -> Path:
    """Return where the record of an experiment lies below ``root``."""
    return root / dataset / method / f"seed-{seed}.json"


def samples_path(path: Path) -> Path:
    """Return where the samples of the record in ``path`` lie."""
    return path.with_suffix(".npz")


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Yield a file beside ``path`` to be written, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    yield draft
    draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    with draft_of(path) as draft:
        draft.write_text(_to_json(value) + "\n")


def write_record(path: Path, record: Record) -> None:
    """Write a record, its samples first: where there is a record there are its samples."""
    values = asdict(record)
    columns = {name: _compact(np.array(column)) for name, column in values.pop("samples").items()}
    with draft_of(samples_path(path)) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **columns)
    # A column an entry: the names of the entries are longer than their values.
    rows = values["history"]
    values["history"] = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    write_json(path, values)


def _compact(column: NDArray[Any]) -> NDArray[Any]:
    """Return equal values as the smallest integers that hold them, if all are whole."""
    limits = np.iinfo(np.int32)
    if not np.all((limits.min <= column) & (column <= limits.max) & (column == np.rint(column))):
        return column
    ends = [np.min_scalar_type(int(end)) for end in (column.min(), column.max())]
    return column.astype(np.result_type(*ends))


def read_record(path: Path) -> Record:
    """Return the record in a file, and the samples beside it."""
    try:
        with np.load(samples_path(path)) as columns:
            samples = {name: column.tolist() for name, column in columns.items()}
        values = json.loads(path.read_text())
        history = values.pop("history")
        rows = [dict(zip(history, row, strict=True)) for row in zip(*history.values(), strict=True)]
        return Record(**values, history=rows, samples=samples)
    except (AttributeError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"Expected a record in {path}, but could not read one: {error}") from None


def read_records(root: Path, dataset: str) -> dict[str, list[Record]]:
    """Return the records of a data set by method, each list sorted by seed."""
    found: dict[str, list[Record]] = {}
    for path in sorted((root / dataset).glob("*/seed-*.json")):
        record = read_record(path)
        found.setdefault(record.method, []).append(record)
    _check_comparable([record for runs in found.values() for record in runs], root / dataset)
    return {method: sorted(runs, key=lambda run: run.seed) for method, runs in found.items()}


def _check_comparable(records: list[Record], folder: Path) -> None:
    """Raise if the runs do not share data, precision and batches, and a method's its schedule."""
    shared = {
        "data": [record.provenance.get("data_sha256") for record in records],
        "precision": [record.provenance.get("precision") for record in records],
        "batch_size": [record.recipe.get("batch_size") for record in records],
        "normalized": [record.recipe.get("normalized") for record in records],
        "label_noise": [record.recipe.get("label_noise") for record in records],
    }
    for method in {record.method for record in records}:
        for entry in ("epochs", "lr", "weight_decay", "exponent"):
            shared[f"{entry} of {method}"] = [
                record.recipe.get(entry) for record in records if record.method == method
            ]
    for name, values in shared.items():
        if len(set(values)) > 1:
            raise ValueError(
                f"Expected the records in {folder} to share their {name}, but got "
                f"{sorted(set(map(str, values)))}."
            )


def _to_json(value: Any) -> str:
    """Return JSON with one line per entry, but each list of numbers on a single line."""
    return "".join(_lines(value, ""))


def _lines(value: Any, indent: str) -> Iterator[str]:
    deeper = indent + " "
    if isinstance(value, dict) and value:
        entries = [
            f"{deeper}{json.dumps(key)}: {''.join(_lines(v, deeper))}" for key, v in value.items()
        ]
        yield "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield (
            "[\n"
            + ",\n".join(deeper + json.dumps(entry, allow_nan=False) for entry in value)
            + f"\n{indent}]"
        )
    else:
        yield json.dumps(value, allow_nan=False)
