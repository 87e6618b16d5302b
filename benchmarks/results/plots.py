"""Pictures made of records and of label histograms."""

import json
from itertools import groupby
from pathlib import Path

import matplotlib
import numpy as np
from torch import Tensor

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from balanced_sam import TargetGrid
from benchmarks.experiment.dataset import Dataset
from benchmarks.experiment.record import COMMITTED
from benchmarks.experiment.registry import get_dataset, get_method
from benchmarks.results import families, heat_maps
from benchmarks.results.labels import train_counts
from benchmarks.results.results import Results

Array = NDArray[np.float64]
WINDOW = 5
ACROSS = 3
"""Panels in a row, which a page shows large enough to read."""
METHODS = ("vanilla", "sqinv", "sam", "bsam")
COMPARED = (families.BASIS, "bsam_weighted")
"""Families that are compared on every data set."""
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLORS = {
    "vanilla": "#555555",
    "sqinv": "#E69F00",
    "sam": "#56B4E9",
    "bsam": "#D55E00",
    "bsam_quarter": "#009E73",
    "weighted": "#E69F00",
    "averaged": "#56B4E9",
    "bsam_weighted": "#D55E00",
}
OTHER_COLORS = ("#F0E442", "#000000", "#8B5A2B", "#7B68EE", "#2F4F4F")
SHADES = {"many": "#ffffff", "medium": "#ececec", "few": "#d4d4d4"}


def error_by_target(results: Results, *, methods: tuple[str, ...] = METHODS) -> Figure:
    """Return a picture of the test error of each method against the target, the regions shaded.

    Args:
        results: The runs.
        methods: Which methods, as far as they have records.
    """
    dataset = results.dataset
    drawn = [method for method in methods if method in results.records]
    if not drawn:
        place = results.root / results.name
        raise ValueError(f"Expected records of one of {list(methods)} in {place}.")
    if isinstance(dataset.bins, TargetGrid):
        return heat_maps.error_by_target(results, drawn)
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 5), sharex=True, height_ratios=[1, 3], layout="constrained"
    )
    _histogram(top, dataset, train_counts(dataset, None))
    _shade(bottom, dataset)
    metric = dataset.metrics[0]
    spare = iter(OTHER_COLORS * 3)
    for method in drawn:
        runs = [run.results[results.selection]["by_bin"][metric] for run in results.records[method]]
        centers, errors = _over_bins(dataset, runs)
        label = f"{get_method(method).title} ({len(runs)} seeds)"
        color = COLORS.get(method) or next(spare)
        bottom.plot(centers, errors, label=label, color=color, linewidth=1.8)
    bottom.set_xlabel(dataset.target)
    bottom.set_ylabel(f"Test {metric}, {dataset.unit}\n(mean over {WINDOW} bins)")
    bottom.set_xlim(centers[0], centers[-1])
    bottom.set_ylim(bottom=0)
    _legend(bottom)
    return figure


def label_distribution(name: str, counts: Tensor) -> Figure:
    """Return a picture of the training targets per bin, regions shaded (Figures S1 to S3)."""
    dataset = get_dataset(name)
    if isinstance(dataset.bins, TargetGrid):
        return heat_maps.label_distribution(dataset, counts)
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    _histogram(axes, dataset, counts)
    axes.set_ylabel("Training targets per bin")
    axes.set_xlabel(dataset.target)
    axes.set_title(dataset.title, fontsize=11)
    _legend(axes, place="upper right")
    return figure


def trade(*names: str, methods: tuple[str, ...] = COMPARED) -> Figure:
    """Return pictures of the error on all targets and on few-shot ones, a curve a family.

    Args:
        names: Of the data sets, a panel each.
        methods: The families. Each point of two has its exponent beside it, of more those of
            weights alone.
    """
    figure = _panels(len(names))
    for axes, name in zip(figure.axes, names, strict=True):
        dataset = get_dataset(name)
        for method in methods:
            points = families.curve(name, method)
            if not points:
                continue
            errors = [(point.mean("all"), point.mean("few")) for point in points]
            axes.plot(
                *zip(*errors, strict=True),
                marker="o",
                markersize=4,
                color=COLORS[method],
                label=families.FAMILIES[method],
            )
            if len(methods) > 2 and method != families.BASIS:
                continue
            # To either side of the curves, which may rise or fall.
            (first_all, first_few), (last_all, last_few) = errors[0], errors[-1]
            rises = (last_all - first_all) * (last_few - first_few) > 0
            is_below = method == families.BASIS
            for point, error in zip(points, errors, strict=True):
                axes.annotate(
                    f"{point.exponent:g}",
                    error,
                    xytext=(4 if is_below == rises else -4, -9 if is_below else 3),
                    textcoords="offset points",
                    ha="left" if is_below == rises else "right",
                    fontsize=7,
                    color=COLORS[method],
                )
        axes.margins(0.13)
        axes.set_title(dataset.title, fontsize=10)
        axes.set_xlabel(f"All targets, {dataset.metrics[0]} ({dataset.unit})")
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(f"Few-shot targets, {dataset.metrics[0]}")
    _common_legend(figure)
    return figure


