"""Pictures of what there is in each bin of a grid of two targets."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.experiment.dataset import Dataset
from benchmarks.experiment.registry import get_method
from benchmarks.results.results import Results


def label_distribution(dataset: Dataset, counts: Tensor) -> Figure:
    """Return a picture of the training samples per bin, dots in the few-shot ones."""
    figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    values = counts.double().numpy()
    values[values == 0] = np.nan
    mesh = _draw(axes, dataset, values, LogNorm(1, values.max()))
    figure.colorbar(mesh, ax=axes, label="Training samples per bin")
    axes.set_title(dataset.title, fontsize=11)
    _label(figure, dataset)
    return figure


def error_by_target(results: Results, methods: list[str]) -> Figure:
    """Return a picture of the test error of each method in each bin, dots in the few-shot ones."""
    dataset, metric = results.dataset, results.dataset.metrics[0]
    errors = {
        method: np.array(
            [run.results[results.selection]["by_bin"][metric] for run in results.records[method]],
            dtype=float,
        ).mean(axis=0)
        for method in methods
    }
    norm = Normalize(0, max(np.nanmax(values) for values in errors.values()))
    figure, panels = plt.subplots(
        1, len(methods), figsize=(3.2 * len(methods), 3.6), squeeze=False, layout="constrained"
    )
    for axes, (method, values) in zip(panels[0], errors.items(), strict=True):
        _draw(axes, dataset, values.reshape(dataset.bins.shape), norm)
        seeds = len(results.records[method])
        axes.set_title(f"{get_method(method).title} ({seeds} seeds)", fontsize=10)
    label = f"Test {metric}, {dataset.unit}"
    figure.colorbar(ScalarMappable(norm), ax=panels[0], label=label)
    _label(figure, dataset)
    return figure


def _draw(axes: Axes, dataset: Dataset, values: NDArray[np.float64], norm: Normalize) -> QuadMesh:
    """Draw the values in the bins, the first target to the right."""
    first, second = (bins.edges.numpy() for bins in dataset.bins.axes)
    rows, columns = dataset.regions.bin_mask("few").nonzero().numpy().T
    axes.plot(
        (first[1:] + first[:-1])[rows] / 2,
        (second[1:] + second[:-1])[columns] / 2,
        "o",
        markersize=2.5,
        markerfacecolor="white",
        markeredgecolor="black",
        markeredgewidth=0.4,
    )
    return axes.pcolormesh(first, second, values.T, norm=norm)


def _label(figure: Figure, dataset: Dataset) -> None:
    """Name the two targets."""
    first, second = dataset.target.split(", and ")
    figure.supxlabel(first, fontsize=9)
    figure.supylabel(second, fontsize=9)
