"""Find data sets and methods by their file names."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from benchmarks.experiment.dataset import Dataset
from benchmarks.experiment.method import Method


def dataset_names() -> list[str]:
    """Return the names of all data sets."""
    return _names("datasets")


def method_names() -> list[str]:
    """Return the names of all methods."""
    return _names("methods")


def get_dataset(name: str) -> Dataset:
    """Return the data set of the file ``datasets/<name>.py``."""
    dataset: Dataset = _module("datasets", name).DATASET
    return dataset


def get_method(name: str) -> Method:
    """Return the method of the file ``methods/<name>.py``."""
    method: Method = _module("methods", name).METHOD
    return method


def _names(folder: str) -> list[str]:
    """Return the modules of a folder; helpers start with an underscore."""
    modules = pkgutil.iter_modules([str(Path(__file__).parents[1] / folder)])
    return sorted(module.name for module in modules if not module.name.startswith("_"))


@cache
def _module(folder: str, name: str) -> ModuleType:
    if name not in _names(folder):
        raise ValueError(f"Expected one of the {folder} {_names(folder)}, but got {name!r}.")
    return importlib.import_module(f"benchmarks.{folder}.{name}")