def error_and_epochs(*names: str) -> Figure:
    """Return pictures of the balanced validation error at the end of training against the epochs.

    For each number of epochs the best setting of weights alone, and of BSAM, with the exponent 1/2.

    Args:
        names: Of the data sets, a panel each.
    """
    figure = _panels(len(names))
    for axes, name in zip(figure.axes, names, strict=True):
        dataset = get_dataset(name)
        choices = json.loads((COMMITTED / name / "tuning.json").read_text())
        ticks = set()
        for method in COMPARED:
            settings = families.settings_by_epochs(choices[method])
            ticks |= settings.keys()
            axes.plot(
                list(settings),
                [families.balanced_error(setting) for setting in settings.values()],
                marker="o",
                markersize=4,
                color=COLORS[method],
                label=families.FAMILIES[method],
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        axes.minorticks_off()
        axes.set_title(dataset.title, fontsize=10)
        axes.set_xlabel("Epochs")
        axes.set_ylabel(f"Validation {families.balanced_metric(name)} ({dataset.unit})")
    _common_legend(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture to a file and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def _panels(count: int) -> Figure:
    """Return a figure of so many panels, in rows of three at most."""
    columns = min(count, ACROSS)
    rows = -(-count // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.3 * rows), squeeze=False, layout="constrained"
    )
    for surplus in panels.flat[count:]:
        surplus.remove()
    return figure


def _common_legend(figure: Figure) -> None:
    """Add a legend of what stands in any panel, below all."""
    lines = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4)


def _histogram(axes: Axes, dataset: Dataset, counts: Tensor) -> None:
    """Draw the counts per bin."""
    _shade(axes, dataset)
    edges = dataset.bins.edges.numpy()
    axes.stairs(counts.numpy(), edges, fill=True, color="#0072B2")
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    occupied = np.flatnonzero(counts.numpy())
    axes.set_xlim(edges[occupied[0]], edges[occupied[-1] + 1])
    axes.set_ylabel("Training\ntargets", fontsize=9)


def _over_bins(dataset: Dataset, runs: list[list[float | None]]) -> tuple[Array, Array]:
    """Return the centres of the bins that some run tested, and the mean error, smoothed."""
    edges = dataset.bins.edges.double().numpy()
    errors = np.array(runs, dtype=float)
    # Not every fold has a sample in every bin.
    occupied = ~np.isnan(errors).all(axis=0)
    centers = (edges[:-1] + edges[1:])[occupied] / 2
    return centers, _smooth(np.nanmean(errors[:, occupied], axis=0))


def _shade(axes: Axes, dataset: Dataset) -> None:
    """Colour the background by region."""
    edges, start = dataset.bins.edges.tolist(), 0
    for label, bins in groupby(dataset.regions.labels):
        end = start + len(list(bins))
        axes.axvspan(edges[start], edges[end], color=SHADES[label], linewidth=0)
        start = end


def _legend(axes: Axes, *, place: str = "best") -> None:
    """Add a legend of the lines, if any, and of the regions."""
    handles, labels = axes.get_legend_handles_labels()
    patches = [
        plt.Rectangle((0, 0), 1, 1, facecolor=c, edgecolor="#999999") for c in SHADES.values()
    ]
    names = [f"{region.capitalize()}-shot" for region in SHADES]
    axes.legend(handles + patches, labels + names, ncols=2 if handles else 1, fontsize=8, loc=place)


def _smooth(values: Array) -> Array:
    """Return the mean over a window, narrower at the ends."""
    ones = np.ones(WINDOW)
    sums: Array = np.convolve(values, ones, "same")
    return sums / np.convolve(np.ones(len(values)), ones, "same")
