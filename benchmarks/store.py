"""Records on disk: one JSON file per run, written whole or not at all."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.protocol import Record

COMMITTED = Path(__file__).parent / "records"


def record_path(root: Path, dataset: str, method: str, seed: int) -> Path:
    """Return where the record of an experiment lies below ``root``."""
    return root / dataset / method / f"seed-{seed}.json"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON: first beside the file, then in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(_to_json(value) + "\n")
    draft.replace(path)


def read_record(path: Path) -> Record:
    """Return the record in a file."""
    try:
        return Record(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected a record in {path}, but could not read one: {error}") from None


def read_records(root: Path, dataset: str) -> dict[str, list[Record]]:
    """Return the records of a data set by method, each list sorted by seed."""
    found: dict[str, list[Record]] = {}
    for path in sorted((root / dataset).glob("*/seed-*.json")):
        record = read_record(path)
        found.setdefault(record.method, []).append(record)
    return {method: sorted(runs, key=lambda run: run.seed) for method, runs in found.items()}


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
