"""Pictures made of records."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.protocol import Dataset
from benchmarks.registry import get_dataset, get_method
from benchmarks.store import read_records

WINDOW = 5
METHODS = ("vanilla", "sqinv", "sam", "bsam")
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLORS = {"vanilla": "#555555", "sqinv": "#E69F00", "sam": "#56B4E9", "bsam": "#D55E00"}
SHADES = {"many": "#ffffff", "medium": "#ececec", "few": "#d4d4d4"}


def error_by_target(root: Path, name: str, selection: str, path: Path) -> None:
    """Draw the test error of each method against the target, the regions shaded.

    Args:
        root: Folder of the records.
        name: The data set.
        selection: ``"best_validation"`` or ``"last_epoch"``.
        path: Where the picture goes.
    """
    dataset, records = get_dataset(name), read_records(root, name)
    methods = [method for method in METHODS if method in records]
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 5), sharex=True, height_ratios=[1, 3], layout="constrained"
    )
    edges = dataset.bins.edges.numpy()
    for axes in (top, bottom):
        _shade(axes, dataset)
    train_targets = dataset.load(None).train.tensors[1]
    top.stairs(dataset.bins.counts(train_targets).numpy(), edges, fill=True, color="#0072B2")
    top.set_ylabel("Training\nsamples", fontsize=9)
    for method in methods:
        runs = [run.results[selection]["mae_per_bin"] for run in records[method]]
        errors = np.array(runs, dtype=float)
        occupied = ~np.isnan(errors).any(axis=0)
        centers = (edges[:-1] + edges[1:])[occupied] / 2
        mean = _smooth(errors[:, occupied].mean(axis=0))
        label = f"{get_method(method).title} ({len(runs)} seeds)"
        bottom.plot(centers, mean, label=label, color=COLORS[method], linewidth=1.8)
    bottom.set_xlabel(dataset.target)
    bottom.set_ylabel(f"Test MAE, target units\n(mean over {WINDOW} bins)")
    bottom.set_xlim(centers[0] - 0.5, centers[-1] + 0.5)
    bottom.set_ylim(bottom=0)
    handles, labels = bottom.get_legend_handles_labels()
    patches = [
        plt.Rectangle((0, 0), 1, 1, facecolor=c, edgecolor="#999999") for c in SHADES.values()
    ]
    names = [f"{region.capitalize()}-shot" for region in SHADES]
    bottom.legend(handles + patches, labels + names, ncols=2, fontsize=8, loc="upper center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def _shade(axes: Axes, dataset: Dataset) -> None:
    """Colour the background by region."""
    edges = dataset.bins.edges.tolist()
    for left, right, label in zip(edges, edges[1:], dataset.regions.labels, strict=False):
        axes.axvspan(left, right, color=SHADES[label], linewidth=0)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the mean over a window, narrower at the ends."""
    ones = np.ones(WINDOW)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")
