"""Find data sets and methods by their file names."""

import importlib
import pkgutil
from types import ModuleType

from benchmarks import datasets, methods
from benchmarks.protocol import Dataset, Method


def dataset_names() -> list[str]:
    """Return the names of all data sets."""
    return _names(datasets)


def method_names() -> list[str]:
    """Return the names of all methods."""
    return _names(methods)


def get_dataset(name: str) -> Dataset:
    """Return the data set of the file ``datasets/<name>.py``."""
    dataset: Dataset = _module(datasets, name).DATASET
    return dataset


def get_method(name: str) -> Method:
    """Return the method of the file ``methods/<name>.py``."""
    method: Method = _module(methods, name).METHOD
    return method


def _names(package: ModuleType) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def _module(package: ModuleType, name: str) -> ModuleType:
    if name not in _names(package):
        kind = package.__name__.rpartition(".")[2]
        raise ValueError(f"Expected one of the {kind} {_names(package)}, but got {name!r}.")
    return importlib.import_module(f"{package.__name__}.{name}")
