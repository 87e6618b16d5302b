"""Find data sets and methods by their file names."""

import ast
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

# To name what there is should not take as long as to import torch.
if TYPE_CHECKING:
    from benchmarks.experiment.dataset import Dataset
    from benchmarks.experiment.method import Method

_ROOT = Path(__file__).parents[1]


def dataset_names() -> list[str]:
    """Return the names of all data sets."""
    return _names("datasets")


def method_names() -> list[str]:
    """Return the names of all methods."""
    return _names("methods")


def get_dataset(name: str) -> "Dataset":
    """Return the data set of the file ``datasets/<name>.py``."""
    dataset: Dataset = _module("datasets", name).DATASET
    return dataset


def get_method(name: str) -> "Method":
    """Return the method of the file ``methods/<name>.py``."""
    method: Method = _module("methods", name).METHOD
    return method


def first_line(folder: str, name: str) -> str:
    """Return what a file says of itself first, which is not run."""
    text = (_ROOT / folder / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def _names(folder: str) -> list[str]:
    """Return the modules of a folder; helpers start with an underscore."""
    modules = pkgutil.iter_modules([str(_ROOT / folder)])
    return sorted(module.name for module in modules if not module.name.startswith("_"))


@cache
def _module(folder: str, name: str) -> ModuleType:
    if name not in _names(folder):
        raise ValueError(f"Expected one of the {folder} {_names(folder)}, but got {name!r}.")
    return importlib.import_module(f"benchmarks.{folder}.{name}")
