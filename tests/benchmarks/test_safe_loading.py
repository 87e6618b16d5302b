"""Loading a record or a checkpoint runs no code from it."""

import ast
import pickle
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.experiment.plan import plan
from benchmarks.experiment.record import read_record
from benchmarks.experiment.registry import get_dataset
from benchmarks.training.trainer import train

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("src/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]


@cache
def found_in_sources() -> list[tuple[str, ast.AST]]:
    """Return where each import and call of the sources is, and its node."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call))
    ]


def brought_in(node: ast.AST) -> list[str]:
    """Return the imports, the calls and the options that a node is made of, as text."""
    if isinstance(node, ast.Import):
        return [f"import {alias.name}" for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"from {node.module} import {alias.name}" for alias in node.names]
    if isinstance(node, ast.Call):
        return [f"{ast.unparse(node.func)}()", *(f"{option.arg}=" for option in node.keywords)]
    return []


RUNS_CODE = re.compile(
    r"(import|from) (pickle|dill|cloudpickle|joblib|marshal|shelve)\b.*|from torch import load"
    r"|(eval|exec|torch\.jit\.load|.*\.load_from_checkpoint)\(\)|allow_pickle="
)


def test_nothing_that_runs_what_it_loads_is_used() -> None:
    used = [(place, text) for place, node in found_in_sources() for text in brought_in(node)]
    assert {"import torch", "torch.load()"} <= {text for _, text in used}
    assert [(place, text) for place, text in used if RUNS_CODE.fullmatch(text)] == []


def test_every_checkpoint_is_loaded_with_weights_only() -> None:
    """By torch, and by Lightning from a ``ckpt_path``."""
    loads = {}
    for place, node in found_in_sources():
        if {"torch.load()", "ckpt_path="} & {*brought_in(node)}:
            assert isinstance(node, ast.Call)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            loads[place] = options.get("weights_only")
    assert len(loads) >= 3
    assert [place for place, weights_only in loads.items() if weights_only != "True"] == []


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


def test_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "write",
    [pickle.dump, partial(pickle.dump, protocol=0), torch.save],
    ids=["pickle", "pickle as text", "torch.save"],
)
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_record_that_is_a_pickle_is_refused_and_not_run(
    write: Callable[..., None], suffix: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "seed-0.npz")
    (tmp_path / "seed-0.json").write_text("{}")
    with (tmp_path / f"seed-0{suffix}").open("wb") as file:
        write(Trap(tmp_path / "ran"), file)
    with pytest.raises(ValueError, match="Expected a record in"):
        read_record(tmp_path / "seed-0.json")
    assert not (tmp_path / "ran").exists()


def test_run_refuses_to_go_on_from_a_checkpoint_with_code_in_it(tmp_path: Path) -> None:
    digits = get_dataset("rotated_digits")
    digits.write_miniature(tmp_path / "digits")
    (tmp_path / "run" / "stage-0").mkdir(parents=True)
    checkpoint = {"epoch": 0, "state_dict": Trap(tmp_path / "ran")}
    torch.save(checkpoint, tmp_path / "run" / "stage-0" / "last_epoch.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train(
            plan("rotated_digits", "bsam"),
            digits.load(tmp_path / "digits"),
            0,
            folder=tmp_path / "run",
        )
    assert not (tmp_path / "ran").exists()
